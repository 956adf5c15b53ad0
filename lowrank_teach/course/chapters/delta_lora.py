"""Notebook 05, Delta-LoRA: its workbench, its pictures and findings, its sliders for λ and K, and its exercises.

The sliders solve `toy_problems.solve` anew at each move, three runs in some milliseconds. d out, k in, r rank,
T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...adapters import Adapters, adapt
from ...analysis import measures, statistics, style, toy_problems
from ...experiments.runs import Run
from ...lowrank import LowRank
from ...methods import Clock, DeltaLoRA, Method
from ...methods.delta_lora import DeltaLoRARule, step_factors
from ...reproduction import studies
from ...reproduction.results import Results, SideBySide
from ...training.config import train_config
from ...training.trainer import Trainer
from ..by_hand import Bench, few_examples
from ..by_hand import losses_of as losses_of
from ..by_hand import say_equal as say_equal
from ..contents import readable
from ..exercises import EXERCISES, Task, adapted_matrix, predict
from ..explorer import Control, Picture
from ..schematic import arrow, canvas, matrix
from .lora import guessing
from .lora import scores as scores

# ---- the workbench: a training that takes seconds and in which rounding hides nothing ---------------------

STEPS_BY_HAND = {"tiny": 8, "laptop": 16, "gpu": 30}


class Workbench(Bench):
    """The workbench with 32 examples of a task in batches of eight: AdamW with decay, a rate that falls linearly."""

    def __init__(self, task: str, profile: str) -> None:
        super().__init__(few_examples(task, 32), train_config(
            "tiny", steps=STEPS_BY_HAND[profile], n_train=32, batch_size=8, lr=5e-3, warmup=0.0, max_grad_norm=0.0))

    def train(self, method: Method, **settings: Any) -> Trained:
        """Train by the library's loop, some settings changed."""
        changed = train_config("tiny", **{**self.settings.to_dict(), **settings})
        trainer = Trainer(adapt(self.network(), method, seed=0), self.rows, self.collate, changed, seed=0)
        outcome = trainer.run()
        norms = [value for *_, name, value in outcome.history if name == "grad_norm"]
        return Trained(trainer.adapters, losses_of(outcome), float(np.mean(norms)))

    def mean_loss(self, method: Method) -> float:
        """Train by the library's loop and return the mean of the losses of all steps."""
        return float(np.mean(self.train(method).losses))


class Trained(NamedTuple):
    """A network trained on the workbench: its adapters, the loss of each step, and the mean norm of a gradient."""

    adapters: Adapters
    losses: list[float]
    norm: float


class Watch:
    """A callback that keeps copies of all matrices W, in the order of the sites, after every step."""

    def __init__(self, adapters: Adapters) -> None:
        self.owners, self.path = [adapters.owner(site) for site in adapters], list[list[Tensor]]()

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        self.path.append([owner.W.detach().clone() for owner in self.owners])

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        """Nothing is evaluated here."""


# ---- predictions ------------------------------------------------------------------------------------------


def predict_memory(d: int, k: int, r: int) -> None:
    predict(f"To form B′A′ − BA, something must be remembered from before the step. W is {d} × {k} and r = {r}: how "
            "many numbers do you have to keep at least?",
            f"B and A themselves: r (d + k) = {r * (d + k):,} numbers. The product BA would take {d * k:,}.")


def predict_one_step(d: int, k: int, r: int) -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(d, 2 * r, generator=draw), torch.randn(2 * r, k, generator=draw)
    found = int(torch.linalg.matrix_rank(left @ right))
    predict("What is the highest rank that the change of ONE step, B′A′ − BA, can have?",
            f"2r = {found}, because it is the difference of two matrices of rank r.")


def predict_many_steps(d: int, k: int, r: int) -> None:
    predict(f"W receives such a change at each of 100 steps. What rank can a sum of 100 UNRELATED matrices of rank "
            f"{2 * r} have, and what do you expect of Delta-LoRA's? Write both numbers down.",
            f"Unrelated matrices: min(100 · 2r, d, k) = {min(200 * r, d, k)}, full rank. Delta-LoRA's rank is "
            "measured in section 8.")


# ---- pictures ---------------------------------------------------------------------------------------------

LOOKS: dict[str, dict[str, Any]] = {
    "LoRA": {"color": style.BLUE, "linestyle": "-", "marker": "s"},
    "LoRA at (1 + λ) α": {"color": style.BLUE, "linestyle": ":", "marker": "v"},
    "LoRA at (1 + λ) × rate": {"color": style.BLUE, "linestyle": "--", "marker": "^"},
    "Delta-LoRA": {"color": style.PINK, "linestyle": style.LONG, "marker": "P"},
    "FT‡": {"color": style.BLACK, "linestyle": "-.", "marker": "o"}}
FAINT: dict[str, Any] = {"color": style.GREY, "linestyle": ":", "linewidth": 1.3}


def delta_idea() -> Figure:
    """One step past K: the product before, the product after, and their difference, scaled, into W."""
    fig, ax = canvas(9.0, 2.9, y=(0, 2.8))
    _product(ax, 0.2, style.PALE, "B", "A", "before the step")
    _product(ax, 2.8, style.BLUE, "B′", "A′", "after AdamW's step")
    ax.text(2.45, 1.75, "→", fontsize=22, ha="center", va="center")
    arrow(ax, (5.15, 1.75), (6.55, 1.75), color=style.PINK, width=2, head=18)
    ax.text(5.85, 2.0, "λ s (B′A′ − BA)", fontsize=11, ha="center", color=style.PINK)
    ax.text(5.85, 1.35, "no gradient of W,\nno moments of W", fontsize=9, ha="center", va="top")
    matrix(ax, 6.65, 0.9, 1.7, 1.7, style.PINK, "W", "d × k, moves past step K", alpha=0.45)
    ax.text(4.5, 0.2, "the branch stays beside it: h = W x + s B′A′x", ha="center", fontsize=11)
    fig.set_label("Thin B and A before the step, B′ and A′ after it; an arrow, lambda s times the difference of "
                  "their products, points to W; below: the branch stays beside it.")
    return fig


def _product(ax: Axes, x: float, color: str, left: str, right: str, words: str) -> None:
    """A tall thin matrix times a flat thin one, with a line of words under both."""
    matrix(ax, x, 0.9, 0.3, 1.7, color, left)
    matrix(ax, x + 0.4, 2.3, 1.5, 0.3, color, right)
    ax.text(x + 0.95, 0.8, words, ha="center", va="top", fontsize=9)


def by_hand(losses: Sequence[float], moved: Mapping[str, Sequence[float]], K: int, classes: int) -> Figure:
    """Left the loss of each step of the loop by hand, beside chance; right how far each W has moved.

    Args: losses (T,); site -> ‖W_t − W₀‖ (T,).
    """
    fig, (left, right) = style.panels(2, 2, 2.9, None)
    steps = np.arange(1, len(losses) + 1)
    left.plot(steps, losses, **LOOKS["Delta-LoRA"], linewidth=2, markersize=5)
    left.axhline(math.log(classes), **FAINT)
    left.text(steps[-1], math.log(classes), f"chance, ln {classes}", ha="right", va="bottom", fontsize=9)
    for name, look in style.looks(moved).items():
        right.plot(steps, moved[name], **{**look, "markersize": 3.5, "label": style.site_label(name)})
    right.axvline(K + 0.5, **FAINT)
    right.text(K + 0.6, right.get_ylim()[1], f"K = {K}", va="top", fontsize=9)
    style.dress(left, "Optimizer step", "Loss of the batch", "Loss of the loop by hand")
    style.dress(right, "Optimizer step", "‖W − W₀‖", "How far each W has moved")
    for ax in (left, right):
        style.index_axis(ax, len(losses))
    style.legend(fig)
    fig.set_label(f"Two panels against the step. Left the loss, from {losses[0]:.2f} to {losses[-1]:.2f}; right the "
                  f"distance of {len(moved)} matrices from their start, zero up to step {K} and growing after it.")
    return fig


