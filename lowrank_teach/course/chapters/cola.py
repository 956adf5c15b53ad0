"""Notebook 03, COLA: its pictures, its slider over links and ranks, and its exercises.

The slider solves a chain of updates live on matrix completion. d out (rows), k in (columns), r rank of a link,
M links, S sweeps and the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ...adapters import Adapters
from ...analysis import measures, style
from ...analysis import toy_problems as toy
from ...analysis.plots import Numbers
from ...analysis.toy_problems import Chain, Completion, completion, fit_chain
from ...lowrank import initial_A
from ...methods import COLA, Clock
from ...methods.base import reset_moments
from ...methods.cola import COLARule
from ..exercises import EXERCISES, Task, adapted_matrix
from ..explorer import Control, Picture
from ..schematic import arrow, canvas, matrix

# ---- pictures ---------------------------------------------------------------------------------------------


def chain_idea() -> Figure:
    """Three panels, one a verb: a link trains beside W, is written into W, and a new one starts at zero."""
    fig, ax = canvas(9.0, 2.9, y=(0, 2.75))
    verbs = (("1 tune", r"$W + s\,B_1 A_1$"), ("2 tie a knot", r"$W' = W + s\,B_1 A_1$"),
             ("3 extend", r"$W' + s\,B_2 A_2$, with $B_2 = 0$"))
    for i, (verb, formula) in enumerate(verbs):
        x = 3.05 * i
        ax.text(x + 1.25, 2.55, verb, ha="center", va="center", fontsize=12, fontweight="bold")
        ax.text(x + 1.25, 0.12, formula, ha="center", va="center", fontsize=11)
        _frozen(ax, x + 0.1, "W" if i == 0 else "W'")
    _link(ax, 0.0, style.BLUE, "1", trained=True)
    arrow(ax, (5.35, 1.55), (4.6, 1.55))
    ax.text(5.02, 1.66, r"$s\,B_1 A_1$", ha="center", va="bottom", fontsize=10, color=style.BLUE)
    ax.text(5.02, 1.42, "added, then\nforgotten", ha="center", va="top", fontsize=9)
    _link(ax, 6.1, style.ORANGE, "2", trained=False)
    for x in (2.9, 5.95):
        ax.axvline(x, color=style.PALE, linewidth=1)
    return fig


def _frozen(ax: Axes, x: float, name: str) -> None:
    """W, grey; after the knot with a blue band in it, which is the link."""
    matrix(ax, x, 0.9, 1.3, 1.3, style.GREY, name, "frozen")
    if name != "W":
        ax.add_patch(Rectangle((x, 0.9), 1.3, 1.3, facecolor=style.BLUE, edgecolor=style.BLACK, alpha=0.35,
                               hatch="//"))


def _link(ax: Axes, x: float, color: str, number: str, *, trained: bool) -> None:
    """A pair of strips right of W; a hollow B is zero."""
    ax.text(x + 1.58, 1.55, "+", ha="center", va="center", fontsize=16)
    matrix(ax, x + 1.8, 0.9, 0.18, 1.3, color if trained else "none", words=f"$B_{number}$", size=11,
           alpha=0.6 if trained else 1.0)
    matrix(ax, x + 2.08, 2.02, 0.72, 0.18, color, words=f"$A_{number}$", size=11, alpha=0.6)
    ax.text(x + 2.46, 1.32, "both train" if trained else "B zero,\nA random,\nnew Adam",
            ha="center", va="center", fontsize=9)


def powers(curves: Mapping[str, tuple[Numbers, Numbers]], *, xlabel: str, ylabel: str,
           bounds: Mapping[str, tuple[Numbers, Numbers]] | None = None) -> Figure:
    """Curves on two log axes, where a power law is a straight line; bounds dashed and without markers.

    Args: name -> (x, y), each (n,), all above zero.
    """
    fig, (ax,) = style.panels(1, 1, 3.8, None, width=8.0)
    bounds = bounds or {}
    for name, look in style.looks([*curves, *bounds]).items():
        x, y = curves[name] if name in curves else bounds[name]
        line = {"marker": look["marker"] if len(x) <= 24 else "", "linestyle": "-"} if name in curves else \
            {"marker": "", "linestyle": look["linestyle"] if look["linestyle"] != "-" else "--"}
        ax.loglog(x, y, **{**look, **line, "linewidth": 1.6})
    style.dress(ax, f"{xlabel} (log)", f"{ylabel} (log)")
    style.legend(fig)
    return fig


def saving_bars(shares: Mapping[str, Mapping[int, float]], *, xlabel: str) -> Figure:
    """What a smaller second link saves, in per cent of a run's operations; a group of bars a network.

    Args: network -> rank of the second link -> share of the whole in [0, 1].
    """
    ranks = list(next(iter(shares.values())))
    fig, (ax,) = style.panels(1, 1, 2.8, None, width=8.0)
    height = 0.8 / len(shares)
    for i, (name, look) in enumerate(style.looks(shares).items()):
        at = np.arange(len(ranks)) + (i - (len(shares) - 1) / 2) * height
        values = [100 * shares[name][rank] for rank in ranks]
        bars = ax.barh(at, values, height=0.9 * height, color=look["color"], label=name,
                       hatch=("", "//", "..")[i % 3], edgecolor="white")
        ax.bar_label(bars, fmt="%.3f %%", fontsize=9, padding=4)
    ax.set_yticks(range(len(ranks)), [str(rank) for rank in ranks])
    ax.margins(x=0.15)
    style.dress(ax, xlabel, "Rank of the second link")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------


class ColaChain(Picture):
    """Links of rank r fitted one after the other, beside one update of rank M · r for the same sweeps.

    Args: problem: None takes the course's. sweeps: for every chain. most: links, and directions of a link.
    """

    def __init__(self, problem: Completion | None = None, sweeps: int = 24, most: tuple[int, int] = (6, 4)) -> None:
        self.problem, self.sweeps, self.most = problem or completion(), sweeps, most
        self.shown = min(16, *self.problem.target.shape)
        self.wanted = np.linalg.svd(self.problem.target, compute_uv=False)[:self.shown]
        self.controls = (Control("links", "links M", 1, most[0], 3), Control("r", "rank r of a link", 1, most[1], 1))
        super().__init__()

    def solve(self, links: int, r: int) -> tuple[Chain, Chain]:
        """The chain, and one link of its whole rank (at most min(d, k))."""
        whole = min(links * r, *self.problem.target.shape)
        return (fit_chain(self.problem, links, r, self.sweeps), fit_chain(self.problem, 1, whole, self.sweeps))

    def build(self) -> list[Artist]:
        left, right = self.axes
        self.knots = [left.axvline(0, color=style.GREY, linestyle="--", linewidth=1.0, label=label)
                      for label in ["knot", *[None] * (self.most[0] - 2)]]
        looks = ((style.BLUE, "-", "seen"), (style.ORANGE, "-", "hidden"), (style.BLUE, ":", "one update"),
                 (style.ORANGE, ":", None))
        self.lines = [left.plot([], [], color=color, linestyle=line, linewidth=1.8, label=name)[0]
                      for color, line, name in looks]
        left.set(xlim=(0, self.sweeps), ylim=(0.05, 3.0), yscale="log")
        i = np.arange(1, self.shown + 1)
        self.bars = right.bar(i, np.ones(self.shown), color=style.BLUE)
        right.plot(i, self.wanted, "_", color=style.BLACK, markersize=11, label="target")
        right.set_ylim(0, 1.1 * self.wanted[0])
        style.dress(left, "Sweep", "Error (log)", " ")
        style.dress(right, "Index i", "Singular value", " ")
        style.legend(self.fig)
        return [*self.knots, *self.lines, *self.bars, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        links, r = state["links"], state["r"]
        chain, one = self.solve(links, r)
        s = np.linalg.svd(chain.W, compute_uv=False)
        return {"errors": np.array([chain.seen, chain.hidden, one.seen, one.hidden]), "knots": chain.knots,
                "s": s[:self.shown], "rank": int((s > 1e-6 * s[0]).sum()), "left": f"M = {links} links of rank {r}"}

    def update(self, arrays: dict[str, Any]) -> None:
        left, right = self.axes
        for line, values in zip(self.lines, arrays["errors"], strict=True):
            line.set_data(np.arange(self.sweeps + 1), values)
        places = [*arrays["knots"], *[-1] * len(self.knots)]        # a knot at −1 is off the axis
        for mark, at in zip(self.knots, places, strict=False):
            mark.set_xdata([at, at])
        for bar, height in zip(self.bars, arrays["s"], strict=True):
            bar.set_height(height)
        left.set_title(arrays["left"], fontsize=10)
        right.set_title(f"all links added up: rank {arrays['rank']}", fontsize=10)

    def words(self, **state: Any) -> str:
        links, r = state["links"], state["r"]
        found = self.arrays(**state)
        seen, hidden, one_seen, one_hidden = found["errors"][:, -1]
        parts = "one link" if links == 1 else f"{links} links"
        return (f"{parts[0].upper()}{parts[1:]} of rank {r}, {self.sweeps} sweeps in all, add up to rank "
                f"{found['rank']}: error {seen:.2f} on seen and {hidden:.2f} on hidden entries; one update of rank "
                f"{min(links * r, *self.problem.target.shape)} reaches {one_seen:.2f} and {one_hidden:.2f}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

_SEED = 7   # of the new link's A


def _tied(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Adapters:
    """A layer whose rule has just tied its first knot."""
    method = COLA(r=len(lora_A), lora_alpha=lora_alpha, sites=("0",), init="gaussian")
    adapters = adapted_matrix(W, method, seed=_SEED)
    adapters["0"].lora_A.data, adapters["0"].lora_B.data = lora_A.clone(), lora_B.clone()
    optimizer = torch.optim.AdamW(adapters.rule.parameter_groups())
    adapters.rule.start(Clock(0, 2, 2), SimpleNamespace(optimizer=optimizer))   # type: ignore[arg-type]
    adapters.rule.generator.manual_seed(_SEED)
    adapters.rule.tie()   # type: ignore[attr-defined]
    return adapters


def cola_tie(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    """The frozen matrix (d, k) after the library's knot."""
    return _tied(W, lora_A, lora_B, lora_alpha).owner("0").W.detach()


