"""The letters that Delta-LoRA adds; its A and B are swapped, which the rows of LoRA say."""

from __future__ import annotations

from .symbol import Symbol

# what the expressions under `code` stand on
OBJECTS = {"rule": "adapters.rule, once training has begun"}

_DELTA = "Delta-LoRA"
SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("λ (Delta-LoRA)", "how far W follows the change of s B A", "method.lam", "", "",
           {_DELTA: "λ, Algorithm 1"}),
    Symbol("K (Delta-LoRA)", "steps of plain LoRA before W moves; the first change comes at step K + 1", "rule.K",
           "", "", {_DELTA: "K, Algorithm 1"}),
    Symbol("W_t", "W as it stands after step t; past K it moves", "layer.W", "(d, k)", "",
           {_DELTA: "W, Algorithm 1"}),
    Symbol("W₀", "the pretrained W, kept so that it can be given back", "layer.pretrained", "(d, k)", "", {}),
    Symbol("W_t − W₀", "what W holds: λ s (B A − B_K A_K)", "layer.W - layer.pretrained", "(d, k)", "", {}),
    Symbol("W* − W₀", "the whole change: what W holds, and the branch beside it", "branch.delta()", "(d, k)", "",
           {_DELTA: "W* = W + (α/r) A B"}),
    Symbol("−λ s B_K", "left factor of what never goes into W, kept once at step K", "branch.fixed_left", "(d, r)",
           "", {}),
    Symbol("A_K", "A as it stood at step K", "branch.fixed_right", "(r, k)", "", {}),
)}
