"""Notebook 04, SaLoRA: its pictures and their findings, predictions, sliders and exercises.

The sliders show one hard-concrete gate and a budget on stored gates, both computed live with `gates.Stretch` and
`measures.density`, and stored runs by target density. n sites or gates, r rank, d out, k in, T or S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor, nn

from ...adapters import Adapters, adapt
from ...analysis import measures, plots, style
from ...analysis.plots import Numbers
from ...analysis.statistics import smooth, t_interval
from ...analysis.toy_problems import gates_alone
from ...experiments.runs import Run
from ...gates import HardConcrete, Stretch
from ...lowrank import LowRank
from ...methods import LoRA, Method
from ...methods.base import Clock
from ...methods.salora import SaLoRA, SaLoRARule, _off_identity
from ...models.backbones import load_backbone
from ...reproduction import studies
from ...reproduction.results import Results, SideBySide
from ...tasks.load import load_task
from ...tasks.table import TASKS
from ...tasks.tokenize import Collate, encode
from ...training.config import TrainConfig, fit_to_profile, train_config
from ...training.trainer import Batch, Trainer
from ..by_hand import guess, scored
from ..by_hand import say_equal as say_equal
from ..contents import readable
from ..exercises import EXERCISES, Task, predict
from ..explorer import SNAPPED, Control, Picture
from ..schematic import arrow, canvas, matrix

__all__ = ["fit_to_profile", "gates_alone"]   # for the notebook, beside what is defined here

EDGE = -Stretch().shift   # the log θ at which a gate closes, −log 11

# ---- the task, and the library's own loop on given batches --------------------------------------------------


def classes(task: str) -> int:
    """Outputs of the head that a task asks for: one for a score."""
    return max(1, len(TASKS[task].labels))


def seeds(profile: str) -> tuple[int, ...]:
    """Seeds of the comparisons that the notebook trains itself."""
    return (1,) if profile == "tiny" else (0, 1)


def batches(task: str, tokenizer: Any, *, steps: int, size: int = 8, max_length: int = 48) -> list[Batch]:
    """The first training examples of a task as `steps` batches of tensors, with their labels."""
    data = load_task(task, n_train=steps * size, n_validation=8, n_test=8)
    rows, collate = encode(data.train, data.task, tokenizer, max_length), Collate(tokenizer, data.task)
    made = [collate([rows[(i * size + j) % len(rows)] for j in range(size)]) for i in range(steps)]
    return [{name: t.double() if t.is_floating_point() else t for name, t in batch.items()} for batch in made]


class _OnGiven(Trainer):
    """The library's trainer, which takes the batches in the order in which they are given."""

    given: Sequence[Batch] = ()

    def _batches(self, stream: str, step: int) -> list[Batch]:
        return [self.given[step - 1]]


def library_run(adapters: Adapters, given: Sequence[Batch], *, lr: float, noise: int = 0) -> pd.DataFrame:
    """Train by the library's loop, one step a batch, without warm-up, clipping or decay.

    Args: noise: seed of the gates' noise.  Returns loss, C and λ of each step; the adapters are trained in place.
    """
    plain = TrainConfig(steps=len(given), batch_size=1, lr=lr, warmup=0.0, weight_decay=0.0, max_grad_norm=0.0)
    trainer = _OnGiven(adapters, list(given), lambda rows: rows[0], plain, seed=0)
    trainer.given = given
    adapters.rule.generator.manual_seed(noise)
    rows = [row for row in trainer.run().history if not row[1]]
    wide = pd.DataFrame(rows, columns=["step", "site", "name", "value"]).pivot(
        index="step", columns="name", values="value")
    return wide[["loss", "density", "lambda"]].set_axis(["loss", "C", "λ"], axis=1)


def majority(task: str, profile: str) -> float | None:
    """The share of the largest class among a profile's scored examples, for tasks scored by accuracy; else None."""
    if TASKS[task].metrics[0] != "accuracy" or not TASKS[task].labels:
        return None
    c = train_config(profile)
    data = load_task(task, n_train=c.n_train, n_validation=c.n_validation, n_test=c.n_test,
                     validation_from_train=c.validation_from_train)
    return guess(scored(data), len(data.task.labels))[1]


def stored(name: str) -> Results:
    """Return a stored study, and print where it comes from."""
    found = studies.load(name)
    print(f"{found.line()}; {len({record['seed'] for record in found.records})} seeds")
    return found


def chance_loss(task: str) -> float | None:
    """The loss of a network that gives every class the same probability."""
    return math.log(len(TASKS[task].labels)) if TASKS[task].labels else None


# ---- the loop by hand ---------------------------------------------------------------------------------------

# Both loops do the same in float64, up to the order of their sums; Adam divides a gradient by its size, and may make
# the rounding of a small one larger
ROUNDING = 1e-10


def state_of(layers: Sequence[Any], optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, ...]]:
    """Copies of B, Adam's two means of it, and log θ, of layers that name them B and log_theta."""
    kept = []
    for layer in layers:
        state = optimizer.state[layer.B]
        kept.append(tuple(t.detach().clone() for t in (layer.B, state["exp_avg"], state["exp_avg_sq"],
                                                       layer.log_theta)))
    return kept


def by_hand(history: Sequence[tuple[float, float, float]], end: int, b: float, task: str) -> Figure:
    """The loop by hand: loss beside chance, density beside b, and λ.  Args: (loss, C, λ) of each step; end: T_end."""
    fig, axes = style.panels(3, 3, 2.8, None, width=9.5)
    steps = np.arange(1, len(history) + 1)
    for ax, values, name, title in zip(axes, zip(*history, strict=True), ("Loss of the batch", "Density C", "λ"),
                                       ("The task's loss", "The budget is spent down", "The price climbs"),
                                       strict=True):
        ax.plot(steps, values, color=style.METHOD_STYLE["salora"][1], linewidth=2)
        ax.axvspan(0.5, end + 0.5, color=style.PALE, alpha=0.3, linewidth=0, label="gates train")
        style.dress(ax, "Optimizer step", name, title)
    _chance(axes[0], chance_loss(task), name="chance")
    axes[1].axhline(b, color=style.ORANGE, linestyle="--", label=f"b = {b:g}")
    axes[1].set_ylim(0, 1.02)
    style.legend(fig)
    fig.set_label(f"Three panels over {len(history)} steps, the first {end} shaded: loss, density from "
                  f"{history[0][1]:.2f} to {history[-1][1]:.2f}, lambda from {history[0][2]:.2f} to "
                  f"{history[-1][2]:.2f}.")
    return fig


def finding_by_hand(history: Sequence[tuple[float, float, float]], end: int, b: float, layers: Sequence[Any],
                    task: str) -> str:
    """Where C and λ end, how many directions are left, and the loss beside chance."""
    (_, C, lam), kept = history[-1], sum(layer.B.shape[1] for layer in layers)
    after = float(np.mean([loss for loss, *_ in history[end:]]))
    chance = chance_loss(task)
    level = "" if chance is None else f" (chance is {chance:.3f})"
    return (f"In {end} steps C falls to {C:.3f}, where b = {b:g}, while λ climbs to {lam:.2f}. {kept} of "
            f"{len(layers[0].log_theta) * len(layers)} directions are left. The mean loss of the steps after the "
            f"window is {after:.3f}{level}.")


# ---- pictures and their findings ---------------------------------------------------------------------------


def _words(*parts: str) -> str:
    """"a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _chance(ax: Axes, level: float | None, *, name: str = "majority class", upright: bool = True) -> None:
    """A dashed line at a chance level, or a word at the panel's edge where the level lies outside of it."""
    if level is None:
        return
    low, high = ax.get_ylim() if upright else ax.get_xlim()
    if low <= level <= high:
        (ax.axhline if upright else ax.axvline)(level, color=style.GREY, linestyle=":", label=f"{name}, {level:.3g}")
        return
    below, ways = level < low, "↓↑" if upright else "←→"
    words = f"{ways[not below]} {name}: {level:.3g}"
    at = (0.02, 0.03 if below else 0.97) if upright else (0.02 if below else 0.98, 0.02)
    ax.text(*at, words, transform=ax.transAxes, fontsize=9, color=style.GREY, ha="left" if below or upright
            else "right", va="top" if upright and not below else "bottom")


def gated_directions(gates: Numbers) -> Figure:
    """The branch of one matrix as r lanes, row of A, gate, column of B; a lane whose gate is zero is crossed out.

    Args: gates (r,), each in [0, 1]; six can be read.
    """
    top = float(len(gates))
    fig, ax = canvas(9.0, 0.5 * len(gates) + 1.2, y=(-1.1, top + 0.5))
    for lane, gate in enumerate(gates):
        _lane(ax, top - 0.5 - lane, lane + 1, float(gate))
    for x, name in ((0.45, "x"), (7.6, "")):   # one vector each lane reads from, one sum that each writes to
        matrix(ax, x - 0.08, 0.1, 0.16, top - 0.2, style.GREY)
        ax.text(x - 0.2, top / 2, name, fontsize=15, ha="right", va="center", fontweight="bold")
    arrow(ax, (7.72, top / 2), (8.5, top / 2))
    ax.text(8.1, top / 2 + 0.1, "× s,\n+ W x", fontsize=10, ha="center", va="bottom")
    ax.text(8.65, top / 2, "h", fontsize=15, ha="left", va="center", fontweight="bold")
    for x, words in ((2.4, "rows of A\nread x"), (4.6, "gates g\none a direction"), (6.2, "columns of B\nwrite h")):
        ax.text(x, -0.15, words, fontsize=9, ha="center", va="top")
    shut = _words(*(str(j + 1) for j, gate in enumerate(gates) if not gate))
    fig.set_label(f"{len(gates)} parallel lanes from x to h, each a row of A, a gate and a column of B. Lanes "
                  f"{shut} are faint and crossed out, since their gates are zero.")
    return fig