def cola_extend(lora_A: Tensor, lora_B: Tensor, gaussian: Tensor) -> Tensor:
    """The library's new link, A beside Bᵀ, (r, k + d); `gaussian` (r, k) is the draw that it makes, too."""
    W = torch.zeros(lora_B.shape[0], lora_A.shape[1])
    new = _tied(W, lora_A, lora_B, 1.0)["0"]
    return torch.cat([new.lora_A, new.lora_B.T], 1).detach()


def move_after_knot(gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, lr: float) -> Tensor:
    """The change of B (d, r) in torch's first AdamW step after the library has reset the moments."""
    return _move(lambda optimizer, B: reset_moments(optimizer, [B]), gradient, exp_avg, exp_avg_sq, step, lr)


def _move(at_knot: Callable[[torch.optim.Optimizer, Tensor], Any], gradient: Tensor, exp_avg: Tensor,
          exp_avg_sq: Tensor, step: int, lr: float) -> Tensor:
    B = nn.Parameter(torch.zeros_like(gradient))
    optimizer = torch.optim.AdamW([B], lr=lr)
    optimizer.state[B] = {"step": torch.tensor(float(step)), "exp_avg": exp_avg.clone(),
                          "exp_avg_sq": exp_avg_sq.clone()}
    at_knot(optimizer, B)
    B.grad = gradient.clone()
    optimizer.step()
    return B.detach()


