"""Notebook 06, AutoLoRA: its pictures, the slider of the threshold, the exercises, and hypergradients measured.

M matrices (sites), k directions each; a toy has one inner number w and one outer number β.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...adapters import adapt
from ...analysis import style
from ...analysis.measures import in_turns, training_step
from ...analysis.plots import Numbers
from ...analysis.toy_problems import Bilevel
from ...errors import require
from ...experiments.fit import Rows, load_for
from ...gates import Selection
from ...lowrank import LowRank
from ...methods import AutoLoRA, LoRA
from ...methods import autolora as library
from ...methods.autolora import HYPERGRADIENTS, Weights, hypergradient, virtual_step
from ...methods.lora import LoRARule
from ...tasks.load import load_task
from ...training.config import train_config
from ...training.trainer import Trainer
from ..exercises import EXERCISES, Task, predict
from ..explorer import Control, Picture
from ..schematic import arrow, box, canvas

# ---- pictures ---------------------------------------------------------------------------------------------

# kind of hypergradient -> what the legend calls it, colour, line style, marker
KINDS = {"first_order": ("first order (η = 0)", style.ORANGE, "--", "s"),
         "unrolled": ("unrolled: weight η", style.BLUE, "-", "o"),
         "finite_difference": ("finite difference: weight η", style.SKY, ":", "D"),
         "betty": ("finite difference: weight 1", style.GREEN, "-.", "^")}


def two_levels() -> Figure:
    """The search as a loop between two halves of the rows, and what comes out of it."""
    fig, ax = canvas(9.0, 3.4)
    box(ax, 0.1, 2.35, 1.9, 0.8, style.GREY, "training rows", name="rows, half 1")
    box(ax, 0.1, 0.35, 1.9, 0.8, style.GREY, "held-out rows", name="rows, half 2")
    box(ax, 2.8, 2.35, 2.5, 0.8, style.BLUE, "inner level: one step down", name="A, B, head")
    box(ax, 2.8, 0.35, 2.5, 0.8, style.ORANGE, "outer level: one step down", name="β → α = softmax β")
    box(ax, 6.3, 1.35, 2.5, 0.8, style.GREEN, "then plain LoRA, all rows", name="rank = #{α ≥ 1/k}")
    for start, end in (((2.05, 2.75), (2.75, 2.75)), ((2.05, 0.75), (2.75, 0.75)), ((5.35, 0.75), (6.25, 1.6))):
        arrow(ax, start, end)
    arrow(ax, (3.6, 2.3), (3.6, 1.2), bend=0.25)
    arrow(ax, (4.5, 1.2), (4.5, 2.3), bend=0.25)
    ax.text(3.25, 1.75, "virtual step Ŵ", ha="right", va="center", fontsize=10)
    ax.text(4.85, 1.75, "new α", ha="left", va="center", fontsize=10)
    return fig


def two_level_surface(beta: np.ndarray, w: np.ndarray, held_out: np.ndarray, inner: np.ndarray,
                      paths: Mapping[str, tuple[np.ndarray, np.ndarray]], best: tuple[float, float]) -> Figure:
    """Contours of the held-out loss over (β, w), the line of inner solutions, and where each kind walks.

    Args: beta (m,), w (n,), held_out (n, m); inner (m,): w that the training rows ask for; kind -> (β, w), each
    (S,); best: (β, w) with the lowest held-out loss on the inner line.
    """
    fig, (ax,) = style.panels(1, 1, 4.0, None, width=8.0)
    contours = ax.contour(beta, w, held_out, levels=np.quantile(held_out, np.linspace(0.01, 0.95, 10)),
                          cmap="cividis", linewidths=1.0)
    fig.colorbar(contours, ax=ax, pad=0.02, format="%.2f").set_label("Held-out loss", fontsize=10)
    ax.plot(beta, inner, color=style.GREY, linewidth=5, alpha=0.35, label="w that the training rows ask for")
    for kind, (path_beta, path_w) in paths.items():
        label, color, line, marker = KINDS[kind]
        ax.plot(path_beta, path_w, color=color, linestyle=line, linewidth=2, label=label)
        ax.plot(path_beta[-1], path_w[-1], marker, color=color, markersize=8)
    ax.plot(*best, "*", color=style.BLACK, markersize=15, label="lowest held-out loss on that line")
    ax.set_xlim(beta.min(), beta.max())
    ax.set_ylim(w.min(), w.max())
    style.dress(ax, "Outer number β", "Inner number w")
    style.legend(fig)
    return fig


def push_arrows(beta: np.ndarray, held_out: np.ndarray, at: np.ndarray,
                slopes: Mapping[str, np.ndarray], height: np.ndarray) -> Figure:
    """The held-out loss along the inner line, and from points on it an arrow down each hypergradient.

    Args: beta, held_out (m,): the curve; at, height (P,): the points; kind -> hypergradient at them (P,).
    """
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.5)
    ax.plot(beta, held_out, color=style.GREY, linewidth=5, alpha=0.35, label="held-out loss once w has followed β")
    longest = max(float(np.abs(slope).max()) for slope in slopes.values())
    room = 0.07 * float(np.ptp(held_out))
    for i, (kind, slope) in enumerate(slopes.items()):
        label, color, line, marker = KINDS[kind]
        ax.plot([], [], color=color, linestyle=line, marker=marker, label=label)
        for x, y, push in zip(at, height + (i + 1) * room, -slope / longest, strict=True):
            ax.plot(x, y, marker, color=color, markersize=4)
            if abs(push) > 0.01:
                ax.annotate("", xy=(x + push, y), xytext=(x, y),
                            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0,
                                        "shrinkB": 0, "linestyle": line})
    style.dress(ax, "Outer number β", "Held-out loss")
    style.legend(fig)
    return fig


def cost_and_cosine(cost: Mapping[str, float], cosine: Mapping[str, float]) -> Figure:
    """Left what each hypergradient costs, in gradients of the training loss; right its cosine to the exact one."""
    fig, axes = style.panels(2, 2, 0.7 + 0.4 * len(cost), None, width=9.0, sharey=True)
    names = list(cost)[::-1]
    for ax, values, xlabel, form in zip(axes, (cost, cosine), ("Cost (1: a gradient of the training loss)",
                                                               "Cosine to the exact one"),
                                        ("%.1f", "%.4f"), strict=True):
        bars = ax.barh([KINDS[name][0] for name in names], [values[name] for name in names],
                       color=[KINDS[name][1] for name in names], height=0.6)
        ax.bar_label(bars, fmt=form, fontsize=9, padding=4)
        ax.margins(x=0.3)
        style.dress(ax, xlabel, "")
        ax.grid(axis="y", visible=False)
    axes[0].axvline(1.0, color=style.BLACK, linestyle=":", linewidth=1.2)
    return fig


def implicit_share(etas: Numbers, ratios: Numbers, marked: Mapping[str, float]) -> Figure:
    """‖implicit part‖ / ‖direct part‖ of the hypergradient against the weight of the implicit part; both log.

    Args: etas (n,), ratios (n,); marked: words -> a weight to draw an upright line at.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ax.loglog(etas, ratios, "o-", color=style.BLUE, label="measured here")
    ax.axhline(1.0, color=style.GREY, linestyle=":", label="as large as the direct part")
    lines = (":", "--", "-.", "-")
    for (words, weight), line in zip(marked.items(), lines, strict=False):
        ax.axvline(weight, color=style.ORANGE, linestyle=line, linewidth=1.4, label=words)
    style.dress(ax, "Weight of the implicit part (log)", "‖implicit‖ / ‖direct‖ (log)")
    style.legend(fig)
    return fig


