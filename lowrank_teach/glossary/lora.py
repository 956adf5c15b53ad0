"""The letters of LoRA, which all other methods share."""

from __future__ import annotations

from .symbol import Symbol

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
    Symbol("g", "gate: one factor a direction; ones in LoRA", "branch.gate()", "(r,)", "",
           {"SaLoRA": "G, a diagonal matrix"}),
    Symbol("ΔW", "what was learned: s · B diag(g) A", "branch.delta()", "(d, k)",
           'layer.get_delta_weight("default")', {_LORA: "ΔW = B A, eq. 3"}),
    Symbol("h", "output: W x + ΔW x", "layer(x)", "(*, d)", "layer(x)", {_LORA: "h, eq. 3"}),
    Symbol("W + ΔW", "merged: one matrix again, no branch left to compute", "adapters.merge", "", "layer.merge",
           {_LORA: "W = W₀ + B A, section 4.1"}),
    Symbol("W back", "W gets its own bytes again", "adapters.restore", "", "layer.unmerge", {}),
)}
