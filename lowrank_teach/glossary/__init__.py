"""What each letter is called: in words, in this code, in peft, and in the papers, which swap letters.

One row a symbol, a file a paper; the maths ↔ code tables of the notebooks are made from these rows (`table`), and
a test looks every code name and every shape up in live objects, and every peft name in a live peft layer. A paper
with other letters adds an entry to `papers` of the rows it renames, or a row of its own. Used by every notebook.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from . import autolora, cola, delta_lora, lora, ranks, salora
from .symbol import Symbol

PARTS = {"LoRA": lora, "COLA": cola, "Delta-LoRA": delta_lora, "AutoLoRA": autolora, "SaLoRA": salora, "SVD": ranks}
SYMBOLS: dict[str, Symbol] = {key: row for part in PARTS.values() for key, row in part.SYMBOLS.items()}
# what the expressions under `code` stand on
OBJECTS: dict[str, str] = {key: words for part in PARTS.values() for key, words in part.OBJECTS.items()}

__all__ = ["OBJECTS", "PARTS", "SYMBOLS", "Symbol", "page", "table"]


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


def page() -> str:
    """All symbols as Markdown, a section a paper: notebooks/GLOSSARY.md, which `make glossary` writes."""
    lines = ["# Glossary", "", "What each letter is called: in words, in this code, in `peft`, and in the papers, "
             "which swap letters. Shapes: d out, k in, r rank, \\* any number of tokens. Made by `make glossary` "
             "from the rows that the notebooks show.", ""]
    for name, part in PARTS.items():
        title = "Shared letters, and LoRA" if name == "LoRA" else f"What {name} adds"
        lines += [f"## {title}", "", "The code stands on:", ""]
        lines += [f"- `{key}`: {_plain(words)}" for key, words in part.OBJECTS.items()]
        lines += ["", "| symbol | in words | in this code | shape | in peft | in the papers |", "|" + " --- |" * 6]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in part.SYMBOLS.values()] + [""]
    return "\n".join(lines)


def _cells(row: Symbol) -> list[str]:
    papers = "; ".join(f"{paper}: {letter}" for paper, letter in row.papers.items())
    code, peft = ("`{}`".format(text.replace("|", "\\|")) if text else "–" for text in (row.code, row.peft))
    return [_plain(row.symbol), _plain(row.words), code, _plain(row.shape or "–"), peft, _plain(papers or "–")]


def _plain(text: str) -> str:
    """Text in which Markdown sees no table, emphasis or HTML."""
    return re.sub(r"([|*_<])", r"\\\1", text)