def rank_histogram(shares: Mapping[str, Numbers], bars: str) -> Figure:
    """How often each rank 0 … k occurs: one name as bars, the others as lines over them.

    Args: name -> share of the matrices at each rank (k + 1,); bars: the name that is drawn as bars.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ax.bar(range(len(shares[bars])), shares[bars], color=style.PALE, width=0.75, label=bars)
    others = [name for name in shares if name != bars]
    for name, look in style.looks(others).items():
        ax.plot(range(len(shares[name])), shares[name], **look)
    ax.set_xticks(range(len(shares[bars])))
    style.dress(ax, "Rank", "Share of the matrices")
    style.legend(fig)
    return fig


def arms(values: Mapping[str, Numbers], *, xlabel: str, first: str = "") -> Figure:
    """One row an arm: a dot a seed, the mean, and one standard deviation where there are three seeds or more.

    first: an arm whose mean is drawn through all rows.
    """
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.42 * len(values), None, width=8.0)
    style.seed_strip(ax, values, errorbar=style.spread)
    if first:
        ax.axvline(float(np.mean(values[first])), color=style.ORANGE, linestyle="--", linewidth=1.5)
    ax.margins(x=0.1)
    style.dress(ax, xlabel, "")
    return fig


def correlations(table: np.ndarray, names: Sequence[str]) -> Figure:
    """Correlations (n, n) between rank lists, centred at 0; the diagonal is left out."""
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.3 * len(names), None, width=2.8 + 0.58 * len(names))
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, table)
    mesh = style.heatmap(ax, shown, names, names, annot=True, fmt="+.2f", size=8, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.tick_params("x", rotation=45 if max(map(len, names)) > 3 else 0)
    fig.colorbar(mesh, ax=ax, pad=0.02, label="Correlation")
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------

TOLERANCE = 1e-6   # as in gates.Selection.rank: weights that all equal 1/k count as kept, whatever the rounding


class RankThreshold(Picture):
    """Left the ranks by matrix and layer; right all selection weights in order, with the threshold's line.

    Args: alphas: site -> α (k,), all of one k; AutoLoRA keeps a direction if its α is at least 1/k.
    """

    def __init__(self, alphas: Mapping[str, np.ndarray]) -> None:
        self.alphas = {site: np.asarray(alpha, dtype=float) for site, alpha in alphas.items()}
        self.matrices, self.layers = style.site_grid([dict.fromkeys(self.alphas, 0.0)])
        self.sorted = np.sort(np.concatenate(list(self.alphas.values())))[::-1]      # (M·k,)
        self.k = len(next(iter(self.alphas.values())))
        spread = max(float(np.abs(self.sorted - 1 / self.k).max()), 0.02 / self.k)
        step = 10.0 ** math.floor(math.log10(spread / 8))
        reach = math.ceil(1.1 * spread / step)                                       # moves to either side of 1/k
        low, high = 1 / self.k - reach * step, 1 / self.k + reach * step
        self.controls = (Control("threshold", "threshold on α", max(low, 0.0), high, 1 / self.k, step),)
        super().__init__()

    def ranks(self, threshold: float) -> dict[str, int]:
        """Site -> number of directions whose weight is at least the threshold."""
        return {site: int((alpha >= threshold - TOLERANCE).sum()) for site, alpha in self.alphas.items()}

    def build(self) -> list[Artist]:
        left, right = self.axes
        table = np.zeros((len(self.matrices), len(self.layers)))
        self.image = left.imshow(table, cmap="cividis", vmin=0, vmax=self.k, aspect="auto")
        self.fig.colorbar(self.image, ax=left, pad=0.02).set_label("Rank", fontsize=9)
        style.dress(left, "Layer", "Matrix", " ")
        left.grid(False)
        style.layer_ticks(left, self.layers)
        left.set_yticks(range(len(self.matrices)), [style.site_label(m) for m in self.matrices])
        self.numbers = {at: left.text(at[1], at[0], "", ha="center", va="center", fontsize=9)
                        for at in np.ndindex(table.shape)}
        self.kept, = right.plot([], [], "o", color=style.BLUE, markersize=4, label="kept")
        self.dropped, = right.plot([], [], "x", color=style.ORANGE, markersize=4, label="dropped")
        self.line = right.axhline(1 / self.k, color=style.BLACK, linestyle="--", linewidth=1.5)
        right.axhline(1 / self.k, color=style.GREY, linestyle=":", linewidth=1.2)
        right.text(0.99, 1 / self.k, f"1/{self.k}", transform=right.get_yaxis_transform(), ha="right", va="bottom",
                   fontsize=9, color=style.GREY)
        right.set_xlim(-1, len(self.sorted))
        right.set_ylim(self.controls[0].low, self.controls[0].high)
        style.dress(right, "Weights of all matrices, sorted", "Selection weight α", " ")
        return [self.image, *self.numbers.values(), self.kept, self.dropped, self.line, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        threshold = state["threshold"]
        ranks = self.ranks(threshold)
        kept = int((self.sorted >= threshold - TOLERANCE).sum())
        return {"table": style.site_table(ranks, self.matrices, self.layers), "kept": kept, "threshold": threshold,
                "left": f"ranks: {sum(ranks.values())} in all",
                "right": f"α ≥ {threshold:.4g}: {kept} of {len(self.sorted)} kept (blue)"}

    def update(self, arrays: dict[str, Any]) -> None:
        table, kept = arrays["table"], arrays["kept"]
        self.image.set_data(table)
        for at, number in self.numbers.items():
            rank = table[at]
            number.set_text("" if np.isnan(rank) else f"{rank:.0f}")
            number.set_color(style.text_color(tuple(self.image.to_rgba(rank))))
        x = np.arange(len(self.sorted))
        self.kept.set_data(x[:kept], self.sorted[:kept])
        self.dropped.set_data(x[kept:], self.sorted[kept:])
        self.line.set_ydata([arrays["threshold"]] * 2)
        self.axes[0].set_title(arrays["left"], fontsize=10)
        self.axes[1].set_title(arrays["right"], fontsize=10)

    def words(self, **state: Any) -> str:
        threshold = state["threshold"]
        ranks = list(self.ranks(threshold).values())
        none = sum(rank == 0 for rank in ranks)
        where = ("At 1/k every matrix keeps at least one direction: its largest weight is never below the mean."
                 if abs(threshold - 1 / self.k) <= TOLERANCE else
                 f"{none} of {len(ranks)} matrices would get no update at all." if none else
                 "Every matrix still keeps a direction.")
        return (f"Threshold {threshold:.4g}: ranks from {min(ranks)} to {max(ranks)}, {sum(ranks)} in all, "
                f"{sum(ranks) / len(ranks):.1f} a matrix. {where}")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------


def _selections(beta: Tensor, constraint: str = "softmax") -> list[Selection]:
    made = [Selection(beta.shape[1], constraint) for _ in beta]
    for selection, row in zip(made, beta, strict=True):
        selection.beta.data = row.clone()
    return made


def selection_factors(beta: Tensor, lora_alpha: float, constraint: str = "softmax") -> Tensor:
    """s · α (M, k) of β (M, k): what each rank-one term is multiplied with, by the library's branch."""
    k = beta.shape[1]
    branches = [LowRank(k, k, k, lora_alpha / k, gate=selection) for selection in _selections(beta, constraint)]
    return torch.stack([branch.scaling * branch.gate() for branch in branches]).detach()


