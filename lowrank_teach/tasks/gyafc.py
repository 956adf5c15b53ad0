"""GYAFC, pairs of informal and formal sentences (Rao & Tetreault 2018): a copy of one's own, as it is published.

    GYAFC_Corpus/Family_Relationships/train/{informal,formal}                  one sentence a line, line by line pairs
    GYAFC_Corpus/Family_Relationships/{tune,test}/{informal,formal}            sentences to rewrite
    GYAFC_Corpus/Family_Relationships/{tune,test}/{formal,informal}.ref0-3     four rewrites of each: formal.ref* of
                                                                               the informal ones, and the reverse

The corpus is licensed on request: nothing fetches it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.cache import data_folder

STYLES = ("informal", "formal")
REFERENCES = 4
FOLDER = "GYAFC_Corpus"
HOW_TO_GET = (
    "GYAFC is licensed on request and not fetched: ask Yahoo Research for its L6 answers corpus (Webscope, free for "
    "research), then the authors for GYAFC with that permission (github.com/raosudha89/GYAFC-corpus), and put "
    f"the folder {FOLDER} into LOWRANK_TEACH_DATA"
)


def sentences(domain: str) -> corpora.Splits:
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
