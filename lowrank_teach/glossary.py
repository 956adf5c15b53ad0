"""What each letter is called: in words, in this code, in peft, and in the papers, which swap letters.

One row a symbol; the maths ↔ code tables of the notebooks are made from these rows (`table`), and a test looks
every code name and every shape up in live objects, and every peft name in a live peft layer. A paper with other
letters adds an entry to `papers` of the rows it renames, or a row of its own. Used by every notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

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


# what the expressions under `code` stand on
OBJECTS = {"method": "a configuration, LoRA(…)", "adapters": "what adapt(model, method) returns",
           "layer": "an Adapted, adapters.owner(\"0.q\")", "branch": "a LowRank, adapters[\"0.q\"]",
           "x": "an input of the layer"}

_LORA, _DELTA, _AUTO = "LoRA", "Delta-LoRA", "AutoLoRA"
SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("x", "input: k numbers a token", "x", "(*, k)", "x", {_LORA: "x, eq. 3"}),
    Symbol("W", "the pretrained matrix, frozen", "layer.W", "(d, k)", "layer.base_layer.weight",
           {_LORA: "W₀, eq. 3"}),
    Symbol("A", "reads x: k numbers in, r out; trains", "branch.lora_A", "(r, k)", 'layer.lora_A["default"].weight',
           {_LORA: "A, eq. 3", _DELTA: "B (its A and B are swapped)", _AUTO: "V"}),
    Symbol("B", "writes h: r numbers in, d out; trains, starts at zero", "branch.lora_B", "(d, r)",
           'layer.lora_B["default"].weight', {_LORA: "B, eq. 3", _DELTA: "A (its A and B are swapped)", _AUTO: "U"}),
    Symbol("r", "rank: how many directions the update has", "branch.r", "", 'layer.r["default"]',
           {_LORA: "r, section 4.1", _AUTO: "k"}),
    Symbol("α", "numerator of the scale; only α / r enters the layer", "method.lora_alpha", "",
           'layer.lora_alpha["default"]', {_LORA: "α, section 4.1"}),
    Symbol("s", "scale of the branch, α / r", "branch.scaling", "", 'layer.scaling["default"]',
           {_LORA: "α / r, section 4.1"}),
    Symbol("g", "gate: one factor a direction; ones in LoRA", "branch.gate()", "(r,)", "", {}),
    Symbol("ΔW", "what was learned: s · B diag(g) A", "branch.delta()", "(d, k)",
           'layer.get_delta_weight("default")', {_LORA: "ΔW = B A, eq. 3"}),
    Symbol("h", "output: W x + ΔW x", "layer(x)", "(*, d)", "layer(x)", {_LORA: "h, eq. 3"}),
    Symbol("W + ΔW", "merged: one matrix again, no branch left to compute", "adapters.merge", "", "layer.merge",
           {_LORA: "W = W₀ + B A, section 4.1"}),
    Symbol("W back", "W gets its own bytes again", "adapters.restore", "", "layer.unmerge", {}),
)}


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