def gate_from_noise(log_thetas: Numbers, stretch: Stretch) -> Figure:
    """What the clip does: the gate over its noise u, and the three probabilities over log θ.

    Args: log_thetas: of the curves on the left; the first one's ends are shaded.
    """
    fig, (left, right) = style.panels(2, 2, 3.0, None)
    u = torch.linspace(1e-4, 1 - 1e-4, 2000, dtype=torch.float64)
    for (at, look) in zip(log_thetas, style.looks([f"log θ = {t:g}" for t in log_thetas]).values(), strict=True):
        look = {**look, "marker": ""}
        theta = torch.tensor(float(at), dtype=torch.float64)
        raw = torch.sigmoid((torch.logit(u) + theta) / stretch.tau) * (stretch.zeta - stretch.gamma) + stretch.gamma
        left.plot(u, raw, **{**look, "label": None, "linewidth": 0.8, "alpha": 0.5})
        left.plot(u, raw.clamp(0, 1), **{**look, "linewidth": 2})
    first = torch.tensor(float(log_thetas[0]), dtype=torch.float64)
    zero, full = 1 - float(stretch.open_probability(first)), float(stretch.full_probability(first))
    left.axvspan(0, zero, color=style.ORANGE, alpha=0.2, linewidth=0)
    left.axvspan(1 - full, 1, color=style.BLUE, alpha=0.2, linewidth=0)
    for level in (0, 1):
        left.axhline(level, color=style.GREY, linewidth=0.7)
    grid = torch.linspace(-6, 6, 121, dtype=torch.float64)
    is_open, is_full = stretch.open_probability(grid), stretch.full_probability(grid)
    bounds = (torch.zeros_like(grid), 1 - is_open, 1 - is_full, torch.ones_like(grid))
    for low, high, name, color in zip(bounds, bounds[1:], ("g = 0", "0 < g < 1", "g = 1"),
                                      (style.ORANGE, style.PALE, style.BLUE), strict=False):
        right.fill_between(grid, low, high, color=color, alpha=0.75, linewidth=0, label=name)
    style.dress(left, "Noise u", "Stretched (thin) and clipped (thick)", "One gate: what is clipped becomes 0 or 1")
    style.dress(right, "log θ", "Probability, stacked", "How likely each outcome is")
    right.set(xlim=(-6, 6), ylim=(0, 1))
    style.legend(fig)
    fig.set_label(f"Left, the stretched sigmoid of the noise for {len(log_thetas)} values of log theta; it leaves "
                  "[0, 1] "
                  f"at both ends, where the clipped gate is exactly 0 or 1. At log theta = {float(first):g} these "
                  f"ends are {zero:.3f} and {full:.3f} wide. Right, stacked probabilities of the three outcomes.")
    return fig


def finding_of_noise(log_thetas: Numbers, stretch: Stretch) -> str:
    """What the masses at both ends are at these log θ."""
    parts = []
    for at in log_thetas:
        theta = torch.tensor(float(at), dtype=torch.float64)
        zero, full = 1 - float(stretch.open_probability(theta)), float(stretch.full_probability(theta))
        parts.append(f"{zero:.1%} of the draws are exactly 0 and {full:.1%} exactly 1 at log θ = {at:g}")
    return f"{_words(*parts)}. Each share is the length of the piece of the u axis that the clip flattens."


def tiny_budget(curves: Mapping[str, tuple[Numbers, Numbers]], p: Mapping[str, Numbers], values: Numbers, *,
                b: float) -> Figure:
    """Gates whose values are known, under a fixed and under a learned λ.

    Args: name -> (C, λ) of each step; name -> P(g > 0) at the end (r,); values (r,): what each direction is worth.
    """
    fig, (left, middle, right) = style.panels(3, 3, 2.7, None)
    width = 0.8 / len(curves)
    for i, (name, look) in enumerate(style.looks(curves).items()):
        for ax, y in zip((left, middle), curves[name], strict=True):
            ax.plot(np.arange(1, len(y) + 1), y, **{**look, "marker": ""})
        right.bar(np.arange(1, len(values) + 1) + (i - (len(curves) - 1) / 2) * width, p[name], width,
                  color=look["color"])
    left.axhline(b, color=style.GREY, linestyle=":", label=f"budget b = {b:g}")
    right.set_xticks(range(1, len(values) + 1))
    style.dress(left, "Step", "Density C", "Does C reach b?")
    style.dress(middle, "Step", "λ", "How hard the budget presses")
    style.dress(right, "Direction, by its value", "P(g > 0) at the end", "Which directions stay")
    style.legend(fig)
    fig.set_label("Left, the density over the steps for each λ. Middle, λ. Right, the probability that each "
                  "direction is "
                  f"open at the end, from the least to the most valuable. {finding_of_tiny(curves, p, b)}")
    return fig


def finding_of_tiny(curves: Mapping[str, tuple[Numbers, Numbers]], p: Mapping[str, Numbers], b: float) -> str:
    """How near to b each λ comes, and which directions are left."""
    ends = [f"{float(C[-1]):.3f} with λ {name}" for name, (C, _) in curves.items()]
    last = list(curves)[-1]
    left = [j + 1 for j, q in enumerate(p[last]) if float(q) > 0.5]
    rising = "the most valuable ones" if left == list(range(len(p[last]) - len(left) + 1, len(p[last]) + 1)) else \
        "not simply the most valuable ones"
    nearest = min(curves, key=lambda name: abs(float(curves[name][0][-1]) - b))
    return (f"C ends at {_words(*ends)}, where b = {b:g}: λ {nearest} comes nearest. With λ {last}, directions "
            f"{_words(*map(str, left))} stay likelier open than shut: {rising}.")


def _lane(ax: Axes, y: float, j: int, gate: float) -> None:
    is_open, alpha = gate > 0, 0.65 if gate > 0 else 0.15
    matrix(ax, 1.5, y - 0.13, 1.8, 0.26, style.BLUE, alpha=alpha)
    matrix(ax, 5.7, y - 0.13, 1.0, 0.26, style.BLUE, alpha=alpha)
    ax.add_patch(Ellipse((4.6, y), 0.56, 0.66, facecolor=style.ORANGE, alpha=0.15 + 0.6 * gate, linewidth=0))
    ax.text(4.6, y, f"{gate:.1f}" if is_open else "×", fontsize=10 if is_open else 14, ha="center", va="center")
    ax.text(3.55, y + 0.08, f"j = {j}", fontsize=8, ha="left", va="bottom", color=style.GREY)
    for left, right in ((0.55, 1.45), (3.35, 4.28), (4.92, 5.65), (6.75, 7.5)):
        arrow(ax, (left, y), (right, y), color=style.BLACK if is_open else style.PALE, width=1, head=9,
              pointed=is_open)


def gate_readings(log_theta: Numbers, values: Mapping[str, Numbers], *, edge: float) -> Figure:
    """Numbers that sum up a gate against log θ, on a log axis, where zero has no place.

    Args: log_theta (n,); name -> (n,); edge: the log θ at which the deterministic gate closes.
    """
    fig, (ax,) = style.panels(1, 1, 3.0, None, width=7.5)
    for name, look in style.looks(values).items():
        y = np.asarray(values[name], dtype=float)
        ax.plot(log_theta, np.where(y > 0, y, np.nan), **{**look, "marker": ""})
    ax.axvline(edge, color=style.GREY, linestyle=":", label=f"log θ = {edge:.3f}")
    ax.axhline(0.5, color=style.GREY, linewidth=0.8, label="one half")
    style.dress(ax, "log θ", "Value (log)", "Three numbers that sum up a gate")
    ax.set_yscale("log")
    style.legend(fig)
    fig.set_label("Three rising curves over log theta on a log axis. P(g > 0) and E[g] fall to the left as straight "
                  f"lines that never end; the deterministic gate drops to nothing at {edge:.3f}.")
    return fig


def finding_of_readings(log_theta: Tensor, values: Mapping[str, Tensor], edge: float) -> str:
    """Which of the readings ends, and where P(g > 0) stands there."""
    ends = [name for name, y in values.items() if bool((y == 0).any())]
    p = float(Stretch().open_probability(torch.tensor(edge, dtype=torch.float64)))
    lowest = {name: f"{name} = {float(y[0]):.5f}" for name, y in values.items() if name not in ends}
    return (f"Only {_words(*ends)} reaches zero, at log θ = {edge:.3f}, and there P(g > 0) = {p:.3f}. "
            f"At log θ = {float(log_theta[0]):g} the others are small and above zero: {_words(*lowest.values())}.")


def gate_histogram(log_theta: Numbers, *, edge: float) -> Figure:
    """How many gates closed the window at which log θ.

    Args: log_theta (n,); edge: the deterministic gate is zero up to it.
    """
    import seaborn

    fig, (ax,) = style.panels(1, 1, 2.9, None, width=7.5)
    values, width = np.asarray(log_theta, dtype=float), 0.2
    below, above = (int(np.ceil(reach / width)) for reach in (edge - values.min(), values.max() - edge))
    bins = edge + width * np.arange(-max(below, 1), max(above, 1) + 1)
    for side, label, color, hatch in ((values < edge, "dropped", style.ORANGE, "///"),
                                      (values >= edge, "kept", style.BLUE, "")):
        seaborn.histplot(values[side], bins=bins, ax=ax, alpha=1, edgecolor="white", label=label, color=color,
                         hatch=hatch)
    ax.axvline(edge, color=style.BLACK, linestyle="--", label=f"log θ = {edge:.3f}")
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.dress(ax, "log θ when the window closed", "Gates", "Every gate at the end of the window")
    style.legend(fig)
    fig.set_label("Histogram of log theta of all gates when the window closed, with a dashed line at "
                  f"{edge:.3f}. {finding_of_gates(values, edge)}")
    return fig


def finding_of_gates(log_theta: Numbers, edge: float = EDGE, near: float = 0.25) -> str:
    """How many gates stay, and how many stand close to the edge."""
    values = np.asarray(log_theta, dtype=float)
    kept, close = int((values > edge).sum()), int((np.abs(values - edge) < near).sum())
    g = Stretch().deterministic(torch.tensor(values[values > edge]))
    mean = f", with a mean gate of {float(g.mean()):.2f}" if kept else ""
    return (f"{kept} of {len(values)} gates stand right of the edge and are kept{mean}; {close} of all gates "
            f"({close / len(values):.0%}) stand within {near:g} of the edge, where a little noise decides.")