def finding_by_hand(losses: Sequence[float], moved: Mapping[str, Sequence[float]], K: int, classes: int) -> str:
    """Say what the loss did and which W moved most."""
    width = max(1, len(losses) // 4)
    first, last, chance = np.mean(losses[:width]), np.mean(losses[-width:]), math.log(classes)
    ends = {name: path[-1] for name, path in moved.items()}
    most, least = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
    return (f"The mean loss of the first {width} steps is {first:.2f} and of the last {width} {last:.2f}; that is "
            f"{'below' if last < chance else 'not below'} chance, {chance:.2f}. Up to step {K} the largest ‖W − W₀‖ "
            f"is {max(max(path[:K], default=0) for path in moved.values()):g}; at the end W of {most} has moved "
            f"furthest ({ends[most]:.2f}) and W of {least} least ({ends[least]:.2f}).")


def finding_of_run(run: Run, classes: int) -> str:
    """Say where the loss of one run ended, beside chance, and what trained."""
    return (f"Over the last ten steps the mean training loss is {_end(run):.3f}; chance, ln {classes}, is "
            f"{math.log(classes):.3f}. {run.parameters['trainable']:,} of {run.parameters['total']:,} numbers train.")


def training_curves(runs: Mapping[str, Run], classes: int) -> Figure:
    """The training loss of some runs, means of ten steps, beside chance, and where W begins to move."""
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    for name, run in runs.items():
        steps, values = statistics.smooth(run.series("loss"))
        ax.plot(steps, values, **{**_look(name), "marker": ""}, label=name, linewidth=2)
    chance, total = math.log(classes), runs["Delta-LoRA"].config["training"]["steps"]
    ax.axhline(chance, **FAINT, label=f"chance, ln {classes} = {chance:.2f}")
    K = Clock(0, total, total).resolve(runs["Delta-LoRA"].config["method"]["K"])
    ax.axvline(K, color=style.GREY, linestyle="--", linewidth=1.3, label=f"K = {K}")
    style.dress(ax, "Optimizer step", "Loss (mean of 10 steps)",
                "Training loss from the same start on the same batches")
    style.legend(fig)
    ends = ", ".join(f"{name} {_end(run):.2f}" for name, run in runs.items())
    fig.set_label("Training loss against the step, a line a method, a dotted line at chance and a dashed one at K. "
                  f"Last ten steps: {ends}.")
    return fig


def _look(name: str) -> dict[str, Any]:
    """Return the look of the method that a name begins with; of two that fit, the longer."""
    fitting = [known for known in LOOKS if name.startswith(known)]
    return LOOKS[max(fitting, key=len)] if fitting else {"color": style.GREY, "linestyle": "-", "marker": "o"}


def _end(run: Run) -> float:
    return float(np.mean(run.series("loss")[1][-10:]))


def finding_of_training(runs: Mapping[str, Run], classes: int) -> str:
    """Say where the curves end, and which two are closest to each other all the way."""
    ends = {name: _end(run) for name, run in runs.items()}
    order = sorted(ends, key=ends.__getitem__)
    apart = {(a, b): float(np.abs(np.subtract(runs[a].series("loss")[1], runs[b].series("loss")[1])).mean())
             for i, a in enumerate(runs) for b in list(runs)[i + 1:]}
    a, b = min(apart, key=apart.__getitem__)
    said = ", ".join(f"{ends[name]:.3f} ({name})" for name in order)
    return (f"Over the last ten steps the mean losses are {said}; chance is {math.log(classes):.2f}. The two curves "
            f"closest to each other are {a} and {b}: from step to step they differ by {apart[a, b]:.3f} on average.")


def cosines(runs: Mapping[str, Run]) -> Figure:
    """1 − cosine of W before and after training, by layer, a panel a matrix, a line a run (the paper's Figure 3)."""
    values = {name: run.by_site("cosine") for name, run in runs.items()}
    rows, layers = style.site_grid(values.values())
    fig, axes = style.panels(len(rows), min(len(rows), 2), 2.9, None, sharey=True)
    for i, (ax, name) in enumerate(zip(axes, rows, strict=True)):
        for method, found in values.items():
            y = 1 - style.site_table(found, rows, layers)[i]
            ax.plot(range(len(layers)), np.where(y > 0, y, np.nan), **_look(method), label=method, markersize=6)
        style.dress(ax, "Layer", "1 − cosine (log)", f"How far {style.site_label(name)} turned")
        style.layer_ticks(ax, layers)
    axes[0].set_yscale("log")
    style.legend(fig)
    fig.set_label("One minus the cosine of a matrix before and after training, by layer, a panel for W_q and one for "
                  f"W_v, a line for each of {', '.join(values)}. " + _turns_in_words(values))
    return fig


def _turns_in_words(values: Mapping[str, Mapping[str, float]]) -> str:
    turns = {name: mean_turn([found]) for name, found in values.items()}
    order = sorted(turns, key=turns.__getitem__)
    return "From the least turned: " + ", ".join(f"{name} {turns[name]:.2g}" for name in order) + "."


def mean_turn(runs: Sequence[Mapping[str, float]]) -> float:
    """Geometric mean of 1 − cosine over runs (site -> cosine) and sites; a matrix that did not move counts 1e-12."""
    return float(np.exp(np.mean([np.log(max(1 - c, 1e-12)) for sites in runs for c in sites.values()])))


def finding_of_cosines(runs: Mapping[str, Run], weak: str = "Delta-LoRA", base: str = "LoRA",
                       twin: str = "LoRA at (1 + λ) α", whole: str = "FT‡") -> str:
    """Say in how many matrices the paper's two orders are found, and how far the twin is from Delta-LoRA."""
    values = {name: run.by_site("cosine") for name, run in runs.items()}
    sites = list(values[weak])
    lower = sum(values[weak][site] < values[base][site] for site in sites)
    between = sum(values[weak][site] < values[whole][site] < values[base][site] for site in sites)
    turn = {name: mean_turn([found]) for name, found in values.items()}
    return (f"Delta-LoRA turns W further than LoRA in {lower} of {len(sites)} matrices, by a factor of "
            f"{turn[weak] / turn[base]:.1f} in 1 − cosine (a geometric mean); for {twin} the factor is "
            f"{turn[twin] / turn[base]:.1f}. Fine-tuning of the matrices themselves lies between LoRA and "
            f"Delta-LoRA, as the paper's figure has it, in {between} of {len(sites)}; its factor is "
            f"{turn[whole] / turn[base]:.1f}.")


def cosine_table(runs: Mapping[str, Run]) -> Any:
    """A table of the cosine of every W before and after training: a row a matrix, a column a run."""
    frame = pd.DataFrame({name: run.by_site("cosine") for name, run in runs.items()}).rename_axis("matrix")
    return readable(frame.map("{:.5f}".format), "cosines")


def stored(*names: str) -> list[Results]:
    """Return stored studies, and print where they come from."""
    found = [studies.load(name) for name in names]
    print("\n".join(f"{study.line()}; {len({record['seed'] for record in study.records})} seeds" for study in found))
    return found


def turn_table(study: Results) -> Any:
    """A table of how far W turned in a stored study: geometric means of 1 − cosine over matrices and seeds."""
    arms = [arm for arm in study.arms if all(record["sites"].get("cosine") for record in study.of(arm))]
    turns = {arm: mean_turn([record["sites"]["cosine"] for record in study.of(arm)]) for arm in arms}
    rows = {arm: [f"{turns[arm]:.5f}", f"{turns[arm] / turns['LoRA']:.1f}", f"{len(study.of(arm))}"]
            for arm in sorted(turns, key=turns.__getitem__)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["1 − cosine", "times LoRA's", "seeds"])
    return readable(frame.rename_axis("stored runs"), "turns")


def rank_cliff(spectra: Mapping[str, np.ndarray], marks: Mapping[str, int], *, first: int = 40) -> Figure:
    """Singular values of whole changes, found from the dense matrices, with a line at each expected rank.

    Args: name -> s (n,), descending; label -> rank; first: how many are drawn.
    """
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.0)
    for name, look in style.looks(spectra).items():
        s = np.asarray(spectra[name])[:first]
        ax.semilogy(np.arange(1, len(s) + 1), s, **{**look, "label": style.site_label(name), "markersize": 3.5})
    for (label, rank), line in zip(marks.items(), ("--", ":", "-."), strict=False):
        ax.axvline(rank + 0.5, color=style.GREY, linestyle=line, linewidth=1.3, label=f"{label} = {rank}")
    style.dress(ax, "Index i", "Singular value of W* − W₀ (log)", "The whole change of three matrices")
    style.legend(fig)
    fig.set_label("Singular values of whole changes on a log axis, a line a matrix, with a vertical line after "
                  f"{', '.join(f'{label} = {rank}' for label, rank in marks.items())}. " + _cliff(spectra, marks))
    return fig


