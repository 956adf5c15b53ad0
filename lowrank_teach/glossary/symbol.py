"""One row of the glossary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# d out, k in, r rank, * any leading shape


@dataclass(frozen=True)
class Symbol:
    """One row.

    symbol: as the notebooks write it.  words: what it is.
    code: an expression on the objects named in OBJECTS.  shape: its dimensions, "" for a number.
    peft: the same on a peft layer `layer` with its adapter "default"; "" where peft has none.
    papers: paper -> its own letter and where it is defined.
    """

    symbol: str
    words: str
    code: str
    shape: str
    peft: str
    papers: Mapping[str, str]
