"""Notebook 01, why low rank: its pictures and findings, the slider that cuts every ΔW to rank i, its exercises.

d out (rows), k in (columns), n = min(d, k), i directions kept, C classes, N examples, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from ...analysis import measures, plots, style
from ...analysis.statistics import t_interval
from ...experiments.runs import Run
from ...reproduction import rank_cuts
from ...reproduction.results import Results
from ..by_hand import guess
from ..by_hand import losses_of as losses_of
from ..by_hand import say_equal as say_equal
from ..contents import readable
from ..exercises import EXERCISES, Task, predict
from ..explorer import Control, Picture
from . import lora
from .lora import by_hand as by_hand
from .lora import finding_by_hand as finding_by_hand
from .lora import scores as scores
from .lora import training_figure as training_figure

Numbers = Mapping[str, float]
CUTS = rank_cuts.CUTS

# ---- what the notebook works on ---------------------------------------------------------------------------

# a tenth of LoRA's learning rate, because every number of W moves; no decay, which moves W without the task's asking
SETTING: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 60, "n_train": 960, "lr": rank_cuts.LR, "weight_decay": 0.0},
    "laptop": {"steps": 100, "n_train": 1600, "lr": rank_cuts.LR, "weight_decay": 0.0},
    "gpu": {"lr": 5e-5, "weight_decay": 0.0}}


class Workbench(lora.Workbench):
    """The workbench of 02 with the learning rate of full fine-tuning and without weight decay.

    inputs: some examples without their labels, one batch.  chance: the loss of guessing by the label shares.
    """

    def __init__(self, task: str, profile: str) -> None:
        super().__init__(task, profile, lr=rank_cuts.LR, weight_decay=0.0)
        batch = self.collate(self.rows[:64 if profile == "tiny" else 128])
        self.inputs = {name: values for name, values in batch.items() if name != "labels"}
        self.chance = guess(torch.cat([one["labels"] for one in self.batches]).tolist(), self.classes)[0]


def batches_of(run: Run, size: int = 64) -> list[dict[str, Tensor]]:
    """The test examples of a run's task, in batches; validation examples where the test has no labels."""
    rows = run.trained.rows                                                    # type: ignore[union-attr]
    examples = rows.splits.get("test", rows.splits["validation"])
    return [rows.collate(examples[at:at + size]) for at in range(0, len(examples), size)]


def finding_of_training(runs: Mapping[str, Run]) -> str:
    """Where the losses end, and whether the network of which only the head trains has learned anything."""
    head = runs["head only"]
    loss, _ = lora.guessing(head.config["task"], head.config["training"])
    name, score = head.score("test")
    idle = head.metrics["test"]["loss"] > loss - 0.01
    return lora.finding_of_training(runs) + (
        f" With the head alone the test loss is {head.metrics['test']['loss']:.3f} and the {name} {score:.3f}: in so "
        "short a training, at this learning rate, it has learned nothing beyond guessing, so it is no more than that "
        "level here." if idle else "")


def finding_of_run(run: Run) -> str:
    """Where the training loss of the live curve began and ended."""
    values = run.series("loss")[1]
    return (f"The mean training loss of the first ten steps is {np.mean(values[:10]):.3f} and of the last ten "
            f"{np.mean(values[-10:]):.3f}. Grey, where it is stored, is a run of another seed.")


# ---- predictions ------------------------------------------------------------------------------------------


def predict_cost(d: int, k: int) -> None:
    predict(f"W_q is {d} × {k}. How many numbers does one direction take, and how many directions can you write down "
            "before they take as many numbers as W_q itself?",
            f"d + k = {d + k} numbers, with σ multiplied into the column. So {d * k // (d + k)} of the {min(d, k)} "
            "directions; beyond that the sum takes more room than the matrix.")


def predict_noise(d: int, k: int) -> None:
    noise = torch.randn(d, k, generator=torch.Generator().manual_seed(0))
    needed = measures.energy_rank(torch.linalg.svdvals(noise))
    predict(f"Fill a {d} × {k} matrix with random numbers. How many directions hold 90 % of its energy?",
            f"{needed} of {min(d, k)}. A matrix without structure needs a large part of its directions.")


def predict_real() -> None:
    predict("Train every number of W_q, and subtract the old matrix from the new one. Will this ΔW need more "
            "directions for 90 % of its energy than the random matrix, or fewer? As many, half, a tenth?",
            "Section 8 measures it for every matrix. Write your guess down.")


def predict_one() -> None:
    kept = kept_by("first 1")
    predict("After training, keep only ONE direction of every ΔW. Which share of what the matrices had won in test "
            "loss is left?",
            f"In the stored networks of section 9 it is {kept.mean():.0%} in the mean, and between {kept.min():.0%} "
            f"and {kept.max():.0%} over {len(kept)} seeds.")


# ---- pictures and what is found in them -------------------------------------------------------------------


def words(parts: Iterable[str]) -> str:
    """"a", "a and b", "a, b and c"."""
    parts = list(parts)
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def plain(site: str) -> str:
    """"3.q" -> "W_q of layer 3"."""
    layer, _, name = site.rpartition(".")
    return f"W_{name} of layer {layer}"


