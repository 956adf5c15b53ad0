"""What each letter is called: in words, in this code, in peft, and in the papers, which swap letters.

One row a symbol, a file a paper; the maths ↔ code tables of the notebooks are made from these rows (`table`), and
a test looks every code name and every shape up in live objects, and every peft name in a live peft layer. A paper
with other letters adds an entry to `papers` of the rows it renames, or a row of its own. Used by every notebook.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from . import lora
from .symbol import Symbol

PARTS = {"LoRA": lora}
SYMBOLS: dict[str, Symbol] = {key: row for part in PARTS.values() for key, row in part.SYMBOLS.items()}
# what the expressions under `code` stand on
OBJECTS: dict[str, str] = {key: words for part in PARTS.values() for key, words in part.OBJECTS.items()}

__all__ = ["OBJECTS", "PARTS", "SYMBOLS", "Symbol", "table"]


def table(names: Iterable[str] | None = None, papers: Iterable[str] = ("LoRA",)) -> pd.DataFrame:
    """The rows of these symbols, in this order, with one column a paper; prints as HTML in a notebook.

    Raises:
        KeyError: a symbol that is not in SYMBOLS.
    """
    names = list(SYMBOLS if names is None else names)
    if unknown := [name for name in names if name not in SYMBOLS]:
        raise KeyError(f"no symbol {unknown[0]!r}; there are {', '.join(SYMBOLS)}")
    rows = [{"symbol": s.symbol, "in words": s.words, "in this code": s.code, "shape": s.shape or "–",
             "in peft": s.peft or "–", **{f"in {paper}": s.papers.get(paper, "–") for paper in papers}}
            for s in (SYMBOLS[name] for name in names)]
    return pd.DataFrame(rows).set_index("symbol")
