"""The letters that COLA adds: those of the chain, and those of its analysis on the toy."""

from __future__ import annotations

from .symbol import Symbol

# what the expressions under `code` stand on
OBJECTS = {"method": "a configuration, COLA(…)", "rule": "adapters.rule, at work", "layer": "an Adapted",
           "branch": "a LowRank", "toy": "lowrank_teach.toys.frank_wolfe", "problem": "a toy.Completion",
           "path": "what toy.frank_wolfe(problem, T) returns", "G": "a gradient of the toy"}

_COLA = "COLA"
SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("M (COLA)", "chain length: how many links", "method.chain", "", "", {_COLA: "M"}),
    Symbol("link", "which link trains now, from 0", "rule.link", "", "", {_COLA: "i, from 1"}),
    Symbol("knot", "steps after which a link is tied", "method.knot_steps", "", "", {_COLA: "τ"}),
    Symbol("W′", "the frozen matrix with all tied links in it", "layer.W", "(d, k)", "", {_COLA: "W_frozen"}),
    Symbol("Σ s B A", "all tied links, as one product of two factors", "branch.fixed_left @ branch.fixed_right",
           "(d, k)", "", {_COLA: "Σ B_j A_j"}),
    Symbol("B side by side", "the tied links' s · B, in columns; Σr is their ranks added up", "branch.fixed_left",
           "(d, Σr)", "", {}),
    Symbol("V", "a corner of the ball, of rank one: lowers ⟨G, V⟩ most", "toy.linear_minimiser(G, problem.ball)",
           "(d, k)", "", {_COLA: "V_t"}),
    Symbol("g_t", "duality gap ⟨G, W − V⟩", "toy.duality_gap", "", "", {_COLA: "g_t"}),
    Symbol("η (COLA)", "step of the analysis, √M / (D √(β T))", "toy.constant_step", "", "", {_COLA: "η"}),
    Symbol("D (COLA)", "diameter of the ball", "problem.diameter", "", "", {_COLA: "D"}),
    Symbol("β (COLA)", "smoothness of f: how fast its gradient may turn", "problem.smoothness", "", "", {_COLA: "β"}),
    Symbol("M (bound)", "how far f can fall; the paper uses M for this, too", "problem.fall", "", "", {_COLA: "M"}),
    Symbol("ε (COLA)", "what an inexact V loses in each step", "path.epsilon", "(T)", "", {_COLA: "ε"}),
)}
