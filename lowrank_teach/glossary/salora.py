"""The letters that SaLoRA adds: a gate's parameter and constants, the budget, the orthogonality penalty."""

from __future__ import annotations

from .symbol import Symbol

# what the expressions under `code` stand on
OBJECTS = {"gate": "a HardConcrete, the gate of one site: adapters.rule.gates()[\"0.q\"]",
           "rule": "a SaLoRARule at work, adapters.rule"}

_S = "SaLoRA"
SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("log θ", "one number a direction: how open its gate tends to be; trains, starts at 0", "gate.log_theta",
           "(r,)", "", {_S: "log θ"}),
    Symbol("u", "noise in (0, 1), drawn anew at each step", "gate.u", "(r,)", "", {_S: "u"}),
    Symbol("τ (SaLoRA)", "temperature: small makes the gate nearly 0 or 1", "method.tau", "", "", {_S: "τ"}),
    Symbol("γ, ζ", "ends that the sigmoid is stretched to, below 0 and above 1", "gate.stretch.shift", "", "",
           {_S: "γ, ζ"}),
    Symbol("P(g > 0)", "probability that a draw is not exactly zero", "gate.stretch.open_probability(gate.log_theta)",
           "(r,)", "", {_S: "E‖G‖₀, summed over j"}),
    Symbol("ĝ", "the gate without noise, after the window", "gate.stretch.deterministic(gate.log_theta)", "(r,)", "",
           {_S: "expected value of the gate"}),
    Symbol("C", "expected density: share of the adapters' numbers that is open", "rule.density", "", "", {_S: "C"}),
    Symbol("b", "target density", "method.b", "", "", {_S: "b"}),
    Symbol("λ (SaLoRA)", "multiplier of (C − b)²; climbs from 0", "rule.lam.item()", "", "", {_S: "λ, eq. 12"}),
    Symbol("η_c", "rate of log θ and of λ", "method.eta_c", "", "", {_S: "η_c"}),
    Symbol("R", "‖A Aᵀ − I‖² + ‖BᵀB − I‖²", "rule.orthogonality", "", "", {_S: "R, eq. 9"}),
    Symbol("β (SaLoRA)", "weight of R in the loss", "method.beta", "", "", {_S: "β, eq. 10"}),
)}
