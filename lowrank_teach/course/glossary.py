"""What each letter is called: in words, in this code, in peft, and in the papers, which swap letters.

One row a symbol. The tables of the notebooks and notebooks/GLOSSARY.md are made from these rows, and a test looks
every code name and every shape up in live objects, and every peft name in a live peft layer. A paper with other
letters adds an entry to `papers` of the rows it renames, or a row of its own. d out, k in, r rank, * any leading
shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Symbol:
    """One row of the glossary.

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


# ---- LoRA, whose letters all methods share ----------------------------------------------------------------
# OBJECTS: what the expressions under `code` stand on

LORA_OBJECTS = {"method": "a configuration, LoRA(…)", "adapters": "what adapt(model, method) returns",
                "layer": "an Adapted, adapters.owner(\"0.q\")", "branch": "a LowRank, adapters[\"0.q\"]",
                "x": "an input of the layer"}

_LORA, _DELTA, _AUTO = "LoRA", "Delta-LoRA", "AutoLoRA"
LORA_SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("x", "input: k numbers a token", "x", "(*, k)", "x", {_LORA: "x, eq. 3"}),
    Symbol("W", "the pretrained matrix, frozen", "layer.W", "(d, k)", "layer.base_layer.weight",
           {_LORA: "W₀, eq. 3"}),
    Symbol("h", "output: W x + ΔW x", "layer(x)", "(*, d)", "layer(x)", {_LORA: "h, eq. 3"}),
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
    Symbol("ΔW", "what was learned: s · B diag(g) A", "branch.delta()", "(d, k)",
           'layer.get_delta_weight("default")', {_LORA: "ΔW = B A, eq. 3"}),
    Symbol("W + ΔW", "merged: one matrix again, no branch left to compute", "adapters.merge", "", "layer.merge",
           {_LORA: "W = W₀ + B A, section 4.1"}),
    Symbol("W back", "W gets its own bytes again", "adapters.restore", "", "layer.unmerge", {}),
    Symbol("g", "gate: one factor a direction; ones in LoRA", "branch.gate()", "(r,)", "",
           {"SaLoRA": "G, a diagonal matrix"}),
)}


# ---- the singular value decomposition, which 01 introduces and later notebooks use ------------------------

RANKS_OBJECTS = {"full": "a network trained whole, rank_cuts.fine_tune(…)",
                 "cut": "the first i directions of one ΔW, full.directions[\"0.q\"].keep(slice(i))"}

RANKS_SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
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


# ---- COLA: those of the chain, and those of its analysis on the toy ---------------------------------------

COLA_OBJECTS = {"method": "a configuration, COLA(…)", "rule": "adapters.rule, at work", "layer": "an Adapted",
                "branch": "a LowRank", "toy": "lowrank_teach.analysis.toy_problems", "problem": "a toy.Completion",
                "path": "what toy.frank_wolfe(problem, T) returns", "G": "a gradient of the toy"}

_COLA = "COLA"
COLA_SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
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


# ---- SaLoRA: a gate's parameter and constants, the budget, the orthogonality penalty ----------------------

SALORA_OBJECTS = {"gate": "a HardConcrete, the gate of one site: adapters.rule.gates()[\"0.q\"]",
                  "rule": "a SaLoRARule at work, adapters.rule"}