def ranks_from_beta(beta: Tensor) -> Tensor:
    """Ranks (M,) of β (M, k), by the library's rule."""
    return torch.tensor([float(selection.rank()) for selection in _selections(beta)])


def take_virtual_step(W: Tensor, gradient: Tensor, eta: float) -> Tensor:
    """Ŵ of W's shape."""
    return library.virtual_step({"W": W}, [gradient], eta)["W"].detach()


def unrolled(toy: Bilevel, w: float, beta: float, eta: float) -> float:
    """The library's exact hypergradient at one point of a toy."""
    return toy.hypergradient("unrolled", w, beta, eta)


def hypergradient_fd(toy: Bilevel, w: float, beta: float, eta: float, radius: float) -> float:
    """The library's hypergradient by finite differences at one point of a toy."""
    return toy.hypergradient("finite_difference", w, beta, eta, radius)


def retrained_scales(ranks: list[int], lora_alpha: float, k: int) -> Tensor:
    """s of each matrix (2, M) in the LoRA that follows: α / r held first, then α fixed."""
    pattern = {str(i): rank for i, rank in enumerate(ranks)}
    rows = []
    for fixed in (False, True):
        model = nn.Sequential(*(nn.Linear(k, k, bias=False) for _ in ranks))
        method = LoRA(r=k, lora_alpha=lora_alpha, sites=tuple(pattern), rank_pattern=pattern, fixed_alpha=fixed)
        rows.append([branch.scaling for branch in adapt(model, method, seed=0).values()])
    return torch.tensor(rows)


