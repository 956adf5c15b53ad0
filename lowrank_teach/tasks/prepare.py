"""From the columns of a published file to the columns a task reads: texts put together, references spread out.

The prompts of the SuperGLUE tasks are those of the setting that COLA follows (Malladi et al. 2023, MeZO): one text
and the words Yes, No, Maybe, scored by the language model itself. Every cell that is put into a text is looked at
first: an f-string would write a missing one as "nan".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.rows import REPAIR, cells, is_code, is_list, is_text_list, strings

PAPER_TRAIN, PAPER_VALIDATION, PAPER_TEST, SMALL_VALIDATION = 1000, 500, 1000, 100


# ---- SuperGLUE ------------------------------------------------------------------------------------------


def wsc(frame: pd.DataFrame) -> pd.DataFrame:
    """The text, and the question whether its pronoun (span 2) means span 1."""
    texts, names, pronouns = strings(frame, "text", "span1_text", "span2_text")
    asks = [f"In the previous sentence, does the pronoun \"{pronoun}\" refer to {name}?"
            for name, pronoun in zip(names, pronouns, strict=True)]
    return frame.assign(question=asks, prompt=[f"{text}\n{ask} Yes or No?\n"
                                               for text, ask in zip(texts, asks, strict=True)])


def cb(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(prompt=[f"Suppose {p} Can we infer that \"{h}\"? Yes, No, or Maybe?\n"
                                for p, h in zip(*strings(frame, "premise", "hypothesis"), strict=True)])


def rte(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(prompt=[f"{a}\nDoes this mean that \"{b}\" is true? Yes or No?\n"
                                for a, b in zip(*strings(frame, "sentence1", "sentence2"), strict=True)])


def sst2(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(prompt=[f"{text.strip()} It was " for text in strings(frame, "sentence")[0]])


def wic(frame: pd.DataFrame) -> pd.DataFrame:
    """Encoders read the word before its two sentences."""
    words, ones, others = strings(frame, "word", "sentence1", "sentence2")
    first = [f"{word}: {text}" for word, text in zip(words, ones, strict=True)]
    asks = [f"Does the word \"{word}\" have the same meaning in these two sentences? Yes, No?\n{a}\n{b}\n"
            for word, a, b in zip(words, ones, others, strict=True)]
    return frame.assign(first=first, prompt=asks)


def boolq(frame: pd.DataFrame) -> pd.DataFrame:
    questions, passages = strings(frame, "question", "passage")
    asks = [question[:1].upper() + question[1:].rstrip("?") + "?" for question in questions]
    return frame.assign(prompt=[f"{passage} {ask} " for passage, ask in zip(passages, asks, strict=True)])


def multirc(frame: pd.DataFrame) -> pd.DataFrame:
    """One row an answer; `of` numbers its question, whose answers are right or wrong together for the exact match."""
    numbers = cells(frame, "idx", _is_of_question, f"it must number the answer's paragraph and question; {REPAIR}")
    of = [f"{idx['paragraph']}.{idx['question']}" for idx in numbers]
    paragraphs, questions, answers = strings(frame, "paragraph", "question", "answer")
    pairs = [f"{question} {answer}" for question, answer in zip(questions, answers, strict=True)]
    asks = [f"{text}\nQuestion: {question}\nI found this answer \"{answer}\". Is that correct? Yes or No?\n"
            for text, question, answer in zip(paragraphs, questions, answers, strict=True)]
    return frame.assign(of=of, pair=pairs, prompt=asks)


def _is_of_question(idx: Any) -> bool:
    return isinstance(idx, dict) and all(is_code(idx.get(name), 2**31) for name in ("paragraph", "question"))


def paper_subset(splits: corpora.Splits, seed: int) -> corpora.Splits:
    """1,000 rows to train on, 500 to validate, 1,000 to test, by seed; smaller sets are used whole.

    The published validation rows are the test rows, since the published test has no labels. Validation is cut from
    the training rows: 500, or 100 where fewer than 1,500 are there.
    """
    draw = np.random.default_rng(seed)
    pool, test = (splits[name].iloc[draw.permutation(len(splits[name]))] for name in ("train", "validation"))
    enough = len(pool) >= PAPER_TRAIN + PAPER_VALIDATION
    validation = PAPER_VALIDATION if enough else SMALL_VALIDATION
    return {"train": pool.iloc[validation:validation + PAPER_TRAIN], "validation": pool.iloc[:validation],
            "test": test.iloc[:PAPER_TEST]}


def validation_cut_from_train(splits: corpora.Splits, text: tuple[str, ...]) -> corpora.Splits:
    """About a tenth of the training rows validate, by a hash of their first text; validation rows become the test.

    Rows that share their first text stay together, so that no validation row was trained on.
    """
    if "train" not in splits:   # it trains on another task's rows
        return {"test": splits["validation"]}
    train = splits["train"]
    part = pd.Series([corpora.stable_hash("validation", key) % 10 for key in train[text[0]]], index=train.index)
    return {"train": train[part > 0].reset_index(drop=True),
            "validation": train[part == 0].reset_index(drop=True), "test": splits["validation"]}


# ---- kinds of question ----------------------------------------------------------------------------------


def trec(column: str, names: tuple[str, ...]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A rule for the hub's copy, which has two columns of labels; names: the classes in the order of its codes."""

    def rename(frame: pd.DataFrame) -> pd.DataFrame:
        if column not in frame:
            return frame
        codes = cells(frame, column, lambda code: is_code(code, len(names)),
                      f"labels must be 0 to {len(names) - 1}; {REPAIR}")
        own = corpora.TREC_COARSE if len(names) == len(corpora.TREC_COARSE) else corpora.TREC_FINE
        return frame.assign(label=[own.index(names[int(code)]) for code in codes])

    return rename