def _cliff(spectra: Mapping[str, np.ndarray], marks: Mapping[str, int]) -> str:
    rank = max(marks.values())
    drops = [float(np.log10(s[rank - 1] / max(s[rank], 1e-300))) for s in map(np.asarray, spectra.values())]
    return f"Behind index {rank} the values fall by {min(drops):.0f} powers of ten or more."


def finding_of_cliff(spectra: Mapping[str, np.ndarray], marks: Mapping[str, int], steps: int) -> str:
    """Say where the cliff is, and what unrelated steps could have given."""
    rank, n = max(marks.values()), min(len(s) for s in spectra.values())
    counts = [measures.numerical_rank(torch.as_tensor(np.asarray(s)), 1e-9) for s in spectra.values()]
    same = f"{counts[0]}" if len(set(counts)) == 1 else f"between {min(counts)} and {max(counts)}"
    return (f"{_cliff(spectra, marks)} What lies below is the rounding of float64: after {steps} steps of rank "
            f"{rank} each the whole change has rank {same}, where unrelated steps could have given "
            f"{min(steps * rank, n)}.")


def trajectories(curves: Mapping[str, np.ndarray], *, ylabel: str, title: str = "", start: int = 0) -> Figure:
    """A number after each step, a line a run; a dotted line at K, where W starts to move.

    Args: name -> (T+1,); start: K, 0 draws none.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    free = style.looks(curves)
    for name in curves:
        look = _look(name) if any(map(name.startswith, LOOKS)) else free[name]
        ax.plot(curves[name], **{**look, "marker": "", "label": name}, linewidth=3 if ":" in look.values() else 2)
    if start:
        ax.axvline(start, color=style.GREY, linestyle="--", linewidth=1.3, label=f"K = {start}")
    style.dress(ax, "Optimizer step", ylabel, title)
    style.legend(fig)
    ends = ", ".join(f"{name} {float(curve[-1]):.2g}" for name, curve in curves.items())
    fig.set_label(f"{ylabel} against the optimizer step, a line a run; at the end: {ends}.")
    return fig


def toy_curves(lam: float, K: int) -> dict[str, np.ndarray]:
    """The loss of the least-squares toy after each step: LoRA, its twin, and Delta-LoRA from the start and from K."""
    toy = toy_problems.problem()
    return {"LoRA": toy_problems.solve(toy).loss,
            "LoRA at (1 + λ) α": toy_problems.solve(toy, alpha=ALPHA * (1 + lam)).loss,
            "Delta-LoRA, K = 0": toy_problems.solve(toy, lam=lam).loss,
            f"Delta-LoRA, K = {K}": toy_problems.solve(toy, lam=lam, K=K).loss}


def finding_of_toy(lam: float, K: int) -> str:
    """Say how close the twins are on the toy, and what starting at K costs over twelve such problems."""
    curves = toy_curves(lam, K)
    apart = float(np.abs(curves["Delta-LoRA, K = 0"] - curves["LoRA at (1 + λ) α"]).max())
    tries = [(toy_problems.problem(seed=n), seed) for n in range(4) for seed in range(3)]
    excess = [float(toy_problems.solve(on, lam=lam, K=K, seed=seed).loss[-1]
                    - toy_problems.solve(on, seed=seed).loss[-1]) for on, seed in tries]
    return (f"Delta-LoRA with K = 0 and LoRA at (1 + λ) α differ by {apart:.0e} at most. With K = {K} the final "
            f"loss is above LoRA's in {sum(e > 0 for e in excess)} of {len(tries)} tries (four such problems, three "
            f"starts), on average by {np.mean(excess):.2f}.")


def sweep(lams: Sequence[float], delta: Sequence[float], twin: Sequence[float], classes: int) -> Figure:
    """The loss over λ of Delta-LoRA with K = 0, and of LoRA at (1 + λ) α; a baseline at λ = 0, and chance."""
    fig, (ax,) = style.panels(1, 1, 2.9, None, width=7.5)
    ax.plot(lams, twin, **{**LOOKS["LoRA at (1 + λ) α"], "marker": ""}, linewidth=4, label="LoRA at (1 + λ) α")
    ax.plot(lams, delta, color=style.PINK, linestyle="none", marker="P", markersize=8, label="Delta-LoRA, K = 0")
    ax.axhline(delta[0], color=style.BLUE, linewidth=1, label="LoRA at α (λ = 0)")
    ax.axhline(math.log(classes), **FAINT, label=f"chance, ln {classes}")
    style.dress(ax, "λ", "Mean training loss", "The real network in float64, trained at each λ")
    style.legend(fig)
    fig.set_label("Mean training loss against lambda: the marks of Delta-LoRA with K = 0 on the line of LoRA at one "
                  f"plus lambda times alpha, at most {np.abs(np.subtract(delta, twin)).max():.1g} apart.")
    return fig


def finding_of_sweep(lams: Sequence[float], delta: Sequence[float], twin: Sequence[float]) -> str:
    """Say how far the two are apart at most, beside how far the loss moves along λ."""
    apart, moves = np.abs(np.subtract(delta, twin)), float(np.ptp(delta))
    return (f"Along λ = {lams[0]:g} … {lams[-1]:g} the loss moves by {moves:.3f}. Delta-LoRA with K = 0 and LoRA at "
            f"(1 + λ) α differ by {apart.max():.0e} at most, at λ = {lams[int(apart.argmax())]:g}. What remains is "
            "Adam's ε and rounding.")


def stored_sweep(lam: Results, weak: Results, strong: Results) -> Figure:
    """Validation loss over 1 + λ from stored runs: Delta-LoRA, and LoRA whose α or whose rate is as much larger."""
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    lines = _stored_lines(lam, weak, strong)
    for name, values in lines.items():
        style.seed_curve(ax, values, {**LOOKS[name], "label": name, "markersize": 6})
    ax.axhline(float(np.mean(lines["Delta-LoRA"][1.0])), color=style.BLUE, linewidth=0.8)
    ax.text(6, float(np.mean(lines["Delta-LoRA"][1.0])), "LoRA as it is", ha="right", va="bottom", fontsize=9)
    ax.text(0.02, 0.04, "chance, ln 2 = 0.693, lies above the panel", transform=ax.transAxes, fontsize=9)
    ax.set_xticks([1, 1.5, 3, 6], ["1", "1.5", "3", "6"])
    style.dress(ax, "1 + λ, or the factor of LoRA's α or rate", "Validation loss", "Stored runs: how far may λ go?")
    style.legend(fig)
    fig.set_label("Validation loss against one plus lambda: Delta-LoRA, LoRA at as much larger alpha, LoRA at as "
                  "much larger a rate, a dot a seed and a band of one standard deviation. "
                  + finding_of_stored(lam, weak, strong))
    return fig


def _stored_lines(lam: Results, weak: Results, strong: Results) -> dict[str, dict[float, list[float]]]:
    by_lam, by_weak, by_strong = (study.values("loss", "validation") for study in (lam, weak, strong))
    base = by_weak["LoRA"]
    return {"Delta-LoRA": {1 + float(arm): values for arm, values in by_lam.items()},
            "LoRA at (1 + λ) α": {1.0: base, 1.5: by_weak["LoRA, α × 1.5"], 3.0: by_strong["LoRA, α × 3"]},
            "LoRA at (1 + λ) × rate": {1.0: base, 1.5: by_weak["LoRA, rate × 1.5"], 3.0: by_strong["LoRA, rate × 3"]}}


def finding_of_stored(lam: Results, weak: Results, strong: Results) -> str:
    """Say which λ is lowest, and who is lowest of the three at 1 + λ = 1.5 and 3."""
    means = {name: {x: float(np.mean(values)) for x, values in line.items()}
             for name, line in _stored_lines(lam, weak, strong).items()}
    best = min(means["Delta-LoRA"], key=means["Delta-LoRA"].__getitem__)
    edge = best == max(means["Delta-LoRA"])
    first = {x: min(means, key=lambda name, x=x: means[name][x]) for x in (1.5, 3.0)}  # type: ignore[misc]
    gaps = [means["Delta-LoRA"][x] - means["LoRA at (1 + λ) α"][x] for x in (1.5, 3.0)]
    lowest = (f"{first[1.5]} is the lowest at both" if first[1.5] == first[3.0] else
              f"the lowest are {first[1.5]} and {first[3.0]}")
    return (f"Delta-LoRA's mean is lowest at λ = {best - 1:g}{', the end of the sweep' if edge else ''}. At 1 + λ = "
            f"1.5 and 3 it lies {gaps[0]:+.4f} and {gaps[1]:+.4f} from LoRA with the same factor in α; of the three "
            f"lines {lowest}.")


def over_K(study: Results, baseline: Sequence[float]) -> Figure:
    """Validation loss over K, as a share of the steps, a dot a seed; LoRA, whose W never moves, as a line."""
    values = {100 * float(arm): found for arm, found in study.values("loss", "validation").items()}
    fig, (ax,) = style.panels(1, 1, 3.0, None, width=8.0)
    style.seed_curve(ax, values, {**LOOKS["Delta-LoRA"], "label": "Delta-LoRA, λ = 2", "markersize": 6})
    ax.axhline(float(np.mean(baseline)), color=style.BLUE, label="LoRA (mean of its seeds)")
    ax.text(0.02, 0.04, "chance, ln 2 = 0.693, lies above the panel", transform=ax.transAxes, fontsize=9)
    ax.set_xticks(list(values))
    style.dress(ax, "K, in % of the training", "Validation loss", "Stored runs: when should W begin to move?")
    style.legend(fig)
    at = ", ".join(f"{x:g} %" for x in values)
    fig.set_label(f"Validation loss against K at {at} of the steps: a line of "
                  "means with a dot a seed, and a horizontal line at LoRA. " + finding_of_K(study))
    return fig


def finding_of_K(study: Results) -> str:
    """Say which K is best, and whether the whole movement is larger than the seeds' spread."""
    values = {100 * float(arm): found for arm, found in study.values("loss", "validation").items()}
    means = {x: float(np.mean(found)) for x, found in values.items()}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    spread = float(np.mean([np.std(found, ddof=1) for found in values.values()]))
    moves = means[worst] - means[best]
    return (f"The mean is lowest at K = {best:g} % ({means[best]:.4f}) and highest at {worst:g} % "
            f"({means[worst]:.4f}). This range of {moves:.4f} is {'smaller' if moves < spread else 'larger'} than "
            f"the standard deviation over seeds at one K, {spread:.4f}.")


