"""Notebook 06, AutoLoRA: its pictures, the slider of the threshold, the exercises, and hypergradients measured.

M matrices (sites), k directions each; a toy has one inner number w and one outer number β.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...adapters import Adapters, adapt
from ...analysis import plots, style
from ...analysis import statistics as statistic
from ...analysis.measures import in_turns, training_step
from ...analysis.plots import Numbers
from ...analysis.toy_problems import Bilevel as Bilevel
from ...experiments.fit import Rows, load_for
from ...experiments.runs import Run
from ...gates import Selection
from ...lowrank import LowRank
from ...methods import AutoLoRA, LoRA
from ...methods import autolora as library
from ...methods.autolora import HYPERGRADIENTS, Weights, hypergradient, virtual_step
from ...methods.lora import LoRARule
from ...reproduction import studies
from ...reproduction.claims import autolora_ranks
from ...reproduction.results import Results
from ...tasks.load import load_task
from ...training.config import fit_to_profile, train_config
from ...training.trainer import Trainer
from ..by_hand import Bench, few_examples, losses_of
from ..by_hand import say_equal as say_equal
from ..contents import readable
from ..exercises import EXERCISES, Task, predict
from ..explorer import Control, Picture
from ..schematic import arrow, box, canvas
from .lora import guessing, ratio_bars
from .lora import scores as scores

# ---- pictures ---------------------------------------------------------------------------------------------

# kind of hypergradient -> what the legend calls it, colour, line style, marker
KINDS = {"first_order": ("first order (η = 0)", style.ORANGE, "--", "s"),
         "unrolled": ("unrolled: weight η", style.BLUE, "-", "o"),
         "finite_difference": ("finite difference: weight η", style.SKY, ":", "D"),
         "betty": ("finite difference: weight 1", style.GREEN, "-.", "^")}


def two_levels() -> Figure:
    """The search as a loop between two halves of the examples, and what comes out of it."""
    fig, ax = canvas(9.0, 3.4)
    box(ax, 0.1, 2.35, 1.9, 0.8, style.GREY, "training half", name="examples")
    box(ax, 0.1, 0.35, 1.9, 0.8, style.GREY, "held-out half", name="examples")
    box(ax, 2.8, 2.35, 2.5, 0.8, style.BLUE, "inner level: one step down", name="A, B, head")
    box(ax, 2.8, 0.35, 2.5, 0.8, style.ORANGE, "outer level: one step down", name="β → α = softmax β")
    box(ax, 6.3, 1.35, 2.5, 0.8, style.GREEN, "then plain LoRA, all examples", name="rank = #{α ≥ 1/k}")
    for start, end in (((2.05, 2.75), (2.75, 2.75)), ((2.05, 0.75), (2.75, 0.75)), ((5.35, 0.75), (6.25, 1.6))):
        arrow(ax, start, end)
    arrow(ax, (3.6, 2.3), (3.6, 1.2), bend=0.25)
    arrow(ax, (4.5, 1.2), (4.5, 2.3), bend=0.25)
    ax.text(3.25, 1.75, "virtual step Ŵ", ha="right", va="center", fontsize=10)
    ax.text(4.85, 1.75, "new α", ha="left", va="center", fontsize=10)
    fig.set_label("Two boxes of examples feed two boxes of parameters, which are joined by two arrows in a circle; "
                  "an arrow leads from the lower one to a box that counts the ranks.")
    return fig


def toy_paths(toy: Bilevel, paths: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Contours of the held-out loss over (β, w), the line of inner solutions, and where each kind walks.

    Args: kind -> (β, w), each (S,).
    """
    beta, w = np.linspace(-3, 3.5, 240), np.linspace(0, 3.3, 200)
    held_out = toy.surface("held_out", w, beta)
    fig, (ax,) = style.panels(1, 1, 4.0, None, width=8.0)
    contours = ax.contour(beta, w, held_out, levels=np.quantile(held_out, np.linspace(0.01, 0.95, 10)),
                          cmap="cividis", linewidths=1.0)
    fig.colorbar(contours, ax=ax, pad=0.02, format="%.2f").set_label("Held-out loss", fontsize=10)
    ax.plot(beta, toy.inner_solution(beta), color=style.GREY, linewidth=5, alpha=0.35,
            label="w that the training half asks for")
    for kind, (path_beta, path_w) in paths.items():
        label, color, line, marker = KINDS[kind]
        ax.plot(path_beta, path_w, color=color, linestyle=line, linewidth=2, label=label)
        ax.plot(path_beta[-1], path_w[-1], marker, color=color, markersize=8)
    ax.plot(*toy.best(), "*", color=style.BLACK, markersize=15, label="lowest held-out loss on that line")
    ax.set_xlim(beta.min(), beta.max())
    ax.set_ylim(w.min(), w.max())
    style.dress(ax, "Outer number β", "Inner number w", "Both levels of a search with two numbers")
    style.legend(fig)
    fig.set_label("Contours of the held-out loss over β and w, a grey curve of inner solutions, "
                  f"{len(paths)} paths that end on it one after the other, and a star further along it.")
    return fig