_S = "SaLoRA"
SALORA_SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
    Symbol("log θ", "one number a direction: how open its gate tends to be; trains, starts at 0", "gate.log_theta",
           "(r,)", "", {_S: "log θ"}),
    Symbol("u", "noise in (0, 1), drawn anew at each step", "gate.u", "(r,)", "", {_S: "u"}),
    Symbol("τ (SaLoRA)", "temperature: small makes the gate nearly 0 or 1", "method.tau", "", "", {_S: "τ"}),
    Symbol("γ, ζ", "ends that the sigmoid is stretched to, below 0 and above 1", "gate.stretch.shift", "", "",
           {_S: "γ, ζ"}),
    Symbol("P(g > 0)", "probability that a draw is not exactly zero", "gate.stretch.open_probability(gate.log_theta)",
           "(r,)", "", {_S: "E‖G‖₀, summed over j"}),
    Symbol("ĝ", "the gate without noise; folded into B when the window closes",
           "gate.stretch.deterministic(gate.log_theta)", "(r,)", "",
           {_S: "expected value of the gate"}),
    Symbol("C", "expected density: share of the adapters' numbers that is open", "rule.density", "", "", {_S: "C"}),
    Symbol("b", "target density", "method.b", "", "", {_S: "b"}),
    Symbol("λ (SaLoRA)", "multiplier of (C − b)²; climbs from 0", "rule.lam.item()", "", "", {_S: "λ, eq. 12"}),
    Symbol("η_c", "rate of log θ and of λ", "method.eta_c", "", "", {_S: "η_c"}),
    Symbol("R", "‖A Aᵀ − I‖² + ‖BᵀB − I‖², mean over matrices (the paper: their sum)", "rule.orthogonality", "", "",
           {_S: "R, eq. 9"}),
    Symbol("β (SaLoRA)", "weight of R in the loss", "method.beta", "", "", {_S: "β, eq. 10"}),
)}


# ---- Delta-LoRA; its A and B are swapped, which the rows of LoRA say --------------------------------------

DELTA_LORA_OBJECTS = {"rule": "adapters.rule, once training has begun"}

DELTA_LORA_SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
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


# ---- AutoLoRA; its U and V are B and A here, its k is r ---------------------------------------------------

AUTOLORA_OBJECTS = {"selection": 'adapters.rule.selections()["0.q"], a Selection',
                    "optimizer": "of A, B and the head",
                    "autolora": "the module methods/autolora.py"}