# ---- text from data -------------------------------------------------------------------------------------


def e2e(frame: pd.DataFrame) -> pd.DataFrame:
    """name[Blue Spice], area[riverside] -> name : Blue Spice | area : riverside, as the LoRA authors write it."""
    meanings, texts = strings(frame, "meaning_representation", "human_reference")
    fields = [" | ".join(part.rstrip("] ").replace("[", " : ", 1).strip() for part in mr.split("],"))
              for mr in meanings]
    return frame.assign(source=fields, human_reference=[text.strip() for text in texts])


WEBNLG_SEEN = ("Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam",
               "University", "WrittenWork")


def webnlg(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a text; the texts of one entry are references of the same triples."""
    if "lex" in frame:
        frame = _webnlg_of_hub(frame)
    categories, ids, parts = strings(frame, "category", "eid", "eval_category")
    sizes = cells(frame, "size", lambda size: is_code(size, 1000), f"it must be a whole number; {REPAIR}")
    sets = cells(frame, "triples", is_text_list, f"it must be a list of triples; {REPAIR}")
    cells(frame, "lexicalizations", lambda texts: is_text_list(texts, 0), f"it must be a list of texts; {REPAIR}")
    entries = [f"{category}.{eid}.{int(size)}" for category, eid, size in zip(categories, ids, sizes, strict=True)]
    source = [" | ".join(triple.replace(" | ", " : ") for triple in triples) for triples in sets]
    wide = frame.assign(source=source, entry=entries, part=parts)
    long = wide[wide["lexicalizations"].map(len) > 0].explode("lexicalizations")
    return long.rename(columns={"lexicalizations": "target"})


def _webnlg_of_hub(frame: pd.DataFrame) -> pd.DataFrame:
    """The hub's columns are nested; its test has the entries without texts, and the unseen ones a second time."""
    texts = cells(frame, "lex", lambda lex: isinstance(lex, dict) and is_text_list(lex.get("text"), 0),
                  f"it must have a list of texts; {REPAIR}")
    sets = cells(frame, "modified_triple_sets", lambda sets: isinstance(sets, dict) and is_list(
        sets.get("mtriple_set")) and is_text_list(sets["mtriple_set"][0]), f"it must have triples; {REPAIR}")
    seen = ["seen" if category in WEBNLG_SEEN else "unseen" for category in frame["category"]]
    flat = frame.assign(lexicalizations=[list(lex["text"]) for lex in texts], eval_category=seen,
                        triples=[list(one["mtriple_set"][0]) for one in sets])
    flat = flat[flat["lexicalizations"].map(len) > 0]
    return flat[~flat.duplicated(["category", "eid", "size"])]


def alpaca(frame: pd.DataFrame) -> pd.DataFrame:
    """The published prompt: an instruction, with its input where it has one."""
    head = ("Below is an instruction that describes a task{}. Write a response that appropriately completes the "
            "request.")
    paired = ", paired with an input that provides further context"
    asks, given, answers = strings(frame, "instruction", "input", "output")
    texts = [f"{head.format(paired if more.strip() else '')}\n\n### Instruction:\n{ask}\n\n"
             + (f"### Input:\n{more}\n\n" if more.strip() else "") + "### Response:"
             for ask, more in zip(asks, given, strict=True)]
    return frame.assign(text=texts)[[answer.strip() != "" for answer in answers]]


# ---- tags -----------------------------------------------------------------------------------------------


TNER = ("O", "B-DNA", "I-DNA", "B-protein", "I-protein", "B-cell_type", "I-cell_type", "B-cell_line", "I-cell_line",
        "B-RNA", "I-RNA")


def jnlpba(frame: pd.DataFrame) -> pd.DataFrame:
    """The hub's copy (tner/bionlp2004) calls the column `tags` and numbers the names in its own order."""
    if "ner_tags" in frame:
        return frame
    rows = cells(frame, "tags", lambda row: is_list(row) and all(is_code(code, len(TNER)) for code in row),
                 f"each tag must be a whole number from 0 to {len(TNER) - 1}; {REPAIR}")
    return frame.assign(ner_tags=[[TNER[int(code)] for code in row] for row in rows])


def tags(kinds: str) -> tuple[str, ...]:
    """O, then B- and I- of each kind."""
    return ("O", *(f"{prefix}-{kind}" for kind in kinds.split() for prefix in "BI"))


# ---- splits that a file lacks ---------------------------------------------------------------------------


def hold_out(column: str) -> Callable[[corpora.Splits, int], corpora.Splits]:
    """A rule that cuts validation (and test, where there is none) out of train, by a hash of one column."""

    def cut(splits: corpora.Splits, seed: int) -> corpora.Splits:
        if "validation" in splits:
            return splits
        return corpora.split_by(splits["train"], splits["train"][column], column)

    return cut


def train_from_test(column: str) -> Callable[[corpora.Splits, int], corpora.Splits]:
    """A rule for copies without a train file: 70 % of the test rows train, the rest test; by a hash of one column."""

    def cut(splits: corpora.Splits, seed: int) -> corpora.Splits:
        if "train" in splits:
            return splits
        parts = corpora.split_by(splits["test"], splits["test"][column], column)
        return {"train": parts["train"], "validation": splits["validation"],
                "test": pd.concat([parts["validation"], parts["test"]], ignore_index=True)}

    return cut