def _virtual(toy: Bilevel, w: float, beta: float, eta: float) -> float:
    return float(take_virtual_step(torch.tensor(w, dtype=torch.float64),
                                   torch.tensor(toy.gradients("train", w, beta)[0], dtype=torch.float64), eta))


def _direct(toy: Bilevel, w: float, beta: float, eta: float, radius: float = 0.01) -> float:
    """∂L_held-out/∂β at Ŵ held fixed."""
    return toy.hypergradient("first_order", _virtual(toy, w, beta, eta), beta, eta)


def _epsilon(toy: Bilevel, w: float, beta: float, eta: float, radius: float) -> float:
    return radius / abs(toy.gradients("held_out", _virtual(toy, w, beta, eta), beta)[0])


def _second(share: Callable[..., float]) -> Callable[..., float]:
    """The direct part and `share` times the second-order one: what a wrong factor leaves."""
    def wrong(*at: float) -> float:
        return _direct(*at) + share(*at) * (hypergradient_fd(*at) - _direct(*at))  # type: ignore[arg-type]

    return wrong


def _betas() -> list[tuple[Tensor, float]]:
    g = torch.Generator().manual_seed(6)
    made = [(1.5 * torch.randn(3, 8, generator=g), 16.0), (1.5 * torch.randn(5, 4, generator=g), 2.0)]
    for beta, _ in made:
        beta[0] += 3.0         # the softmax sees differences alone
        beta[1] = 0.0          # a row as every search starts: all equal
    return made


_TOYS = [(Bilevel(), 0.5, -0.5, 0.3), (Bilevel(train=(0.5, 1.5), held_out=(1.5, 0.4)), 1.2, 0.4, 0.1)]
_WEIGHTS = [(torch.arange(6.0).reshape(2, 3), torch.ones(2, 3) * torch.tensor([1.0, -2.0, 0.5]), 0.1),
            (torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0, 2.0]]), 0.5)]
_RANKS = [([5, 3, 4, 8], 16.0, 8), ([1, 2, 4], 8.0, 4)]
_TWICE = "the two points lie 2ε apart: divide the difference by 2ε"