def two_ascents(falling: Mapping[str, Numbers], rising: Mapping[str, Numbers], *, target: float) -> Figure:
    """Density of some gates on the left, λ of others on the right, by setting of Adam.

    Args: setting -> C of each step; setting -> λ of each step; target: b of the left panel.
    """
    fig, axes = style.panels(2, 2, 2.7, None)
    for ax, curves, name in zip(axes, (falling, rising), ("Expected density C", "Multiplier λ"), strict=True):
        for setting, look in style.looks(curves).items():
            ax.plot(np.arange(1, len(curves[setting]) + 1), curves[setting], **{**look, "marker": ""})
        style.dress(ax, "Step", name)
    axes[0].axhline(target, color=style.GREY, linestyle=":", label=f"target b = {target:g}")
    axes[0].set_title("Gates with and without momentum, b = 0.5", fontsize=10)
    axes[1].set_title("λ with short and long memory, b = 0.125", fontsize=10)
    style.legend(fig)
    fig.set_label(f"Left, density over the steps; right, lambda. {finding_of_ascents(falling, rising, target)}")
    return fig


def finding_of_ascents(falling: Mapping[str, Numbers], rising: Mapping[str, Numbers], target: float) -> str:
    """How far each setting swings past the target, and how high λ gets."""
    low = [f"{max(0.0, target - float(np.min(C))):.3f} below b with {name}" for name, C in falling.items()]
    high = [f"{float(lam[-1]):.1f} with {name}" for name, lam in rising.items()]
    return f"The density swings {_words(*low)}. λ ends at {_words(*high)}."


def density_sweep(few: Results, whole: Sequence[float], *, level: float | None = None) -> Figure:
    """What a target density costs, and what becomes of it: the stored study over b.

    Args: few: the study; whole: LoRA's scores, which keeps all; level: the majority class's score.
    """
    scores, reached = _by_target(few), _reached(few)
    fig, (left, right) = style.panels(2, 2, 2.9, None)
    for name, color, strip in (("SaLoRA", style.GREEN, scores), ("LoRA", style.BLUE, {1.0: whole})):
        style.seed_strip(left, strip, color=color, label=name, upright=True)
    for name, look in style.looks(reached).items():
        style.seed_curve(right, reached[name], look)
    style.dress(left, "Target density b (LoRA: 1)", "Test accuracy", "What a small budget costs")
    style.dress(right, "Target density b", "Density at the end", "What a budget becomes")
    _chance(left, level)
    style.legend(fig)
    fig.set_label("Left, test accuracy by target density, a dot for each seed. Right, density at the end: asked, "
                  f"expected and kept. {finding_of_sweep(few, whole)}")
    return fig


def _by_target(few: Results) -> dict[float, list[float]]:
    return {b: few.values()[f"{b:g}"] for b in sorted(float(arm) for arm in few.arms)}


def _reached(few: Results) -> dict[str, dict[float, list[float]]]:
    targets = list(_by_target(few))
    return {"asked": {b: [b] for b in targets},
            "expected: C": {b: last(few, f"{b:g}", "density") for b in targets},
            "kept by the rule": {b: last(few, f"{b:g}", "kept_density") for b in targets}}


def kept_directions(found: Results, arm: str) -> float:
    """The mean over seeds of how many directions a run keeps."""
    return float(np.mean([sum(record["ranks"].values()) for record in found.of(arm)]))


def finding_of_sweep(few: Results, whole: Sequence[float]) -> str:
    """What each target keeps and scores."""
    scores, kept = _by_target(few), _reached(few)["kept by the rule"]
    low, high = min(scores), max(scores)
    means = {b: float(np.mean(score)) for b, score in scores.items()}
    below = [b for b in scores if np.mean(kept[b]) < b]
    bend = (f"the rule keeps less than was asked at b = {_words(*(f'{b:g}' for b in below))}" if below else
            "the rule keeps what was asked, or more")
    return (f"At b = {low:g} the rule keeps {np.mean(kept[low]):.1%} of the numbers "
            f"({kept_directions(few, f'{low:g}'):.1f} directions) and scores {means[low]:.3f}, at b = {high:g} it "
            "keeps "
            f"{np.mean(kept[high]):.0%} ({kept_directions(few, f'{high:g}'):.0f}) and scores {means[high]:.3f}; "
            "over all "
            f"targets the means differ by {100 * (max(means.values()) - min(means.values())):.1f} points, and LoRA "
            f"has {np.mean(whole):.3f}. C comes near b everywhere, but {bend}.")


def rank_sweep(wide: Results, *, level: float | None = None) -> Figure:
    """SaLoRA and LoRA at each starting rank: the stored study over r."""
    scores, ranks = wide.values(), _starting_ranks(wide)
    fig = plots.chain_length({key: {r: scores[f"{name} {r}"] for r in ranks}
                              for key, name in (("salora", "SaLoRA"), ("lora", "LoRA"))},
                             xlabel="Starting rank r (α / r is the same everywhere)", ylabel="Test accuracy")
    fig.axes[0].set_title("Test accuracy by starting rank, a dot a seed", fontsize=10)
    _chance(fig.axes[0], level)
    fig.set_label(f"Test accuracy against rank for SaLoRA and LoRA on all six matrices. {finding_of_ranks(wide)}")
    return fig


def _starting_ranks(wide: Results) -> list[int]:
    return sorted({int(arm.split()[1]) for arm in wide.arms})


def finding_of_ranks(wide: Results) -> str:
    """The difference at each rank, and at equal numbers kept."""
    same = {r: 100 * np.mean(wide.differences(f"SaLoRA {r}", f"LoRA {r}")) for r in _starting_ranks(wide)}
    parts = [f"{gap:+.1f} at r = {r}" for r, gap in same.items()]
    half = [r for r in same if r // 2 in same]
    fair = [f"{100 * np.mean(wide.differences(f'SaLoRA {r}', f'LoRA {r // 2}')):+.1f} at r = {r}" for r in half]
    return (f"SaLoRA minus LoRA, in accuracy points, mean over seeds: {_words(*parts)}. Against LoRA of half the "
            f"rank, which has about as many numbers: {_words(*fair)}.")


def rank_rows(wide: Results) -> pd.DataFrame:
    """A row a starting rank: directions kept a matrix, and the difference to LoRA of the same rank by seed."""
    rows = {}
    for r in _starting_ranks(wide):
        matrices = len(wide.of(f"SaLoRA {r}")[0]["ranks"])
        apart = 100 * np.array(wide.differences(f"SaLoRA {r}", f"LoRA {r}"))
        rows[r] = {"kept a matrix": f"{kept_directions(wide, f'SaLoRA {r}') / matrices:.1f}",
                   "accuracy minus LoRA's at this rank, points, by seed": ", ".join(f"{x:+.1f}" for x in apart)}
    return pd.DataFrame(rows).T.rename_axis("starting rank r")


# what SaLoRA is compared with in the study with chosen rates: the row's name, and the arm of it
TUNED = {"LoRA, r = 8": "LoRA, all six", "LoRA, r = 4, as many numbers": "LoRA, all six, r = 4",
         "a random half kept": "a random half", "the likeliest half kept": "the likeliest half",
         "λ = 0, all kept": "λ = 0", "β = 0, no orthogonality": "β = 0", "gates left half shut": "gates left on",
         "R summed": "R summed"}
FEWEST = 3   # seeds below which a comparison is not shown


def stored_tuned() -> SideBySide:
    """The stored runs on SST-2 whose learning rates were chosen on validation examples; prints their scores."""
    found = studies.load_across("tuned_salora")
    print(found.line())
    for arm in ("SaLoRA", *TUNED.values()):
        values = 100 * np.array(found.values(arm)["sst2"] if arm in found.arms else [])
        if len(values) >= FEWEST:
            kept = np.mean([sum(r["ranks"].values()) for r in found.of(arm) if r["task"] == "sst2"])
            print(f"{arm:<20} rate {found.rate(arm, 'sst2'):g}, {kept:.0f} directions at the end, "
                  f"test accuracy {values.mean():.1f} ± {values.std(ddof=1):.1f} % over {len(values)} seeds")
    return found


def _tuned_gaps(tuned: SideBySide) -> dict[str, list[float]]:
    gaps = {name: tuned.differences("SaLoRA", arm, "sst2") for name, arm in TUNED.items() if arm in tuned.arms}
    return {name: found for name, found in gaps.items() if len(found) >= FEWEST}


def tuned_differences(tuned: SideBySide) -> Figure:
    """SaLoRA minus each of the others, in accuracy points, a dot a seed, a stroke at the mean with its interval."""
    gaps = _tuned_gaps(tuned)
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.36 * len(gaps), None, width=8.0)
    style.seed_strip(ax, {f"minus {name}": found for name, found in gaps.items()},
                     errorbar=lambda found: t_interval(list(found)))
    ax.axvline(0.0, color=style.GREY, linestyle="--", linewidth=1.3)
    style.dress(ax, "Difference in test accuracy, points", "",
                "SaLoRA on SST-2, each at the rate chosen for it (95 % intervals over seeds)")
    style.legend(fig)
    fig.set_label(f"A row a comparison, dots for seeds, strokes for means and intervals. {finding_of_tuned(tuned)}")
    return fig


def finding_of_tuned(tuned: SideBySide) -> str:
    """Each difference with its interval, and which of them exclude zero."""
    parts: dict[str, list[str]] = {"higher": [], "lower": [], "open": []}
    for name, values in _tuned_gaps(tuned).items():
        low, high = t_interval(values)
        side = "higher" if low > 0 else "lower" if high < 0 else "open"
        parts[side].append(f'"{name}" ({np.mean(values):+.2f} [{low:+.2f}, {high:+.2f}])')
    said = [f"SaLoRA scores {side} than {_words(*parts[side])}." for side in ("higher", "lower") if parts[side]]
    if parts["open"]:
        said.append(f"Against {_words(*parts['open'])} the interval holds zero, so nothing is shown.")
    return " ".join(said) + " The numbers are points of accuracy, with 95 % intervals over seeds."


def last(found: Results, arm: str, name: str) -> list[float]:
    """The last value of one series of each seed."""
    return [record["series"][name][1][-1] for record in found.of(arm)]


LORA_ARM = "LoRA, all six"


def parts_by_arm(parts: Results, *, b: float = 0.5, level: float | None = None) -> Figure:
    """The stored ablations, a row an arm: the density at the end and the score, a dot a seed."""
    scores = parts.values()
    C = {arm: [1.0] if arm == LORA_ARM else last(parts, arm, "density") for arm in parts.arms}
    fig, (left, right) = style.panels(2, 2, 0.9 + 0.34 * len(C), None, sharey=True)
    for ax, values in ((left, C), (right, scores)):
        style.seed_strip(ax, {arm: values[arm] for arm in C})
        ax.margins(x=0.12)
    left.axvline(b, color=style.ORANGE, linestyle="--", label=f"target {b:g}")
    style.dress(left, "Expected density C at the end", "", "Is the budget met?")
    style.dress(right, "Test accuracy", "", "What it scores")
    _chance(right, level, upright=False)
    style.legend(fig)
    fig.set_label(f"Two panels of dots, one row an arm: final density and test accuracy. "
                  f"{finding_of_parts(parts, b)}")
    return fig


