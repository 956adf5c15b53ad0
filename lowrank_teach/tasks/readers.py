"""From the columns of a published file to the columns a task reads: texts put together, references spread out.

The prompts of the SuperGLUE tasks are those of the setting that COLA follows (Malladi et al. 2023, MeZO): one text
and the words Yes, No, Maybe, scored by the language model itself. Every cell that is put into a text is looked at
first: an f-string would write a missing one as "nan".
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..models.packaged import data_folder, fetch
from .task import Splits
from .tokenize import REPAIR, cells, is_code, is_list, is_text_list, strings

# ---- packaged text -----------------------------------------------------------------------------------------
# Packaged text turned into rows: read, de-duplicated, then split, in this order, or the test set leaks.
#
# Each reader returns {"train", "validation", "test"} as data frames. A split is a fixed function of the text
# itself (a hash), about 70 / 15 / 15, so it is the same on every machine and no list of ids has to be kept.

# the order of the usual hub copy
TREC_COARSE = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
_ENTY = ("animal body color cremat currency dismed event food instru lang letter other plant product religion sport "
         "substance symbol techmeth termeq veh word")


def _fine(**kinds: str) -> tuple[str, ...]:
    return tuple(f"{coarse}:{fine}" for coarse, names in kinds.items() for fine in names.split())


TREC_FINE = _fine(
    ABBR="abb exp", DESC="def desc manner reason", ENTY=_ENTY, HUM="desc gr ind title",
    LOC="city country mount other state",
    NUM="code count date dist money ord other perc period speed temp volsize weight")
TREC_FINE_OF_HUB = _fine(   # CogComp/trec numbers the same classes otherwise
    ABBR="abb exp", ENTY=_ENTY, DESC="def desc manner reason", HUM="gr ind title desc",
    LOC="city country mount other state",
    NUM="code count date dist money ord other period perc speed temp volsize weight")
WNUT_TYPES = (
    "company", "facility", "geo-loc", "movie", "musicartist", "other", "person", "product", "sportsteam", "tvshow",
)  # fmt: skip
WNUT_TAGS = ("O", *(f"{prefix}-{kind}" for kind in WNUT_TYPES for prefix in "BI"))


def normalised(text: str) -> str:
    """Two texts that differ in case and spacing alone count as one."""
    return " ".join(text.lower().split())


def stable_hash(*parts: str) -> int:
    """A 64-bit number that depends on the text only (Python's own hash changes with every process)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:8], "big")


def split_by(frame: pd.DataFrame, keys: Iterable[str], salt: str) -> Splits:
    """Rows with the same key always fall into the same split."""
    share = pd.Series([stable_hash(salt, key) / 2**64 for key in keys], index=frame.index)
    parts = {
        "train": frame[share < 0.70],
        "validation": frame[(share >= 0.70) & (share < 0.85)],
        "test": frame[share >= 0.85],
    }
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def rotten_tomatoes() -> Splits:
    """Critic snippets (text, label, film): rotten 0, fresh 1. Plot summaries are left out; split by film."""
    frame = pd.read_csv(fetch("rotten-tomatoes"), encoding="utf-8")
    frame = frame[frame["category"] != "plot"].dropna(subset=["text"])
    frame = frame[~frame["text"].map(normalised).duplicated()]
    rows = pd.DataFrame({
        "text": frame["text"].str.strip(),
        "label": (frame["category"] == "fresh").astype(int),
        "film": frame["movie_name"],
    })
    return split_by(rows, rows["film"], "rt")


def trec(fine: bool) -> Splits:
    """Questions (text, label). The file is five nested training sets in a row, so most lines are repeats."""
    lines = fetch("trec").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ", 1) for line in lines if line.strip()]
    names = TREC_FINE if fine else TREC_COARSE
    rows = pd.DataFrame({
        "text": [question.strip() for _, question in pairs],
        "label": [names.index(tag if fine else tag.split(":")[0]) for tag, _ in pairs],
    })
    key = rows["text"].map(normalised)
    rows, key = rows[~key.duplicated()], key[~key.duplicated()]
    return split_by(rows, key, "trec")


def bbc_articles() -> Splits:
    """News articles (headline, lead, category): the first line, and the first paragraph under it."""
    rows = []
    with zipfile.ZipFile(fetch("bbc")) as wheel:
        for name in sorted(wheel.namelist()):
            if "/bbcnews/data/" in name and name.endswith(".txt"):
                raw = wheel.read(name)
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError:  # one article has a lone Latin-1 pound sign
                    text = raw.decode("latin-1")
                headline, lead = [line.strip() for line in text.splitlines() if line.strip()][:2]
                rows.append((headline, lead, name.split("/")[-2]))
    frame = pd.DataFrame(rows, columns=["headline", "lead", "category"])
    for column in ("headline", "lead"):
        frame = frame[~frame[column].map(normalised).duplicated()]
    return split_by(frame, frame["headline"].map(normalised), "bbc")


def bbc_match() -> Splits:
    """Headline and lead (headline, lead, label): 1 from the same article, 0 from two of the same category."""
    return {split: _mismatched(frame) for split, frame in bbc_articles().items()}


def _mismatched(frame: pd.DataFrame) -> pd.DataFrame:
    """Half of the articles of a category pass their leads round in a ring: each text is used once."""
    rows = frame.copy()
    rows["label"] = 1
    for _, group in frame.groupby("category"):
        order = sorted(group.index, key=lambda i: stable_hash("bbc-match", group["headline"][i]))
        ring = order[: len(order) // 2]
        if len(ring) > 1:
            rows.loc[ring, "lead"] = frame.loc[ring[1:] + ring[:1], "lead"].to_numpy()
            rows.loc[ring, "label"] = 0
    return rows


def wnut16() -> Splits:
    """Tweets (tokens, tags): one BIO tag code a token. 99 of the 2,394 sentences are repeats and go."""
    sentences: list[list[list[str]]] = [[]]
    for line in fetch("wnut16").read_text(encoding="utf-8").splitlines():
        if line.strip():
            sentences[-1].append(line.split("\t"))
        elif sentences[-1]:
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    rows = pd.DataFrame({
        "tokens": [[token for token, _ in sentence] for sentence in sentences],
        "tags": [[WNUT_TAGS.index(tag) for _, tag in sentence] for sentence in sentences],
    })
    key = rows["tokens"].map(lambda tokens: normalised(" ".join(tokens)))
    rows, key = rows[~key.duplicated()], key[~key.duplicated()]
    return split_by(rows, key, "wnut16")


# ---- published tables, brought to the columns of a task ----------------------------------------------------

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


def paper_subset(splits: Splits, seed: int) -> Splits:
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


def validation_cut_from_train(splits: Splits, text: tuple[str, ...]) -> Splits:
    """About a tenth of the training rows validate, by a hash of their first text; validation rows become the test.

    Rows that share their first text stay together, so that no validation row was trained on.
    """
    if "train" not in splits:   # it trains on another task's rows
        return {"test": splits["validation"]}
    train = splits["train"]
    part = pd.Series([stable_hash("validation", key) % 10 for key in train[text[0]]], index=train.index)
    return {"train": train[part > 0].reset_index(drop=True),
            "validation": train[part == 0].reset_index(drop=True), "test": splits["validation"]}


# ---- kinds of question ----------------------------------------------------------------------------------


def hub_trec(column: str, names: tuple[str, ...]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A rule for the hub's copy, which has two columns of labels; names: the classes in the order of its codes."""

    def rename(frame: pd.DataFrame) -> pd.DataFrame:
        if column not in frame:
            return frame
        codes = cells(frame, column, lambda code: is_code(code, len(names)),
                      f"labels must be 0 to {len(names) - 1}; {REPAIR}")
        own = TREC_COARSE if len(names) == len(TREC_COARSE) else TREC_FINE
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


def hold_out(column: str) -> Callable[[Splits, int], Splits]:
    """A rule that cuts validation (and test, where there is none) out of train, by a hash of one column."""

    def cut(splits: Splits, seed: int) -> Splits:
        if "validation" in splits:
            return splits
        return split_by(splits["train"], splits["train"][column], column)

    return cut


def train_from_test(column: str) -> Callable[[Splits, int], Splits]:
    """A rule for copies without a train file: 70 % of the test rows train, the rest test; by a hash of one column."""

    def cut(splits: Splits, seed: int) -> Splits:
        if "train" in splits:
            return splits
        parts = split_by(splits["test"], splits["test"][column], column)
        return {"train": parts["train"], "validation": splits["validation"],
                "test": pd.concat([parts["validation"], parts["test"]], ignore_index=True)}

    return cut


# ---- GYAFC, a copy of your own -----------------------------------------------------------------------------
# GYAFC, pairs of informal and formal sentences (Rao & Tetreault 2018): a copy of one's own, as it is published.
#
#     GYAFC_Corpus/Family_Relationships/train/{informal,formal}                  one sentence a line, in pairs
#     GYAFC_Corpus/Family_Relationships/{tune,test}/{informal,formal}            sentences to rewrite
#     GYAFC_Corpus/Family_Relationships/{tune,test}/{formal,informal}.ref0-3     four rewrites of each: formal.ref* of
#                                                                                the informal ones, and the reverse
#
# The corpus is licensed on request: nothing fetches it.
STYLES = ("informal", "formal")
REFERENCES = 4
FOLDER = "GYAFC_Corpus"
HOW_TO_GET = (
    "GYAFC is licensed on request and not fetched: ask Yahoo Research for its L6 answers corpus (Webscope, free for "
    "research), then the authors for GYAFC with that permission (github.com/raosudha89/GYAFC-corpus), and put "
    f"the folder {FOLDER} into LOWRANK_TEACH_DATA"
)


def sentences(domain: str) -> Splits:
    """Single sentences (text, label: 0 informal, 1 formal), for a classifier of formality.

    Raises:
        FileNotFoundError: no copy, or a file of it is missing.
    """
    parts = {"train": "train", "tune": "validation", "test": "test"}
    return {split: pd.concat([pd.DataFrame({"text": _lines(domain, part, style), "label": code})
                              for code, style in enumerate(STYLES)], ignore_index=True)
            for part, split in parts.items()}  # fmt: skip


def to_rewrite(domain: str, part: str = "test") -> pd.DataFrame:
    """Both directions: source, references (four, of the other style), wanted (code of the other style).

    Raises:
        FileNotFoundError: no copy, or a file of it is missing.  ValueError: files of different lengths.
    """
    frames = []
    for code, style in enumerate(STYLES):
        other = STYLES[1 - code]
        source = _lines(domain, part, style)
        many = [_lines(domain, part, f"{other}.ref{i}") for i in range(REFERENCES)]
        uneven = [f"{other}.ref{i} has {len(one)}" for i, one in enumerate(many) if len(one) != len(source)]
        if uneven:
            raise ValueError(f"{domain}/{part}: {style} has {len(source)} lines, but {', '.join(uneven)}; the files "
                             "belong together line by line: copy them again")
        references = [list(four) for four in zip(*many, strict=True)]
        frames.append(pd.DataFrame({"source": source, "references": references, "wanted": 1 - code}))
    return pd.concat(frames, ignore_index=True)


def _lines(domain: str, part: str, name: str) -> list[str]:
    path = _folder() / domain / part / name
    if not path.is_file():
        raise FileNotFoundError(f"no file {domain}/{part}/{name} in {_folder()}; its layout is DOMAIN/PART/STYLE as "
                                "published: copy the whole folder")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{domain}/{part}/{name} is no text in UTF-8 ({error.reason} at byte {error.start}): "
                         "copy it again") from error
    return [line.strip() for line in text.removesuffix("\n").split("\n")]  # a line may hold U+0085 and the like


def _folder() -> Path:
    root = data_folder()
    if root is None or not (root / FOLDER).is_dir():
        raise FileNotFoundError(HOW_TO_GET)
    return root / FOLDER


# ---- style transfer: which sentences, and the words that ask -----------------------------------------------
# Style transfer: sentences to be rewritten in the other of two styles, both directions, and the words that ask.
#
# No training rows: Yelp has no pairs of the two styles, so nothing can be trained to map one to the other directly.
# The setting is SaLoRA's: a causal model is tuned on instructions (task `alpaca`) and asked in words, unseen.
_ASK = "Rewrite the following {what} so that it is {style}. Keep its topic and its details."


@dataclass(frozen=True)
class Transfer:
    """One set of sentences. `classifier` names the task whose classes are the two styles, in the same order."""

    name: str
    styles: tuple[str, str]
    classifier: str
    ask: str  # the instruction, with {style}
    reader: Callable[[], pd.DataFrame] | None  # source, references, wanted; None: the test rows of `classifier`
    note: str
    rewrites: int  # by humans, in the published test set
    words: tuple[str, str] = ("", "")  # what the styles are called in the instruction, where not by their names

    @property
    def directions(self) -> tuple[str, str]:
        """"negative to positive" and "positive to negative"."""
        return tuple(self.direction(code) for code in (1, 0))  # type: ignore[return-value]

    def direction(self, wanted: int) -> str:
        return f"{self.styles[1 - wanted]} to {self.styles[wanted]}"

    def instruction(self, wanted: int) -> str:
        return self.ask.format(style=self.words[wanted] or self.styles[wanted])


_REVIEW = _ASK.replace("{what}", "review sentence")
_SENTENCE = _ASK.replace("{what}", "sentence")
_TABLE = [
    Transfer("yelp-transfer", ("negative", "positive"), "yelp", _REVIEW, None,
             "1,000 sentences, one human rewrite of each (Li et al. 2018)", 1000),
    Transfer("gyafc-transfer", STYLES, "gyafc", _SENTENCE, lambda: to_rewrite("Family_Relationships"),
             "families and relationships, four human rewrites of each (Rao & Tetreault 2018)", 9404),
    Transfer("gyafc-music-transfer", STYLES, "gyafc-music", _SENTENCE,
             lambda: to_rewrite("Entertainment_Music"),
             "entertainment and music, four human rewrites of each (Rao & Tetreault 2018)", 9992),
    Transfer("rt-transfer", ("rotten", "fresh"), "rt", _REVIEW, None,
             "film critics' snippets; packaged; no human rewrites, so no BLEU to one", 0, ("negative", "positive")),
]  # fmt: skip
TRANSFERS: dict[str, Transfer] = {transfer.name: transfer for transfer in _TABLE}


def prompts(frame: pd.DataFrame) -> list[str]:
    """Instruction and sentence of each row in the published Alpaca form, as a model tuned on `alpaca` expects."""
    rows = pd.DataFrame({"instruction": frame["instruction"], "input": frame["source"], "output": "-"})
    return alpaca(rows)["text"].tolist()