TABLE_5 = ("LoRA", "LoRA, dropout 0.1", "Delta-LoRA, dropout 0.1", "Delta-LoRA λ = 0.5")


def dropout(gaps: Mapping[float, tuple[float, float]], study: Results) -> Figure:
    """Left by how much the gradient identity is missed; right the test accuracy of the paper's Table 5's arms.

    Args: dropout rate -> shares that ∂L/∂B and ∂L/∂A are off by.
    """
    fig, (left, right) = style.panels(2, 2, 2.9, None)
    for i, name, look in ((0, "∂L/∂B", "-o"), (1, "∂L/∂A", "--s")):
        left.plot(list(gaps), [pair[i] for pair in gaps.values()], look, color=style.BLACK, label=name)
    left.set_ylim(bottom=0)
    style.dress(left, "Dropout on the branch", "Off by, as a share", "Is the identity of gradients true?")
    values = study.values("accuracy")
    style.seed_strip(right, {arm: values[arm] for arm in TABLE_5})
    right.axvline(float(np.mean(values["LoRA"])), color=style.BLUE, linestyle="--", linewidth=1.2)
    sizes = {**train_config(study.about["profile"]).to_dict(), **study.about["training"]}
    style.dress(right, f"Test accuracy (guessing {guessing(study.about['task'], sizes)[1]:.3f}; dashed: LoRA)", "",
                "What dropout does to the score")
    style.legend(fig)
    fig.set_label("Left: the relative error of the two gradient identities against the dropout rate, zero without "
                  "dropout. Right: test accuracy of LoRA and Delta-LoRA with and without dropout, a dot a seed. "
                  + finding_of_dropout(gaps, study))
    return fig


def finding_of_dropout(gaps: Mapping[float, tuple[float, float]], study: Results) -> str:
    """Say by how much the identity is missed, and in which order the four arms came out."""
    values = study.values("accuracy")
    order = sorted(TABLE_5, key=lambda arm: float(np.mean(values[arm])))
    wet, dry = (study.differences("Delta-LoRA λ = 0.5", "Delta-LoRA, dropout 0.1", "accuracy"), max(gaps))
    low, high = statistics.t_interval(wet)
    return (f"Without dropout both identities are true to {max(gaps[0.0]):.0e}; at a rate of {dry:g} they are off by "
            f"{min(gaps[dry]):.0%} to {max(gaps[dry]):.0%}. The scores came out in the order "
            f"{' < '.join(order)}; Delta-LoRA without dropout minus with it is {100 * np.mean(wet):+.2f} points, "
            f"95 % interval [{100 * low:+.2f}, {100 * high:+.2f}].")


def control_pairs(study: Results, strong: Results) -> dict[str, dict[str, list[float]]]:
    """Differences in test loss, one a seed, of Delta-LoRA and each control: λ -> name of the control -> values."""
    weak, hard = "Delta-LoRA λ = 0.5", "Delta-LoRA λ = 2"
    base = study.values("loss")["LoRA"]
    plain = [one - other for one, other in zip(strong.values("loss")[hard], base, strict=True)]
    return {"λ = 0.5": {"− LoRA": study.differences(weak, "LoRA", "loss"),
                        "− LoRA, α × 1.5": study.differences(weak, "LoRA, α × 1.5", "loss"),
                        "− LoRA, rate × 1.5": study.differences(weak, "LoRA, rate × 1.5", "loss")},
            "λ = 2": {"− LoRA": plain, "− LoRA, α × 3": strong.differences(hard, "LoRA, α × 3", "loss"),
                      "− LoRA, rate × 3": strong.differences(hard, "LoRA, rate × 3", "loss")}}