def finding_of_parts(parts: Results, b: float = 0.5) -> str:
    """Which arms meet the budget, and how they score beside the whole method, by seed."""
    ends = {arm: float(np.mean(last(parts, arm, "density"))) for arm in parts.arms if arm != LORA_ARM}
    met = [arm for arm, C in ends.items() if abs(C - b) < 0.04]
    missed = [f"{arm} ends at C = {C:.2f}" for arm, C in ends.items() if arm not in met]
    apart = []
    for arm in parts.arms[1:]:
        gaps = 100 * np.array(parts.differences(arm, "all parts"))
        apart.append(f"{arm} {gaps.mean():+.1f} ({gaps.min():+.1f} to {gaps.max():+.1f})")
    return (f"The budget is met by {_words(*met)}{'; ' + _words(*missed) if missed else ''}. Accuracy minus that of "
            f"all parts, in points, mean and range of the seeds: {'; '.join(apart)}.")


def two_multipliers(parts: Results) -> Figure:
    """λ over the steps by Adam and by plain ascent, from the stored ablations."""
    fig = plots.learning_curves({"Adam ascent (ours)": parts.series("all parts", "lambda"),
                                 "plain gradient ascent": parts.series("λ by SGD", "lambda")}, ylabel="Multiplier λ")
    fig.axes[0].set_title("λ at the same rate, seed 0", fontsize=10)
    fig.set_label(f"Lambda over training steps for two kinds of ascent. {finding_of_multipliers(parts)}")
    return fig


def finding_of_multipliers(parts: Results) -> str:
    """Where λ and C end."""
    lam, C = ({arm: float(np.mean(last(parts, arm, name))) for arm in ("all parts", "λ by SGD")}
              for name in ("lambda", "density"))
    return (f"λ ends at {lam['all parts']:.2f} by Adam and at {lam['λ by SGD']:.2f} by plain ascent, and yet C ends "
            f"at {C['all parts']:.3f} and {C['λ by SGD']:.3f} (means over the seeds).")


def plain_ascent_alone(noise: float = 3e-3) -> str:
    """Plain ascent on gates without a network, without noise and with it: where C ends."""
    weak = SaLoRA(b=0.5, eta_c=0.1, ascent="sgd")
    quiet, noisy = (gates_alone(weak, size)[0][-1] for size in (0.0, noise))
    return (f"plain ascent, gates without a network: C ends at {quiet:.3f}; with noise in place of a task at "
            f"{noisy:.3f}")


def the_window(run: Run) -> tuple[int, int]:
    """The steps between which a run's gates trained."""
    m, total = run.config["method"], len(run.series("loss")[0])
    clock = Clock(0, total, total)
    return clock.resolve(m["t_start"]), clock.resolve(m["t_end"])


