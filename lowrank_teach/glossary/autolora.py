"""The letters that AutoLoRA adds; its U and V are B and A here, its k is r."""

from __future__ import annotations

from .symbol import Symbol

OBJECTS = {"selection": 'adapters.rule.selections()["0.q"], a Selection', "optimizer": "of A, B and the head",
           "autolora": "the module methods/autolora.py"}

_AUTO = "AutoLoRA"
SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("β (AutoLoRA)", "selection variables: free numbers, one a direction; learned on held-out rows",
           "selection.beta", "(r,)", "", {_AUTO: "β"}),
    Symbol("α_l (AutoLoRA)", "selection weights, the softmax of β: positive, with sum one; the branch's gate",
           "branch.gate()", "(r,)", "", {_AUTO: "α"}),
    Symbol("k (AutoLoRA)", "width that is searched; ranks found lie in 1 … k", "method.r", "", "", {_AUTO: "k = 8"}),
    Symbol("1/k", "threshold: the weight that each direction has at the start", "1 / method.r", "", "",
           {_AUTO: "threshold on α"}),
    Symbol("rank_l", "directions whose weight is at least 1/k", "selection.rank()", "", "",
           {_AUTO: "rank of matrix l"}),
    Symbol("η (AutoLoRA)", "rate of the weights: of their real step and of the virtual one",
           'optimizer.param_groups[0]["lr"]', "", "", {_AUTO: "η = 1e-4"}),
    Symbol("η_β (AutoLoRA)", "rate of β", "method.eta_beta", "", "", {_AUTO: "1e-3"}),
    Symbol("Ŵ (AutoLoRA)", "virtual weights, W − η ∇L_train: tried, and thrown away", "autolora.virtual_step", "", "",
           {_AUTO: "W − η ∇L"}),
    Symbol("∇_β (AutoLoRA)", "hypergradient: how the held-out loss after the virtual step changes with β",
           "autolora.hypergradient", "", "", {_AUTO: "∇ of the held-out loss"}),
)}