def paired_differences(pairs: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str) -> Figure:
    """A panel a λ, each with its own axis, a row a comparison: a dot a seed, a stroke at the mean, zero dashed.

    Args: title -> name -> one difference a seed.
    """
    fig, axes = style.panels(len(pairs), len(pairs), 2.2, None)
    for ax, (title, rows) in zip(axes, pairs.items(), strict=True):
        style.seed_strip(ax, rows, errorbar=_interval)
        ax.axvline(0.0, color=style.GREY, linestyle="--", linewidth=1.3)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        style.dress(ax, xlabel, "", f"Delta-LoRA, {title}")
    style.legend(fig)
    fig.set_label("Paired differences in test loss around a dashed line at zero, a panel a lambda: dots are seeds, "
                  "strokes means with their interval. " + "; ".join(
                      f"{title} {name} {np.mean(values):+.4f}" for title, rows in pairs.items()
                      for name, values in rows.items()) + ".")
    return fig


def _interval(values: Any) -> tuple[float, float]:
    values = [float(value) for value in values]
    return statistics.t_interval(values) if len(values) > 1 else (values[0], values[0])


def control_table(pairs: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    """A table of the same numbers: mean difference, its interval over seeds, and what the interval says."""
    rows = {}
    for title, comparisons in pairs.items():
        for name, values in comparisons.items():
            low, high = _interval(values)
            says = "Delta-LoRA is better" if high < 0 else "the other is better" if low > 0 else "open"
            rows[f"Delta-LoRA, {title} {name}"] = [f"{np.mean(values):+.4f}", f"[{low:+.4f}, {high:+.4f}]",
                                                   f"{len(values)}", says]
    columns = ["mean difference of the test loss", "95 % interval", "seeds", "reading"]
    return readable(pd.DataFrame.from_dict(rows, orient="index", columns=columns), "controls")


def finding_of_controls(pairs: Mapping[str, Mapping[str, Sequence[float]]], study: Results) -> str:
    """Say what is left of the lead over LoRA once LoRA has the larger α, or rate; and where FT‡ stands."""
    said = []
    for title, rows in pairs.items():
        base, *rest = (float(np.mean(values)) for values in rows.values())
        names = [name.removeprefix("− ") for name in list(rows)[1:]]
        said.append(f"With {title} the test loss differs from LoRA's by {base:+.4f}, from that of {names[0]} by "
                    f"{rest[0]:+.4f} and from that of {names[1]} by {rest[1]:+.4f}")
    whole = float(np.mean(study.differences("Delta-LoRA λ = 0.5", "FT‡ (W_q, W_v)", "loss")))
    return ". ".join(said) + f". FT‡, not drawn, is further away: λ = 0.5 minus FT‡ is {whole:+.4f}."


def stored_tuned() -> SideBySide:
    """Return the stored runs on SST-2 whose rate was chosen for each method; print what they are and their scores."""
    found = studies.load_across("tuned_delta")
    print(found.line())
    for arm in found.arms:
        values = 100 * np.array(found.values(arm)["sst2"])
        over = f" ± {values.std(ddof=1):.1f} % over {len(values)} seeds" if len(values) > 1 else " % with one seed"
        print(f"{arm:<26} chosen rate {found.rate(arm, 'sst2'):g}, test accuracy {values.mean():.1f}{over}")
    print("guessing one of the two classes: 50 %")
    return found


def _both(study: Results, strong: Results, tuned: SideBySide) -> dict[str, dict[str, list[float]]]:
    """Differences in test accuracy, in points, one a seed: title -> comparison -> values."""
    lora = study.values("accuracy")["LoRA"]
    short = {"λ = 0.5 − LoRA": study.differences("Delta-LoRA λ = 0.5", "LoRA", "accuracy"),
             "λ = 2 − LoRA": np.subtract(strong.values("accuracy")["Delta-LoRA λ = 2"], lora).tolist(),
             "λ = 2 − LoRA, α × 3": strong.differences("Delta-LoRA λ = 2", "LoRA, α × 3", "accuracy")}
    pairs = {"λ = 0.5 − LoRA": ("Delta-LoRA, λ = 0.5", "LoRA"), "λ = 2 − LoRA": ("Delta-LoRA, λ = 2", "LoRA"),
             "λ = 2 − LoRA, α × 3": ("Delta-LoRA, λ = 2", "LoRA, α × 3"),
             "λ = 2, K = 0 − LoRA, α × 3": ("Delta-LoRA, λ = 2, K = 0", "LoRA, α × 3")}
    return {f"{study.about['task']}, {study.about['training']['steps']} steps, one rate for all":
            {name: [100 * value for value in values] for name, values in short.items()},
            f"sst2, {tuned.about['training']['steps']} steps, each at its rate":
            {name: tuned.differences(*arms, "sst2") for name, arms in pairs.items()}}


def two_studies(study: Results, strong: Results, tuned: SideBySide) -> Figure:
    """Paired differences in test accuracy of the short study and of the tuned one, a panel each on one axis."""
    both = _both(study, strong, tuned)
    fig, axes = style.panels(2, 2, 2.6, None)
    reach = 1.15 * max(abs(end) for rows in both.values() for values in rows.values()
                       for end in (*values, *_interval(values)))
    for ax, (title, rows) in zip(axes, both.items(), strict=True):
        style.seed_strip(ax, rows, errorbar=_interval)
        ax.axvline(0.0, color=style.GREY, linestyle="--", linewidth=1.3)
        ax.set_xlim(-reach, reach)
        style.dress(ax, "Difference in test accuracy, points", "", title)
    style.legend(fig)
    fig.set_label("Paired differences in test accuracy around a dashed line at zero, left of the short study, right "
                  "of the tuned one: dots are seeds, strokes means with their interval. "
                  + finding_of_two(study, strong, tuned))
    return fig


def finding_of_two(study: Results, strong: Results, tuned: SideBySide) -> str:
    """Say what is left of the lead of λ = 2 once rates are chosen, and what the twins say about noise."""
    short, long = _both(study, strong, tuned).values()
    shown = sum(low > 0 or high < 0 for rows in (short, long) for low, high in map(_interval, rows.values()))

    def said(values: Sequence[float]) -> str:
        low, high = _interval(values)
        return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}]"

    *_, twins = long.values()
    return (f"After 100 steps at one rate λ = 2 is {said(short['λ = 2 − LoRA'])} points from LoRA and "
            f"{said(short['λ = 2 − LoRA, α × 3'])} from LoRA at α × 3; with longer training and chosen rates it is "
            f"{said(long['λ = 2 − LoRA'])} and {said(long['λ = 2 − LoRA, α × 3'])}. In brackets stand 95 % intervals "
            f"over seeds; {shown} of the {len(short) + len(long)} in the figure exclude zero. The last row compares "
            f"two trainings that are the same but for clipping, Adam's ε and rounding, and differs by {said(twins)}: "
            "so large can a difference be that has no cause in the method.")


def memory_shares(in_place: Adapters, lazy: Adapters) -> dict[str, float]:
    """Numbers to keep between two steps for the first matrix, as a share of the gradient and two moments of W.

    They are counted from the tensors of two trained networks.
    """
    name = next(iter(in_place))
    dense = 3 * in_place.owner(name).W.numel()
    rule: Any = in_place.rule
    snapshot = sum(t.numel() for t in rule.before[name])
    anchor = sum(getattr(lazy[name], side).numel() for side in ("fixed_left", "fixed_right"))
    return {"full fine-tuning: gradient and moments of W": 1.0, "naive: the product before the step": 1 / 3,
            "in place: factors before the step, and at K": (snapshot + anchor) / dense,
            "lazy: factors at K": anchor / dense}


