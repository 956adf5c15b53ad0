"""The letters of the singular value decomposition, which 01 introduces and later notebooks use."""

from __future__ import annotations

from .symbol import Symbol

OBJECTS = {"full": "a network trained whole, changes.fine_tune(…)",
           "cut": "the first i directions of one ΔW, full.directions[\"0.q\"].keep(slice(i))"}

_LORA = "LoRA"
SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("W before", "the pretrained matrix, before training", 'full.before["0.up"]', "(d, k)", "",
           {_LORA: "W₀, eq. 3"}),
    Symbol("W after", "the matrix after training, every number of it", 'full.after["0.up"]', "(d, k)", "", {}),
    Symbol("ΔW (whole)", "what training changed: W after − W before", 'full.changes["0.up"]', "(d, k)", "",
           {_LORA: "ΔW, section 4.1"}),
    Symbol("U", "columns: what each direction writes; of length 1, at right angles", "cut.U", "(d, i)", "", {}),
    Symbol("σ", "singular values: each direction's weight, largest first", "cut.s", "(i,)", "", {}),
    Symbol("Vᵀ", "rows: what each direction reads; of length 1, at right angles", "cut.Vh", "(i, k)", "", {}),
    Symbol("Σ σ u vᵀ", "their sum: ΔW cut to rank i", "cut.matrix()", "(d, k)", "", {}),
)}