AUTOLORA_SYMBOLS: dict[str, Symbol] = {s.symbol: s for s in (
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


# ---- all of them ------------------------------------------------------------------------------------------

# paper -> its symbols, and what the expressions under `code` stand on; in the order of the course
PARTS: dict[str, tuple[dict[str, Symbol], dict[str, str]]] = {
    "LoRA": (LORA_SYMBOLS, LORA_OBJECTS), "SVD": (RANKS_SYMBOLS, RANKS_OBJECTS), "COLA": (COLA_SYMBOLS, COLA_OBJECTS),
    "SaLoRA": (SALORA_SYMBOLS, SALORA_OBJECTS), "Delta-LoRA": (DELTA_LORA_SYMBOLS, DELTA_LORA_OBJECTS),
    "AutoLoRA": (AUTOLORA_SYMBOLS, AUTOLORA_OBJECTS)}
TITLES = {"LoRA": "00 and 02 · The letters that all notebooks share, and LoRA", "SVD": "01 · Singular values",
          "COLA": "03 · What COLA adds", "SaLoRA": "04 · What SaLoRA adds", "Delta-LoRA": "05 · What Delta-LoRA adds",
          "AutoLoRA": "06 · What AutoLoRA adds"}
SYMBOLS: dict[str, Symbol] = {key: row for symbols, _ in PARTS.values() for key, row in symbols.items()}
OBJECTS: dict[str, str] = {key: words for _, objects in PARTS.values() for key, words in objects.items()}


# letter -> paper -> what it means there, for letters that change their meaning between the papers
CLASHES: dict[str, dict[str, str]] = {
    "A": {"LoRA": "reads x, (r, k)", "COLA": "as in LoRA", "SaLoRA": "as in LoRA",
          "Delta-LoRA": "writes h: our B", "AutoLoRA": "all selection weights; our A is its V"},
    "B": {"LoRA": "writes h, (d, r)", "COLA": "as in LoRA", "SaLoRA": "as in LoRA",
          "Delta-LoRA": "reads x: our A", "AutoLoRA": "not used; our B is its U"},
    "α": {"LoRA": "numerator of the scale α / r", "COLA": "as in LoRA", "SaLoRA": "as in LoRA; no value is given",
          "Delta-LoRA": "as in LoRA", "AutoLoRA": "selection weights of the directions, their sum is one"},
    "k": {"LoRA": "input width: W is d × k", "SaLoRA": "input width of each matrix",
          "Delta-LoRA": "not used: its W is c × d, so that d is the input width",
          "AutoLoRA": "rank with which the search begins: our r"},
    "M": {"COLA": "chain length; in the proof also how far f can fall",
          "AutoLoRA": "number of layers, where each adapted matrix counts as one"},
    "K": {"COLA": "the bounded set over which f is minimised", "Delta-LoRA": "steps of plain LoRA before W moves"},
    "β": {"COLA": "smoothness of f", "SaLoRA": "weight of the orthogonality penalty R",
          "Delta-LoRA": "weight decay of AdamW", "AutoLoRA": "free numbers whose softmax are the weights α"},
    "λ": {"SaLoRA": "multiplier of (C − b)², which is learned; in equation 10 also a constant weight",
          "Delta-LoRA": "share of the change of s · B A that goes into W"},
    "η": {"COLA": "step size of Frank-Wolfe", "SaLoRA": "η_c: rate of the gates and of λ; η_p: rate of the weights",
          "Delta-LoRA": "learning rate of A and B",
          "AutoLoRA": "learning rate of the weights, virtual step included"},
}


def table(names: Iterable[str] | None = None, papers: Iterable[str] = ("LoRA",)) -> pd.DataFrame:
    """Make a table of these symbols, in this order, with one column a paper; a notebook shows it as HTML.

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
    """Write all symbols as Markdown, a section a notebook: notebooks/GLOSSARY.md, which `make glossary` keeps."""
    papers = [name for name in PARTS if name != "SVD"]
    lines = ["# Glossary", "", "What each letter is called: in words, in this code, in `peft`, and in the papers. "
             "The letters stand in the order in which the notebooks introduce them. Shapes: d out, k in, r rank, \\* "
             "any number of tokens. Made by `make glossary` from the rows that the notebooks show.", "",
             "## Letters that mean several things", "", "The papers use the same letter for different things. "
             "Delta-LoRA swaps A and B, and AutoLoRA calls them V and U. A row is a letter, and a column says what "
             "the paper means by it; – stands where it is not used in the parts that this course treats. The "
             "notebooks keep LoRA's letters, and name the paper where a letter is taken twice, as in λ (SaLoRA).", "",
             f"| letter | {' | '.join(papers)} |", "|" + " --- |" * (len(papers) + 1)]
    lines += [f"| {letter} | {' | '.join(_plain(meanings.get(paper, '–')) for paper in papers)} |"
              for letter, meanings in CLASHES.items()] + [""]
    for name, (symbols, objects) in PARTS.items():
        lines += [f"## {TITLES[name]}", "", "The code stands on:", ""]
        lines += [f"- `{key}`: {_plain(words)}" for key, words in objects.items()]
        lines += ["", "| symbol | in words | in this code | shape | in peft | in the papers |", "|" + " --- |" * 6]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in symbols.values()] + [""]
    return "\n".join(lines)


def _cells(row: Symbol) -> list[str]:
    papers = "; ".join(f"{paper}: {letter}" for paper, letter in row.papers.items())
    code, peft = ("`{}`".format(text.replace("|", "\\|")) if text else "–" for text in (row.code, row.peft))
    return [_plain(row.symbol), _plain(row.words), code, _plain(row.shape or "–"), peft, _plain(papers or "–")]


def _plain(text: str) -> str:
    """Text in which Markdown sees no table, emphasis or HTML."""
    return re.sub(r"([|*_<])", r"\\\1", text)