def finding_of_memory(shares: Mapping[str, float]) -> str:
    """Say the shares of the three ways."""
    _, naive, thin, lazy = shares.values()
    return (f"Beside LoRA's own numbers the naive way keeps {naive:.0%} of what training W itself would add, the "
            f"in-place way {thin:.1%} and the lazy way {lazy:.1%}.")


def rank_table(constant: Adapters, falling: Adapters) -> Any:
    """A table of the rank of W* − W₀ under a constant λ and under one that falls: a row a matrix."""
    rows = {name: [f"{_rank(constant[name])}", f"{_rank(falling[name])}"] for name in constant}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["rank, λ constant", "rank, λ falling"])
    return readable(frame.rename_axis("matrix"), "ranks")


def _rank(branch: LowRank) -> int:
    return measures.numerical_rank(torch.linalg.svdvals(branch.delta().detach()), 1e-5)


def memory_bars(shares: Mapping[str, float]) -> Figure:
    """Numbers to keep, as a share of what training W itself would add; full fine-tuning is 1."""
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.42 * len(shares), None, width=8.5)
    names = list(shares)[::-1]
    bars = ax.barh(names, [shares[name] for name in names], color=style.PINK, height=0.6)
    ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=4)
    ax.axvline(1.0, color=style.BLACK, linestyle="--", linewidth=1.3)
    ax.set_xlim(0, 1.15)
    style.dress(ax, "Share of the gradient and the two moments of W (dashed: training W itself)", "",
                "What has to be kept between two steps, beside LoRA's own numbers")
    ax.grid(axis="y", visible=False)
    fig.set_label("Bars: " + ", ".join(f"{what} {share:.3f}" for what, share in shares.items()) + ".")
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------

STEPS, R, ALPHA = 120, 2, 4.0
FLOOR = 1e-9   # of the largest singular value: under it, rounding