def finding_of_paths(toy: Bilevel, paths: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Say where each path ends and where the solution of both levels lies."""
    ends = ", ".join(f"{path[0][-1]:.2f} ({KINDS[kind][0]})" for kind, path in paths.items())
    return (f"All paths start at the lower left and end on the grey line, where w has nothing left to learn. They "
            f"end at β = {ends}. The lowest held-out loss on that line is at β = {toy.best()[0]:.2f}.")


def toy_pushes(toy: Bilevel, at: Sequence[float], pushes: Mapping[str, Sequence[float]]) -> Figure:
    """The held-out loss along the inner line, and from points on it an arrow down each hypergradient.

    Args: β of the points (P,); kind -> hypergradient at them (P,).
    """
    beta = np.linspace(-3, 3.5, 240)
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.5)
    held_out = _along(toy, beta)
    ax.plot(beta, held_out, color=style.GREY, linewidth=5, alpha=0.35, label="held-out loss once w has followed β")
    longest = max(float(np.abs(slope).max()) for slope in pushes.values())
    room = 0.07 * float(np.ptp(held_out))
    for i, (kind, slope) in enumerate(pushes.items()):
        label, color, line, marker = KINDS[kind]
        ax.plot([], [], color=color, linestyle=line, marker=marker, label=label)
        height = _along(toy, np.asarray(at)) + (i + 1) * room
        for x, y, push in zip(at, height, -np.asarray(slope) / longest, strict=True):
            ax.plot(x, y, marker, color=color, markersize=4)
            if abs(push) > 0.01:
                ax.annotate("", xy=(x + push, y), xytext=(x, y),
                            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0,
                                        "shrinkB": 0, "linestyle": line})
    style.dress(ax, "Outer number β", "Held-out loss", "Which way each hypergradient pushes β")
    style.legend(fig)
    fig.set_label(f"The held-out loss falls with β to a flat bottom; from {len(at)} points on it start "
                  f"{len(pushes)} arrows each, which agree far from the bottom and disagree near it.")
    return fig


def _along(toy: Bilevel, beta: np.ndarray) -> np.ndarray:
    """The held-out loss on the inner line."""
    return toy.loss("held_out", torch.as_tensor(toy.inner_solution(beta)), torch.as_tensor(beta)).numpy()


def finding_of_pushes(at: Sequence[float], pushes: Mapping[str, Sequence[float]]) -> str:
    """Say at which points the kinds push β to different sides."""
    split = [i for i in range(len(at)) if len({bool(slope[i] < 0) for slope in pushes.values()}) > 1]
    if not split:
        return "At these points all kinds push β to the same side."
    i = split[0]
    right = [KINDS[kind][0] for kind, slope in pushes.items() if slope[i] < 0]
    left = [KINDS[kind][0] for kind, slope in pushes.items() if slope[i] >= 0]
    return (f"Down the grey curve is to the right as far as its bottom. At β = {at[i]:g} the kinds disagree: "
            f"{' and '.join(left)} push{'es' if len(left) == 1 else ''} β back, {' and '.join(right)} "
            f"push{'es' if len(right) == 1 else ''} it on.")


def by_hand(losses: Sequence[float], betas: Sequence[Tensor], classes: int) -> Figure:
    """The loss of each step beside chance; β and α of the first matrix over time; betas: (M, k) a step."""
    fig, axes = style.panels(3, 3, 2.9, None)
    steps = np.arange(1, len(losses) + 1)
    beta = torch.stack(list(betas))[:, 0].detach()
    alpha, k = beta.softmax(-1), beta.shape[1]
    axes[0].plot(steps, losses, color=style.METHOD_STYLE["autolora"][1], linewidth=2)
    _chance(axes[0], classes)
    for ax, values in zip(axes[1:], (beta.numpy(), alpha.numpy()), strict=True):
        for column, last in zip(values.T, alpha[-1], strict=True):
            kept = float(last) >= 1 / k - TOLERANCE
            ax.plot(steps, column, color=style.BLUE if kept else style.ORANGE, linestyle="-" if kept else "--",
                    label="kept at the end" if kept else "dropped")
    axes[2].axhline(1 / k, color=style.BLACK, linestyle=":", linewidth=1.3, label=f"threshold 1/{k}")
    style.dress(axes[0], "Search step", "Loss of the training batch", "The loop by hand")
    style.dress(axes[1], "Search step", "β", f"β of {style.site_label('0.q')}")
    style.dress(axes[2], "Search step", "α", "Its α, the softmax of β")
    for ax in axes:
        style.index_axis(ax, len(losses))
    style.legend(fig)
    fig.set_label(f"Three panels against the step: the loss, from {losses[0]:.2f} to {losses[-1]:.2f}, beside "
                  f"chance; the {k} numbers β of one matrix, which start at zero and spread; and their "
                  f"softmax, which starts at 1/{k}.")
    return fig


def _chance(ax: Any, classes: int) -> None:
    """A dotted line at the loss of a guesser, with its words."""
    ax.axhline(math.log(classes), color=style.GREY, linestyle=":", linewidth=1.4,
               label=f"chance, ln {classes} = {math.log(classes):.2f}")


def finding_by_hand(losses: Sequence[float], betas: Sequence[Tensor], classes: int) -> str:
    """Say where the loss began and ended beside chance, and how far β has come."""
    k = betas[-1].shape[1]
    ranks = (betas[-1].softmax(-1) >= 1 / k - TOLERANCE).sum(-1)
    return (f"{_fall(losses, classes)} The largest |β| is {float(betas[-1].abs().max()):.2f} at the end, and the "
            f"ranks go from {int(ranks.min())} to {int(ranks.max())}.")


def _fall(losses: Sequence[float], classes: int) -> str:
    """Say where a search's loss began and ended, beside chance."""
    width = max(1, len(losses) // 4)
    first, last, chance = float(np.mean(losses[:width])), float(np.mean(losses[-width:])), math.log(classes)
    where = ("below chance" if last < chance - 0.05 else "not clearly below chance, so the search has learned little "
             "from its examples")
    return (f"The mean loss is {first:.2f} in the first quarter of the search and {last:.2f} in the last; chance is "
            f"{chance:.2f}, so it is {where}.")


def training(run: Run, lora: Run, classes: int) -> Figure:
    """Left the loss of the search beside chance; right that of the training after it, beside LoRA's."""
    fig, (left, right) = style.panels(2, 2, 3.0, None, sharey=True)
    _, color, line, _ = style.METHOD_STYLE["autolora"]
    search, after = search_and_training(run)
    left.plot(*statistic.smooth(search), color=color, linewidth=2, label="search of AutoLoRA")
    right.plot(*statistic.smooth(after), color=color, linestyle=line, linewidth=2, label="AutoLoRA, at its ranks")
    right.plot(*statistic.smooth(lora.series("loss")), color=style.BLUE, linewidth=2, label="LoRA, r = 4")
    for ax in (left, right):
        _chance(ax, classes)
    style.dress(left, "Search step", "Loss (mean of 10 steps)", "The search: half of the examples")
    style.dress(right, "Training step", "", "The training after it: all examples")
    style.legend(fig)
    fig.set_label(f"Two panels of losses beside chance. Left the search, which ends at "
                  f"{np.mean(search[1][-10:]):.2f}; right LoRA at the ranks found, which ends at "
                  f"{np.mean(after[1][-10:]):.2f}, and LoRA of rank 4, which ends at "
                  f"{np.mean(lora.series('loss')[1][-10:]):.2f} (means of ten steps).")
    return fig


def search_and_training(run: Run) -> tuple[tuple[list[int], list[float]], tuple[list[int], list[float]]]:
    """Cut the loss of a run in two: (steps, losses) of its search, and of the training after it, each from 1 on."""
    losses, n = run.series("loss")[1], int(run.seconds["steps.search"])
    return (list(range(1, n + 1)), losses[:n]), (list(range(1, len(losses) - n + 1)), losses[n:])


def finding_of_training(run: Run, lora: Run, classes: int) -> str:
    """Say whether the search learned, and where both trainings ended."""
    search, after = search_and_training(run)
    ends = [float(np.mean(losses[-10:])) for losses in (after[1], lora.series("loss")[1])]
    ranks = list(run.ranks.values())
    return (f"{_fall(search[1], classes)} Over their last ten steps AutoLoRA's training has loss {ends[0]:.2f} and "
            f"LoRA's {ends[1]:.2f}. The ranks found are {min(ranks)} to {max(ranks)}, {np.mean(ranks):.2f} on "
            "average. This is one seed: section 9 has five.")


def alpha_panels(alphas: Mapping[str, np.ndarray]) -> Figure:
    """α over the search, W_q and W_v of the first and the last layer; site -> (steps, k)."""
    layers = sorted({int(site.split(".")[0]) for site in alphas})
    shown = {f"{layer}.{m}": alphas[f"{layer}.{m}"] for layer in (layers[0], layers[-1]) for m in "qv"}
    steps, k = next(iter(shown.values())).shape
    fig = plots.alpha_over_time(np.arange(1, steps + 1), shown, 1 / k)
    fig.set_label(f"{k} selection weights against the search step in {len(shown)} panels, first and last layer, W_q "
                  f"and W_v; they start together at 1/{k} and spread out around it.")
    return fig


def finding_alpha(alphas: Mapping[str, np.ndarray]) -> str:
    """Say how far the weights got from 1/k at the end; site -> α (steps, k)."""
    last = np.stack([alpha[-1] for alpha in alphas.values()])
    k = last.shape[1]
    near = float((np.abs(last - 1 / k) < 0.1 / k).mean())
    return (f"At the end all {last.size} weights lie between {last.min():.3f} and {last.max():.3f}, around 1/k = "
            f"{1 / k:.3f}; {near:.0%} of them are within a tenth of it, where a small change turns the decision.")


def rank_curves(alphas: Mapping[str, np.ndarray]) -> Figure:
    """Mean, largest and smallest rank of a matrix after each step of the search, beginning at k."""
    counts, k = _counts(alphas)
    lines = {"mean of all matrices": counts.mean(0), "largest": counts.max(0), "smallest": counts.min(0)}
    steps = list(range(counts.shape[1] + 1))
    fig = plots.learning_curves({name: (steps, [k, *values]) for name, values in lines.items()}, xlabel="Search step",
                                ylabel="Rank by the rule α ≥ 1/k", title="When are the ranks decided?")
    fig.set_label(f"Mean, largest and smallest rank against the search step; all start at {k} and drop within a few "
                  "steps.")
    return fig


def _counts(alphas: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
    k = next(iter(alphas.values())).shape[1]
    return np.array([(alpha >= 1 / k - TOLERANCE).sum(1) for alpha in alphas.values()]), k   # (M, steps)


def finding_rank_time(alphas: Mapping[str, np.ndarray]) -> str:
    """Say how soon the mean rank left k."""
    counts, k = _counts(alphas)
    mean, early = counts.mean(0), min(4, counts.shape[1]) - 1
    return (f"All ranks are {k} before the search. After {early + 1} steps their mean is {mean[early]:.1f}, and at "
            f"the end {mean[-1]:.1f}, with ranks from {counts[:, -1].min()} to {counts[:, -1].max()}.")


TASKS = ("MRPC", "QQP", "QNLI", "MNLI", "CoLA", "SST-2", "RTE", "STS-B")


def authors() -> pd.DataFrame:
    """The ranks that the authors printed: a row a matrix, a column a task of GLUE; and a line that says where."""
    lists, source = autolora_ranks()
    print(source)
    return pd.DataFrame({task: lists[task] for task in TASKS})


def ranks_beside(ours: Mapping[str, int], theirs: pd.DataFrame, task: str, k: int) -> Figure:
    """Our ranks by matrix and layer, beside three of the authors' tasks."""
    shown = {f"ours: {task}": ours, **{name: theirs[name].to_dict() for name in ("QQP", "MNLI", "CoLA")}}
    fig = plots.rank_heatmaps(shown, max_rank=k)
    fig.set_label(f"Four tables of ranks, W_q and W_v by layer: ours with {len(ours) // 2} layers, then the authors' "
                  f"for QQP, MNLI and CoLA with {len(theirs) // 2}.")
    return fig


def finding_beside(ours: Mapping[str, int], theirs: pd.DataFrame) -> str:
    """Say the mean ranks, and how far the authors' lists agree from task to task."""
    low, high = statistic.by_chance(theirs)
    found = statistic.mean_correlation(theirs)
    where = "within" if low <= found <= high else "outside"
    return (f"The mean rank is {np.mean(list(ours.values())):.2f} here, and {theirs.mean().min():.2f} to "
            f"{theirs.mean().max():.2f} in the authors' eight tasks of GLUE. Their lists hardly agree from task to "
            f"task: the mean correlation is {found:+.2f}, {where} the range {low:+.2f} to {high:+.2f} of the same "
            "ranks dealt at random.")


def cost_and_cosine(cost: Mapping[str, float], cosine: Mapping[str, float]) -> Figure:
    """Left what each hypergradient costs, in gradients of the training loss; right its cosine to the exact one."""
    fig, axes = style.panels(2, 2, 0.7 + 0.4 * len(cost), None, width=9.0, sharey=True)
    names = list(cost)[::-1]
    for ax, values, title, form in zip(axes, (cost, cosine), ("Cost", "Cosine to the exact one"), ("%.1f", "%.4f"),
                                       strict=True):
        bars = ax.barh([KINDS[name][0] for name in names], [values[name] for name in names],
                       color=[KINDS[name][1] for name in names], height=0.6)
        ax.bar_label(bars, fmt=form, fontsize=9, padding=4)
        ax.margins(x=0.3)
        style.dress(ax, "1: a gradient of the training loss" if ax is axes[0] else "1: the same direction", "", title)
        ax.grid(axis="y", visible=False)
    said = "; ".join(f"{KINDS[name][0]}: cost {cost[name]:.1f}, cosine {cosine[name]:+.4f}" for name in cost)
    fig.set_label(f"Two bar charts, cost and cosine, a bar for each kind. {said}.")
    return fig


def finding_cost(cost: Mapping[str, float], cosine: Mapping[str, float]) -> str:
    """Compare the kinds of hypergradient by cost and by cosine to the exact one."""
    return (f"The first-order hypergradient has cosine {cosine['first_order']:.4f} to the exact one, at "
            f"{cost['first_order']:.1f} gradients of the training loss instead of {cost['unrolled']:.1f}. The finite "
            f"difference has {cosine['finite_difference']:.4f}; with weight 1, as in the authors' code, it has "
            f"{cosine['betty']:.4f}.")


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
    style.dress(ax, "Weight of the implicit part (log)", "‖implicit‖ / ‖direct‖ (log)",
                "How large is the second part?")
    style.legend(fig)
    fig.set_label("Ratio of the implicit to the direct part, which rises with its weight on log axes; upright lines "
                  f"mark {', '.join(marked)}.")
    return fig


def finding_share(shares: Mapping[float, float], at_one: float) -> str:
    """Say how large the implicit part is at some η, and at weight 1; shares: η -> ratio."""
    small, large = min(shares), max(shares)
    return (f"At η = {small:g}, the paper's rate, the implicit part has {shares[small]:.1e} times the size of the "
            f"direct one, and at η = {large:g} it has {shares[large]:.1e}: it grows by "
            f"{shares[large] / shares[small]:.0f} while η grows by {large / small:.0f}. "
            f"With weight 1, as in the authors' code, the factor is {at_one:.1f}.")


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
    style.dress(ax, "Rank", "Share of the matrices", "Ranks of a search, and ranks of β that nobody trained")
    style.legend(fig)
    fig.set_label(f"Histogram of the ranks 0 to {len(shares[bars]) - 1}: bars for {bars}, highest at "
                  f"{int(np.argmax(shares[bars]))}, and {len(others)} lines from random β, which cover about the "
                  "same ranks.")
    return fig


def histogram_of(ranks: Mapping[str, Any], k: int) -> Figure:
    """`rank_histogram` of ranks by name, the first as bars."""
    flat = {name: np.asarray(of, dtype=int).ravel() for name, of in ranks.items()}
    return rank_histogram({name: np.bincount(of, minlength=k + 1) / len(of) for name, of in flat.items()},
                          bars=next(iter(ranks)))


def finding_chance(ranks: Mapping[str, Any]) -> str:
    """Say mean and standard deviation of each list of ranks, and which random one is nearest to the first."""
    means = {name: (float(np.mean(np.asarray(of))), float(np.std(np.asarray(of)))) for name, of in ranks.items()}
    first, *others = means
    nearest = min(others, key=lambda name: abs(means[name][0] - means[first][0]))
    return (f"{first[0].upper() + first[1:]}: mean {means[first][0]:.2f}, standard deviation {means[first][1]:.2f}. "
            f"The nearest random β ({nearest.removeprefix('random β, ')}): {means[nearest][0]:.2f} and "
            f"{means[nearest][1]:.2f}.")


def arms(values: Mapping[str, Numbers], *, xlabel: str, first: str = "", chance: float | None = None) -> Figure:
    """One row an arm: a dot a seed, the mean, and one standard deviation where there are three seeds or more.

    first: an arm whose mean is drawn through all rows.  chance: the score of a guesser, a dotted line.
    """
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.42 * len(values), None, width=8.0)
    style.seed_strip(ax, values, errorbar=style.spread)
    if first:
        ax.axvline(float(np.mean(values[first])), color=style.ORANGE, linestyle="--", linewidth=1.5)
    if chance is not None:
        ax.axvline(chance, color=style.GREY, linestyle=":", linewidth=1.5)
        ax.text(chance, 0.02, f" guessing, {chance:.3f}", transform=ax.get_xaxis_transform(), fontsize=9, va="bottom")
    ax.margins(x=0.1)
    style.dress(ax, xlabel, "")
    fig.set_label(f"{len(values)} rows of dots, a dot a seed: "
                  + ", ".join(f"{arm} {np.mean(found):.3f}" for arm, found in values.items())
                  + (f"; a dashed line at the mean of {first}." if first else "."))
    return fig


def stored_arms() -> Results:
    """The stored study of the search's parts; prints where it comes from."""
    study = studies.load("autolora_parts")
    steps = {record["seconds"]["steps.search"] for record in study.of("AutoLoRA")}
    print(f"{study.line()}; each search before it took {' or '.join(f'{n:.0f}' for n in sorted(steps))} steps")
    return study


def arms_figure(study: Results) -> Figure:
    """`arms` of a stored study, with the score of a guesser."""
    sizes = {**train_config(study.about["profile"]).to_dict(), **study.about["training"]}
    guess = guessing(study.about["task"], sizes)[1]
    fig = arms(study.values(), xlabel="Test accuracy (dashed: AutoLoRA's mean)", first="AutoLoRA", chance=guess)
    fig.axes[0].set_title("The parts of the search, a dot a seed", fontsize=11)
    return fig


def _intervals(study: Results, first: str = "AutoLoRA") -> dict[str, tuple[float, float, float]]:
    """Arm -> mean of first − arm over the seeds, and its 95 % interval."""
    gaps = {arm: study.differences(first, arm) for arm in study.arms if arm != first}
    return {arm: (float(np.mean(of)), *statistic.paired_bootstrap(of)) for arm, of in gaps.items()}


def finding_arms(study: Results) -> str:
    """Say from which arms AutoLoRA can be told apart over its seeds."""
    found = _intervals(study)
    apart = {arm: mean for arm, (mean, low, high) in found.items() if low > 0 or high < 0}
    mean, low, high = found["ranks dealt at random"]
    told = (", ".join(f"{arm} ({gap:+.3f})" for arm, gap in apart.items()) if apart else "none of the others")
    return (f"The interval of the paired difference leaves zero out for {told}. Against its own ranks dealt at "
            f"random AutoLoRA has {mean:+.3f}, interval {low:+.3f} to {high:+.3f}"
            + ("." if low > 0 or high < 0 else ", which holds zero: it was not shown that it matters which matrix "
               "got which rank."))


def arms_table(study: Results) -> Any:
    """A table of AutoLoRA − arm, paired by seed, with 95 % intervals."""
    rows = {arm: [f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", "yes" if low <= 0 <= high else "no",
                  f"{len(study.of(arm))}"] for arm, (mean, low, high) in _intervals(study).items()}
    frame = pd.DataFrame.from_dict(rows, orient="index",
                                   columns=["AutoLoRA − this", "95 % interval", "holds zero", "seeds"])
    return readable(frame.rename_axis("stored runs"), "arms")


def ranks_by_seed(study: Results, arm: str = "AutoLoRA") -> pd.DataFrame:
    """The ranks that a stored arm found: a row a matrix, a column a seed."""
    return pd.DataFrame({f"seed {r['seed']}": study.by_site(arm, "rank", r["seed"]) for r in study.of(arm)})


def seeds_figure(by_seed: Mapping[str, Any] | pd.DataFrame, k: int) -> Figure:
    """Ranks by matrix and layer, a panel a seed; seed -> site -> rank."""
    lists = pd.DataFrame(by_seed)
    fig = plots.rank_heatmaps(lists.to_dict(), max_rank=k)
    fig.set_label(f"A small table of ranks (W_q and W_v by layer) for each of {lists.shape[1]} seeds.")
    return fig


def finding_seeds(by_seed: Mapping[str, Any] | pd.DataFrame, without: pd.DataFrame | None = None) -> str:
    """Say whether ranks come back with another seed, and whether η = 0 finds others; seed -> site -> rank."""
    lists = pd.DataFrame(by_seed)
    found, (low, high) = statistic.mean_correlation(lists), statistic.by_chance(lists)
    said = f"the same ranks dealt at random would give {low:+.2f} to {high:+.2f} (95 %)"
    where = "above" if found > high else "below" if found < low else "inside"
    verdict = ("cannot be computed, since a seed gave all matrices one rank" if np.isnan(found) else
               f"is {found:+.2f}; {said}, so it is {where} that range")
    text = f"The mean correlation between {lists.shape[1]} seeds {verdict}, on only {len(lists)} matrices."
    if without is None:
        return text
    same = int((lists == without).to_numpy().sum())
    return f"{text} With η = 0 the search finds {same} of {lists.size} ranks alike."


def cost_bars(totals: Mapping[str, float]) -> Figure:
    """The time of whole procedures, in units of one training of LoRA."""
    fig = ratio_bars(totals, xlabel="Time of the whole procedure (one training of LoRA: 1, dashed)")
    fig.set_label("Bars: " + ", ".join(f"{label} {ratio:.2f}" for label, ratio in totals.items()) + ".")
    return fig


def finding_of_totals(totals: Mapping[str, float]) -> str:
    """Say what a search as long as the training costs, beside the grid."""
    whole, grid = totals["AutoLoRA, search 1"], totals["LoRA, grid of 16 ranks"]
    ada = f" AdaLoRA of peft takes {totals['AdaLoRA']:.1f}." if "AdaLoRA" in totals else ""
    return (f"With a search as long as the training, AutoLoRA takes {whole:.1f} trainings of LoRA; a grid of 16 "
            f"ranks takes {grid:.0f}.{ada}")


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


def search_step(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Tensor:
    """(w, β) after one whole step: β by the library's exact hypergradient, then w at the new β."""
    beta -= eta_beta * unrolled(toy, w, beta, eta)
    return torch.tensor([_virtual(toy, w, beta, eta), beta])


def _virtual(toy: Bilevel, w: float, beta: float, eta: float) -> float:
    """ŵ: one step of plain gradient descent on the training loss."""
    slope = torch.tensor(toy.gradients("train", w, beta)[0], dtype=torch.float64)
    return float(virtual_step({"w": torch.tensor(w, dtype=torch.float64)}, [slope], eta)["w"])


def _both_at_once(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Tensor:
    """Wrong: w moves at the old β."""
    return torch.tensor([_virtual(toy, w, beta, eta), beta - eta_beta * unrolled(toy, w, beta, eta)])


def _weights_first(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Tensor:
    """Wrong: w moves first, and β is judged a step further on."""
    w = _virtual(toy, w, beta, eta)
    return torch.tensor([w, beta - eta_beta * unrolled(toy, w, beta, eta)])


def _from_virtual(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Tensor:
    """Wrong: the virtual step is kept, and the real one begins where it ended."""
    new = beta - eta_beta * unrolled(toy, w, beta, eta)
    return torch.tensor([_virtual(toy, _virtual(toy, w, beta, eta), new, eta), new])


def _uphill(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Tensor:
    return search_step(toy, w, beta, eta, -eta_beta)


def _only_direct(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Tensor:
    new = beta - eta_beta * _direct(toy, w, beta, eta)
    return torch.tensor([_virtual(toy, w, new, eta), new])


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
_RANKS = [([5, 3, 4, 8], 16.0, 8), ([1, 2, 4], 8.0, 4)]
_TWICE = "the two points lie 2ε apart: divide the difference by 2ε"


# ---- answers, written for a reader ------------------------------------------------------------------------


def answer_selection_factors(beta: Tensor, lora_alpha: float) -> Tensor:
    s = lora_alpha / beta.shape[1]
    return s * beta.softmax(dim=1)  # each row, one matrix, shares out a sum of one


def answer_ranks_from_beta(beta: Tensor) -> Tensor:
    k = beta.shape[1]
    return (beta.softmax(dim=1) >= 1 / k - 1e-6).sum(dim=1)  # the tolerance: equal weights count in spite of rounding


def answer_search_step(toy: Bilevel, w: float, beta: float, eta: float, eta_beta: float) -> Any:
    beta = beta - eta_beta * answer_unrolled(toy, w, beta, eta).item()  # the virtual step is inside
    slope, _ = toy.gradients("train", w, beta)  # the real step: from w, at the new β
    return torch.tensor([w - eta * slope, beta])


def answer_unrolled(toy: Bilevel, w: Any, beta: Any, eta: float) -> Tensor:
    w = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(toy.loss("train", w, beta), w, create_graph=True)  # remember how it was made
    virtual = w - eta * slope
    return torch.autograd.grad(toy.loss("held_out", virtual, beta), beta)[0]


def answer_hypergradient_fd(toy: Bilevel, w: float, beta: float, eta: float, radius: float) -> float:
    slope, _ = toy.gradients("train", w, beta)
    v, direct = toy.gradients("held_out", w - eta * slope, beta)
    epsilon = radius / abs(v)
    plus, minus = (toy.gradients("train", w + e * v, beta)[1] for e in (epsilon, -epsilon))
    return direct - eta * (plus - minus) / (2 * epsilon)


def answer_retrained_scales(ranks: list[int], lora_alpha: float, k: int) -> list[list[float]]:
    return [[lora_alpha / k for _ in ranks],  # s held: only the rank changes
            [lora_alpha / rank for rank in ranks]]  # α fixed: a small rank takes larger steps


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
        (Selection.forward, LowRank.add_to, library.AutoLoRARule.branch), answer=answer_selection_factors),
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
        (Selection.rank,), answer=answer_ranks_from_beta),
    "search_step": Task(
        search_step, lambda: [(*toy, 0.5) for toy in _TOYS],
        "β first, by the exact hypergradient times eta_beta; then w, from where it was, at the new β",
        [("w moved at the old β: take the new β for the real step of w", _both_at_once),
         ("w moved first: β moves first, and looks ahead by the virtual step", _weights_first),
         ("the real step begins at w and not at ŵ: the virtual step is only tried", _from_virtual),
         ("β goes uphill: subtract eta_beta times the hypergradient", _uphill),
         ("that is the direct part alone: call unrolled for the hypergradient", _only_direct)],
        (library.AutoLoRARule.before_step,), answer=answer_search_step),
    "unrolled": Task(
        unrolled, lambda: list(_TOYS), "ŵ must remember that it was made from β: look at the gradient's create_graph",
        [("that is the direct part: ŵ has forgotten that it depends on β. Keep the graph of the inner gradient "
          "(create_graph=True)", _direct),
         ("that is the gradient without a virtual step, the ablation η = 0",
          lambda toy, w, beta, eta: toy.hypergradient("first_order", w, beta, eta)),
         ("the virtual step goes uphill: ŵ = w − η ∂L/∂w", lambda toy, w, beta, eta: unrolled(toy, w, beta, -eta)),
         ("η is missing from the virtual step", lambda toy, w, beta, eta: unrolled(toy, w, beta, 1.0))],
        (library.hypergradient,), answer=answer_unrolled),
    "hypergradient_fd": Task(
        hypergradient_fd, lambda: [(*toy, 0.1) for toy in _TOYS],
        "direct − η (g₊ − g₋) / 2ε with g± = ∂L_train/∂β at w ± ε v, ε = radius / |v|",
        [("η is missing: that is the authors' code (betty), which weighs the second-order part by 1",
          lambda toy, w, beta, eta, radius: toy.hypergradient("betty", w, beta, eta, radius)),
         ("that is the direct part: the second-order part is missing", _direct),
         ("the sign is wrong: ŵ = w − η …, so the second-order part is subtracted", _second(lambda *at: -1.0)),
         (_TWICE, _second(lambda *at: 2 * _epsilon(*at))), (_TWICE, _second(lambda *at: 2.0)),
         (_TWICE, _second(lambda *at: _epsilon(*at)))],
        (library.hypergradient,), answer=answer_hypergradient_fd),
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
        (LoRARule.branch, library.AutoLoRARule.finish), answer=answer_retrained_scales),
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


class Workbench(Bench):
    """The workbench with batches from both halves of 64 examples, without dropout: the passes of a step must agree.

    pairs: (training batch, held-out batch) of the steps 1 … T, seed 0.  method: the library's search, as by hand.
    """

    def __init__(self, task: str, profile: str) -> None:
        super().__init__(few_examples(task, 64), train_config(
            "tiny", steps=12 if profile == "tiny" else 40, batch_size=8, lr=5e-3, warmup=0.0, max_grad_norm=0.0),
            dropout=False)
        self.method = AutoLoRA(r=8, lora_alpha=16.0, sites="qv", eta_beta=0.05, retrain=False,
                               hypergradient="finite_difference")
        loop = self.trainer()
        self.pairs = [tuple(self.collate(loop.rows_of(half, step)[0]) for half in ("train", "held_out"))
                      for step in range(1, self.settings.steps + 1)]

    def network(self) -> Any:
        """Return a fresh copy of the pretrained network with its new head, in training mode."""
        return super().network().train()

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
        return losses_of(outcome), path, trainer.rule.ranks()  # type: ignore[attr-defined]


def compare_searches(plain: Sequence[Tensor], other: Sequence[Tensor]) -> str:
    """Say how two searches by hand differ at their ends; β (M, k) after every step."""
    a, b = plain[-1], other[-1]
    k = a.shape[1]
    ranks = [(beta.softmax(-1) >= 1 / k - TOLERANCE).sum(-1) for beta in (a, b)]
    cosine = float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    verdict = "almost the same" if cosine > 0.99 else "similar" if cosine > 0.9 else "not the same"
    return (f"What the two searches find is {verdict}: their β have cosine {cosine:.3f}, "
            f"{float(((a > 0) == (b > 0)).double().mean()):.0%} of them the same sign, and "
            f"{int((ranks[0] == ranks[1]).sum())} of {len(a)} matrices get the same rank.")


# ---- the real network in the middle of a search -----------------------------------------------------------


def searched(task: str, backbone: str, profile: str) -> Trainer:
    """Return a search of the profile's length, not yet run, by the cheap first-order hypergradient."""
    settings = train_config(profile)
    data = load_task(task, n_train=settings.n_train, n_validation=8, n_test=8)
    model, tokenizer = load_for(backbone, data, 0)
    rows = Rows(data, tokenizer, settings, encoder_decoder=False)
    method = fit_to_profile(AutoLoRA(retrain=False, hypergradient="first_order"), profile)
    return Trainer(adapt(model, method, seed=0), rows.train, rows.collate, settings, seed=0)


def first_output(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """The logits of the first examples, with the branches and without them."""
    adapters: Adapters = trainer.adapters
    batch = trainer.collate(list(trainer.streams["train"][:8]))
    kept = {name: branch.scaling for name, branch in adapters.items()}
    model = adapters.model.eval()
    with torch.no_grad():
        with_branches = model(**batch).logits
        for branch in adapters.values():
            branch.scaling = 0.0
        without = model(**batch).logits
        for name, branch in adapters.items():
            branch.scaling = kept[name]
    model.train()
    return with_branches, without


def sigmoid_ranks(beta: Tensor) -> list[int]:
    """Ranks of β (M, k) by the sigmoid of the ablation, which keeps what is at least one half."""
    return [selection.rank() for selection in _selections(beta, "sigmoid")]


def count_table(ranks: Mapping[str, tuple[Any, Any]]) -> Any:
    """A table of mean ranks under both counting rules; name -> ranks by the softmax rule, and by the raw one."""
    def words(of: Any) -> str:
        return "–" if of is None else f"{np.mean(np.asarray(of)):.2f} ± {np.std(np.asarray(of)):.2f}"

    rows = {name: [words(of) for of in both] for name, both in ranks.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["softmax ≥ 1/k", "raw / sum ≥ 1/k"])
    return readable(frame.rename_axis("mean rank ± standard deviation"), "counts")


def procedure_costs(probe: Probe, task: str, backbone: str, share: float, eta_beta: float) -> dict[str, float]:
    """Time of whole procedures, in units of one training of LoRA of rank 4; peft's AdaLoRA where peft is there.

    Args: share: steps of the search as a share of the training's.
    """
    data = load_task(task, n_train=8, n_validation=8, n_test=8)
    batch = probe.pairs[0][0]
    lora = adapt(load_for(backbone, data, 0)[0], LoRA(r=4, lora_alpha=8.0), seed=0)
    timed = {"LoRA": training_step(lora.model, batch), "unrolled": probe.search_step("unrolled", 1e-4, eta_beta),
             "first": probe.search_step("first_order", 1e-4, eta_beta)}
    if (step := _adalora_step(load_for(backbone, data, 0)[0], batch, list(lora.head_names))) is not None:
        timed["AdaLoRA"] = step
    seconds = {name: statistics.median(of) for name, of in in_turns(timed, repeats=4).items()}
    cost = {name: value / seconds["LoRA"] for name, value in seconds.items()}
    totals = {"LoRA, one rank": 1.0, f"AutoLoRA, search {share:g}": 1 + share * cost["unrolled"],
              "AutoLoRA, first order, search 1": 1 + cost["first"], "AutoLoRA, search 1": 1 + cost["unrolled"],
              "LoRA, grid of 16 ranks": 16.0} | {name: cost[name] for name in cost if name == "AdaLoRA"}
    return dict(sorted(totals.items(), key=lambda pair: pair[1]))


def _adalora_step(model: Any, batch: dict[str, Tensor], head: Sequence[str], k: int = 8) -> Callable[[], None] | None:
    """A training step of peft's AdaLoRA, which masks width k down to 4; None without peft."""
    try:
        from peft import AdaLoraConfig, get_peft_model
    except ImportError:
        print('without peft AdaLoRA is left out: pip install "lowrank-teach[test]"')
        return None
    # peft asks transformers for this by its old name
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    chosen = AdaLoraConfig(target_modules=["query", "value"], init_r=k, target_r=4, tinit=0, tfinal=0,
                           total_step=1000)
    ada = get_peft_model(model, chosen)
    for part in head:
        ada.get_base_model().get_parameter(part).requires_grad_(True)
    return training_step(ada, batch, after=ada.base_model.update_and_allocate)  # type: ignore[arg-type]


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
    predict("In the very first step B = 0. What is the gradient of β if no virtual step is taken?",
            f"Exactly {largest:g}, because α only multiplies zeros. After the virtual step B is not 0, so the "
            "gradient there is not 0 either.")


def predict_chance(k: int) -> None:
    """Ask for the mean rank of β that nobody trained."""
    draws = 0.1 * torch.randn(500, k, generator=torch.Generator().manual_seed(0))
    mean = float((draws.softmax(1) >= 1 / k).sum(1).float().mean())
    predict("Nobody trains β; each entry is a small random number. Which rank does the rule give on average?",
            f"{mean:.2f} of {k}. Keep this number in mind when ranks near {k // 2} are found.")