def cola_epochs(epochs: int, links: int) -> list[int]:
    """Epochs of each link, as the library splits them."""
    knots = COLA(chain=links).knot_steps(Clock(0, epochs, 1))
    return np.diff([0, *knots, epochs]).tolist()


def chain_rank(ranks: Sequence[int], d: int, k: int) -> int:
    """Rank of a random chain's total change of a (d, k) matrix, by its singular values."""
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(d, sum(ranks), generator=g), torch.randn(sum(ranks), k, generator=g)
    return measures.numerical_rank(measures.singular_values(left, right))


def frank_wolfe_step(W: Tensor, G: Tensor, radius: float, t: int) -> Tensor:
    """W (d, k) after the toy's step with its minimiser and η = 2 / (t + 2)."""
    return _towards(W, G, toy.linear_minimiser(G.numpy(), radius), t)


def _towards(W: Tensor, G: Tensor, V: Any, t: int) -> Tensor:
    return W + toy.decreasing_step(t) * (torch.as_tensor(V, dtype=W.dtype) - W)


def _matrices(d: int, k: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(d + k)
    return (torch.randn(d, k, generator=g), torch.randn(r, k, generator=g), torch.randn(d, r, generator=g))


def _link_cases() -> list[tuple]:
    """Links before the knot, and the draw that the rule will make."""
    return [(A, B, initial_A(len(A), A.shape[1], "gaussian", torch.Generator().manual_seed(_SEED)))
            for _, A, B in (_matrices(6, 9, 3), _matrices(8, 5, 2))]


def _moment_cases() -> list[tuple]:
    gradient, _, _ = _matrices(5, 4, 1)
    _, old, _ = _matrices(4, 4, 5)
    return [(gradient, old, 0.3 * old.abs() + 0.01, 60, 1e-2), (-old, gradient, gradient.abs(), 5, 1e-3)]


def _only_moments(optimizer: torch.optim.Optimizer, B: Tensor) -> None:
    optimizer.state[B]["exp_avg"].zero_()
    optimizer.state[B]["exp_avg_sq"].zero_()


_KEPT = "that is what happens when the moments are kept: exp_avg, exp_avg_sq and step are still those of the old link"
_SWAPPED = "that is Aᵀ Bᵀ, the transpose: B comes first, B (d, r) times A (r, k)"

EXERCISES.update({
    "cola_tie": Task(
        cola_tie, lambda: [(*_matrices(7, 7, 3), 8.0), (*_matrices(5, 8, 4), 2.0)],
        "the knot writes the link into W: W + (α / r) · B A",
        [("the scale α / r is missing: the forward pass had it, so the knot must have it, too",
          lambda W, A, B, alpha: cola_tie(W, A, B, len(A))),
         ("you scale by α, the branch was scaled by α / r", lambda W, A, B, a: cola_tie(W, A, B, a * len(A))),
         (_SWAPPED, lambda W, A, B, a: W + cola_tie(torch.zeros_like(W.T), A, B, a).T if W.shape[0] == W.shape[1]
          else torch.zeros(1)),
         ("the link is in there twice: merged, and still beside W; after the knot it lives in W alone",
          lambda W, A, B, a: cola_tie(cola_tie(W, A, B, a), A, B, a)),
         ("that is the link alone: it is added to W", lambda W, A, B, a: cola_tie(0 * W, A, B, a)),
         ("the link is subtracted: it is added", lambda W, A, B, a: cola_tie(W, A, -B, a))],
        (COLARule.tie, COLARule._extend)),
    "cola_extend": Task(
        cola_extend, _link_cases, "A takes the fresh draw and B starts at zero, so that the function stays as it is",
        [("the old link goes on: after the knot it is in W already, so it would count twice",
          lambda A, B, fresh: torch.cat([A, B.T], 1)),
         ("B is still the old one: the link is in W already, so the function has just changed; B starts at zero",
          lambda A, B, fresh: torch.cat([fresh, B.T], 1)),
         ("A is still the old one: the new link would read the same directions again; draw it anew",
          lambda A, B, fresh: torch.cat([A, 0 * B.T], 1)),
         ("both are zero: then neither gets a gradient, and the link never starts; A is drawn at random",
          lambda A, B, fresh: torch.cat([0 * A, 0 * B.T], 1))],
        (COLARule._extend, initial_A)),
    "move_after_knot": Task(
        move_after_knot, _moment_cases,
        "at a knot three things start from zero: exp_avg, exp_avg_sq and the step count; then Adam as usual",
        [(_KEPT, lambda *a: _move(lambda optimizer, B: None, *a)),
         ("the moments are reset, but the step count is not: Adam takes the zeros for a long history, and the move "
          "has the wrong size",
          lambda *a: _move(_only_moments, *a)),
         ("only the step count is reset: the old moments, with the correction of a first step, are blown up",
          lambda *a: _move(lambda optimizer, B: optimizer.state[B]["step"].zero_(), *a)),
         ("only exp_avg is reset: the old exp_avg_sq still sets the size of each move",
          lambda *a: _move(lambda o, B: (o.state[B]["exp_avg"].zero_(), o.state[B]["step"].zero_()), *a)),
         ("it goes uphill: the move is against the gradient", lambda *a: -move_after_knot(*a))],
        (reset_moments,)),
    "cola_epochs": Task(
        cola_epochs, lambda: [(5, 2), (5, 3), (6, 3), (9, 4)],
        "whole epochs that add up to all of them, as even as they can be, the longer links first",
        [("the split is even, but not in whole epochs: a knot inside an epoch leaves some rows to another link",
          lambda epochs, links: [epochs / links] * links if epochs % links else [0]),
         ("right lengths, wrong order: the first links take what is over (3 + 2, not 2 + 3)",
          lambda epochs, links: cola_epochs(epochs, links)[::-1] if epochs % links else [0]),
         ("those are the epochs after which the knots come; asked is how many epochs each link has",
          lambda epochs, links: np.cumsum(cola_epochs(epochs, links)).tolist()),
         ("one link takes all that is over: at most one epoch lies between the longest and the shortest",
          lambda epochs, links: [epochs // links + epochs % links] + [epochs // links] * (links - 1)
          if epochs % links > 1 else [0]),
         ("some epochs are lost: the parts must add up to all of them",
          lambda epochs, links: [epochs // links] * links if epochs % links else [0])],
        (COLA.knot_steps,)),
    "chain_rank": Task(
        chain_rank, lambda: [((8, 8, 8), 48, 60), ((8, 2), 48, 60), ((8,) * 5, 24, 30)],
        "ranks of a sum add up at most, and no matrix has more than min(d, k)",
        [("ranks of a sum add up, they do not multiply", lambda ranks, d, k: int(np.prod(ranks))),
         ("that is the widest link: different links may use different directions",
          lambda ranks, d, k: max(ranks)),
         ("a (d, k) matrix has no more than min(d, k) directions: cap the sum",
          lambda ranks, d, k: sum(ranks) if sum(ranks) > min(d, k) else -1)],
        (measures.numerical_rank, measures.factor_svd)),
    "frank_wolfe_step": Task(
        frank_wolfe_step, lambda: [(*_matrices(6, 8, 1)[:1], _matrices(8, 6, 1)[0].T.contiguous(), 3.0, 2)],
        "V = −radius · u vᵀ with the first singular pair of G; then W + 2 / (t + 2) · (V − W)",
        [("V must lower ⟨G, V⟩ as far as it can, so it carries a minus: −radius · u vᵀ",
          lambda W, G, radius, t: frank_wolfe_step(W, -G, radius, t)),
         ("the radius is missing: the corners of the ball are radius · u vᵀ",
          lambda W, G, radius, t: frank_wolfe_step(W, G, 1.0, t)),
         ("V is added, but W does not shrink: move towards V, by η (V − W), or W leaves the ball",
          lambda W, G, radius, t: W + frank_wolfe_step(0 * W, G, radius, t)),
         ("all singular pairs are in V: its nuclear norm is then far above the radius; only the first pair is",
          lambda W, G, radius, t: _towards(W, G, -radius * _polar(G), t)),
         ("that is a step along the gradient: the minimiser over this ball is of rank one",
          lambda W, G, radius, t: _towards(W, G, -radius * G / G.norm(), t)),
         ("the step size is 2 / (t + 2), with t = 0 for the first step",
          lambda W, G, radius, t: frank_wolfe_step(W, G, radius, t - 1))],
        (toy.linear_minimiser, toy.decreasing_step)),
})


def _polar(G: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(G, full_matrices=False)
    return u @ vh