class DeltaTrajectory(Picture):
    """Delta-LoRA beside LoRA and beside LoRA at α (1 + λ), on a 12 × 10 least-squares problem, r = 2, AdamW.

    Left the loss after each step; in the middle the singular values of the whole change W* − W₀ with a line at 2r;
    right the cosine of W* and W₀. Values under FLOOR are drawn on one line at the bottom.
    """

    count, height = 3, 2.9
    controls = (Control("lam", "λ", 0.0, 5.0, 2.0, 0.1), Control("K", "K: steps before W moves", 0, STEPS, 30))

    def __init__(self) -> None:
        self.problem = toy_problems.problem()
        self.plain = self._solve()
        super().__init__()

    def _solve(self, **values: Any) -> toy_problems.Trajectory:
        return toy_problems.solve(self.problem, r=R, steps=STEPS, **{"alpha": ALPHA, **values})

    def build(self) -> list[Artist]:
        loss, spectrum, angle = self.axes
        names = (("LoRA", style.BLUE, "-", 1.5), ("LoRA, α(1+λ)", style.BLUE, ":", 3.0),
                 ("Delta-LoRA", style.PINK, style.LONG, 2.0))
        self.lines = {(ax, name): ax.plot(np.zeros(STEPS + 1), color=color, linestyle=line, linewidth=width,
                                          label=name)[0]
                      for name, color, line, width in names for ax in (loss, angle)}
        self.start_lines = [ax.axvline(0, color=style.GREY, linewidth=1) for ax in (loss, angle)]
        self.dots, = spectrum.semilogy(range(1, 11), np.ones(10), "P", color=style.PINK, markersize=6)
        spectrum.axvline(2 * R + 0.5, color=style.GREY, linestyle="--", linewidth=1.3, label=f"2r = {2 * R}")
        loss.set_ylim(0, 1.05 * self.plain.loss[0])
        angle.set_ylim(0.75, 1.005)
        spectrum.set_ylim(FLOOR / 10, 10)
        style.dress(loss, "Step (grey: K)", "Loss", "Loss")
        style.dress(spectrum, "Index i", "Singular value (bottom: 0)", " ")
        style.dress(angle, "Step (grey: K)", "Cosine", "Cosine of W* and W₀")
        spectrum.set_xticks(range(1, 11))
        style.legend(self.fig)
        return [*self.lines.values(), *self.start_lines, self.dots, spectrum.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        delta = self._solve(lam=state["lam"], K=int(state["K"]))
        larger = self._solve(alpha=ALPHA * (1 + state["lam"]))
        paths = {"LoRA": self.plain, "LoRA, α(1+λ)": larger, "Delta-LoRA": delta}
        s = np.linalg.svd(delta.total(), compute_uv=False)
        return {"loss": {name: path.loss for name, path in paths.items()},
                "cosine": {name: path.cosines() for name, path in paths.items()},
                "s": np.maximum(s, FLOOR / 5), "rank": int((s > FLOOR * s[0]).sum()), "K": state["K"]}

    def update(self, arrays: dict[str, Any]) -> None:
        for (ax, name), line in self.lines.items():
            line.set_ydata(arrays["loss" if ax is self.axes[0] else "cosine"][name])
        for line in self.start_lines:
            line.set_xdata([arrays["K"]] * 2)
        self.dots.set_ydata(arrays["s"])
        self.axes[1].set_title(f"W* − W₀: rank {arrays['rank']}", fontsize=10)

    def words(self, **state: Any) -> str:
        found = self.arrays(**state)
        loss, cosine = ({name: float(curve[-1]) for name, curve in found[what].items()}
                        for what in ("loss", "cosine"))
        gap = float(np.abs(found["loss"]["Delta-LoRA"] - found["loss"]["LoRA, α(1+λ)"]).max())
        return (f"λ = {state['lam']:g}, K = {state['K']}: the whole change has rank {found['rank']} (2r = {2 * R}). "
                f"At the end the loss is {loss['Delta-LoRA']:.2f}, LoRA's {loss['LoRA']:.2f} and that of LoRA at α "
                f"(1 + λ) {loss['LoRA, α(1+λ)']:.2f}; the cosine is {cosine['Delta-LoRA']:.3f}, LoRA's "
                f"{cosine['LoRA']:.3f}. The losses of Delta-LoRA and of LoRA at α (1 + λ) differ by {gap:.1g} at "
                "most.")


def finding_of_strip(states: Sequence[Mapping[str, Any]], picture: DeltaTrajectory) -> str:
    """Say the final losses and ranks at these positions of the sliders."""
    found = [picture.arrays(**state) for state in states]
    return "; ".join(f"K = {state['K']:g}: final loss {float(one['loss']['Delta-LoRA'][-1]):.2f}, rank {one['rank']}"
                     for state, one in zip(states, found, strict=True)) + (
        f". LoRA ends at {float(found[0]['loss']['LoRA'][-1]):.2f}, and LoRA at α (1 + λ) at "
        f"{float(found[0]['loss']['LoRA, α(1+λ)'][-1]):.2f}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Call = Callable[..., Any]


def _walk(W: Tensor, As: Tensor, Bs: Tensor, lora_alpha: float, lam: float, K: int, form: str = "in_place"
          ) -> Adapters:
    """The library's rule along given factors As (T+1, r, k), Bs (T+1, d, r): no loss, no optimizer."""
    method = DeltaLoRA(r=As.shape[1], lora_alpha=lora_alpha, lam=lam, K=K, sites=("0",), form=form)
    adapters = adapted_matrix(W, method)
    total = len(As) - 1
    adapters.rule.start(Clock(0, total, total), None)  # type: ignore[arg-type]  # asks nothing of the loop
    _set(adapters, As[0], Bs[0])
    for step in range(1, total + 1):
        adapters.rule.before_step(Clock(step, total, total))
        _set(adapters, As[step], Bs[step])   # in the place of the optimizer's step
        adapters.rule.after_step(Clock(step, total, total))
    return adapters


def _set(adapters: Adapters, A: Tensor, B: Tensor) -> None:
    adapters["0"].lora_A.data, adapters["0"].lora_B.data = A.clone(), B.clone()


def delta_step(W: Tensor, lora_A: Tensor, lora_B: Tensor, new_A: Tensor, new_B: Tensor, lora_alpha: float,
               lam: float) -> Tensor:
    """The library's W (d, k) after one step past K."""
    As, Bs = torch.stack([lora_A, new_A]), torch.stack([lora_B, new_B])
    return _walk(W, As, Bs, lora_alpha, lam, 0).owner("0").W.detach()


def left_factor(lora_A: Tensor, lora_B: Tensor, new_A: Tensor, new_B: Tensor) -> Tensor:
    """The library's left factor (d, 2r) of one step, beside [A'; A' − A]."""
    return step_factors(lora_B, lora_A, new_B, new_A)[0]


def delta_run(W: Tensor, As: Tensor, Bs: Tensor, lora_alpha: float, lam: float, K: int) -> Tensor:
    """The library's W (d, k) after the whole path of factors."""
    return _walk(W, As, Bs, lora_alpha, lam, K).owner("0").W.detach()


def whole_change(lora_A: Tensor, lora_B: Tensor, A_K: Tensor, B_K: Tensor, lora_alpha: float, lam: float) -> Tensor:
    """The library's W* − W₀ (d, k): what W holds and the branch beside it."""
    W = torch.zeros(len(lora_B), lora_A.shape[1], dtype=lora_A.dtype)
    return _walk(W, torch.stack([A_K, lora_A]), torch.stack([B_K, lora_B]), lora_alpha, lam, 0)["0"].delta()


def highest_ranks(d: int, k: int, r: int, T: int) -> list[int]:
    """Rank of the library's W* − W₀ after T steps, for K = 0, T // 2 and T."""
    return [_rank_after_random_steps(d, k, r, K, T) for K in (0, T // 2, T)]


def _rank_after_random_steps(d: int, k: int, r: int, K: int, T: int) -> int:
    """From B = 0, as a training starts."""
    g = torch.Generator().manual_seed(T)
    As = torch.randn(T + 1, r, k, generator=g, dtype=torch.float64)
    Bs = torch.randn(T + 1, d, r, generator=g, dtype=torch.float64)
    Bs[0] = 0
    branch = _walk(torch.zeros(d, k, dtype=torch.float64), As, Bs, 2.0 * r, 2.0, K)["0"]
    return measures.numerical_rank(torch.linalg.svdvals(branch.delta()), 1e-9)


def same_alpha(lora_alpha: float, lam: float, r: int) -> float:
    """α of the LoRA whose change the library's Delta-LoRA with K = 0 has: its change over that of α = 1."""
    A, B = (torch.eye(r, dtype=torch.float64).expand(2, r, r).clone() for _ in "AB")
    B[0] = 0
    change = _walk(torch.zeros(r, r, dtype=torch.float64), A, B, lora_alpha, lam, 0)["0"].delta()
    return float(change[0, 0] * r)


@torch.no_grad()
def lazy_forward(x: Tensor, W: Tensor, lora_A: Tensor, lora_B: Tensor, A_K: Tensor, B_K: Tensor, lora_alpha: float,
                 lam: float) -> Tensor:
    """The library's output (n, d) for x (n, k), where W keeps its bytes and the closed form stands beside it."""
    adapters = _walk(W, torch.stack([A_K, lora_A]), torch.stack([B_K, lora_B]), lora_alpha, lam, 0, "lazy")
    return adapters.model(x)


# what is tried


def _path(d: int, k: int, r: int, T: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(d + T)
    return (torch.randn(d, k, generator=g), torch.randn(T + 1, r, k, generator=g),
            torch.randn(T + 1, d, r, generator=g))


def _steps() -> list[tuple]:
    made = []
    for (d, k, r), alpha, lam in (((6, 9, 2), 8.0, 0.7), ((9, 7, 3), 4.5, 2.0)):
        W, As, Bs = _path(d, k, r, 1)
        made.append((W, As[0], Bs[0], As[1], Bs[1], alpha, lam))
    return made


def _runs() -> list[tuple]:
    return [(*_path(6, 9, 2, 7), 8.0, 0.7, 2), (*_path(9, 7, 3, 6), 4.5, 2.0, 3)]


def _layers() -> list[tuple]:
    made = []
    for W, As, Bs, alpha, lam, _ in _runs():
        x = torch.randn(4, W.shape[1], generator=torch.Generator().manual_seed(W.shape[0]))
        made.append((x, W, As[1], Bs[1], As[0], Bs[0], alpha, lam))
    return made


# each mistake as the library called with other arguments, where that can be


def _of_a_step(change: Callable[..., tuple]) -> Call:
    return lambda *arguments: delta_step(*change(*arguments))


_STEP: list[tuple[str, Call]] = [
    ("the scale is missing: the difference is multiplied by λ · s with s = α / r",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, len(A), lam))),
    ("the scale stands there twice: λ · s, once, outside the difference",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, a * a / len(A), lam))),
    ("you scale by α; s is α / r",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, a * len(A), lam))),
    ("that adds the whole new product at once: only what this step changed goes into W, B′A′ − B A",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, 0 * B, A2, B2, a, lam))),
    ("that adds the product as it was before the step: take the difference B′A′ − B A",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, 0 * B, A, B, a, lam))),
    ("the sign is turned round: the new product less the old one",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A2, B2, A, B, a, lam))),
    ("λ is missing", _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, a, 1.0))),
    ("that is the product of the differences; wanted is the difference of the products",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, 0 * B, A2 - A, B2 - B, a, lam))),
    ("that is the deployed matrix W + s B′A′; here only W moves, and the branch stays beside it",
     lambda W, A, B, A2, B2, a, lam: delta_step(W, A, 0 * B, A2, B2, a, 1.0))]

_LEFT: list[tuple[str, Call]] = [
    ("B′ beside A′ − A counts ΔB ΔA twice: the second block is the B before the step",
     lambda A, B, A2, B2: torch.cat([B2 - B, B2], 1)),
    ("these blocks belong to the right factor [A′; A]; here it is [A′; A′ − A]",
     lambda A, B, A2, B2: torch.cat([B2, -B], 1)),
    ("the blocks are in the other order: the first r columns meet A′, the last r meet A′ − A",
     lambda A, B, A2, B2: torch.cat([B, B2 - B], 1)),
    ("the sign of ΔB: the new B less the old one", lambda A, B, A2, B2: torch.cat([B - B2, B], 1))]

_RUN: list[tuple[str, Call]] = [
    ("the first change is a jump: what the product had become by step K goes into W at once; follow the product "
     "from step 0 on, and add only differences of consecutive steps",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, torch.cat([0 * Bs[:1], Bs[1:]]), a, lam, 0)),
    ("W moves one step early: the first change comes at step K + 1, not at K",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, lam, K - 1)),
    ("W moves one step late: the step K + 1 changes it already",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, lam, K + 1)),
    ("K is not looked at: the first K steps leave W alone",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, lam, 0)),
    ("λ is missing", lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, 1.0, K)),
    ("W no longer moves at all", lambda W, As, Bs, a, lam, K: W)]


def _changed(change: Callable[..., tuple]) -> Call:
    return lambda *arguments: whole_change(*change(*arguments))