def ellipse(M: Tensor) -> Figure:
    """What a 2 × 2 matrix does to the unit circle, and what is left when it is cut to rank 1; equal aspect."""
    U, s, Vh = (part.numpy() for part in measures.directions(M))
    sign = np.where(U[0] < 0, -1, 1)                                           # of u_j and v_j together it is free
    U, Vh = U * sign, Vh * sign[:, None]
    at = np.linspace(0, 2 * np.pi, 241)
    circle = np.stack([np.cos(at), np.sin(at)])                                # (2, points)
    fig, axes = style.panels(3, 3, 2.75, None, width=9.0)
    written = U.T * s[:, None]                                                 # rows σ_j u_j
    for ax, points, arrows, name in (
            (axes[0], circle, Vh, "A circle goes in"),
            (axes[1], (U * s) @ Vh @ circle, written, "An ellipse comes out"),
            (axes[2], s[0] * np.outer(U[:, 0], Vh[0]) @ circle, written[:1], "After the cut to rank 1: a line")):
        ax.plot(*points, color=style.GREY, linewidth=1.5)
        for j, ((x, y), color) in enumerate(zip(arrows, (style.BLUE, style.ORANGE), strict=False), 1):
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2})
            out = 1 + 0.55 / float(np.hypot(x, y))
            ax.text(x * out, y * out, f"$v_{j}$" if ax is axes[0] else rf"$\sigma_{j} u_{j}$", color=color,
                    fontsize=11, ha="center", va="center")
        ax.set_aspect("equal")
        ax.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), xticks=range(-3, 4), yticks=range(-3, 4))
        style.dress(ax, "First number", "Second number" if ax is axes[0] else "", name)
    fig.set_label("Three panels of one scale. A circle with two arrows at right angles; an ellipse with a long and a "
                  "short arrow at right angles; the ellipse flattened to a line along the long arrow.")
    return fig


def finding_of_ellipse(M: Tensor) -> str:
    """The half axes, and what the cut leaves."""
    s = measures.directions(M).s
    return (f"The long half axis has length σ₁ = {s[0]:.3g} and the short one σ₂ = {s[1]:.3g}. Without its second "
            f"direction the matrix sends every input to one line, and {measures.energy(s)[0]:.0%} of its energy is "
            "kept.")


def sum_of_directions(U: np.ndarray, s: np.ndarray, Vh: np.ndarray, count: int = 3) -> Figure:
    """The first directions of a matrix one by one, and their sum so far below. U (d, n), s (n,), Vh (n, k)."""
    fig, axes = style.panels(2 * count, count, 2.1, None, width=8.0)
    size = float(np.abs((U * s) @ Vh).max()) or 1.0
    for j in range(count):
        one, total = s[j] * np.outer(U[:, j], Vh[j]), (U[:, :j + 1] * s[:j + 1]) @ Vh[:j + 1]
        sign = "" if j == 0 else "+ "
        for ax, values, name in ((axes[j], one, f"{sign}direction {j + 1}, σ = {s[j]:.1f}"),
                                 (axes[count + j], total, f"sum so far: rank {j + 1}")):
            mesh = style.heatmap(ax, values, square=True, cmap="RdBu_r", vmin=-size, vmax=size)
            style.dress(ax, "", "", name)
    fig.colorbar(mesh, ax=axes, pad=0.02, label="Value of a cell")
    fig.set_label(f"Above the first {count} directions of a picture, each a column times a row; below their sum of "
                  f"rank 1 to {count}, ever more like the picture.")
    return fig


def finding_of_sum(s: np.ndarray, count: int = 3) -> str:
    """What share of the energy the first sums hold."""
    held = measures.energy(torch.as_tensor(s))
    return (f"Above, each direction alone; below, their sum. Rank 1 to {count} hold "
            f"{words(f'{float(share):.1%}' for share in held[:count])} of the energy of this picture.")