EXERCISES.update({
    "selection_factors": Task(
        selection_factors, _betas,
        "softmax within each row: every matrix shares out a sum of one; then times s = lora_alpha / k",
        [("softmax runs over the wrong axis: each row (one matrix) must sum to s, not each column",
          lambda beta, alpha: selection_factors(beta.T, alpha).T * len(beta) / beta.shape[1]),
         ("that is the sigmoid of each entry, an ablation: the softmax makes a row share out a sum of one",
          lambda beta, alpha: selection_factors(beta, alpha, "sigmoid")),
         ("that is the raw β, an ablation: the softmax is missing",
          lambda beta, alpha: selection_factors(beta, alpha, "none")),
         ("the scale is missing: multiply by s = lora_alpha / k",
          lambda beta, alpha: selection_factors(beta, beta.shape[1])),
         ("you scale by α, LoRA scales by α / k",
          lambda beta, alpha: selection_factors(beta, alpha * beta.shape[1]))],
        (Selection.forward, LowRank.add_to, library.AutoLoRARule.branch)),
    "ranks_from_beta": Task(
        ranks_from_beta, lambda: [(beta,) for beta, _ in _betas()],
        "count in each row the softmax weights that are at least 1/k, k being the row's length",
        [("greater than 1/k drops a direction that is exactly at it: an all-equal row must count k, so use ≥",
          lambda beta: (torch.stack([s() for s in _selections(beta)]) > 1 / beta.shape[1]).sum(1).float()),
         ("that compares the raw β with its mean, as the authors' search script does; the paper compares the "
          "softmax with 1/k", lambda beta: torch.tensor([s.rank() for s in _selections(beta, "none")])),
         ("that is the threshold of the sigmoid, an ablation: compare the softmax with 1/k",
          lambda beta: torch.tensor([s.rank() for s in _selections(beta, "sigmoid")])),
         ("the threshold is 1 over the directions in a row, not over the number of matrices",
          lambda beta: torch.stack([(s() >= 1 / len(beta)).sum() for s in _selections(beta)])),
         ("that counts along the wrong axis: one rank a row", lambda beta: ranks_from_beta(beta.T))],
        (Selection.rank,)),
    "take_virtual_step": Task(
        take_virtual_step, lambda: list(_WEIGHTS), "one step of plain gradient descent, as a new tensor: W − η g",
        [("that goes uphill: subtract the gradient", lambda W, g, eta: take_virtual_step(W, g, -eta)),
         ("η is missing: the step is η times the gradient", lambda W, g, eta: take_virtual_step(W, g, 1.0)),
         ("that is the step alone: W is missing", lambda W, g, eta: take_virtual_step(0 * W, g, eta)),
         ("that is the step alone: W is missing", lambda W, g, eta: take_virtual_step(0 * W, g, -eta)),
         ("W has not moved: subtract η times the gradient", lambda W, g, eta: take_virtual_step(W, g, 0.0))],
        (library.virtual_step,)),
    "unrolled": Task(
        unrolled, lambda: list(_TOYS), "ŵ must remember that it was made from β: look at the gradient's create_graph",
        [("that is the direct part: ŵ has forgotten that it depends on β. Keep the graph of the inner gradient "
          "(create_graph=True)", _direct),
         ("that is the gradient without a virtual step, the ablation η = 0",
          lambda toy, w, beta, eta: toy.hypergradient("first_order", w, beta, eta)),
         ("the virtual step goes uphill: ŵ = w − η ∂L/∂w", lambda toy, w, beta, eta: unrolled(toy, w, beta, -eta)),
         ("η is missing from the virtual step", lambda toy, w, beta, eta: unrolled(toy, w, beta, 1.0))],
        (library.hypergradient,)),
    "hypergradient_fd": Task(
        hypergradient_fd, lambda: [(*toy, 0.1) for toy in _TOYS],
        "direct − η (g₊ − g₋) / 2ε with g± = ∂L_train/∂β at w ± ε v, ε = radius / |v|",
        [("η is missing: that is the authors' code (betty), which weighs the second-order part by 1",
          lambda toy, w, beta, eta, radius: toy.hypergradient("betty", w, beta, eta, radius)),
         ("that is the direct part: the second-order part is missing", _direct),
         ("the sign is wrong: ŵ = w − η …, so the second-order part is subtracted", _second(lambda *at: -1.0)),
         (_TWICE, _second(lambda *at: 2 * _epsilon(*at))), (_TWICE, _second(lambda *at: 2.0)),
         (_TWICE, _second(lambda *at: _epsilon(*at)))],
        (library.hypergradient,)),
    "retrained_scales": Task(
        retrained_scales, lambda: list(_RANKS),
        "row 0: lora_alpha / k for every matrix; row 1: lora_alpha / its rank",
        [("the rows are swapped: first s held at lora_alpha / k, then α fixed",
          lambda ranks, alpha, k: retrained_scales(ranks, alpha, k).flip(0)),
         ("both rows hold s: with α fixed, each matrix is divided by its own rank",
          lambda ranks, alpha, k: retrained_scales(ranks, alpha, k)[[0, 0]]),
         ("both rows fix α: in the first, s is the same for every matrix",
          lambda ranks, alpha, k: retrained_scales(ranks, alpha, k)[[1, 1]]),
         ("that is α, not the scale: s = α / r", lambda ranks, alpha, k: np.array(
             [[alpha * rank / k for rank in ranks], [alpha] * len(ranks)])),
         ("that is upside down: s = α / r, not r / α",
          lambda ranks, alpha, k: 1 / retrained_scales(ranks, alpha, k))],
        (LoRARule.branch, library.AutoLoRARule.finish)),
})