_WHOLE: list[tuple[str, Call]] = [
    ("that is what W holds; the deployed matrix has the branch s B A beside it, too",
     lambda A, B, A_K, B_K, a, lam: delta_step(torch.zeros(len(B), A.shape[1]), A_K, B_K, A, B, a, lam)),
    ("that is the branch alone: W moved, too", _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A, B, a, 0.0))),
    ("what was there at step K never went into W: subtract λ s B_K A_K",
     _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A_K, 0 * B_K, a, lam))),
    ("the whole product of step K is subtracted: only λ times it never went into W",
     lambda A, B, A_K, B_K, a, lam: whole_change(A, B, A_K, 0 * B_K, a, lam)
     - whole_change(A_K, B_K, A_K, B_K, a, 0.0)),
    ("the scale is missing: s = α / r", _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A_K, B_K, len(A), lam))),
    ("what was there at step K is added: it is subtracted",
     _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A_K, -B_K, a, lam)))]

_RANKS: list[tuple[str, Call]] = [
    ("that would be so if every step brought directions of its own; but the sum telescopes",
     lambda d, k, r, T: [min(2 * r * T, d, k), min(2 * r * (T - T // 2), d, k), r]),
    ("with K = 0 the product at step K is zero, so one product is left; and with K = T only the branch is",
     lambda d, k, r, T: [min(2 * r, d, k)] * 3),
    ("with K = T // 2 two different products are left: that of the last step and that of step K",
     lambda d, k, r, T: [r] * 3),
    ("W is d × k, but what was added to it need not be of full rank", lambda d, k, r, T: [min(d, k)] * 3),
    ("with K = T W never moves, but the branch is there", lambda d, k, r, T: [r, min(2 * r, d, k), 0])]

_ALPHA: list[tuple[str, Call]] = [
    ("that is what W holds; the branch stays beside it and counts once more", lambda a, lam, r: a * lam),
    ("λ multiplies the product; it is not added to α", lambda a, lam, r: a + lam),
    ("the wrong way: W moves along, so the equal LoRA is the larger one", lambda a, lam, r: a / (1 + lam)),
    ("that is the scale s; asked is α, which LoRA divides by r itself",
     lambda a, lam, r: same_alpha(a, lam, r) / r),
    ("then W would not move at all", lambda a, lam, r: a)]

def _lazily(change: Callable[..., tuple]) -> Call:
    return lambda *arguments: lazy_forward(*change(*arguments))


_LAZY: list[tuple[str, Call]] = [
    ("that is W as Delta-LoRA leaves it, without its branch: the branch s B A stays beside it",
     lambda x, W, A, B, A_K, B_K, a, lam: x @ delta_step(W, A_K, B_K, A, B, a, lam).t()),
    ("that is LoRA: what W would have received is missing, λ s (B A − B_K A_K)",
     _lazily(lambda x, W, A, B, A_K, B_K, a, lam: (x, W, A, B, A_K, B_K, a, 0.0))),
    ("what was there at step K never went into W: subtract λ s B_K A_K x",
     _lazily(lambda x, W, A, B, A_K, B_K, a, lam: (x, W, A, B, A_K, 0 * B_K, a, lam))),
    ("the pretrained W x is missing",
     _lazily(lambda x, W, A, B, A_K, B_K, a, lam: (x, 0 * W, A, B, A_K, B_K, a, lam))),
    ("the scale is missing: s = α / r",
     _lazily(lambda x, W, A, B, A_K, B_K, a, lam: (x, W, A, B, A_K, B_K, len(A), lam))),
    ("the term of step K is added: it is subtracted",
     _lazily(lambda x, W, A, B, A_K, B_K, a, lam: (x, W, A, B, A_K, -B_K, a, lam)))]


# ---- answers, written for a reader ------------------------------------------------------------------------


def answer_delta_step(W: Tensor, lora_A: Tensor, lora_B: Tensor, new_A: Tensor, new_B: Tensor,
                      lora_alpha: float, lam: float) -> Tensor:
    s = lora_alpha / len(lora_A)
    return W + lam * s * (new_B @ new_A - lora_B @ lora_A)


def answer_left_factor(lora_A: Tensor, lora_B: Tensor, new_A: Tensor, new_B: Tensor) -> Tensor:
    # B'A' − BA = (B' − B) A' + B (A' − A)
    return torch.cat([new_B - lora_B, lora_B], dim=1)


def answer_delta_run(W: Tensor, As: Tensor, Bs: Tensor, lora_alpha: float, lam: float, K: int) -> Tensor:
    s = lora_alpha / As.shape[1]
    for step in range(K + 1, len(As)):
        W = W + lam * s * (Bs[step] @ As[step] - Bs[step - 1] @ As[step - 1])
    return W


def answer_whole_change(lora_A: Tensor, lora_B: Tensor, A_K: Tensor, B_K: Tensor, lora_alpha: float,
                        lam: float) -> Tensor:
    s = lora_alpha / len(lora_A)
    in_W = lam * s * (lora_B @ lora_A - B_K @ A_K)
    return in_W + s * lora_B @ lora_A


def answer_highest_ranks(d: int, k: int, r: int, T: int) -> list[int]:
    # K = 0: B_K = 0, so one product is left.  K = T/2: two products.  K = T: the branch alone.
    return [r, min(2 * r, d, k), r]


def answer_same_alpha(lora_alpha: float, lam: float, r: int) -> float:
    return (1 + lam) * lora_alpha


def answer_lazy_forward(x: Tensor, W: Tensor, lora_A: Tensor, lora_B: Tensor, A_K: Tensor, B_K: Tensor,
                        lora_alpha: float, lam: float) -> Tensor:
    s = lora_alpha / len(lora_A)
    branch = (1 + lam) * (x @ lora_A.T) @ lora_B.T
    never_in_W = lam * (x @ A_K.T) @ B_K.T
    return x @ W.T + s * (branch - never_in_W)


EXERCISES.update({
    "delta_step": Task(delta_step, _steps, "W plus λ · s · (new_B new_A − lora_B lora_A), with s = α / r", _STEP,
                       (DeltaLoRARule._add_step, step_factors), answer=answer_delta_step),
    "left_factor": Task(left_factor, lambda: [arguments[1:5] for arguments in _steps()],
                        "write B′A′ − B A as X A′ + Y (A′ − A), and put X and Y side by side", _LEFT,
                        (step_factors,), answer=answer_left_factor),
    "delta_run": Task(delta_run, _runs, "two things are wrong: when it begins, and what it subtracts", _RUN,
                      (DeltaLoRARule.before_step, DeltaLoRARule.after_step, DeltaLoRARule._add_step),
                      answer=answer_delta_run),
    "whole_change": Task(whole_change, lambda: [(A[1], B[1], A[0], B[0], alpha, lam) for A, B, alpha, lam in
                                                ((As, Bs, alpha, lam) for _, As, Bs, alpha, lam, _ in _runs())],
                         "add up what W holds, λ s (B A − B_K A_K), and the branch, s B A", _WHOLE,
                         (DeltaLoRARule._anchor,), answer=answer_whole_change),
    "highest_ranks": Task(highest_ranks, lambda: [(40, 30, 3, 8), (6, 9, 4, 6)],
                          "count the products that are left in the closed form, each of rank r; and no rank is above "
                          "min(d, k)", _RANKS, (DeltaLoRARule._anchor,), answer=answer_highest_ranks),
    "same_alpha": Task(same_alpha, lambda: [(16.0, 0.5, 8), (4.0, 2.0, 2)],
                       "set B_K = 0 in the closed form and compare it with s B A", _ALPHA, (DeltaLoRARule._anchor,),
                       answer=answer_same_alpha),
    "lazy_forward": Task(lazy_forward, _layers, "W x, plus (1 + λ) s B A x, less λ s B_K A_K x", _LAZY,
                         (DeltaLoRARule._anchor,), answer=answer_lazy_forward),
})