def how_gates_closed(run: Run) -> Figure:
    """The paper's Figure 6 for a run."""
    steps, density = run.series("density")
    lam, orth_A, orth_B = (run.series(name)[1] for name in ("lambda", "orth_A", "orth_B"))
    fig = plots.density_and_lambda(steps, density, lam, orth_A, orth_B, target=run.config["method"]["b"],
                                   window=the_window(run))
    for ax, title in zip(fig.axes, ("The density falls to the budget", "λ climbs while the budget is missed",
                                    "The two orthogonality penalties", "The price of missing the "
                                                                       "budget"), strict=True):
        ax.set_title(title, fontsize=10)
    fig.axes[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    fig.axes[2].yaxis.set_major_formatter("{x:g}")
    fig.axes[2].yaxis.set_minor_formatter(NullFormatter())
    fig.set_label("Four panels over training steps with the window in grey: density, lambda, the two orthogonality "
                  f"penalties on a log axis, and the penalty of the budget. {finding_of_closing(run)}")
    if not np.all(np.diff(lam) >= 0):
        raise ValueError("λ fell somewhere: its gradient is a square, so it cannot")
    return fig


def finding_of_closing(run: Run) -> str:
    """What density, λ and both penalties did inside the window, and what the fold did to the penalties."""
    (steps, C), (_, lam) = run.series("density"), run.series("lambda")
    end = the_window(run)[1]
    at = steps.index(end)   # the fold follows this step, so its penalties are those of after it
    says = [f"C falls from {C[0]:.3f} to {C[-1]:.3f} and λ climbs to {lam[-1]:.2f}."]
    for name, words in (("orth_A", "‖AAᵀ − I‖²"), ("orth_B", "‖BᵀB − I‖²")):
        inside = run.series(name)[1][:at]
        low = int(np.argmin(inside))
        turn = "" if low == len(inside) - 1 else f" (lowest at step {steps[low]}: {inside[low]:.3f})"
        says.append(f"{words} goes from {inside[0]:.2f} to {inside[-1]:.3f} a matrix inside the window{turn}.")
    return " ".join(says)


def after_the_fold(run: Run) -> str:
    """Both penalties around the end of the window: a matrix before, and a direction that is left after."""
    (steps, A), (_, B) = run.series("orth_A"), run.series("orth_B")
    at, share = steps.index(the_window(run)[1]), max(1e-9, sum(run.ranks.values()) / len(run.ranks))
    return (f"a matrix, before the fold: A {A[at - 1]:.3f}, B {B[at - 1]:.3f}\n"
            f"a direction, after the fold: A {A[at] / share:.3f}, B {B[at] / share:.3f}")


def kept_share(run: Run) -> float:
    """The share of the adapters' numbers that a run's pruning kept."""
    return run.series("kept_density")[1][-1]


def closing_gates(run: Run) -> dict[str, list[float]]:
    """Site -> log θ of all its directions when the window closed."""
    columns = [run.by_site(f"log_theta.{j}") for j in range(run.config["method"]["r"])]
    return {site: [column[site] for column in columns] for site in run.ranks}


def kept_by_matrix(run: Run) -> Figure:
    """The paper's Figure 7 for a run."""
    fig = plots.rank_heatmap(run.ranks, max_rank=run.config["method"]["r"], label="Directions kept")
    fig.axes[0].set_title("Directions kept by matrix and layer, this run", fontsize=10)
    fig.set_label("Table of ranks by matrix and layer, coloured from 0 to the starting rank: "
                  + ", ".join(f"{site}: {rank}" for site, rank in run.ranks.items()))
    return fig


def _rows(ranks: Mapping[str, float]) -> dict[str, float]:
    """Matrix -> mean rank over the layers, largest first."""
    letters = dict.fromkeys(site.rpartition(".")[2] for site in ranks)
    means = {m: float(np.mean([n for site, n in ranks.items() if site.endswith(f".{m}")])) for m in letters}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def finding_of_kept(ranks: Mapping[str, float], r: int) -> str:
    """Which matrices keep most and least, and how far the ranks spread."""
    rows = _rows(ranks)
    (most, high), (least, low) = next(iter(rows.items())), list(rows.items())[-1]
    return (f"W_{most} keeps most, {high:.1f} of {r} directions on average over the layers, and W_{least} least, "
            f"{low:.1f}; single matrices keep from {min(ranks.values()):g} to {max(ranks.values()):g}.")


def mean_ranks(found: Results, arm: str = "all parts") -> dict[str, float]:
    """Site -> its rank, mean over the seeds."""
    ranks = [record["ranks"] for record in found.of(arm)]
    return {site: float(np.mean([one[site] for one in ranks])) for site in ranks[0]}


THEIRS = ("up", "o", "v")   # the rows that are bright in the paper's Figure 7


def kept_over_seeds(found: Results) -> Figure:
    """The same as means over the seeds of the stored runs."""
    ranks = mean_ranks(found)
    fig = plots.rank_heatmap(ranks, max_rank=8, label="Kept, mean of the seeds")
    fig.axes[0].set_title(f"Directions kept, mean of {len(found.of('all parts'))} seeds", fontsize=10)
    fig.set_label(f"Table of mean ranks over seeds by matrix and layer. {finding_of_pattern(found)}")
    return fig


def finding_of_pattern(found: Results) -> str:
    """Which of the paper's three rows keep more than the mean matrix, over the seeds."""
    rows, mean = _rows(mean_ranks(found)), float(np.mean(list(mean_ranks(found).values())))
    above, below = ([f"W_{m} ({rows[m]:.1f})" for m in THEIRS if (rows[m] > mean) == side] for side in (True, False))
    gaps = []
    for record in found.of("all parts"):
        one = _rows(record["ranks"])
        gaps.append(np.mean([one[m] for m in THEIRS]) - np.mean([n for m, n in one.items() if m not in THEIRS]))
    up = f"{_words(*above)} keep{'s' * (len(above) == 1)} more than the mean matrix ({mean:.1f})" if above else ""
    down = f"{_words(*below)} {'does' if len(below) == 1 else 'do'} not" if below else ""
    return (f"Of the paper's three, {', and '.join(filter(None, (up, down)))}. The mean of the three minus that of "
            f"the other three, by seed: {', '.join(f'{gap:+.1f}' for gap in gaps)}.")


def beside_lora(curves: Mapping[str, Run], *, chance: float | None) -> Figure:
    """The task loss of two runs, with the window in grey and the level of chance."""
    fig, (ax,) = style.panels(1, 1, 3.0, None, width=8.0)
    for name, look in style.looks(curves).items():
        ax.plot(*smooth(curves[name].series("loss")), **{**look, "marker": ""})
    ax.axvspan(*the_window(curves["salora"]), color=style.PALE, alpha=0.3, linewidth=0, label="gates train")
    style.dress(ax, "Optimizer step", "Training loss (mean of 10 steps)", "The task loss beside LoRA's, on the same "
                                                                          "data")
    _chance(ax, chance, name="chance")
    style.legend(fig)
    fig.set_label(f"Training loss over the steps of SaLoRA and LoRA. {finding_of_losses(curves, chance)}")
    return fig


def finding_of_losses(curves: Mapping[str, Run], chance: float | None) -> str:
    """Both losses where the window ends, and at the end."""
    end, says = the_window(curves["salora"])[1], []
    loss = {name: np.array(run.series("loss")[1]) for name, run in curves.items()}
    for words, part in (("In the last ten steps of the window", slice(max(0, end - 10), end)),
                        ("in the last ten of the training", slice(-10, None))):
        says.append(f"{words} the loss is {loss['salora'][part].mean():.3f} with SaLoRA and "
                    f"{loss['lora'][part].mean():.3f} with LoRA")
    level = "" if chance is None else f" Chance is {chance:.3f}."
    return f"{'; '.join(says)}.{level}"


def finding_of_run(run: Run) -> str:
    """What one run kept and where its loss ended."""
    r = run.config["method"]["r"] * len(run.ranks)
    chance = chance_loss(run.config["task"])
    level = "" if chance is None else f"; chance is {chance:.3f}"
    return (f"The gates trained in steps {the_window(run)[0] + 1} to {the_window(run)[1]} and left "
            f"{sum(run.ranks.values())} of {r} directions. The mean loss of the last ten steps is "
            f"{np.mean(run.series('loss')[1][-10:]):.3f}{level}.")


def scores(runs: Mapping[str, Run], task: str, profile: str) -> Any:
    """A table of the test score and of the directions that are left, with the majority class beside them."""
    metric = next(iter(runs.values())).score("test")[0]
    rows = {name: {f"test {metric}": f"{_score(run):.3f}",
                   "directions": str(sum(run.ranks.values())),
                   "adapter parameters": f"{run.parameters['adapter']:,}"} for name, run in runs.items()}
    level = majority(task, profile)
    if level is not None:
        rows["always the larger class"] = {f"test {metric}": f"{level:.3f}", "directions": "–",
                                           "adapter parameters": "–"}
    return readable(pd.DataFrame(rows).T.rename_axis("method"), "scores")


# ---- after the window --------------------------------------------------------------------------------------

AFTER = ("gates folded", "gates left half shut", LORA_ARM)
AFTER_COLORS = dict(zip(AFTER, (style.GREEN, style.ORANGE, style.BLUE), strict=True))


def after_the_window(runs: Mapping[str, Sequence[Run]], *, level: float | None, chance: float | None) -> Figure:
    """What becomes of a training when its gates are folded or left: loss, size of the change, score.

    Args: the names of AFTER -> one run a seed; level: the majority class's score; chance: the loss of guessing.
    """
    fig, (left, middle, right) = style.panels(3, 3, 3.0, None, width=9.5)
    for name, (line, marker) in zip(runs, (("-", "o"), ("--", "s"), (":", "D")), strict=True):
        curves = [smooth(run.series("loss")) for run in runs[name]]
        left.plot(curves[0][0], np.mean([values for _, values in curves], 0), color=AFTER_COLORS[name],
                  linestyle=line, label=name)
        for ax, measured in ((middle, _change), (right, _score)):
            y = [measured(run) for run in runs[name]]
            ax.plot([name] * len(y), y, marker, color=AFTER_COLORS[name], markersize=7, alpha=0.8)
    left.axvspan(*the_window(runs[AFTER[0]][0]), color=style.PALE, alpha=0.3, linewidth=0, label="gates train")
    _chance(left, chance, name="chance")
    metric = runs[AFTER[0]][0].score("test")[0]
    style.dress(left, "Optimizer step", "Training loss", "Loss, mean of the seeds")
    style.dress(middle, "", "Mean ‖ΔW‖ over the matrices", "How far the matrices moved")
    style.dress(right, "", f"Test {metric}", "What it scores, a dot a seed")
    for ax in (middle, right):
        ax.set_xticks(range(len(runs)), ["folded", "left", "LoRA"])
        ax.margins(x=0.25)
    middle.set_ylim(bottom=0)
    low, high = right.get_ylim()
    right.set_ylim(low - 0.1 * (high - low) - 0.005, high + 0.005)
    _chance(right, level)
    style.legend(fig)
    fig.set_label("Three panels: training loss over the steps, mean size of the change of the matrices, and test "
                  f"score, for folded gates, gates left half shut, and LoRA. {finding_of_after(runs)}")
    return fig


def _change(run: Run) -> float:
    return float(np.mean(list(run.by_site("norm").values())))


def _score(run: Run) -> float:
    return run.score("test")[1]


def finding_of_after(runs: Mapping[str, Sequence[Run]]) -> str:
    """What leaving the gates half shut does to the size of the change and to the score."""
    folded, left = (runs[name] for name in AFTER[:2])
    gates = np.concatenate([list(closing_gates(run).values()) for run in folded])
    open_ = Stretch().deterministic(torch.tensor(gates)).numpy()
    size = [np.mean([_change(run) for run in one]) for one in (folded, left)]
    gaps = [100 * (_score(a) - _score(b)) for a, b in zip(left, folded, strict=True)]
    more = "less" if size[1] < size[0] else "more"
    error = 100 * math.sqrt(0.25 / len(folded[0].right("test"))) if folded[0].hits else float("nan")
    doubt = (f" One run's score has a standard error of up to {error:.1f} points, so {_verdict(gaps, error)}."
             if error == error else "")
    return (f"The kept gates stand at {open_[open_ > 0].mean():.2f} on average. Left there, the matrices move by "
            f"{size[1]:.2f}, {more} than the {size[0]:.2f} with folded gates. The test score with gates left minus "
            f"that with gates folded is "
            f"{_words(*(f'{gap:+.1f}' for gap in gaps))} points by seed.{doubt}")


def _verdict(gaps: Sequence[float], error: float) -> str:
    clear = abs(np.mean(gaps)) > 2 * error * math.sqrt(2 / len(gaps))
    return ("this difference is larger than chance alone would make it" if clear else
            "these few runs do not settle the score")


# ---- what a step costs -------------------------------------------------------------------------------------


class _WholeStep(nn.Module):
    """The task loss and, where a method has one, its penalty, inside the window."""

    def __init__(self, method: Method, backbone: str) -> None:
        super().__init__()
        fresh = load_backbone(backbone, num_labels=2, seed=0)[0]
        self.adapters = adapt(fresh, method, seed=0)
        self.model, self.rule = fresh.train(), self.adapters.rule
        self.rule.start(Clock(0, 1000, 1000), None)  # type: ignore[arg-type]

    def forward(self, **words: Tensor) -> Any:
        self.rule.before_step(Clock(1, 1000, 1000))
        out, penalty = self.model(**words), self.rule.penalty()
        out.loss = out.loss if penalty is None else out.loss + penalty
        return out


def step_costs(backbone: str, *, size: int = 32) -> dict[str, measures.StepCost]:
    """Seconds and bytes of a whole step of SaLoRA, inside its window, and of LoRA on the same matrices, in turns."""
    pair = {"SaLoRA": _WholeStep(SaLoRA(), backbone), "LoRA": _WholeStep(LoRA(sites="all"), backbone)}
    words = torch.randint(1000, 20000, (size, 32), generator=torch.Generator().manual_seed(0))
    return measures.step_costs(pair, {"input_ids": words, "labels": torch.zeros(size, dtype=torch.long)})


def cost_ratios(cost: Mapping[str, measures.StepCost], run: Run) -> Figure:
    """SaLoRA's share of LoRA's seconds, of its optimizer state, and of the numbers that are stored in the end."""
    ratios = _ratios(cost, run)
    fig, (ax,) = style.panels(1, 1, 0.5 + 0.42 * len(ratios), None, width=8.0)
    names = list(ratios)[::-1]
    bars = ax.barh(names, [ratios[name] for name in names], color=style.GREEN, height=0.6)
    ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=4)
    ax.axvline(1.0, color=style.BLUE, linestyle="--", linewidth=1.5, label="LoRA on the same six matrices")
    ax.set_xlim(0, 1.15 * max(1.0, *ratios.values()))
    style.dress(ax, "SaLoRA's share of LoRA's", "", "What SaLoRA costs beside LoRA")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    fig.set_label("Bars: " + ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items()) + " of LoRA's.")
    return fig


def _ratios(cost: Mapping[str, measures.StepCost], run: Run) -> dict[str, float]:
    s, lora = cost["SaLoRA"], cost["LoRA"]
    return {"seconds a step inside the window": s.median / lora.median,
            "gradients and optimizer state": s.state_bytes / lora.state_bytes,
            "adapter numbers stored at the end": kept_share(run)}


def finding_of_costs(cost: Mapping[str, measures.StepCost], run: Run) -> str:
    """Time, state and storage in a sentence."""
    seconds, state, stored = _ratios(cost, run).values()
    time = ("about as long as" if abs(seconds - 1) < 0.01 else
            f"{abs(seconds - 1):.0%} {'longer' if seconds > 1 else 'shorter'} than")
    return (f"On this machine a step inside the window takes {time} LoRA's (the paper reports 11 % longer), "
            f"gradients and optimizer state grow by {state - 1:.2%}, and {stored:.0%} of the adapter's numbers are "
            "stored in the end.")


# ---- predictions: the answers are computed here, so that the notebook's cells do not show them ---------------


def predict_ascent(question: str, method: SaLoRA) -> None:
    gap = float(method.stretch.open_probability(torch.zeros(()))) - method.b
    predict(question, f"Plain ascent adds η_c (C − b)² = {method.eta_c * gap**2:.4f}. Adam divides the gradient by "
                      f"its own size, so its first step is η_c = {method.eta_c:g}, {1 / gap**2:.0f} times as large.")


def predict_closed(question: str, log_theta: float) -> None:
    mean = float(Stretch().mean(torch.tensor(log_theta, dtype=torch.float64)))
    predict(question, f"Yes: E[g] = {mean:.4f} is small, and above 0. It is above 0 for every finite log θ, so this "
                      "rule would keep everything.")


def predict_kept(question: str, p: float) -> None:
    predict(question, f"Nothing. Every gate has P(g > 0) = {p:g}, so C = {p:g}; but each gate without its noise is "
                      "0, since P(g > 0) is below one half. What the budget counts and what the cut keeps are two "
                      "numbers.")


def predict_pull(question: str, p: Sequence[float]) -> None:
    pulls = {q: q * (1 - q) for q in p}
    predict(question, f"The one at {max(pulls, key=pulls.__getitem__):g}: the pull is in proportion to p (1 − p), "
                      "which is "
                      f"{_words(*(f'{pull:.4f} at p = {q:g}' for q, pull in pulls.items()))}. The budget moves the "
                      "gates that are in doubt.")


# ---- explorers: what the sliders move ---------------------------------------------------------------------