def sizes(changes: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> tuple[Figure, str]:
    """‖ΔW‖ in percent of ‖W‖ by matrix and layer, and which is the largest."""
    percent = {site: 100 * float(change.norm() / before[site].norm()) for site, change in changes.items()}
    fig = _tables({"‖ΔW‖ in percent of ‖W‖": percent}, [".1f"], columns=1)
    most, least = max(percent, key=percent.__getitem__), min(percent, key=percent.__getitem__)
    fig.set_label("Table of sizes in percent, a row a matrix and a column a layer.")
    return fig, (f"The largest change is that of {plain(most)}, {percent[most]:.1f} % of the size of its W, and the "
                 f"smallest that of {plain(least)}, {percent[least]:.1f} %. Full fine-tuning moved every matrix, and "
                 f"none by more than {max(percent.values()):.1f} %.")


def _tables(shown: Mapping[str, Numbers], formats: Sequence[str], columns: int, alike: int = 0) -> Figure:
    """One annotated table a title, a row a matrix, a column a layer.

    Args: alike: so many of the first share one colour scale from zero; the others have their own.
    """
    rows, layers = style.site_grid(shown.values())
    fig, axes = style.panels(len(shown), columns, 0.75 + 0.27 * len(rows), None,
                             width=min(style.WIDTH, columns * (1.6 + 0.6 * len(layers))))
    top = max((max(values.values()) for values in list(shown.values())[:alike]), default=0.0)
    for n, (ax, (title, values), fmt) in enumerate(zip(axes, shown.items(), formats, strict=True)):
        limits = {"vmin": 0.0, "vmax": top} if n < alike else {}
        style.heatmap(ax, style.site_table(values, rows, layers), [style.site_label(m) for m in rows], layers,
                      annot=True, fmt=fmt, cmap="viridis", **limits)
        style.dress(ax, "Layer", "", title)
    return fig


def spectra(changes: Mapping[str, Tensor], sites: Sequence[str]) -> tuple[Figure, str]:
    """Singular values and energy of some ΔW and of the random twin of the first, and the shares of eight."""
    shown = {plain(site): torch.linalg.svdvals(changes[site].double()) for site in sites}
    twin = f"random twin of {plain(sites[0])}"
    shown[twin] = torch.linalg.svdvals(measures.random_twin(changes[sites[0]]))
    held = {name: measures.energy(s) for name, s in shown.items()}
    fig = plots.spectra({name: s.numpy() for name, s in shown.items()},
                        energy={name: share.numpy() for name, share in held.items()})
    fig.axes[0].set_title("Singular values", fontsize=10)
    fig.axes[1].set_title("What the first i directions hold", fontsize=10)
    fig.axes[1].axhline(0.9, color=style.GREY, linestyle=":", linewidth=1.4)
    fig.axes[1].text(1, 0.91, "90 %", fontsize=9, va="bottom")
    said = words(f"{float(share[7]):.0%} of the energy for {name}" for name, share in held.items())
    fig.axes[0].set_ylim(bottom=1e-3 * max(float(s[0]) for s in shown.values()))
    fig.axes[1].set_ylabel("Share of the energy up to i")
    fig.set_label(f"Two panels over the direction. Left the singular values of {len(sites)} changes and of a random "
                  "matrix; right the share of the energy that the first i directions hold.")
    first, last = float(shown[plain(sites[0])][0] / shown[twin][0]), len(shown[twin])
    return fig, (f"The first eight of {last} directions hold {said}. The first singular value of "
                 f"{plain(sites[0])} is {first:.1f} times that of its random twin, which has the same norm.")


def three_measures(of: Mapping[str, Mapping[str, Numbers]]) -> tuple[Figure, str]:
    """Four tables: the rank for 90 % of ΔW and of its random twin, and two measures of ΔW without a threshold.

    Args: REAL or TWIN -> "90 %", "effective", "stable" -> site -> value.
    """
    real, twin = of[REAL], of[TWIN]
    fig = _tables({"ΔW: rank for 90 %": real["90 %"], "Random twin: rank for 90 %": twin["90 %"],
                   "ΔW: effective rank": real["effective"], "ΔW: stable rank": real["stable"]},
                  [".0f", ".0f", ".0f", ".1f"], 2, alike=2)
    fewer = sum(real["90 %"][site] < twin["90 %"][site] for site in real["90 %"])
    eight = sum(rank <= 8 for rank in real["90 %"].values())
    layers = _by_layer(real["90 %"])
    first, last = next(iter(layers)), list(layers)[-1]
    span = {name: f"{min(v.values()):.0f} to {max(v.values()):.0f}" for name, v in real.items()}
    fig.set_label("Four tables by matrix and layer: the rank that holds 90 % of the energy of each change and of its "
                  "random twin, and the effective and the stable rank of each change.")
    return fig, (f"For 90 % of its energy a real ΔW needs {span['90 %']} directions and its random twin "
                 f"{min(twin['90 %'].values()):.0f} to {max(twin['90 %'].values()):.0f}; the real one needs fewer in "
                 f"{fewer} of {len(real['90 %'])} matrices. Rank 8 is enough in {eight} of them. The mean is "
                 f"{layers[first]:.0f} in the first layer and {layers[last]:.0f} in the last. The effective ranks go "
                 f"from {span['effective']}, the stable ranks from {span['stable']}. The tables of the first row "
                 "share one colour scale.")


def _by_layer(values: Numbers) -> dict[str, float]:
    """Layer -> mean over its matrices, in the order of the layers."""
    layers = sorted({site.rpartition(".")[0] for site in values}, key=int)
    return {layer: float(np.mean([v for site, v in values.items() if site.rpartition(".")[0] == layer]))
            for layer in layers}


# ---- the cut network --------------------------------------------------------------------------------------

REAL, TWIN = "real ΔW", "random twin"
LOOKS: dict[str, dict[str, Any]] = {
    REAL: {"color": style.BLACK, "linestyle": "-", "marker": "o"},
    TWIN: {"color": style.GREY, "linestyle": "--", "marker": "x"}}
Scores = Mapping[str, Mapping[int, tuple[float, float]]]


def halves(found: Mapping[int, tuple[float, float]], count: int) -> dict[int, float]:
    """Rank -> half of a 95 % interval of the accuracy, for what `count` test examples leave open."""
    return {i: 1.96 * (share * (1 - share) / count) ** 0.5 for i, (share, _) in found.items()}


def cut_figure(found: Scores, count: int, run: Run) -> Figure:
    """Accuracy and loss of the network whose ΔW are cut to rank i, beside those of guessing.

    Args: REAL or TWIN -> i -> (accuracy, loss); count: of test examples.
    """
    fig, axes = style.panels(2, 2, 3.0, None)
    order = list(found[REAL])
    loss, share = lora.guessing(run.config["task"], run.config["training"])
    for ax, which, level, name in zip(axes, (0, 1), (share, loss), ("Test accuracy", "Test loss"), strict=True):
        for label, values in found.items():
            at = np.arange(len(order)) + (0.12 if label == TWIN else 0.0)      # the bars must not hide each other
            ax.plot(at, [values[i][which] for i in order], **LOOKS[label], label=label, markersize=5, linewidth=1.6)
            if which == 0:
                ax.errorbar(at, [values[i][0] for i in order], list(halves(values, count).values()), fmt="none",
                            ecolor=LOOKS[label]["color"], alpha=0.6, capsize=3)
        if level is not None:
            ax.axhline(level, color=style.ORANGE, linestyle=":", linewidth=1.4, label="guessing by the label shares")
        ax.set_xticks(range(len(order)), [*map(str, order[:-1]), "all"])
        style.dress(ax, "Directions kept of every ΔW", name, f"{name} of the cut network")
    style.legend(fig)
    fig.set_label("Two panels over the rank that every change is cut to, accuracy and loss, a line for the real "
                  "changes and one for random ones of the same norm, and a dotted line for guessing.")
    return fig


def finding_of_cuts(found: Scores, count: int) -> str:
    """From which rank on the score is that of the uncut network, and what the random twin reaches."""
    real, twin = found[REAL], found[TWIN]
    order = list(real)
    end, half = real[order[-1]], halves(real, count)
    near = next(i for i in order if all(abs(real[j][0] - end[0]) <= half[order[-1]] for j in order if j >= i))
    won = real[0][1] - end[1]
    said = (f"The matrices lowered the test loss by {won:.3f}; one direction of each gives "
            f"{(real[0][1] - real[1][1]) / won:.0%} of it back and eight give {(real[0][1] - real[8][1]) / won:.0%}. "
            f"The random twins with all their directions give {_percent((real[0][1] - twin[order[-1]][1]) / won)}."
            if won > 0.01 else f"The matrices changed the test loss by only {-won:.3f}, so little can be cut away.")
    return (f"Without the ΔW the accuracy is {real[0][0]:.3f}, with all of it {end[0]:.3f}. From rank {near} on it "
            f"stays within {half[order[-1]]:.3f} of that, which is what {count} test examples leave open. {said}")


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("-0%", "0%")


def say_cost(found: Numbers) -> None:
    """Print the scores of two networks in which something was cut."""
    for name, value in found.items():
        print(f"{name:<38} test accuracy {value:.3f}")


# ---- the gradient of a head with few classes --------------------------------------------------------------

INK = dict(zip("qkvo", (style.BLUE, style.SKY, style.GREEN, style.PINK), strict=True)) | {
    "up": style.BLACK, "down": style.ORANGE}


def classes_figure(ranks: Mapping[int, Numbers]) -> Figure:
    """Rank for 90 % of the gradient over the number of classes, in the first layer and in the last, and C − 1.

    Args: C -> site -> rank.
    """
    layers = list(_by_layer(next(iter(ranks.values()))))
    fig, axes = style.panels(2, 2, 3.0, None, sharey=True)
    for ax, layer, name in zip(axes, (layers[0], layers[-1]), ("first", "last"), strict=True):
        for marker, (letter, color) in zip("os^DPX", INK.items(), strict=True):
            ax.plot(list(ranks), [one[f"{layer}.{letter}"] for one in ranks.values()], color=color, marker=marker,
                    linewidth=1.5, markersize=5, label=style.site_label(letter))
        ax.plot(list(ranks), [C - 1 for C in ranks], color=style.GREY, linestyle=":", label="C − 1")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xticks(list(ranks), [str(C) for C in ranks])
        ax.xaxis.set_minor_locator(NullLocator())
        style.dress(ax, "Classes C of the head (log)", "Rank for 90 % (log)", f"Gradient in the {name} layer")
    ticks = [1, 2, 4, 8, 16, 32, 64, 128]
    axes[0].set_yticks(ticks, [str(tick) for tick in ticks])
    style.legend(fig)
    fig.set_label("Two panels over the number of classes, for the first and the last layer: the rank that holds 90 % "
                  "of the gradient of each matrix, and a dotted line at C minus one.")
    return fig


def finding_of_classes(ranks: Mapping[int, Numbers], examples: int) -> str:
    """Mean rank in the first and the last layer, for the fewest and the most classes."""
    few, many = min(ranks), max(ranks)
    means = {C: _by_layer(one) for C, one in ranks.items()}
    first, last = next(iter(means[few])), list(means[few])[-1]
    return (f"In the last layer 90 % of the gradient of {examples} examples takes {means[few][last]:.1f} directions "
            f"with {few} classes and {means[many][last]:.1f} with {many}, the mean over its matrices. In the first "
            f"layer it takes {means[few][first]:.0f} and {means[many][first]:.0f}. Network and examples are alike; "
            "only the head and its random labels differ. Dotted: C − 1, the bound that holds at the logits.")


# ---- the optimizer ----------------------------------------------------------------------------------------

ADAM, SGD, ONE, SIGN = "ΔW of AdamW", "ΔW of SGD", "one gradient", "sign of this gradient"
OF: dict[str, dict[str, Any]] = {
    SIGN: {"color": style.ORANGE, "linestyle": ":", "marker": "D"},
    ADAM: {"color": style.ORANGE, "linestyle": "-", "marker": "o"},
    SGD: {"color": style.BLUE, "linestyle": "-", "marker": "s"},
    ONE: {"color": style.BLUE, "linestyle": ":", "marker": "^"}}


@torch.no_grad()
def mean_loss(net: Any, bench: Workbench) -> float:
    """Mean loss over the batches of the workbench, without dropout."""
    return float(np.mean([float(net.eval()(**batch).loss) for batch in bench.batches]))


def optimizers(ranks: Mapping[str, Numbers]) -> Figure:
    """Rank for 90 % by layer, means over its matrices. Args: a name of OF -> site -> rank."""
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    for name, look in OF.items():
        means = _by_layer(ranks[name])
        ax.plot(range(len(means)), list(means.values()), **look, label=name, linewidth=1.8, markersize=6)
    style.layer_ticks(ax, list(means))
    ax.set_ylim(bottom=0)
    style.dress(ax, "Layer", "Rank for 90 % of the energy", "Mean over the matrices of a layer")
    style.legend(fig)
    fig.set_label("Rank that holds 90 % of the energy, by layer, four lines: one gradient, its sign, and the changes "
                  "that plain gradient descent and AdamW made.")
    return fig


def finding_of_optimizers(ranks: Mapping[str, Numbers], losses: Numbers, batch: int) -> str:
    """Mean rank of the four, and the loss that each training reached."""
    mean = {name: float(np.mean(list(values.values()))) for name, values in ranks.items()}
    fewer = sum(ranks[SGD][site] < ranks[ADAM][site] for site in ranks[SGD])
    return (f"In the mean over all matrices 90 % of the energy takes {mean[ONE]:.0f} directions in one gradient of "
            f"{batch} examples, {mean[SIGN]:.0f} in its sign, {mean[SGD]:.0f} in the ΔW of SGD and "
            f"{mean[ADAM]:.0f} in that of AdamW. SGD's ΔW needs fewer than AdamW's in {fewer} of {len(ranks[SGD])} "
            f"matrices. After training, the loss on the training batches is {losses[SGD]:.3f} (SGD) and "
            f"{losses[ADAM]:.3f} (AdamW). "
            "This is one seed and one rate for each.")


# ---- over seeds -------------------------------------------------------------------------------------------


def stored() -> Results:
    """The stored cuts of section 9; prints where they come from."""
    found = rank_cuts.load_cuts()
    print(rank_cuts.line(found))
    return found


def kept_by(arm: str, found: Results | None = None) -> np.ndarray:
    """Share of the matrices' gain in test loss that a cut keeps, a seed each: 0 as without ΔW, 1 as with all of it.

    arm: "first 8", "rest 8", "random 8" …
    """
    losses = (found or rank_cuts.load_cuts()).values("loss")
    none, whole = np.array(losses["first 0"]), np.array(losses["all"])
    return (none - np.array(losses[arm])) / (none - whole)


def seeds_figure(found: Results) -> Figure:
    """Test loss over the number of directions: the first i, all but these, and i drawn at random."""
    losses = found.values("loss")
    ways: dict[str, dict[str, float | Sequence[float]]] = {
        "the first i": {**{str(i): losses[f"first {i}"] for i in CUTS}, "all": losses["all"]},
        "all but the first i": {str(i): losses[f"rest {i}"] for i in CUTS[1:]},
        "i drawn at random": {str(i): losses[f"random {i}"] for i in CUTS[1:]}}
    fig = scores_by_rank(ways, ylabel="Test loss", xlabel="Number of directions i")
    fig.axes[0].set_title("A dot a seed; band: one standard deviation", fontsize=10)
    fig.set_label("Test loss over the number of directions i, three lines: the first i directions of every change, "
                  "all but these, and i directions drawn at random.")
    return fig


def _interval(values: Sequence[float] | np.ndarray) -> str:
    low, high = t_interval(list(values))
    return f"{np.mean(values):.0%} [{low:.0%}, {high:.0%}]"


def beyond_eight(found: Results) -> np.ndarray:
    """Share of the energy of ΔW beyond the eighth direction, the mean over matrices, a seed each."""
    return np.array([1 - np.mean(list(found.by_site("all", "energy_of_8", n).values()))
                     for n in range(len(found.values("loss")["all"]))])


def finding_of_seeds(found: Results) -> str:
    """Shares of the gain that the first, the other and random directions keep, with intervals over seeds."""
    return (f"Of the gain in test loss the first eight directions keep {_interval(kept_by('first 8', found))}, all "
            f"others together {_interval(kept_by('rest 8', found))}, though they hold "
            f"{_interval(beyond_eight(found))} of the energy, and eight drawn at random "
            f"{_interval(kept_by('random 8', found))}. In brackets: 95 % intervals over "
            f"{len(beyond_eight(found))} seeds.")


def say_lucky(found: Results) -> None:
    """Print which seeds drew the first direction at random, and the shares kept."""
    kept, n = kept_by("random 8", found), 384
    for seed, share in enumerate(kept):
        drew = 0 in rank_cuts.at_random(8, n, seed)
        print(f"seed {seed}: {'drew direction 1' if drew else 'did not draw it'}, keeps {share:.0%} of the gain")


def claims(found: Results, measured: Mapping[str, Mapping[str, Numbers]]) -> Any:
    """What is said about low rank, what was measured, and a verdict by the interval over seeds.

    Args: found: the stored cuts; measured: as in `three_measures`, of this run.
    """
    real, twin = measured[REAL]["90 %"], measured[TWIN]["90 %"]
    fewer = sum(real[site] < twin[site] for site in real)
    seeds = range(len(found.values("loss")["all"]))
    small = [float(np.mean([rank <= 8 for rank in found.by_site("all", "energy_rank", n).values()])) for n in seeds]
    rows = [("Aghajanyan 2020: a few hundred random directions in the space of all weights reach 90 % of the score",
             "not measured here", "–"),
            ("Hu 2021: the change that a task needs has low rank. Eight directions keep 80 % of the gain",
             _verdict(kept_by("first 8", found), 0.8), f"{_interval(kept_by('first 8', found))} of the gain"),
            ("A looser reading: ΔW itself is low rank. Eight directions hold 90 % of its energy in most matrices",
             _verdict(small, 0.5), f"{_interval(small)} of the matrices"),
            ("The directions beyond the eighth keep half of the gain, too", _verdict(kept_by("rest 8", found), 0.5),
             f"{_interval(kept_by('rest 8', found))} of the gain"),
            ("A real ΔW needs fewer directions than a random matrix of its norm",
             f"in {fewer} of {len(real)} matrices", "this run, one seed")]
    return readable(pd.DataFrame(rows, columns=["statement", "verdict", "measured, with 95 % interval over seeds"])
                    .set_index("statement"), "low-rank")


def _verdict(values: Sequence[float] | np.ndarray, level: float) -> str:
    """Whether the mean over seeds is above a level, as far as its interval says."""
    low, high = t_interval(list(values))
    return "supported" if low > level else "contradicted" if high < level else "open"


def scores_by_rank(scores: Mapping[str, Mapping[str, float | Sequence[float]]], *, ylabel: str,
                   half: Mapping[str, float] | None = None, xlabel: str = "Directions kept of every ΔW") -> Figure:
    """A score against the rank that every ΔW was cut to, one line a way of choosing what is kept.

    Args:
        scores: name -> rank as it is to be read ("0", "8", "all") -> a score, or one a seed (S,). Ranks stand
            evenly spaced, in the order of the longest. Every seed is a dot; three or more have a band of one
            standard deviation.
        half: rank -> half an error bar, such as what the number of test rows leaves open.
    """
    fig, (ax,) = style.panels(1, 1, 3.6, None, width=8.0)
    order = max((list(one) for one in scores.values()), key=len)
    for (name, look), marker in zip(style.looks(scores).items(), "os^D", strict=False):
        seeds = {order.index(rank): np.atleast_1d(values) for rank, values in scores[name].items()}
        style.seed_curve(ax, seeds, {**look, "marker": marker})
        if half:
            ax.errorbar(list(seeds), [values.mean() for values in seeds.values()],
                        [half[rank] for rank in scores[name]], fmt="none", ecolor=look["color"], alpha=0.6, capsize=4)
    ax.set_xticks(range(len(order)), order)
    style.dress(ax, xlabel, ylabel)
    style.legend(fig)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------


class CutNetwork(Picture):
    """One ΔW of full fine-tuning, cut to its first i directions, and the score of the network cut to i everywhere.

    Args:
        parts: site -> U (d, n), σ (n,), Vᵀ (n, k), as numpy arrays.
        scores: i -> score of the network whose every ΔW is cut to i; the largest i is the uncut one.
        half: half an error bar of each score.  label: the score's name.
        most: how far the slider goes.  block: rows and columns of ΔW that are shown.
    """

    kind = "spectrum and picture computed live; the score snapped to the nearest cut that was scored"
    count = 3

    def __init__(self, parts: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], scores: Mapping[int, float],
                 half: Mapping[int, float], label: str, most: int = 64, block: int = 40) -> None:
        self.sites, self.most, self.label = list(parts), most, label
        self.spectra = {site: np.asarray(s) for site, (_, s, _) in parts.items()}
        self.corners = {site: (u[:block] * s, vh[:, :block]) for site, (u, s, vh) in parts.items()}
        self.shapes = {site: (u.shape[0], vh.shape[1]) for site, (u, _, vh) in parts.items()}
        self.block, self.scores, self.half = block, dict(sorted(scores.items())), half
        self.cuts = list(self.scores)
        self.controls = (Control("matrix", "matrix number", 0, len(self.sites) - 1, 0),
                         Control("i", "directions kept", 0, most, min(8, most)))
        super().__init__()

    def snap(self, i: float) -> int:
        """The scored cut nearest to i, in the logarithm of i + 1."""
        return min(self.cuts, key=lambda cut: abs(np.log((cut + 1) / (i + 1))))

    def build(self) -> list[Artist]:
        left, middle, right = self.axes
        longest = max(map(len, self.spectra.values()))
        self.all_, = left.plot([], [], color=style.PALE, linewidth=2)
        self.kept, = left.plot([], [], color=style.BLUE, linewidth=3, marker="o", markersize=3.5)
        left.set(xlim=(0.9, longest), ylim=(2e-3, 1.5), xscale="log", yscale="log")
        style.dress(left, "Direction (log)", "σ / largest (log)", " ")
        self.image = middle.imshow(np.zeros((self.block, self.block)), cmap="RdBu_r", vmin=-1, vmax=1, aspect="equal")
        style.dress(middle, f"Column (of the first {self.block})", "Row", " ")
        middle.grid(False)
        at = np.arange(len(self.cuts))
        right.errorbar(at, list(self.scores.values()), [self.half[cut] for cut in self.cuts], color=style.GREY,
                       marker=".", capsize=3, linewidth=1)
        self.mark, = right.plot([], [], "o", color=style.ORANGE, markersize=10, markerfacecolor="none",
                                markeredgewidth=2.5)
        right.set_xticks(at, [*map(str, self.cuts[:-1]), "all"])
        style.dress(right, "Every ΔW cut to rank", self.label[:1].upper() + self.label[1:], " ")
        return [self.all_, self.kept, self.image, self.mark, left.title, middle.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        site, i = self.sites[state["matrix"]], int(state["i"])
        s, (left, right) = self.spectra[site], self.corners[site]
        cut = self.snap(i)
        return {"s": s / (s[0] or 1.0), "kept": (s / (s[0] or 1.0))[:i], "name": style.site_label(site),
                "matrix": left[:, :i] @ right[:i] / (float(np.abs(left @ right).max()) or 1.0),   # (block, block)
                "title": f"ΔW cut to rank {i}", "at": (self.cuts.index(cut), self.scores[cut]),
                "scored": "scored uncut" if cut == self.cuts[-1] else f"scored at rank {cut}"}

    def update(self, arrays: dict[str, Any]) -> None:
        left, middle, right = self.axes
        self.all_.set_data(np.arange(1, len(arrays["s"]) + 1), arrays["s"])
        self.kept.set_data(np.arange(1, len(arrays["kept"]) + 1), arrays["kept"])
        self.image.set_data(arrays["matrix"])
        self.mark.set_data([arrays["at"][0]], [arrays["at"][1]])
        for ax, title in ((left, arrays["name"]), (middle, arrays["title"]), (right, arrays["scored"])):
            ax.set_title(title, fontsize=10)

    def words(self, **state: Any) -> str:
        site, i = self.sites[state["matrix"]], int(state["i"])
        s, (d, k), cut = self.spectra[site], self.shapes[site], self.snap(i)
        held = float((s[:i] ** 2).sum() / ((s ** 2).sum() or 1.0))
        where = "no ΔW cut" if cut == self.cuts[-1] else f"every ΔW cut to rank {cut}"
        return (f"Site {site}: rank {i} of {len(s)} keeps {held:.1%} of the energy of ΔW in {i * (d + k):,} numbers "
                f"instead of {d * k:,}. With {where}, the network's {self.label} is {self.scores[cut]:.3f} ± "
                f"{self.half[cut]:.3f}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------


def cut_weights(W0: Tensor, W: Tensor, i: int) -> Tensor:
    """W0 plus the first i directions of the change W − W0, (d, k)."""
    return W0 + measures.truncate(W - W0, i)


def logit_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy with respect to the logits (N, C), by autograd."""
    logits = logits.detach().clone().requires_grad_()
    torch.nn.functional.cross_entropy(logits, labels).backward()
    return logits.grad                                                         # type: ignore[return-value]


def _matrix(d: int, k: int) -> Tensor:
    """A matrix whose directions fall off, so that the first few matter."""
    g = torch.Generator().manual_seed(d)
    n = min(d, k)
    scale = torch.tensor([3.0 / (j + 1) ** 1.5 for j in range(n)])
    return (torch.randn(d, n, generator=g) * scale) @ torch.randn(n, k, generator=g)


def _spectrum(n: int) -> Tensor:
    return torch.tensor([4.0 / (j + 1) for j in range(n)], dtype=torch.float64)


def _before_and_after(d: int, k: int) -> tuple[Tensor, Tensor]:
    W0 = torch.randn(d, k, generator=torch.Generator().manual_seed(d * k))
    return W0, W0 + 0.3 * _matrix(d, k)


def _logits(N: int, C: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(N)
    return torch.randn(N, C, generator=g), torch.randint(C, (N,), generator=g)


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits)


def _kept(change: Callable[[measures.Directions, int], measures.Directions]) -> Callable[[Tensor, int], Tensor]:
    """A mistake in which directions are kept, or in what is done to them."""
    return lambda delta, i: change(measures.directions(delta), i).matrix()


def answer_truncate(delta: Tensor, i: int) -> Tensor:
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U[:, :i] * s[:i]) @ Vh[:i]


def answer_effective_rank(s: Tensor) -> float:
    p = s / s.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def answer_rank_for_share(s: Tensor, share: float) -> int:
    held = (s**2).cumsum(0) / (s**2).sum()
    return int((held < share).sum()) + 1   # those below the share, and the first that reaches it


def answer_cut_weights(W0: Tensor, W: Tensor, i: int) -> Tensor:
    U, s, Vh = torch.linalg.svd(W - W0, full_matrices=False)   # of the change, not of W
    return W0 + (U[:, :i] * s[:i]) @ Vh[:i]


def answer_logit_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.softmax(dim=1)
    wanted = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (p - wanted) / len(labels)


_LAST = "these are the i smallest directions: σ is sorted, so the first i are the largest"
_NO_S = "σ is missing: every direction must get its weight back"
_TWICE = "σ stands in the product twice: U diag(σ) Vᵀ holds it once"
_MORE = "that is one direction too many: U[:, :i] holds the first i"
_FEWER = "one direction is missing: U[:, :i] holds the first i"
_REST = "that is what the cut leaves out: keep the first i, drop the rest"
_ALL = "nothing was cut: that is all of ΔW"
_NO_SQUARES = "energy is the sum of the squares σ², not of σ"
_INDEX = "that is one too few: you count the ranks whose share is below the target, and the next one reaches it"
_SHAPES = "the first i columns of U are (d, i), of σ (i,), and the first i rows of Vᵀ (i, k)"

EXERCISES.update({
    "truncate": Task(
        measures.truncate, lambda: [(_matrix(9, 12), 3), (_matrix(12, 8), 2)],
        "keep the first i columns of U, the first i of σ and the first i rows of Vᵀ, and multiply them back",
        [(_LAST, _kept(lambda parts, i: parts.keep(slice(len(parts.s) - i, None)))),
         (_NO_S, _kept(lambda parts, i: parts._replace(s=torch.ones_like(parts.s)).keep(slice(i)))),
         (_TWICE, _kept(lambda parts, i: parts._replace(s=parts.s**2).keep(slice(i)))),
         (_MORE, lambda delta, i: measures.truncate(delta, i + 1)),
         (_FEWER, lambda delta, i: measures.truncate(delta, i - 1)),
         (_REST, lambda delta, i: delta - measures.truncate(delta, i)),
         (_ALL, lambda delta, i: delta)],
        (answer_truncate,), _SHAPES, answer=answer_truncate),
    "effective_rank": Task(
        measures.effective_rank, lambda: [(_spectrum(6),), (_spectrum(15),), (torch.tensor([3.0, 1.0]),)],
        "first the shares p = s / s.sum(), then exp of minus the sum of p ln p",
        [("that is the stable rank, Σσ² / σ₁²; the effective rank is exp of the entropy", measures.stable_rank),
         ("that is the entropy: its exponential is the number of directions",
          lambda s: float(np.log(measures.effective_rank(s)))),
         ("the shares here are those of σ, not of σ²", lambda s: measures.effective_rank(s**2)),
         ("the sign: p ln p is negative, the entropy is minus its sum", lambda s: 1 / measures.effective_rank(s)),
         ("that is the rank: it counts a small σ like a large one", len)],
        (measures.effective_rank,), answer=answer_effective_rank),
    "rank_for_share": Task(
        measures.energy_rank, lambda: [(_spectrum(40), 0.9), (_spectrum(12), 0.5), (_spectrum(12), 0.75)],
        "which is the first i whose share of the energy reaches the target?",
        [(_INDEX, lambda s, share: measures.energy_rank(s, share) - 1),
         (_NO_SQUARES, lambda s, share: measures.energy_rank(s.sqrt(), share)),
         ("those are the directions that come after the target is reached; count those before it",
          lambda s, share: len(s) - measures.energy_rank(s, share) + 1)],
        (measures.energy, measures.energy_rank), answer=answer_rank_for_share),
    "cut_weights": Task(
        cut_weights, lambda: [(*_before_and_after(9, 12), 3), (*_before_and_after(12, 8), 2)],
        "subtract W0 first, cut the difference, and add W0 again",
        [("that cuts W itself, and what the network knew before is lost: cut the change W − W0",
          lambda W0, W, i: measures.truncate(W, i)),
         ("that is the cut change alone: add W0 again", lambda W0, W, i: measures.truncate(W - W0, i)),
         ("that adds the cut change to W, which has it already: add it to W0",
          lambda W0, W, i: W + measures.truncate(W - W0, i)),
         ("the sign: the change is W − W0", lambda W0, W, i: W0 - measures.truncate(W - W0, i)),
         ("that cuts W0, too: W0 stays whole", lambda W0, W, i: measures.truncate(W0, i)
          + measures.truncate(W - W0, i)),
         (_REST, lambda W0, W, i: W - measures.truncate(W - W0, i)),
         ("nothing was cut: that is W", lambda W0, W, i: W)],
        (measures.truncate,), _SHAPES, answer=answer_cut_weights),
    "logit_gradient": Task(
        logit_gradient, lambda: [_logits(7, 3), _logits(5, 2)],
        "the probabilities, less one at the label, divided by the number of examples",
        [("the loss is a mean over the examples: divide by N",
          lambda logits, labels: logit_gradient(logits, labels) * len(labels)),
         ("the sign: the gradient is p less the one of the label",
          lambda logits, labels: -logit_gradient(logits, labels)),
         ("take one from the entry of the label", lambda logits, labels: logits.softmax(1) / len(labels)),
         ("the logits are no probabilities: softmax first",
          lambda logits, labels: (logits - _one_hot(logits, labels)) / len(labels)),
         ("the softmax runs over the classes of one example, dim=1",
          lambda logits, labels: (logits.softmax(0) - _one_hot(logits, labels)) / len(labels))],
        (logit_gradient,), "logits are (N, C), labels (N,)", answer=answer_logit_gradient),
})