# ---- the four hypergradients on a network in the middle of a search ---------------------------------------


class Probe:
    """A searched network, and pairs of batches from both halves of its rows.

    Args: trainer: of AutoLoRA(retrain=False), after `run()`; rows: of a batch; pairs: how many pairs.
    betas: β of every matrix; weights: all else that trains, by name.
    """

    def __init__(self, trainer: Trainer, rows: int = 16, pairs: int = 3) -> None:
        self.model = trainer.adapters.model.eval()
        self.betas = trainer.rule.own_parameters()
        for beta in self.betas:
            beta.requires_grad_(True)
        own = {id(beta) for beta in self.betas}
        self.weights: Weights = {name: p for name, p in self.model.named_parameters()
                                 if p.requires_grad and id(p) not in own}

        def batch(half: str, i: int) -> dict[str, Tensor]:
            picked = trainer.collate(list(trainer.streams[half][i * rows:(i + 1) * rows]))
            return {name: value.to(self.betas[0].device) for name, value in picked.items()}

        self.pairs = [(batch("train", i), batch("held_out", i)) for i in range(pairs)]

    def loss_on(self, batch: dict[str, Tensor]) -> Callable[[Weights], Tensor]:
        """The task loss of a batch as a function of the weights."""
        return lambda weights: torch.func.functional_call(self.model, weights, (), batch).loss

    def training_gradient(self, pair: int = 0) -> tuple[Tensor, ...]:
        """∇_W L_train, in the order of the weights: what one plain training step computes."""
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(self.loss_on(self.pairs[pair][0])(self.weights), list(self.weights.values()))

    def gradient(self, kind: str, eta: float, pair: int = 0, at: Weights | None = None) -> Tensor:
        """A hypergradient of one kind (M·k,), at these weights or the network's own."""
        losses = [self.loss_on(batch) for batch in self.pairs[pair]]
        with sdpa_kernel(SDPBackend.MATH):   # fused attention has no second derivative
            found = hypergradient(kind, losses[0], losses[1], at or self.weights, self.betas, eta)
        return torch.cat(found).detach()

    def parts(self, eta: float, pair: int = 0, kind: str = "unrolled") -> tuple[Tensor, Tensor]:
        """(direct, implicit), each (M·k,): with Ŵ held fixed, and what comes through Ŵ; their sum is the whole."""
        virtual = virtual_step(self.weights, self.training_gradient(pair), eta)
        held = {name: w.detach().requires_grad_() for name, w in virtual.items()}
        direct = self.gradient("first_order", eta, pair, held)
        return direct, self.gradient(kind, eta, pair) - direct

    def implicit_share(self, eta: float, kind: str = "unrolled") -> float:
        """‖implicit‖ / ‖direct‖, the mean over the pairs."""
        norms = [[float(part.norm()) for part in self.parts(eta, i, kind)] for i in range(len(self.pairs))]
        return statistics.fmean(implicit / direct for direct, implicit in norms)

    def cosines(self, eta: float) -> dict[str, float]:
        """Kind -> cosine to the exact hypergradient, the mean over the pairs."""
        found = {kind: [self.gradient(kind, eta, i) for i in range(len(self.pairs))] for kind in HYPERGRADIENTS}
        return {kind: statistics.fmean(float(F.cosine_similarity(one, exact, dim=0))
                                       for one, exact in zip(found[kind], found["unrolled"], strict=True))
                for kind in HYPERGRADIENTS}

    def costs(self, eta: float, repeats: int = 3) -> dict[str, float]:
        """Kind -> seconds in gradients of the training loss, medians of turns."""
        kinds = {kind: lambda kind=kind: self.gradient(kind, eta) for kind in HYPERGRADIENTS}
        seconds = in_turns({"plain": self.training_gradient, **kinds}, repeats)
        return {kind: statistics.median(seconds[kind]) / statistics.median(seconds["plain"]) for kind in kinds}

    def search_step(self, kind: str, eta: float, eta_beta: float) -> Callable[[], None]:
        """A function that takes one step of β, then one of the weights; it changes the network."""
        outer = torch.optim.AdamW(self.betas, lr=eta_beta, weight_decay=0.0)
        inner = training_step(self.model, self.pairs[0][0], list(self.weights.values()), lr=eta)
        k = len(self.betas[0])

        def step() -> None:
            for beta, part in zip(self.betas, self.gradient(kind, eta).split(k), strict=True):
                beta.grad = part
            outer.step()
            inner()

        return step


# ---- the method by hand: a small network in float64 -------------------------------------------------------