GATE_LOOKS: dict[str, dict[str, Any]] = {
    "P(g > 0)": {"color": style.BLUE, "linestyle": "-"}, "E[g]": {"color": style.GREEN, "linestyle": "--"},
    "ĝ, no noise": {"color": style.ORANGE, "linestyle": "-."}}


class HardConcreteGate(Picture):
    """One gate: its mass at 0 and at 1, its density in between, and three numbers that sum it up."""

    count = 3
    height = 2.9
    TOP = 3.0   # where the axis of the density is cut
    controls = (Control("log_theta", "log θ", -6.0, 6.0, 0.0, 0.1),
                Control("tau", "temperature τ", 0.2, 2.0, 1.0, 0.05),
                Control("gamma", "lower end γ", -0.5, -0.05, -0.1, 0.01),
                Control("zeta", "upper end ζ", 1.05, 1.5, 1.1, 0.01))

    def __init__(self) -> None:
        self.theta = torch.linspace(-6, 6, 61, dtype=torch.float64)              # (61,)
        self.inside = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)     # (250,)
        super().__init__()

    def build(self) -> list[Artist]:
        mass, between, summary = self.axes
        self.bars = mass.bar(["exactly 0", "between", "exactly 1"], [1, 1, 1],
                             color=[style.ORANGE, style.PALE, style.BLUE])
        mass.set_ylim(0, 1.05)
        self.curve, = between.plot([], [], color=style.BLACK)
        between.set(xlim=(-0.02, 1.02), ylim=(0, self.TOP))
        self.lines = {name: summary.plot([], [], label=name, **look)[0] for name, look in GATE_LOOKS.items()}
        self.dots, = summary.plot([], [], "o", color=style.BLACK, markersize=5)
        self.edge = summary.axvline(0, color=style.GREY, linestyle=":", label="edge of ĝ")
        summary.set(xlim=(-6.2, 6.2), ylim=(-0.03, 1.05))
        style.dress(mass, "Gate g", "Probability")
        style.dress(between, "Gate g", f"Density (cut at {self.TOP:g})")
        style.dress(summary, "log θ", "Value")
        style.legend(self.fig)
        return [*self.bars, self.curve, *self.lines.values(), self.edge, self.dots]

    def arrays(self, **state: Any) -> dict[str, Any]:
        stretch = Stretch(state["tau"], state["gamma"], state["zeta"])
        at = torch.tensor(state["log_theta"], dtype=torch.float64)
        is_open, is_full = float(stretch.open_probability(at)), float(stretch.full_probability(at))
        readings = (stretch.open_probability, stretch.mean, stretch.deterministic)
        return {"mass": np.array([1 - is_open, is_open - is_full, is_full]),
                "density": stretch.pdf(at, self.inside).numpy(),
                "curves": np.array([reading(self.theta).numpy() for reading in readings]),   # (3, 61)
                "now": np.array([float(reading(at)) for reading in readings]),
                "at": state["log_theta"], "edge": -stretch.shift}

    def update(self, arrays: dict[str, Any]) -> None:
        for bar, height in zip(self.bars, arrays["mass"], strict=True):
            bar.set_height(height)
        self.curve.set_data(self.inside, arrays["density"])
        for line, values in zip(self.lines.values(), arrays["curves"], strict=True):
            line.set_data(self.theta, values)
        self.dots.set_data([arrays["at"]] * 3, arrays["now"])
        self.edge.set_xdata([arrays["edge"]] * 2)

    def words(self, **state: Any) -> str:
        a = self.arrays(**state)
        zero, between, one = a["mass"]
        p, mean, fixed = a["now"]
        verdict = "dropped" if fixed == 0 else "kept"
        return (f"log θ = {state['log_theta']:.1f}, τ = {state['tau']:.2f}, γ = {state['gamma']:.2f}, ζ = "
                f"{state['zeta']:.2f}: exactly 0 in {zero:.1%} of the draws, exactly 1 in {one:.1%}, between in "
                f"{between:.1%}. P(g > 0) = {p:.3f}, E[g] = {mean:.3f}, deterministic gate {fixed:.3f}: {verdict} "
                f"(the edge is log θ = {a['edge']:.2f}).")


