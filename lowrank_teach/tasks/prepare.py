"""From the columns of a published file to the columns a task reads: texts put together, references spread out.

The prompts of the SuperGLUE tasks are those of the setting that COLA follows (Malladi et al. 2023, MeZO): one text
and the words Yes, No, Maybe, scored by the language model itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from lowrank_teach import corpora

PAPER_TRAIN, PAPER_VALIDATION, PAPER_TEST, SMALL_VALIDATION = 1000, 500, 1000, 100


# ---- SuperGLUE ------------------------------------------------------------------------------------------


def wsc(frame: pd.DataFrame) -> pd.DataFrame:
    """The text, and the question whether its pronoun (span 2) means span 1."""
    asks = [f"In the previous sentence, does the pronoun \"{pronoun}\" refer to {name}?"
            for name, pronoun in zip(frame["span1_text"], frame["span2_text"], strict=True)]  # fmt: skip
    return frame.assign(question=asks, prompt=[f"{text}\n{ask} Yes or No?\n" for text, ask in
                                               zip(frame["text"], asks, strict=True)])


def cb(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(prompt=[f"Suppose {p} Can we infer that \"{h}\"? Yes, No, or Maybe?\n"
                                for p, h in zip(frame["premise"], frame["hypothesis"], strict=True)])


def rte(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(prompt=[f"{a}\nDoes this mean that \"{b}\" is true? Yes or No?\n"
                                for a, b in zip(frame["sentence1"], frame["sentence2"], strict=True)])


def sst2(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(prompt=[f"{text.strip()} It was " for text in frame["sentence"]])


def wic(frame: pd.DataFrame) -> pd.DataFrame:
    """Encoders read the word before its two sentences."""
    first = [f"{word}: {text}" for word, text in zip(frame["word"], frame["sentence1"], strict=True)]
    asks = [f"Does the word \"{word}\" have the same meaning in these two sentences? Yes, No?\n{a}\n{b}\n"
            for word, a, b in zip(frame["word"], frame["sentence1"], frame["sentence2"], strict=True)]  # fmt: skip
    return frame.assign(first=first, prompt=asks)


def boolq(frame: pd.DataFrame) -> pd.DataFrame:
    asks = [question[:1].upper() + question[1:].rstrip("?") + "?" for question in frame["question"]]
    return frame.assign(prompt=[f"{passage} {ask} " for passage, ask in zip(frame["passage"], asks, strict=True)])


def multirc(frame: pd.DataFrame) -> pd.DataFrame:
    """One row an answer; `of` numbers its question, whose answers are right or wrong together for the exact match."""
    of = [f"{idx['paragraph']}.{idx['question']}" for idx in frame["idx"]]
    pairs = [f"{question} {answer}" for question, answer in zip(frame["question"], frame["answer"], strict=True)]
    asks = [f"{text}\nQuestion: {question}\nI found this answer \"{answer}\". Is that correct? Yes or No?\n"
            for text, question, answer in zip(frame["paragraph"], frame["question"], frame["answer"], strict=True)]
    return frame.assign(of=of, pair=pairs, prompt=asks)


def paper_subset(splits: corpora.Splits, seed: int) -> corpora.Splits:
    """1,000 rows to train on, 500 to validate, 1,000 to test, by seed; smaller sets are used whole.

    The published validation rows are the test rows, since the published test has no labels. Validation is cut from
    the training rows: 500, or 100 where fewer than 1,500 are there.
    """
    if "train" not in splits or "validation" not in splits:
        raise ValueError(f"train and validation rows are needed; there are {', '.join(splits)}")
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


# ---- text from data -------------------------------------------------------------------------------------


def e2e(frame: pd.DataFrame) -> pd.DataFrame:
    """name[Blue Spice], area[riverside] -> name : Blue Spice | area : riverside, as the LoRA authors write it."""
    fields = frame["meaning_representation"].map(
        lambda mr: " | ".join(part.rstrip("] ").replace("[", " : ", 1).strip() for part in mr.split("],")))
    return frame.assign(source=fields, human_reference=frame["human_reference"].str.strip())


WEBNLG_SEEN = ("Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam",
               "University", "WrittenWork")


def webnlg(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a text; the texts of one entry are references of the same triples."""
    if "lex" in frame:
        frame = _webnlg_of_hub(frame)
    entry = frame["category"] + "." + frame["eid"] + "." + frame["size"].astype(str)
    source = [" | ".join(triple.replace(" | ", " : ") for triple in triples) for triples in frame["triples"]]
    wide = frame.assign(source=source, entry=entry, part=frame["eval_category"])
    long = wide.explode("lexicalizations", ignore_index=True).dropna(subset=["lexicalizations"])
    return long.rename(columns={"lexicalizations": "target"}).reset_index(drop=True)


def _webnlg_of_hub(frame: pd.DataFrame) -> pd.DataFrame:
    """The hub's columns are nested; its test has the entries without texts, and the unseen ones a second time."""
    texts = [list(lex["text"]) for lex in frame["lex"]]
    triples = [list(sets["mtriple_set"][0]) for sets in frame["modified_triple_sets"]]
    seen = ["seen" if category in WEBNLG_SEEN else "unseen" for category in frame["category"]]
    flat = frame.assign(lexicalizations=texts, triples=triples, eval_category=seen)
    flat = flat[flat["lexicalizations"].map(len) > 0]
    return flat[~flat.duplicated(["category", "eid", "size"])]


def alpaca(frame: pd.DataFrame) -> pd.DataFrame:
    """The published prompt: an instruction, with its input where it has one."""
    with_input = frame["input"].str.strip() != ""
    head = ("Below is an instruction that describes a task{}. Write a response that appropriately completes the "
            "request.")
    paired = ", paired with an input that provides further context"
    texts = [f"{head.format(paired if has else '')}\n\n### Instruction:\n{ask}\n\n"
             + (f"### Input:\n{given}\n\n" if has else "") + "### Response:"
             for ask, given, has in zip(frame["instruction"], frame["input"], with_input, strict=True)]  # fmt: skip
    kept = frame.assign(text=texts)
    return kept[kept["output"].str.strip() != ""].reset_index(drop=True)


# ---- tags -----------------------------------------------------------------------------------------------


TNER = ("O", "B-DNA", "I-DNA", "B-protein", "I-protein", "B-cell_type", "I-cell_type", "B-cell_line", "I-cell_line",
        "B-RNA", "I-RNA")


def jnlpba(frame: pd.DataFrame) -> pd.DataFrame:
    """The hub's copy (tner/bionlp2004) calls the column `tags` and numbers the names in its own order."""
    if "ner_tags" in frame:
        return frame
    return frame.assign(ner_tags=[[TNER[code] for code in row] for row in frame["tags"]])


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