class Workbench:
    """A small network in float64, and batches from both halves of 64 examples of a task, the same for every search.

    settings: AdamW at a rate that falls linearly to zero; no warm-up, no clipping; dropout is off.
    pairs: (training batch, held-out batch) of the steps 1 … T, seed 0.  method: the library's search, as by hand.
    """

    def __init__(self, task: str, profile: str, backbone: str = "minilm-l3") -> None:
        steps = 12 if profile == "tiny" else 40
        self.settings = train_config("tiny", steps=steps, batch_size=8, lr=5e-3, warmup=0.0, max_grad_norm=0.0)
        data = load_task(task, n_train=64, n_validation=8, n_test=8)
        require(data.task.kind == "classification", f"the loop by hand needs a task with classes, not {task}")
        self.pretrained, tokenizer = load_for(backbone, data, 0)
        self.pretrained.double()
        for module in self.pretrained.modules():   # no noise: the passes of one step must agree
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        rows = Rows(data, tokenizer, self.settings, encoder_decoder=False)
        self.rows, self.collate, self.classes = rows.train, rows.collate, len(data.task.labels)
        self.method = AutoLoRA(r=8, lora_alpha=16.0, sites="qv", eta_beta=0.05, retrain=False,
                               hypergradient="finite_difference")
        loop = self.trainer()
        self.pairs = [tuple(self.collate(loop.rows_of(half, step)[0]) for half in ("train", "held_out"))
                      for step in range(1, steps + 1)]

    def network(self) -> Any:
        """Return a fresh copy of the pretrained network with its new head, in training mode."""
        return copy.deepcopy(self.pretrained).train()

    def trainer(self, starts: Sequence[Tensor] = (), callbacks: Sequence[Any] = ()) -> Trainer:
        """Return the library's search on this network; starts: A of each site, in order."""
        adapters = adapt(self.network(), self.method, seed=0)
        for branch in adapters.values():
            branch.gate_module.double()  # type: ignore[union-attr]
        for branch, start in zip(adapters.values(), starts, strict=False):
            branch.lora_A.data.copy_(start)
        return Trainer(adapters, self.rows, self.collate, self.settings, seed=0, callbacks=list(callbacks))

    def library(self, starts: Sequence[Tensor]) -> tuple[list[float], list[Tensor], dict[str, int]]:
        """Return the losses, β (M, k) after every step, and the ranks of the library's search."""
        path: list[Tensor] = []

        class Watch:
            def on_step(self, clock: Any, values: dict[str, float]) -> None:
                path.append(torch.stack([beta.detach().clone() for beta in trainer.rule.own_parameters()]))

            def on_eval(self, clock: Any, metrics: dict[str, float]) -> None:
                """Nothing is evaluated here."""

        trainer = self.trainer(starts, [Watch()])
        outcome = trainer.run()
        losses = [value for _, site, name, value in outcome.history if name == "loss" and not site]
        return losses, path, trainer.rule.ranks()  # type: ignore[attr-defined]


def say_equal(what: str, mine: Any, theirs: Any, tolerance: float = 1e-7) -> None:
    """Print the largest difference; raise AssertionError with a sentence above the tolerance.

    The finite difference divides rounding of 1e-16 by ε, and AdamW divides gradients by their own size.
    """
    off = float((torch.as_tensor(mine).double() - torch.as_tensor(theirs).double()).abs().max())
    assert off <= tolerance, f"{what}: by hand and by the library differ by {off:.1e}, more than {tolerance:g}"
    print(f"{what}: largest difference {off:.1e}")


def by_hand(losses: Sequence[float], betas: Sequence[Tensor], classes: int) -> Figure:
    """Left the loss of each step beside chance; right α of the first site over time; betas: (M, k) a step."""
    fig, (left, right) = style.panels(2, 2, 2.9, None)
    steps = np.arange(1, len(losses) + 1)
    alphas = torch.stack(list(betas))[:, 0].softmax(-1).detach().numpy()
    left.plot(steps, losses, color=style.BLUE, linewidth=2)
    left.axhline(math.log(classes), color=style.GREY, linestyle=":")
    left.text(steps[-1], math.log(classes), f"chance, ln {classes}", ha="right", va="bottom", fontsize=9)
    for values in alphas.T:
        right.plot(steps, values, color=style.BLUE if values[-1] >= 1 / len(alphas.T) else style.ORANGE)
    right.axhline(1 / len(alphas.T), color=style.BLACK, linestyle="--", linewidth=1.2)
    style.dress(left, "Search step", "Loss of the training batch", "Loss of the loop by hand")
    style.dress(right, "Search step", "Selection weight α", "First W_q: blue kept, orange dropped")
    fig.set_label(f"Two panels against the step: the loss, from {losses[0]:.2f} to {losses[-1]:.2f}, beside chance; "
                  "eight selection weights that start at one eighth and spread around it.")
    return fig