class SaloraBudget(Picture):
    """The gates with which a window closed, under a budget that you choose: its pull, and what a rule would keep.

    Args: site -> log θ (r,) of all its directions; site -> (d, k); stretch: the run's own constants.
    """

    height = 3.1
    MOST = 3.0   # the largest λ
    LOW = 0.05   # the smallest b, and the distance of the largest from 1

    def __init__(self, log_theta: Mapping[str, Sequence[float]], sizes: Mapping[str, tuple[int, int]],
                 stretch: Stretch | None = None) -> None:
        self.stretch = stretch or Stretch()
        self.theta = {site: torch.tensor(values, dtype=torch.float64) for site, values in log_theta.items()}
        self.sizes = dict(sizes)
        self.flat = torch.cat(list(self.theta.values())).numpy()                                     # (n,)
        weight = np.concatenate([np.full(len(t), float(sum(sizes[site]))) for site, t in self.theta.items()])
        self.weight = weight / weight.sum()                                                          # (n,)
        self.order = np.argsort(-self.flat, kind="stable")
        self.share = self.weight[self.order].cumsum()      # kept when the i + 1 largest log θ are kept
        self.controls = (Control("lam", "multiplier λ", 0.0, self.MOST, self.MOST, 0.1),
                         Control("b", "target density b", self.LOW, 1 - self.LOW, 0.25, 0.01))
        super().__init__()

    def density(self) -> float:
        """C of the stored gates."""
        return float(self._density(self.theta))

    def kept_share(self) -> float:
        """Share of the adapters' numbers that the deterministic gate leaves."""
        return float(self.weight[self.flat > -self.stretch.shift].sum())

    def pull(self, lam: float, b: float) -> np.ndarray:
        """∂/∂log θ of λ (C − b)² for every gate, (n,): above 0 the descent lowers log θ."""
        theta = {site: values.clone().requires_grad_() for site, values in self.theta.items()}
        (lam * (self._density(theta) - b) ** 2).backward()
        return torch.cat([values.grad for values in theta.values()]).numpy()   # type: ignore[misc]

    def threshold(self, b: float) -> tuple[float, float]:
        """The log θ to cut at so that as near to b as can be is kept, and the share that this keeps."""
        i = int(np.abs(self.share - b).argmin())
        return float(self.flat[self.order[i]]), float(self.share[i])

    def _density(self, theta: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return measures.density({site: self.stretch.open_probability(t) for site, t in theta.items()}, self.sizes)

    def build(self) -> list[Artist]:
        left, right = self.axes
        moving = [*self._build_pull(left), *self._build_cut(right)]
        style.dress(left, "log θ of a gate", "Pull downwards × 1000", " ")
        style.dress(right, "Share of the adapters' numbers kept", "log θ to cut at", " ")
        style.legend(self.fig)
        return [*moving, left.title, right.title]

    def _build_pull(self, ax: Axes) -> list[Artist]:
        edge = -self.stretch.shift
        self.masks = (self.flat > edge, self.flat <= edge)
        looks = (("o", style.BLUE, 4, "gate kept"), ("x", style.ORANGE, 5, "gate dropped"))
        self.clouds = [ax.plot(self.flat[which], np.zeros(which.sum()), mark, color=color, markersize=size,
                               label=label)[0]
                       for which, (mark, color, size, label) in zip(self.masks, looks, strict=True)]
        ax.axvline(edge, color=style.GREY, linestyle=":", label=f"edge, {edge:.2f}")
        gap = max(self.density() - self.LOW, 1 - self.LOW - self.density())
        limit = 1e3 * 2 * self.MOST * gap * 0.25 * float(self.weight.max())   # of 2 λ |C − b| p (1 − p) w
        ax.set_ylim(-limit, limit)
        return list(self.clouds)

    def _build_cut(self, ax: Axes) -> list[Artist]:
        edge = -self.stretch.shift
        ax.step([0, *self.share], [self.flat.max(), *self.flat[self.order]], color=style.BLACK, where="pre")
        ax.axhline(edge, color=style.GREY, linestyle=":")
        ax.plot([self.kept_share()], [edge], "s", color=style.GREY, label="kept share")
        self.target = ax.axvline(0.5, color=style.GREEN, linestyle="--", label="target b")
        self.mark, = ax.plot([], [], "D", color=style.GREEN, markersize=7, label="cut that keeps b")
        ax.set_xlim(0, 1.02)
        return [self.target, self.mark]

    def arrays(self, **state: Any) -> dict[str, Any]:
        lam, b = state["lam"], state["b"]
        cut, share = self.threshold(b)
        return {"pull": 1e3 * self.pull(lam, b), "b": b, "cut": cut, "share": share,
                "titles": (f"expected density C = {self.density():.3f}", f"keep {b:.0%}: cut at {cut:.2f}")}

    def update(self, arrays: dict[str, Any]) -> None:
        for cloud, which in zip(self.clouds, self.masks, strict=True):
            cloud.set_ydata(arrays["pull"][which])
        self.target.set_xdata([arrays["b"]] * 2)
        self.mark.set_data([arrays["share"]], [arrays["cut"]])
        for ax, title in zip(self.axes, arrays["titles"], strict=True):
            ax.set_title(title, fontsize=10)

    def words(self, **state: Any) -> str:
        lam, b, C = state["lam"], state["b"], self.density()
        pull, (cut, share) = self.pull(lam, b), self.threshold(b)
        at = float(self.flat[np.abs(pull).argmax()])
        towards = "up" if b > C else "down"
        pushed = (f"the budget pushes every gate {towards}, hardest at log θ = {at:.2f}" if lam * abs(C - b) > 1e-9
                  else "the budget pulls at nothing")
        p = float(self.stretch.open_probability(torch.tensor(cut)))
        return (f"λ = {lam:.1f}, b = {b:.2f}: C = {C:.3f}, so {pushed}. The rule keeps {int(self.masks[0].sum())} "
                f"of {len(self.flat)} gates, {self.kept_share():.1%} of the numbers; to keep {share:.1%}, cut at "
                f"log θ = {cut:.2f}, that is P(g > 0) = {p:.2f}.")


class SaloraRuns(Picture):
    """Stored trainings at several target densities: how the density fell, and how λ rose.

    Args: b -> (steps (S,), C (S,)); b -> (steps (S,), λ (S,)); b -> the score of each seed; label: the score's name.
    """

    kind = SNAPPED
    height = 3.1

    def __init__(self, density: Mapping[float, tuple[Sequence[float], Sequence[float]]],
                 lam: Mapping[float, tuple[Sequence[float], Sequence[float]]],
                 scores: Mapping[float, Sequence[float]], label: str) -> None:
        self.density, self.lam, self.scores, self.label = dict(density), dict(lam), dict(scores), label
        self.targets = sorted(self.density)
        low, high = self.targets[0], self.targets[-1]
        self.controls = (Control("b", "target density b", low, high, self.targets[len(self.targets) // 2], 0.025),)
        super().__init__()

    def snap(self, b: float) -> float:
        """The stored target nearest to b."""
        return min(self.targets, key=lambda target: abs(target - b))

    def build(self) -> list[Artist]:
        self.lines = []
        for ax, curves, name in zip(self.axes, (self.density, self.lam), ("Expected density C", "Multiplier λ"),
                                    strict=True):
            for steps, values in curves.values():
                ax.plot(steps, values, color=style.PALE, linewidth=0.9)
            self.lines.append(ax.plot([], [], color=style.BLUE, linewidth=2)[0])
            style.dress(ax, "Optimizer step", name, " ")
        self.axes[0].set_ylim(0, 1.02)
        self.target = self.axes[0].axhline(0.5, color=style.ORANGE, linestyle="--", label="target b of the run shown")
        style.legend(self.fig)
        return [*self.lines, self.target, self.axes[0].title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        b = self.snap(state["b"])
        return {"curves": (self.density[b], self.lam[b]), "b": b, "title": f"blue: b = {b:g}"}

    def update(self, arrays: dict[str, Any]) -> None:
        for line, curve in zip(self.lines, arrays["curves"], strict=True):
            line.set_data(*curve)
        self.target.set_ydata([arrays["b"]] * 2)
        self.axes[0].set_title(arrays["title"], fontsize=10)

    def words(self, **state: Any) -> str:
        b = self.snap(state["b"])
        scores = self.scores[b]
        return (f"Asked b = {state['b']:.3f}; shown the stored run with b = {b:g}: C ends at "
                f"{self.density[b][1][-1]:.3f}, λ at {self.lam[b][1][-1]:.2f}; {self.label} {np.mean(scores):.3f} "
                f"(mean of {len(scores)} seeds).")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Noise = Callable[[int], Tensor]   # step -> u (r,)


def sample_gate(u: Tensor, log_theta: Tensor, tau: float, gamma: float, zeta: float) -> Tensor:
    """One draw of each gate, (r,), from the library's formula."""
    return Stretch(tau, gamma, zeta).sample(log_theta, u)


def open_probability(log_theta: Tensor, tau: float, gamma: float, zeta: float) -> Tensor:
    """P(g > 0) of each gate, (r,), from the library's formula."""
    return Stretch(tau, gamma, zeta).open_probability(log_theta)


def expected_density(p: Tensor, d: Tensor, k: Tensor) -> Tensor:
    """C of n sites from P(g > 0) (n, r) and their sizes d, k (n,)."""
    return measures.density(dict(enumerate(p)), {i: (float(d[i]), float(k[i])) for i in range(len(d))})  # type: ignore


def ascend_lambda(lam: Tensor, C: Tensor, b: float, eta_c: float) -> Tensor:
    """λ (n,) after one plain gradient step of the library's rule at each density C (n,)."""
    return torch.stack([_one_ascent(float(x), float(c), b, eta_c) for x, c in zip(lam, C, strict=True)])


def _one_ascent(lam: float, C: float, b: float, eta_c: float, maximize: bool = True) -> Tensor:
    rule = SaLoRA(ascent="sgd", b=b, eta_c=eta_c).rule()
    rule.density = lambda: torch.tensor(C, dtype=torch.float64)  # type: ignore[method-assign]
    rule.lam.data.fill_(lam)
    rule.ascent.param_groups[0]["maximize"] = maximize
    rule._ascend()
    return rule.lam.detach()


def orthogonality_penalty(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """‖A Aᵀ − I‖² + ‖Bᵀ B − I‖² of one site, as the library's rule adds them up."""
    rule = SaLoRA().rule()
    rule.adapters = {"0": SimpleNamespace(lora_A=lora_A, lora_B=lora_B)}  # type: ignore[assignment]
    return torch.stack(rule.orthogonality()).sum()


def prune_and_fold(lora_B: Tensor, m: Tensor, v: Tensor, log_theta: Tensor) -> Tensor:
    """The new B, m and v, (3, d, r′), when the library closes the window on B and Adam's means of it (d, r)."""
    d, r = lora_B.shape
    gate = HardConcrete(Stretch(), r)
    branch = LowRank(r, d, r, gate=gate, dtype=lora_B.dtype)
    gate.log_theta.data, branch.lora_B.data, gate.phase = log_theta.clone(), lora_B.clone(), "deterministic"
    optimizer = torch.optim.AdamW(branch.parameters())
    optimizer.state[branch.lora_B] = {"step": torch.tensor(1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    rule = SaLoRA().rule()
    rule.adapters = {"0": branch}  # type: ignore[assignment]
    rule.loop = SimpleNamespace(optimizer=optimizer)  # type: ignore[assignment]
    rule._prune(branch, gate.settled().nonzero().flatten())
    rule._fold(branch)
    state = optimizer.state[branch.lora_B]
    return torch.stack([branch.lora_B.detach(), state["exp_avg"], state["exp_avg_sq"]])


def gates_of_a_run(log_theta: Tensor, noise: Noise) -> Tensor:
    """The library's sampled gates (T, r) at log θ (T, r), with the noise of each step."""
    gate = HardConcrete(Stretch(), log_theta.shape[1])
    gate.phase = "sampled"
    drawn = []
    for step, values in enumerate(log_theta):
        gate.log_theta.data, gate.u = values, noise(step)
        drawn.append(gate().detach())
    return torch.stack(drawn)


# What a learner would write; `course.solution` shows these.


def answer_sample_gate(u: Tensor, log_theta: Tensor, tau: float, gamma: float, zeta: float) -> Tensor:
    s = torch.sigmoid((torch.logit(u) + log_theta) / tau)
    return (s * (zeta - gamma) + gamma).clamp(0, 1)


def answer_open_probability(log_theta: Tensor, tau: float, gamma: float, zeta: float) -> Tensor:
    return torch.sigmoid(log_theta - tau * math.log(-gamma / zeta))


def answer_expected_density(p: Tensor, d: Tensor, k: Tensor) -> Tensor:
    return (p.sum(1) * (d + k)).sum() / (p.shape[1] * (d + k).sum())


def answer_ascend_lambda(lam: Tensor, C: Tensor, b: float, eta_c: float) -> Tensor:
    return (lam + eta_c * (C - b) ** 2).clamp(min=0)


def answer_orthogonality_penalty(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    I = torch.eye(len(lora_A))
    return (lora_A @ lora_A.T - I).square().sum() + (lora_B.T @ lora_B - I).square().sum()


def answer_prune_and_fold(lora_B: Tensor, m: Tensor, v: Tensor, log_theta: Tensor) -> Tensor:
    g = (torch.sigmoid(log_theta) * 1.2 - 0.1).clamp(0, 1)   # the gate at u = 1/2
    keep = g > 0
    g = g[keep]
    return torch.stack([lora_B[:, keep] * g, m[:, keep] / g, v[:, keep] / g**2])


def answer_gates_of_a_run(log_theta: Tensor, noise: Noise) -> Tensor:
    draws = [sample_gate(noise(t), row, 1.0, -0.1, 1.1) for t, row in enumerate(log_theta)]
    return torch.stack(draws)


def _gate_cases() -> list[tuple]:
    u = torch.tensor([0.003, 0.2, 0.45, 0.7, 0.9, 0.995])
    return [(u, torch.tensor([0.5, -1.5, 0.8, -0.4, 1.2, 2.0]), 0.5, -0.1, 1.2),
            (u.flip(0), torch.tensor([1.0, -0.6, 0.4, -2.0, 0.7, -1.1]), 1.5, -0.2, 1.3)]


def _noise(seed: int) -> Noise:
    return lambda step: torch.rand(5, generator=torch.Generator().manual_seed(100 * seed + step))


def _path(seed: int) -> Tensor:
    start = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    return start - 0.2 * torch.arange(6.0)[:, None]   # (6, 5)


def _all_sites(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Any]:
    return lambda p, d, k: expected_density(*change(p, d, k))


def _pruned(B: Callable[[Tensor], Tensor], m: Callable[[Tensor], Tensor],
            v: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """B, m and v with other factors on their columns: the deterministic gate's zeros decide which are left."""
    def wrong(*given: Tensor) -> Tensor:
        *tensors, log_theta = given
        log_theta = log_theta[keep := Stretch().deterministic(log_theta) > 0]
        return torch.stack([M[:, keep] * f(log_theta) for M, f in zip(tensors, (B, m, v), strict=True)])
    return wrong


def _gate(power: int, of: Callable[[Tensor], Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    return lambda log_theta: (of or Stretch().deterministic)(log_theta) ** power


def _shut(B: Tensor, m: Tensor, v: Tensor, log_theta: Tensor) -> Tensor:
    return torch.stack([B, m, v])[:, :, Stretch().deterministic(log_theta) == 0]


_SAMPLE: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is the noise alone: log θ is missing in the sigmoid", lambda u, t, *rest: sample_gate(u, 0 * t, *rest)),
    ("log θ is subtracted: a large log θ must open the gate", lambda u, t, *rest: sample_gate(u, -t, *rest)),
    ("u goes in raw: the formula has its logit, log(u / (1 − u))",
     lambda u, t, *rest: sample_gate(torch.sigmoid(u), t, *rest)),
    ("τ is missing: the sum in the sigmoid is divided by it", lambda u, t, tau, *ends: sample_gate(u, t, 1.0, *ends)),
    ("τ multiplies in your sigmoid: it divides", lambda u, t, tau, *ends: sample_gate(u, t, 1 / tau, *ends)),
    ("τ divides the whole sum, log θ as well", lambda u, t, tau, *ends: sample_gate(u, tau * t, tau, *ends)),
    ("not stretched to (γ, ζ): exactly 0 and exactly 1 never come up", lambda u, t, tau, *ends: _raw(u, t, tau)),
    ("not clipped: a gate lies in [0, 1]",
     lambda u, t, tau, gamma, zeta: _raw(u, t, tau) * (zeta - gamma) + gamma),
    ("that is the deterministic gate: the noise u is missing",
     lambda u, t, *rest: Stretch(*rest).deterministic(t)))


def _raw(u: Tensor, log_theta: Tensor, tau: float) -> Tensor:
    """The draw before it is stretched: the library's with the interval (0, 1)."""
    return Stretch(tau, 0.0, 1.0).sample(log_theta, u)


_OPEN: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is P(g = 0): you want its complement", lambda t, *rest: 1 - open_probability(t, *rest)),
    ("the shift has the wrong sign: log(−γ/ζ) is negative and is subtracted",
     lambda t, *rest: 1 - open_probability(-t, *rest)),
    ("the shift is missing: with the stretch, σ(log θ) is not the probability any more",
     lambda t, tau, gamma, zeta: open_probability(t, tau, -zeta, zeta)),
    ("τ is missing: it multiplies log(−γ/ζ)", lambda t, tau, *ends: open_probability(t, 1.0, *ends)),
    ("τ multiplies the shift, it does not divide log θ", lambda t, tau, *ends: open_probability(t / tau, 1.0, *ends)),
    ("that is the deterministic gate, a value; wanted is a probability",
     lambda t, *rest: Stretch(*rest).deterministic(t)),
    ("that is P(g = 1): you want everything above 0", lambda t, *rest: Stretch(*rest).full_probability(t)))

_DENSITY: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is the sum of each matrix's own share: it can exceed 1; add up above and below the bar first",
     lambda p, d, k: sum(expected_density(p[i:i + 1], d[i:i + 1], k[i:i + 1]) for i in range(len(p)))),
    ("all matrices weigh the same in yours: a direction of a large one costs more, d + k",
     _all_sites(lambda p, d, k: (p, torch.ones_like(d), torch.ones_like(k)))),
    ("weighed by d · k: a direction holds d + k numbers", _all_sites(lambda p, d, k: (p, d * k, 0 * k))),
    ("only d is counted: a direction has a row of A, too, k numbers", _all_sites(lambda p, d, k: (p, d, 0 * k))),
    ("only k is counted: a direction has a column of B, too, d numbers", _all_sites(lambda p, d, k: (p, 0 * d, k))),
    ("that is the expected number of parameters: divide by r Σ (d + k)",
     lambda p, d, k: expected_density(p, d, k) * p.shape[1] * (d + k).sum()),
    ("the r below the bar is missing", lambda p, d, k: expected_density(p, d, k) * p.shape[1]),
    ("a count of gates with p > 1/2 has no gradient: take p itself",
     _all_sites(lambda p, d, k: ((p > 0.5).to(p), d, k))))

_NO_SQUARE = "that is C − b, not its square: λ multiplies (C − b)²"
_ASCEND: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is descent: λ climbs, or it would never press",
     lambda lam, C, b, eta: torch.stack([_one_ascent(float(x), float(c), b, eta, False)
                                         for x, c in zip(lam, C, strict=True)])),
    ("that is descent, and not projected: λ climbs", lambda lam, C, b, eta: lam - eta * (C - b) ** 2),
    ("not projected: a λ below zero would reward a missed budget; cut at 0",
     lambda lam, C, b, eta: lam + eta * (C - b) ** 2),
    (_NO_SQUARE, lambda lam, C, b, eta: lam + eta * (C - b)),
    (_NO_SQUARE, lambda lam, C, b, eta: (lam + eta * (C - b)).clamp(min=0)),
    ("that is the gradient for C, 2λ(C − b): differentiate λ(C − b)² by λ",
     lambda lam, C, b, eta: (lam + eta * 2 * lam * (C - b)).clamp(min=0)),
    ("the rate η_c is missing", lambda lam, C, b, eta: ascend_lambda(lam, C, b, 1.0)),
    ("that is the gradient alone: add η_c times it to λ", lambda lam, C, b, eta: (C - b) ** 2))

_R: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is AᵀA, (k, k): its rank is at most r, so it can never be the identity; take A Aᵀ, (r, r)",
     lambda A, B: _off_identity([A.T, B.T]).sum()),
    ("that is B Bᵀ, (d, d): it can never be the identity; take BᵀB, (r, r)",
     lambda A, B: _off_identity([A, B]).sum()),
    ("both products are the large ones, AᵀA and B Bᵀ: take those that are (r, r)",
     lambda A, B: _off_identity([A.T, B]).sum()),
    ("not squared: the norms are added, their squares are wanted", lambda A, B: _off_identity([A, B.T]).sqrt().sum()),
    ("only A's half: B has one, too", lambda A, B: _off_identity([A]).sum()),
    ("only B's half: A has one, too", lambda A, B: _off_identity([B.T]).sum()),
    ("the identity is missing: this penalty would pull A and B to zero",
     lambda A, B: (A @ A.T).square().sum() + (B.T @ B).square().sum()),
    ("that is a mean over the entries: the Frobenius norm adds them up",
     lambda A, B: orthogonality_penalty(A, B) / len(A) ** 2))

_PRUNE: Sequence[tuple[str, Callable[..., Any]]] = (
    ("the columns are right, but their gates are not folded in: the function would jump",
     _pruned(_gate(0), _gate(0), _gate(0))),
    ("B is right, but Adam is left behind: m and v still belong to the old B", _pruned(_gate(1), _gate(0), _gate(0))),
    ("m and v are multiplied by the gate: a larger B has a smaller gradient, so divide",
     _pruned(_gate(1), _gate(1), _gate(2))),
    ("all three are multiplied by the gate: the gradient of the new B is the old one divided by g",
     _pruned(_gate(1), _gate(1), _gate(1))),
    ("v holds squares of gradients: divide it by g²", _pruned(_gate(1), _gate(-1), _gate(-1))),
    ("m is left as it was: divide it by g", _pruned(_gate(1), _gate(0), _gate(-2))),
    ("B is divided by the gate, and must be multiplied", _pruned(_gate(-1), _gate(-1), _gate(-2))),
    ("folded with E[g]: use the deterministic gate, the one that the network has when the noise ends",
     _pruned(_gate(1, Stretch().mean), _gate(-1, Stretch().mean), _gate(-2, Stretch().mean))),
    ("folded with P(g > 0), a probability: use the deterministic gate",
     _pruned(*(_gate(power, Stretch().open_probability) for power in (1, -1, -2)))),
    ("those are the directions that should go: keep where the gate is above zero", _shut))

_DEBUG: Sequence[tuple[str, Callable[..., Any]]] = (
    ("one draw serves all steps: draw inside the loop, for each step its own noise",
     lambda path, noise: gates_of_a_run(path, lambda step: noise(0))[:1].expand_as(path)),
    ("log θ moves, but the noise is that of the first step: a gate that was lucky once stays lucky",
     lambda path, noise: gates_of_a_run(path, lambda step: noise(0))),
    ("the noise is new, but log θ is that of the first step: use the row of this step",
     lambda path, noise: gates_of_a_run(path[:1].expand_as(path), noise)),
    ("there is no noise left: this is the deterministic gate, which is folded into B when the window closes",
     lambda path, noise: Stretch().deterministic(path)),
    ("all directions share one number: each has its own u",
     lambda path, noise: gates_of_a_run(path, lambda step: noise(step)[:1].expand(path.shape[1]))))


def _sites(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    p = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    return p, torch.tensor([6.0, 24.0, 6.0]), torch.tensor([6.0, 6.0, 12.0])


def _factors(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, generator=g) * 0.6, torch.randn(5, 3, generator=g) * 0.5


def _columns(seed: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    B, m, v = torch.randn(3, 8, 6, generator=g)
    return B, m, v.square(), torch.tensor([-3.0, 0.4, -2.5, -1.1, -2.2, -4.0])


EXERCISES.update({
    "sample_gate": Task(
        sample_gate, _gate_cases,
        "add logit u and log θ, divide by τ, take the sigmoid, stretch to (γ, ζ), clip to [0, 1]", _SAMPLE,
        (Stretch.sample,), "u, log_theta and the result are (r,) each",
        answer=answer_sample_gate),
    "open_probability": Task(
        open_probability, lambda: [case[1:] for case in _gate_cases()],
        "the gate is 0 where the stretched sigmoid is not above 0: solve that for logit u", _OPEN,
        (Stretch.open_probability,), "log_theta and the result are (r,)",
        answer=answer_open_probability),
    "expected_density": Task(
        expected_density, lambda: [_sites(0), _sites(1)],
        "above the bar each p times its site's d + k; below it the same with p = 1", _DENSITY,
        (SaLoRARule.density, measures.density), "p is (n, r), d and k are (n,): sum p over r first",
        answer=answer_expected_density),
    "ascend_lambda": Task(
        ascend_lambda, lambda: [(torch.tensor([0.0, 0.3, -0.5, 0.2]), torch.tensor([0.92, 0.6, 0.7, 0.3]), b, 0.1)
                                for b in (0.5, 0.4)],
        "λ plus η_c times (C − b)², then never below 0", _ASCEND, (SaLoRARule._ascend,),
        "lam, C and the result are (n,) each",
        answer=answer_ascend_lambda),
    "orthogonality_penalty": Task(
        orthogonality_penalty, lambda: [_factors(0), _factors(1)],
        "‖A Aᵀ − I‖² + ‖BᵀB − I‖²: squares of all entries, added up, with I of r × r", _R,
        (SaLoRARule.orthogonality, _off_identity), "A is (r, k) and B is (d, r): A Aᵀ and BᵀB are (r, r)",
        answer=answer_orthogonality_penalty),
    "prune_and_fold": Task(
        prune_and_fold, lambda: [_columns(0), _columns(1)],
        "the deterministic gate is 0 where log θ ≤ −log 11: drop those columns; multiply B's others by their gates, "
        "divide those of m by them and of v by their squares", _PRUNE, (SaLoRARule._prune, SaLoRARule._fold),
        "B, m and v are (d, r), the gates are (r,): one a column", answer=answer_prune_and_fold),
    "gates_of_a_run": Task(
        gates_of_a_run, lambda: [(_path(seed), _noise(seed)) for seed in (1, 2)],
        "row t of the result is a draw at row t of log_theta with noise(t)", _DEBUG,
        (SaLoRARule.before_step, HardConcrete.forward), "log_theta is (T, r), noise(t) is (r,): stack T rows",
        answer=answer_gates_of_a_run),
})