# ---- findings: what the figure shows, computed from its data ----------------------------------------------


def finding_loss(losses: Sequence[float], classes: int, what: str = "search") -> str:
    """Say where the loss of a search began and ended, beside chance."""
    width = max(1, len(losses) // 4)
    first, last, chance = float(np.mean(losses[:width])), float(np.mean(losses[-width:])), math.log(classes)
    verdict = ("it is below chance" if last < chance - 0.05 else
               "it is not clearly below chance, so little was learned")
    return (f"The mean loss of the {what} is {first:.2f} in its first quarter and {last:.2f} in its last. Chance is "
            f"{chance:.2f}: {verdict}.")


def finding_alpha(alphas: Mapping[str, np.ndarray]) -> str:
    """Say how far the weights got from 1/k at the end; site -> α (steps, k)."""
    last = np.stack([alpha[-1] for alpha in alphas.values()])
    k = last.shape[1]
    near = float((np.abs(last - 1 / k) < 0.1 / k).mean())
    return (f"At the end the weights of the panels lie between {last.min():.3f} and {last.max():.3f}, around 1/k = "
            f"{1 / k:.3f}; {near:.0%} of them are within a tenth of it, where a small change turns the decision.")


def finding_rank_time(counts: np.ndarray, k: int) -> str:
    """Say how soon the mean rank left k; counts: (M, steps)."""
    mean, early = counts.mean(0), min(4, counts.shape[1]) - 1
    return (f"All ranks are {k} before the search. After {early + 1} steps their mean is {mean[early]:.1f}, and at "
            f"the end {mean[-1]:.1f}, with ranks from {counts[:, -1].min()} to {counts[:, -1].max()}.")


def finding_cost(cost: Mapping[str, float], cosine: Mapping[str, float]) -> str:
    """Compare the kinds of hypergradient by cost and by cosine to the exact one."""
    return (f"The first-order hypergradient has cosine {cosine['first_order']:.4f} to the exact one, at "
            f"{cost['first_order']:.1f} gradients of the training loss instead of {cost['unrolled']:.1f}. The finite "
            f"difference has {cosine['finite_difference']:.4f}; with weight 1, as in the authors' code, it has "
            f"{cosine['betty']:.4f}.")


def finding_arms(scores: Mapping[str, Sequence[float]]) -> str:
    """Say which arms' means differ from the first arm's, and by how much beside the spread of its seeds."""
    first = next(iter(scores))
    mean = float(np.mean(scores[first]))
    spread = float(np.std(scores[first], ddof=1)) if len(scores[first]) > 1 else 0.0
    gaps = {arm: float(np.mean(values)) - mean for arm, values in scores.items() if arm != first}
    widest = max(gaps, key=lambda arm: abs(gaps[arm]))
    return (f"The widest gap to {first} ({mean:.3f}) is that of {widest}: {gaps[widest]:+.3f}. One standard "
            f"deviation of {first} over its {len(scores[first])} seeds is {spread:.3f}.")


def both_counts(alphas: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Return rule -> site -> rank of α (k,) by site: softmax ≥ 1/k, and β = log α ≥ its mean."""
    made: dict[str, dict[str, int]] = {"softmax": {}, "raw": {}}
    for site, alpha in alphas.items():
        selection = Selection(len(alpha))
        selection.beta.data = torch.as_tensor(np.log(alpha), dtype=torch.float32)
        for rule, ranks in made.items():
            ranks[site] = selection.rank(raw=rule == "raw")
    return made


# ---- predictions ------------------------------------------------------------------------------------------


def predict_start(k: int) -> None:
    """Ask for the ranks before any search."""
    predict("Before the search all β are equal. Which ranks does the rule 'α ≥ 1/k' then give?",
            f"{Selection(k).rank()} everywhere: each α is exactly 1/k, and 'at least' includes it.")


def predict_first_gradient(k: int) -> None:
    """Ask for the first-order gradient of β while B = 0."""
    selection = Selection(k)
    LowRank(k=32, d=32, r=k, gate=selection)(torch.ones(1, 32)).sum().backward()
    largest = float(selection.beta.grad.abs().max())  # type: ignore[union-attr]
    predict("In the very first step B = 0. What is the first-order gradient of β?",
            f"Exactly {largest:g}. After the virtual step B is not 0, so the unrolled gradient is not 0 either.")


def predict_chance(k: int) -> None:
    """Ask for the mean rank of β that nobody trained."""
    draws = 0.1 * torch.randn(500, k, generator=torch.Generator().manual_seed(0))
    mean = float((draws.softmax(1) >= 1 / k).sum(1).float().mean())
    predict("Nobody trains β; it is perturbed at random, a little. Which rank comes out on average?",
            f"{mean:.2f} of {k}. Keep this number in mind when ranks near {k // 2} are found.")
