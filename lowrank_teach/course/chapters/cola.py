"""Notebook 03, COLA: its pictures with what is found in them, its sliders over links, ranks and knots, its exercises.

The sliders solve a chain of updates live on matrix completion. d out (rows), k in (columns), r rank of a link,
M links, S sweeps and the start.
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
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ...adapters import Adapters
from ...analysis import measures, plots, statistics, style
from ...analysis import toy_problems as toy
from ...analysis.plots import Numbers
from ...analysis.toy_problems import Chain, Completion, completion, fit_chain
from ...experiments.fit import Rows, load_for
from ...experiments.runs import Run
from ...lowrank import initial_A
from ...methods import COLA, Clock
from ...methods.base import reset_moments
from ...methods.cola import COLARule
from ...reproduction import studies
from ...reproduction.results import Results
from ...reproduction.verdicts import between
from ...sites import Site
from ...tasks.load import load_task
from ...training.config import TrainConfig, train_config
from ...training.trainer import Trainer
from ..by_hand import Bench, guess, scored
from ..exercises import EXERCISES, Task, adapted_matrix, predict
from ..explorer import Control, Picture
from ..schematic import arrow, canvas, matrix

# ---- the network and its batches --------------------------------------------------------------------------


def lesson(task: str, backbone: str, config: TrainConfig, seed: int = 0) -> Bench:
    """The network in float64, and the batches that the library's trainer takes with this configuration and seed."""
    return Bench(load_task(task, n_train=config.steps * config.batch_size, n_validation=64, n_test=64, seed=seed),
                     config, backbone, seed)


def watching(profile: str) -> dict[str, int]:
    """How a training measures the probe set: after every second step, on fewer examples where time is short."""
    return {"eval_every": 2, "n_validation": 32 if profile == "tiny" else 96}


def practice(task: str, backbone: str, profile: str, batches: int) -> SimpleNamespace:
    """The network in float32 in eval mode, so without dropout; training batches, and one of held-out examples.

    network, batches, probe; steps: how long to train before the knot; after: how long behind it.
    """
    size, held, steps, after = (8, 32, 10, 8) if profile == "tiny" else (16, 96, 40, 12)
    config = train_config(profile)
    data = load_task(task, n_train=size * batches, n_validation=held, n_test=64)
    network, tokenizer = load_for(backbone, data, 0)
    rows = Rows(data, tokenizer, config, False)
    return SimpleNamespace(network=network.eval(), steps=steps, after=after,
                           probe=rows.collate(rows.splits["validation"]),
                           batches=[rows.collate(rows.train[size * i:size * (i + 1)]) for i in range(batches)])


def compare_with_library(losses: Sequence[float], trainer: Trainer, changes: Sequence[Tensor]) -> str:
    """Say how far a loop by hand is from the library's trainer, which has run with the same batches.

    losses: one a step.  changes: W* − W of each matrix, (d, k), in the library's order.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    theirs = [value for _, _, name, value in trainer.outcome.history if name == "loss"]
    apart = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
    branches = trainer.adapters.values()
    off = max(float((ours - branch.delta()).abs().max()) for ours, branch in zip(changes, branches, strict=True))
    assert max(apart, off) < 1e-10, ("the loop and the library differ by more than rounding: run the cells of this "
                                     "section again, in order")
    return (f"largest difference in {len(theirs)} losses: {apart:.0e}\n"
            f"largest difference in the changes of {len(changes)} matrices: {off:.0e}")


def _data_of(run: Run) -> Any:
    """The examples that the run had."""
    c = run.config
    sizes = {name: c["training"][name] for name in ("n_train", "n_validation", "n_test")}
    return load_task(c["task"], seed=c["seed"], **sizes)


def chance(run: Run) -> float:
    """The loss of a guesser who knows only how often each label is, or the mean: entropy, or variance."""
    data = _data_of(run)
    return guess(data.validation[data.task.label], len(data.task.labels))[0]


# ---- predictions: the answers stay out of the notebook's own cells ----------------------------------------


def predict_third_link(site: Site, r: int = 8) -> None:
    """Ask how many numbers train in a link."""
    predict(f"A chain of three links of rank {r}: how many numbers train in the third link, per {site.d} × {site.k} "
            "matrix?",
            f"{r * (site.d + site.k):,}, as in a LoRA of rank {r}. The first two links are part of W by then, and W "
            "is frozen.")


def predict_knot() -> None:
    """Ask what a knot does to the outputs."""
    predict("By how much does tying and extending change the outputs of the network?",
            "Not at all, except for rounding. The old link has moved into W, and the new link adds nothing because "
            "its B is zero. Section 6 measures it.")


def predict_rank(r: int = 8, links: int = 3) -> None:
    """Ask for the rank of a sum."""
    predict(f"{links} links of rank {r}: what is the largest rank that their sum can have, and what is the smallest?",
            f"The largest is {r * links}: ranks add up if the links share no direction. The smallest is 0: the last "
            "link may cancel the first ones.")


def predict_saving() -> None:
    """Ask for the operations that a rank step-down saves."""
    predict("A second link of rank 2 in place of rank 8: which share of all operations of the training does it save?",
            "Well under one per cent. The frozen matrices are multiplied in every step, whatever the rank is, and "
            "they are nearly all of the cost. Section 9 counts it.")


# ---- pictures, and what is found in them ------------------------------------------------------------------


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
    fig.set_label("Three panels. Tune: a grey W and beside it thin B1 and A1, which train. Tie a knot: the product "
                  "is added into W, giving W prime. Extend: beside W prime a new pair, B2 zero and A2 random.")
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

def finding_of_idea(site: Site, r: int = 8) -> str:
    """What a link costs in this network."""
    link, whole = r * (site.d + site.k), site.d * site.k
    return (f"Link 1 trains first and then lives in W'. At any time one link trains: {link:,} numbers beside the "
            f"{whole:,} frozen ones of a {site.d} × {site.k} matrix, so the memory is that of one LoRA.")


def knots_of(run: Run) -> list[int]:
    """The steps after which the run tied a knot."""
    steps, link = run.series("link")
    return [step for step, i, j in zip(steps[1:], link, link[1:], strict=False) if j > i]


def probe_of(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the loss on the validation examples, which are the same at every step."""
    steps, values = run.series("validation.loss")
    return np.array(steps), np.array(values)


def check_run(run: Run, method: COLA) -> None:
    """Guard what the notebook says of its run.

    Raises:
        AssertionError: the run has other knots than its method asks for, or a loss that is not finite.
    """
    assert len(knots_of(run)) == method.chain - 1, "the run has another number of knots than its chain asks for"
    assert np.isfinite(run.series("loss")[1]).all(), "a loss of the run is not finite"


def finding_of_training(run: Run) -> str:
    """How the training loss fell, beside guessing."""
    loss = np.array(run.series("loss")[1])
    return (f"The training loss went from {loss[:5].mean():.3f} (first five steps) to {loss[-10:].mean():.3f} (last "
            f"ten); guessing by the share of each label would give {chance(run):.3f}.")


def _probe_losses(runs: Mapping[str, Run], looks: Mapping[str, Mapping[str, Any]], title: str,
                  mark: Callable[[Axes], None]) -> Figure:
    """Draw the probe loss of each run beside that of guessing; mark: draws the knots."""
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.0)
    for name, run in runs.items():
        ax.plot(*probe_of(run), **{**looks[name], "marker": "", "linewidth": 1.8})
    mark(ax)
    first = next(iter(runs.values()))
    ax.axhline(chance(first), color=style.BLACK, linestyle=":", linewidth=1.0, label="guessing")
    style.dress(ax, "Optimizer step", "Loss of the probe set", f"{first.config['task']}: {title}")
    style.legend(fig)
    return fig


def probe_figure(runs: Mapping[str, Run]) -> Figure:
    """The loss of fixed held-out examples over training: the chain with its knots, and its baseline.

    Args: name of METHOD_STYLE -> run; the first is the chain.
    """
    chain = next(iter(runs.values()))

    def mark(ax: Axes) -> None:
        for knot in knots_of(chain):
            ax.axvline(knot, color=style.GREY, linestyle="--", linewidth=1.0, label="knot")

    fig = _probe_losses(runs, style.looks(runs), "the same held-out examples at every step", mark)
    fig.set_label(f"Loss of fixed held-out examples over {probe_of(chain)[0][-1]} steps for the chain and for one "
                  "LoRA, with a dashed line at each knot and a dotted one at the level of guessing.")
    return fig


def finding_of_probe(runs: Mapping[str, Run]) -> str:
    """Where the chain and its baseline end on the probe set."""
    (chain, one), n = runs.values(), next(iter(runs.values())).config["training"]["n_validation"]
    ends = [float(probe_of(run)[1][-5:].mean()) for run in (chain, one)]
    side = "below" if ends[0] < ends[1] - 0.005 else "above" if ends[0] > ends[1] + 0.005 else "level with"
    return (f"On its {n} probe examples the chain ends at a loss of {ends[0]:.3f} (mean of the last five points), "
            f"{side} one LoRA of the same rank ({ends[1]:.3f}); guessing gives {chance(chain):.3f}.")


def _around(run: Run, knot: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps from the knot, and how far the probe loss is from its value there."""
    steps, loss = probe_of(run)
    near = np.abs(steps - knot) <= width
    return steps[near] - knot, loss[near] - loss[np.abs(steps - knot).argmin()]


def knot_figure(runs: Mapping[str, Run], width: int = 8) -> Figure:
    """The probe loss a few steps before and after each knot, relative to its value at the knot.

    Args: as `probe_figure`: the chain, and its baseline at the same steps.
    """
    chain = next(iter(runs.values()))
    knots = knots_of(chain)
    fig, axes = style.panels(len(knots), len(knots), 3.0, None, width=8.0, sharey=True)
    close = np.concatenate([loss[steps >= -2] for run in runs.values() for knot in knots
                            for steps, loss in [_around(run, knot, width)]])
    for ax, knot in zip(axes, knots, strict=True):
        for name, look in style.looks(runs).items():
            ax.plot(*_around(runs[name], knot, width), **{**look, "markersize": 4})
        ax.axvline(0, color=style.GREY, linestyle="--", linewidth=1.0, label="knot")
        ax.axhline(0, color=style.GREY, linewidth=0.8)
        style.dress(ax, "Steps from the knot", "", f"knot after step {knot}")
        ax.set_xticks(range(-width, width + 1, 4))
    span = max(float(np.ptp(close)), 0.01)   # a steep fall long before a knot leaves the picture
    axes[0].set_ylim(close.min() - 0.4 * span, close.max() + 0.6 * span)
    axes[0].set_ylabel("Probe loss, minus that at the knot")
    style.legend(fig)
    fig.set_label(f"A panel for each of {len(knots)} knots: the loss of the probe set {width} steps before and "
                  "after, minus its value at the knot, for the chain and for one LoRA at the same steps.")
    return fig


def finding_of_knots(runs: Mapping[str, Run], width: int = 8) -> str:
    """How the probe loss goes on behind each knot, beside the baseline in the same steps."""
    chain, one = runs.values()
    parts, ahead = [], []
    for knot in knots_of(chain):
        ours, theirs = (float(loss[steps > 0].mean()) for steps, loss in (_around(run, knot, width)
                                                                          for run in (chain, one)))
        parts.append(f"after step {knot} the chain's loss lies {ours:+.3f} from its value at the knot (LoRA in the "
                     f"same steps {theirs:+.3f})")
        ahead.append(ours - theirs)
    says = ("behind every knot the chain loses more than 0.01 against LoRA" if min(ahead) > 0.01 else
            "behind no knot does the chain lose more than 0.01 against LoRA" if max(ahead) <= 0.01 else
            "behind some knots the chain loses more than 0.01 against LoRA, behind others it does not")
    return f"Mean of the {width} steps behind each knot: {'; '.join(parts)}. So {says}; this is one seed."


def spectra_figure(sigmas: Mapping[str, Numbers], where: str) -> Figure:
    """Singular values and shares of energy.

    Args: name -> singular values, falling; where: of what, for a reader who cannot see it.
    """
    values = {name: np.asarray(s, dtype=float) for name, s in sigmas.items()}
    fig = plots.spectra(values, energy={name: np.cumsum(s ** 2) / (s @ s) for name, s in values.items()})
    for ax, title in zip(fig.axes, (f"{where}: singular values", "energy of the first i"), strict=True):
        ax.set_title(title, fontsize=10)
    fig.set_label(f"Singular values at {where} on a log axis for {', '.join(values)}; beside them the share of "
                  "energy that the first i hold.")
    return fig


def _rank(s: Any) -> int:
    return int((np.asarray(s) > 1e-5 * np.asarray(s)[0]).sum())


def finding_of_growth(grown: Mapping[str, Numbers]) -> str:
    """How the rank of what W holds grows from link to link."""
    ranks = [_rank(s) for s in grown.values()]
    used = [measures.effective_rank(torch.as_tensor(np.asarray(s))) for s in grown.values()]
    said = ", ".join(f"{rank} {name}" for rank, name in zip(ranks, grown, strict=True))
    return (f"The rank of the change is {said}. "
            f"The effective rank, which counts how many directions carry weight, goes from {used[0]:.1f} to "
            f"{used[-1]:.1f}.")


def finding_of_norms(norms: Sequence[float]) -> str:
    """Which link moved W most."""
    order = "fall" if list(norms) == sorted(norms, reverse=True) else "do not fall"
    most = int(np.argmax(norms)) + 1
    return (f"norms of the links: {', '.join(f'{norm:.2f}' for norm in norms)}. They {order} from link to link; "
            f"link {most} is the largest.")


# ---- stored studies ---------------------------------------------------------------------------------------


def stored() -> SimpleNamespace:
    """The stored studies of this notebook: `chain` (1, 2, 3 links), `wide` (one LoRA), `down` (second rank)."""
    return SimpleNamespace(chain=studies.load("chain"), wide=studies.load("wide"), down=studies.load("step_down"))


def stored_spectra(kept: SimpleNamespace, site: str) -> dict[str, list[float]]:
    """Singular values at a site, of seed 0: one link, three links, one LoRA of their whole rank."""
    runs = {"one link of rank 8": kept.chain.record("1"), "three links of rank 8": kept.chain.record("3"),
            "one LoRA of rank 24": kept.wide.record("24")}
    return {name: [v[site] for key, v in record["sites"].items() if key.startswith("sigma.")]
            for name, record in runs.items()}


def finding_of_spectra(sigmas: Mapping[str, Numbers]) -> str:
    """How much energy lies beyond the eighth direction."""
    beyond = {name: 1 - float(np.square(s[:8]).sum() / np.square(s).sum()) for name, s in sigmas.items()}
    return ("Energy beyond the eighth direction: "
            + ", ".join(f"{share:.1%} in {name}" for name, share in beyond.items()) + " (seed 0).")


def _effective_ranks(study: Results, arm: str) -> list[float]:
    return [float(np.mean(list(record["sites"]["effective_rank"].values()))) for record in study.of(arm)]


def used_ranks(kept: SimpleNamespace) -> dict[str, dict[int, list[float]]]:
    """Effective rank, the mean of all matrices, by total rank: one value a seed, for the chain and for one LoRA."""
    chained = {8 * int(arm): _effective_ranks(kept.chain, arm) for arm in kept.chain.arms}
    return {"cola": chained, "lora": {8: chained[8], **{int(arm): _effective_ranks(kept.wide, arm)
                                                       for arm in kept.wide.arms}}}


def used_figure(used: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """Effective rank against total rank."""
    fig = plots.chain_length(used, ylabel="Effective rank (mean of matrices)", xlabel="Total rank Σr")
    fig.axes[0].set_title("directions that carry weight", fontsize=10)
    fig.set_label("Effective rank against total rank 8, 16, 24 for the chain and for one LoRA, a dot a seed.")
    return fig


def finding_of_used(used: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """How many directions are used, by the chain and by one LoRA of its whole rank."""
    chain, one = ({rank: float(np.mean(values)) for rank, values in used[name].items()} for name in ("cola", "lora"))
    top = max(chain)
    ahead = "more" if chain[top] > one[top] else "fewer"
    return (f"The chain's effective rank goes from {chain[min(chain)]:.1f} with one link to {chain[top]:.1f} with "
            f"three. One LoRA of rank {top} uses {one[top]:.1f}, so the chain uses {ahead} directions at the same "
            "total rank.")


def _percent(value: float) -> str:
    return f"{100 * value:+.2f}"


def gains(kept: SimpleNamespace) -> pd.DataFrame:
    """Each arm against one LoRA of rank 8, seed by seed: mean difference in points, and its interval of 95 %."""
    score = kept.chain.values()
    arms = {"chain of 2": ("chain", "2"), "chain of 3": ("chain", "3"), "one LoRA of rank 16": ("wide", "16"),
            "one LoRA of rank 24": ("wide", "24")}
    rows = []
    for name, arm in arms.items():
        found = between(arm, ("chain", "1"))(None).differences
        low, high = statistics.t_interval(found)
        says = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        rows.append((name, _percent(float(np.mean(found))), f"[{_percent(low)}, {_percent(high)}]", len(found), says))
    assert len(score) == 3, "the stored study has chains of 1, 2 and 3"
    return pd.DataFrame(rows, columns=["arm", "points over LoRA", "interval of 95 %", "seeds", "verdict"])


def length_figure(kept: SimpleNamespace) -> Figure:
    """Score against chain length, and that of one LoRA of the whole rank; LoRA's own mean as a line."""
    score = _metric(kept.chain)
    series = {"cola": {int(arm): values for arm, values in kept.chain.values(score).items()},
              "one LoRA of rank 8 M": {int(arm) // 8: values for arm, values in kept.wide.values(score).items()}}
    fig = plots.chain_length(series, ylabel=f"Test {score}", xlabel="Chain length M")
    _baseline(fig.axes[0], kept)
    fig.set_label("Test score against chain length 1, 2, 3, and of one LoRA of rank 16 and 24: means, bands, a dot a "
                  "seed; a line at the mean of LoRA of rank 8.")
    return fig


def _metric(study: Results) -> str:
    return next(iter(study.records[0]["test"]))


def _baseline(ax: Axes, kept: SimpleNamespace) -> None:
    """A line at LoRA's mean; chance stands in words, since the axis would have to be ten times as long."""
    ax.axhline(float(np.mean(kept.chain.values()["1"])), color=style.BLUE, linewidth=1.0, zorder=0)
    ax.set_title("equal epochs; blue line: LoRA of rank 8 (guessing is at 0.50, far below)", fontsize=10)


def finding_of_lengths(table: pd.DataFrame) -> str:
    """What the intervals say."""
    told = [row for row in table.itertuples() if row.verdict != "not told apart"]
    seeds = int(table["seeds"].min())
    if not told:
        return (f"Over {seeds} seeds no interval leaves zero out: neither a longer chain nor one LoRA of the whole "
                "rank can be told apart from LoRA of rank 8.")
    said = " and ".join(f"{row.arm} ({row[2]} points) is {row.verdict} than LoRA of rank 8" for row in told)
    return (f"Over {seeds} seeds, {said}; the other intervals contain zero. With {len(table)} intervals, a single "
            "one that misses zero is weak evidence.")


def down_figure(kept: SimpleNamespace) -> Figure:
    """Score against the rank of the second link."""
    score = _metric(kept.down)
    fig = plots.chain_length({"cola-2": {int(arm): values for arm, values in kept.down.values(score).items()}},
                             ylabel=f"Test {score}", xlabel="Rank of the second link (the first has 8)")
    _baseline(fig.axes[0], kept)
    fig.set_label("Test score against the rank of the second link, 2, 4, 6, 8, a dot a seed; a line at the mean of "
                  "LoRA of rank 8.")
    return fig


def finding_of_down(kept: SimpleNamespace) -> str:
    """What the score pays for a smaller second link."""
    scores = kept.down.values(_metric(kept.down))
    paid = [small - large for small, large in zip(scores["2"], scores["8"], strict=True)]
    low, high = statistics.t_interval(paid)
    says = "pays for it" if high < 0 else "gains by it" if low > 0 else "shows no difference that the seeds can tell"
    return (f"A second link of rank 2 in place of 8 changes the score by {_percent(float(np.mean(paid)))} points "
            f"[{_percent(low)}, {_percent(high)}], so the score {says} ({len(paid)} seeds).")


def opt_shapes() -> dict[str, tuple[int, int]]:
    """The matrices of OPT-1.3B, the smaller of the paper's models: site -> (d, k)."""
    layer = dict.fromkeys("qkvo", (2048, 2048)) | {"up": (8192, 2048), "down": (2048, 8192)}
    return {f"{i}.{name}": shape for i in range(24) for name, shape in layer.items()}


def saving_figure(shares: Mapping[str, Mapping[int, float]]) -> Figure:
    """What a smaller second link saves, in per cent of a run's operations; a group of bars a network.

    Args: network -> rank of the second link -> share of the whole in [0, 1].
    """
    ranks = list(next(iter(shares.values())))
    fig, (ax,) = style.panels(1, 1, 2.8, None, width=8.0)
    height = 0.8 / len(shares)
    for i, name in enumerate(shares):
        at = np.arange(len(ranks)) + (i - (len(shares) - 1) / 2) * height
        values = [100 * shares[name][rank] for rank in ranks]
        bars = ax.barh(at, values, height=0.9 * height, label=name, edgecolor="white",
                       color=(style.GREY, style.BLACK, style.PALE)[i % 3])   # no method's colour
        ax.bar_label(bars, fmt="%.3f %%", fontsize=9, padding=4)
    ax.set_yticks(range(len(ranks)), [str(rank) for rank in ranks])
    ax.margins(x=0.15)
    style.dress(ax, "Operations saved, per cent of a run at rank 8 throughout", "Rank of the second link",
                "what a rank step-down saves")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    most = max(max(one.values()) for one in shares.values())
    fig.set_label(f"Bars of the share of operations saved for second ranks {', '.join(map(str, ranks))} in "
                  f"{' and '.join(shares)}; the largest is {100 * most:.2f} per cent.")
    return fig


def finding_of_saving(shares: Mapping[str, Mapping[int, float]]) -> str:
    """The most that is saved, by network."""
    most = {name: max(one.values()) for name, one in shares.items()}
    assert all(0 <= share < 0.02 for share in most.values()), "the frozen network is no longer nearly all of the cost"
    return ("The smallest second link saves "
            + " and ".join(f"{share:.3%} of all operations in {name}" for name, share in most.items())
            + ", since the frozen matrices are nearly all of the cost.")


OPEN_POINTS = {
    "restart_schedule": (False, "Does the learning rate start anew at a knot?",
                         "No. The paper resets optimizer states, and a schedule is none of them."),
    "reset_head_moments": (False, "Are the moments of the new classifier head reset, too?",
                           "No. The paper's models have no new head; ours trains on through the knot."),
    "keep_scaling": (True, "When the rank steps down, is s = α/r kept, or α?",
                     "s is kept, so that the rank alone changes; with α kept, s is four times as large at rank 2."),
    "knots": ((), "How are epochs split?",
              "Whole epochs, the first links longer. 3 + 2 is the paper's; 2 + 2 + 1 is our reading."),
    "init": ("kaiming", "How large is the random A?",
             "As in LoRA. The paper says Gaussian and gives no scale; here all methods share one start."),
    "merge_knots": (True, "Is W written at a knot?",
                    "Yes, as in the paper. False keeps the links beside W, which is the same function."),
}


def open_points() -> pd.DataFrame:
    """What the paper leaves open: each switch of COLA, the question, and the default with its reason."""
    defaults = COLA()
    assert all(getattr(defaults, name) == value for name, (value, _, _) in OPEN_POINTS.items())
    rows = [(name, question, why) for name, (_, question, why) in OPEN_POINTS.items()]
    return pd.DataFrame(rows, columns=["switch", "question", "default, and why"]).set_index("switch")


def link_norms(run: Run) -> list[float]:
    """‖s B A‖ of each link in the order of training, the mean of all matrices."""
    norms, r = [], run.config["method"]["r"]
    for left, right in run.factors.values():
        parts = [float(measures.singular_values(B, A).norm())
                 for B, A in zip(left.split(r, 1), right.split(r, 0), strict=True)]
        norms.append(parts[1:] + parts[:1])   # the record has the last link first
    return np.mean(norms, 0).tolist()


def run_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Score, half of its interval from the number of test examples, test loss and the norm of each link, by run."""
    rows = []
    for name, run in runs.items():
        metric, value = run.score("test")
        n = len(run.right("test")) if run.hits.get("test") else 0
        half = 1.96 * math.sqrt(max(value * (1 - value), 0) / n) if n else math.nan
        rows.append((name, f"{value:.3f} ± {half:.3f}" if n else f"{value:.3f}", f"{run.metrics['test']['loss']:.3f}",
                     f"{run.parameters['trainable']:,}", ", ".join(f"{norm:.2f}" for norm in link_norms(run))))
    return pd.DataFrame(rows, columns=["run", f"test {metric}", "test loss", "trains at a time", "norm of each link"])


def majority(run: Run) -> str:
    """What always answering the most frequent label scores on the test examples; for tasks with labels."""
    data = _data_of(run)
    if data.task.kind != "classification":
        return "this task has no majority label"
    return f"always the most frequent label: accuracy {guess(scored(data), len(data.task.labels))[1]:.3f}"


def finding_of_switches(runs: Mapping[str, Run]) -> str:
    """Which link is the largest under each switch, and how large the last one is beside the first."""
    said = []
    for name, run in runs.items():
        norms = link_norms(run)
        largest = int(np.argmax(norms)) + 1
        said.append(f"{name}: link {largest} is the largest, and the last has {norms[-1] / norms[0]:.0%} of the "
                    "first's norm")
    return "; ".join(said) + "."


# ---- what a knot forgets ----------------------------------------------------------------------------------


def forgetting_figure(curves: Mapping[str, Numbers], guess: float) -> Figure:
    """The probe loss step by step from one knot on, for several treatments of Adam's memory.

    Args: way -> loss at the knot and after each step; guess: that of guessing.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    for (name, look), color in zip(style.looks(curves).items(), (style.GREY, style.ORANGE, style.BLACK), strict=True):
        ax.plot(range(len(curves[name])), curves[name], **{**look, "color": color, "linewidth": 1.6})
    low, high = ax.get_ylim()
    if guess < high + 0.5 * (high - low):
        ax.axhline(guess, color=style.BLACK, linestyle=":", linewidth=1.0, label="guessing")
        title = "one knot, the same batches behind it"
    else:
        title = f"one knot, the same batches behind it (guessing is at {guess:.2f}, above the picture)"
    style.dress(ax, "Steps after the knot", "Loss of the probe set", title)
    style.legend(fig)
    fig.set_label(f"Loss of the probe set over {len(next(iter(curves.values()))) - 1} steps after a knot, a line for "
                  f"each treatment of Adam's memory: {', '.join(curves)}.")
    return fig


def finding_of_forgetting(curves: Mapping[str, Numbers]) -> str:
    """How far each way goes up, and where it ends."""
    start = next(iter(curves.values()))[0]
    said = [f"{name}: highest {max(values[1:]) - start:+.3f}, at the end {values[-1] - start:+.3f}"
            for name, values in curves.items()]
    best = min(curves, key=lambda name: curves[name][-1])
    return f"From the loss at the knot, {start:.3f}: {'; '.join(said)}. Here “{best}” ends lowest; this is one seed."


def label_entropy(batch: Mapping[str, Tensor]) -> float:
    """The loss of guessing by the share of each label in a batch; the variance, where labels are numbers."""
    labels = batch["labels"].flatten()
    return guess(labels.tolist(), classes=0 if labels.is_floating_point() else 2)[0]


# ---- Frank-Wolfe ------------------------------------------------------------------------------------------


def completion_problem(unit: float = 1.0) -> SimpleNamespace:
    """The toy as tensors: Y (d, k), seen (d, k) of zeros and ones, radius; `toy` for the library's own functions."""
    found = completion(unit=unit)
    return SimpleNamespace(Y=torch.as_tensor(found.target), seen=torch.as_tensor(found.seen).double(),
                           radius=found.radius, toy=found)


def descent_figure(gaps: Sequence[float], losses: Sequence[float], problem: Completion) -> Figure:
    """Duality gap and loss over steps on log axes, for the falling step and for the constant one of the analysis."""
    T = len(gaps)
    constant, t = toy.frank_wolfe(problem, T, "constant"), np.arange(1, T + 1)
    fig, axes = style.panels(2, 2, 3.2, None, width=9.0, sharey=True)
    steps = {"step size 2 / (t + 2)": (gaps, losses), "constant step size η": (constant.gap, constant.loss[:-1])}
    for ax, (title, (gap, loss)) in zip(axes, steps.items(), strict=True):
        ax.loglog(t, gap, color=style.BLUE, linewidth=1.6, label="duality gap")
        ax.loglog(t, loss, color=style.ORANGE, linestyle="--", linewidth=1.6, label="loss f(W)")
        ax.axhline(problem.fall, color=style.GREY, linestyle=":", linewidth=1.0, label="loss at the start, W = 0")
        style.dress(ax, "Step t (log)", "", title)
    axes[0].set_ylabel("Gap and loss (log)")
    style.legend(fig)
    fig.set_label(f"Two panels, falling and constant step size: duality gap and loss over {T} steps on log axes, "
                  "with the loss at the start.")
    return fig


def finding_of_descent(gaps: Sequence[float], losses: Sequence[float], problem: Completion) -> str:
    """Whether the gap lies above the distance to the minimum, and which step size is the faster."""
    T, least = len(gaps), min(losses)
    constant = toy.frank_wolfe(problem, T, "constant")
    holds = all(g >= f - least for g, f in zip(gaps, losses, strict=True))
    assert holds, "the duality gap must not be below the distance to the minimum"
    faster = "falling" if losses[-1] < constant.loss[-1] else "constant"
    return (f"The gap lies above the distance to the lowest loss seen in all {T} steps. The {faster} step size is "
            f"ahead in the end: loss {losses[-1]:.1f} with 2 / (t + 2), {constant.loss[-1]:.1f} with the constant "
            "one.")


BOUND_NAMES = {"with its ½": "3/2 · D √(Mβ/T)", "of the proof": "2 · D √(Mβ/T)"}
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
SHARES = (1.0, 0.5, 0.2)   # of the entries that a gradient sees


def bound_figure(problem: Completion) -> Figure:
    """The mean duality gap beside its bounds: over steps, and for gradients from fewer entries."""
    fig, (left, right) = style.panels(2, 2, 3.2, None, width=9.0)
    mean = [toy.frank_wolfe(problem, T, "constant").gap.mean() for T in LENGTHS]
    left.loglog(LENGTHS, mean, color=style.BLUE, marker="o", markersize=5, linewidth=1.6, label="measured")
    for (which, name), color in zip(BOUND_NAMES.items(), (style.ORANGE, style.BLACK), strict=True):
        left.loglog(LENGTHS, [toy.gap_bound(problem, T, which) for T in LENGTHS], "--", color=color, label=name)
    style.dress(left, "Steps T (log)", "Mean duality gap (log)", "exact corners")
    names = [f"{share:.0%}" for share in SHARES]
    gap, bound = noisy_gaps(problem)
    right.plot(names, gap, "o-", color=style.BLUE, linewidth=1.6)
    right.plot(names, bound, "--", color=style.ORANGE)
    right.set_ylim(bottom=0)
    style.dress(right, "Entries that the gradient sees", "Mean duality gap", "inexact corners; bound with ε")
    style.legend(fig)
    fig.set_label("Left the mean duality gap over T on log axes under two dashed bounds; right the same for corners "
                  "from gradients of all, half and a fifth of the entries, under the bound plus the mean of what is "
                  "lost.")
    return fig


def noisy_gaps(problem: Completion, T: int = 256) -> tuple[list[float], list[float]]:
    """Mean gap, and its bound with the mean ε, for each of SHARES."""
    paths = [toy.frank_wolfe(problem, T, "constant", share=share) for share in SHARES]
    bound = toy.gap_bound(problem, T, "with its ½")
    return [float(path.gap.mean()) for path in paths], [bound + float(path.epsilon.mean()) for path in paths]


def finding_of_bound(problem: Completion) -> str:
    """How far the measured gap is below its bound."""
    shares = [toy.frank_wolfe(problem, T, "constant").gap.mean() / toy.gap_bound(problem, T, "with its ½")
              for T in LENGTHS]
    gap, bound = noisy_gaps(problem)
    assert max(shares) <= 1, "the bound is broken"
    assert all(g <= b for g, b in zip(gap, bound, strict=True)), "the bound with ε is broken"
    return (f"The measured mean gap is {min(shares):.0%} to {max(shares):.0%} of the tighter bound for T = "
            f"{LENGTHS[0]} to {LENGTHS[-1]}. With gradients from {SHARES[-1]:.0%} of the entries it grows from "
            f"{gap[0]:.0f} to {gap[-1]:.0f}, and the bound with its ε from {bound[0]:.0f} to {bound[-1]:.0f}.")


# ---- the answer -------------------------------------------------------------------------------------------


def answer(run: Run, kept: SimpleNamespace, site: str, r: int = 8) -> str:
    """Answer the notebook's question in plain words, from its own run and from the stored studies."""
    left, right = run.factors[site]
    total = measures.numerical_rank(measures.singular_values(left, right), 1e-5)
    used, table = used_ranks(kept), gains(kept)
    links = left.shape[1] // r
    chain, wide = table.iloc[1], table.iloc[3]
    known = {"better": "yes on these runs", "worse": "no on these runs, it is worse"}
    return "\n".join([
        f"In rank: yes. At {site} the sum of {links} links of rank {r} has rank {total}, and one link cannot have "
        f"more than {r}.",
        f"In directions that carry weight: {np.mean(used['cola'][8]):.1f} with one link, "
        f"{np.mean(used['cola'][24]):.1f} with three; one LoRA of rank 24 uses {np.mean(used['lora'][24]):.1f}.",
        f"In score against one LoRA of rank 8: {known.get(chain['verdict'], 'not shown')}. The chain of 3 gains "
        f"{chain['points over LoRA']} points {chain['interval of 95 %']} over {chain['seeds']} seeds on "
        f"{kept.chain.about['task']}.",
        f"In score against one LoRA of the whole rank: that one gains {wide['points over LoRA']} points "
        f"{wide['interval of 95 %']} over rank 8, and pays for it with three times the trained numbers.",
        "In memory: the chain trains one link at a time, so it reaches rank 24 with the optimizer states of rank 8."])


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
        right.set(ylim=(0, 1.1 * self.wanted[0]), xticks=range(1, self.shown + 1, 3))
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


class MovingKnots(Picture):
    """One to three knots that move: links of rank r between them, beside as many links of equal length.

    Args: problem: None takes the course's. sweeps: of the whole chain. r: rank of every link.
    """

    most = 3   # knots

    def __init__(self, problem: Completion | None = None, sweeps: int = 24, r: int = 2) -> None:
        self.problem, self.sweeps, self.r = problem or completion(), sweeps, r
        names, at = ("first", "second", "third"), [round(sweeps * i / (self.most + 1)) for i in (1, 2, 3)]
        # each may come later than the one before it, so that all are apart where all are at their ends
        self.controls = (*(Control(name, f"{name} knot after sweep", 1, sweeps - self.most + i, place)
                           for i, (name, place) in enumerate(zip(names, at, strict=True))),
                         Control("count", "how many knots", 1, self.most, self.most))
        super().__init__()

    def knots(self, **state: Any) -> list[int]:
        """The places of the knots in order; two at one place are one knot."""
        places = [state[name] for name in ("first", "second", "third")][:state["count"]]
        return sorted(set(places))

    def solve(self, knots: Sequence[int]) -> tuple[Chain, Chain]:
        """The chain with its knots there, and one of as many links with its knots evenly apart."""
        return (fit_chain(self.problem, 0, self.r, self.sweeps, knots=knots),
                fit_chain(self.problem, len(knots) + 1, self.r, self.sweeps))

    def build(self) -> list[Artist]:
        left, right = self.axes
        self.marks = [left.axvline(0, color=style.GREY, linestyle="--", linewidth=1.0, label=label)
                      for label in ["knot", *[None] * (self.most - 1)]]
        looks = ((style.BLUE, "-", "seen"), (style.ORANGE, "-", "hidden"), (style.BLUE, ":", "knots evenly apart"),
                 (style.ORANGE, ":", None))
        self.lines = [left.plot([], [], color=color, linestyle=line, linewidth=1.8, label=name)[0]
                      for color, line, name in looks]
        left.set(xlim=(0, self.sweeps), ylim=(0.05, 3.0), yscale="log")
        i = np.arange(1, self.most + 2)
        self.bars = right.bar(i, np.ones(len(i)), width=0.6, color=style.BLUE)
        self.even, = right.plot(i, np.zeros(len(i)), "_", color=style.BLACK, markersize=22, linestyle="none")
        right.set(xlim=(0.4, self.most + 1.6), ylim=(0, 1.1 * float(np.linalg.norm(self.problem.target))), xticks=i)
        style.dress(left, "Sweep", "Error (log)", " ")
        style.dress(right, "Link", "Norm of the link", " ")
        style.legend(self.fig)
        return [*self.marks, *self.lines, *self.bars, self.even, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        knots = self.knots(**state)
        moved, even = self.solve(knots)
        norms = np.zeros((2, self.most + 1))
        for row, chain in zip(norms, (moved, even), strict=True):
            row[:len(chain.links)] = [np.linalg.norm(B @ A) for B, A in chain.links]
        return {"errors": np.array([moved.seen, moved.hidden, even.seen, even.hidden]), "knots": knots,
                "norms": norms[0], "even": norms[1], "links": len(knots) + 1}

    def update(self, arrays: dict[str, Any]) -> None:
        left, right = self.axes
        for line, values in zip(self.lines, arrays["errors"], strict=True):
            line.set_data(np.arange(self.sweeps + 1), values)
        for mark, at in zip(self.marks, [*arrays["knots"], *[-1] * self.most], strict=False):   # −1 is off the axis
            mark.set_xdata([at, at])
        for bar, height in zip(self.bars, arrays["norms"], strict=True):
            bar.set_height(height)
        self.even.set_ydata(np.where(arrays["even"] > 0, arrays["even"], np.nan))
        places = ("knot after sweep " if arrays["links"] == 2 else "knots after sweeps ") + ", ".join(
            map(str, arrays["knots"]))
        left.set_title(f"{arrays['links']} links of rank {self.r}, {places}", fontsize=10)
        right.set_title("size of each link (strokes: evenly apart)", fontsize=10)

    def words(self, **state: Any) -> str:
        found = self.arrays(**state)
        seen, hidden, even_seen, even_hidden = found["errors"][:, -1]
        *first, last = map(str, found["knots"])
        after = f"sweeps {', '.join(first)} and {last}" if first else f"sweep {last}"
        better = "lower" if hidden < even_hidden - 0.005 else "higher" if hidden > even_hidden + 0.005 else "the same"
        return (f"{'Knots' if first else 'A knot'} after {after} of {self.sweeps}: the {found['links']} links end at "
                f"error {seen:.2f} on seen and {hidden:.2f} on hidden entries; with knots evenly apart "
                f"{even_seen:.2f} and {even_hidden:.2f}, so the hidden error is {better} here.")


def finding_of_moving(moving: MovingKnots, states: Sequence[Mapping[str, Any]]) -> str:
    """What the positions of a strip show, and the sentence of the first."""
    hidden = [moving.arrays(**state)["errors"][[1, 3], -1] for state in states]
    rows = [f"{', '.join(map(str, moving.knots(**state)))}: {here:.2f} ({even:.2f})"
            for state, (here, even) in zip(states, hidden, strict=True)]
    return (f"Error on hidden entries in the end with knots after sweep {'; after '.join(rows)}. In brackets stands "
            "the error of as many links with their knots evenly apart.")


def placed_figure(runs: Mapping[str, Run]) -> Figure:
    """The probe loss of a chain with its knots at several places; a mark on the line at each knot.

    Args: where the knots are -> run.
    """
    ways = zip(runs, (style.BLACK, style.ORANGE, style.GREY), ("-", ":", "--"), strict=True)
    looks = {name: {"color": color, "linestyle": line, "label": name} for name, color, line in ways}

    def mark(ax: Axes) -> None:
        for name, run in runs.items():
            ax.plot(knots_of(run), np.interp(knots_of(run), *probe_of(run)), "D", color=looks[name]["color"],
                    markersize=7, label=None)
        ax.plot([], [], "D", color=style.BLACK, markersize=7, linestyle="none", label="knot")

    fig = _probe_losses(runs, looks, "three links, knots at three places", mark)
    fig.set_label(f"Loss of the probe set over the steps for three chains with {', '.join(runs)}; a diamond at each "
                  "knot, and a dotted line at the level of guessing.")
    return fig


def finding_of_placed(runs: Mapping[str, Run]) -> str:
    """Where the chains end, and how large their links are."""
    ends = {name: float(probe_of(run)[1][-5:].mean()) for name, run in runs.items()}
    said = [f"{name} (after steps {', '.join(map(str, knots_of(run)))}): {ends[name]:.3f}, norms of the links "
            f"{', '.join(f'{norm:.2f}' for norm in link_norms(run))}" for name, run in runs.items()]
    return (f"Probe loss, mean of the last five points: {'; '.join(said)}. The three differ by at most "
            f"{max(ends.values()) - min(ends.values()):.3f}; this is one seed.")


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
    """The library's new link, A beside Bᵀ, (r, k + d), with the draw `gaussian` (r, k) as its A."""
    new = _tied(lora_B.new_zeros(lora_B.shape[0], lora_A.shape[1]), lora_A, lora_B, 1.0)["0"]
    return torch.cat([gaussian, new.lora_B.T], 1).detach()


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


def prune_moments(moment: Tensor, share: float) -> Tensor:
    """The moment with the `share` of entries that are largest in size, and zeros elsewhere (as ReLoRA's code)."""
    return _kept(moment, moment.abs(), share)


def _kept(moment: Tensor, by: Tensor, share: float) -> Tensor:
    kept = by.flatten().argsort(descending=True)[:round(share * moment.numel())]
    return torch.zeros_like(moment).flatten().index_copy(0, kept, moment.flatten()[kept]).view_as(moment)


# ---- exercises: the answers that a reader sees ------------------------------------------------------------


def answer_cola_tie(W, lora_A, lora_B, lora_alpha):
    s = lora_alpha / len(lora_A)   # len(lora_A) is r
    return W + s * lora_B @ lora_A


def answer_cola_extend(lora_A, lora_B, gaussian):
    new_A, new_B = gaussian, torch.zeros_like(lora_B)
    return torch.cat([new_A, new_B.T], 1)


def answer_move_after_knot(gradient, exp_avg, exp_avg_sq, step, lr):
    exp_avg, exp_avg_sq, step = 0 * exp_avg, 0 * exp_avg_sq, 0   # Adam forgets all three
    exp_avg = 0.9 * exp_avg + 0.1 * gradient
    exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * gradient**2
    step = step + 1
    mean, square = exp_avg / (1 - 0.9**step), exp_avg_sq / (1 - 0.999**step)
    return -lr * mean / (square.sqrt() + 1e-8)


def answer_cola_epochs(epochs, links):
    each, over = divmod(epochs, links)
    return [each + 1] * over + [each] * (links - over)


def answer_chain_rank(ranks, d, k):
    return min(sum(ranks), d, k)


def answer_frank_wolfe_step(W, G, radius, t):
    U, _, Vh = torch.linalg.svd(G)
    V = -radius * torch.outer(U[:, 0], Vh[0])
    return W + 2 / (t + 2) * (V - W)


def answer_prune_moments(moment, share):
    kept = moment.abs().flatten().topk(round(share * moment.numel())).indices
    mask = torch.zeros(moment.numel())
    mask[kept] = 1.0
    return moment * mask.view_as(moment)


# ---- exercises: what is tried, and what usual mistakes would give -----------------------------------------


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
        (COLARule.tie, COLARule._extend), answer=answer_cola_tie),
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
        (COLARule._extend, initial_A), answer=answer_cola_extend),
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
        (reset_moments,), answer=answer_move_after_knot),
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
        (COLA.knot_steps,), answer=answer_cola_epochs),
    "chain_rank": Task(
        chain_rank, lambda: [((8, 8, 8), 48, 60), ((8, 2), 48, 60), ((8,) * 5, 24, 30)],
        "ranks of a sum add up at most, and no matrix has more than min(d, k)",
        [("ranks of a sum add up, they do not multiply", lambda ranks, d, k: int(np.prod(ranks))),
         ("that is the widest link: different links may use different directions",
          lambda ranks, d, k: max(ranks)),
         ("a (d, k) matrix has no more than min(d, k) directions: cap the sum",
          lambda ranks, d, k: sum(ranks) if sum(ranks) > min(d, k) else -1)],
        (measures.numerical_rank, measures.factor_svd), answer=answer_chain_rank),
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
        (toy.linear_minimiser, toy.decreasing_step), answer=answer_frank_wolfe_step),
    "prune_moments": Task(
        prune_moments, lambda: [(_matrices(6, 9, 1)[0], 0.25), (_matrices(5, 8, 1)[0], 0.1),
                                (_matrices(7, 5, 1)[0], 0.4)],
        "keep the entries that are largest in size, a share of all of them, and set all others to zero",
        [("the largest are zeroed and the rest is kept: it is to be the other way round",
          lambda moment, share: moment - prune_moments(moment, share)),
         ("that keeps the share that was to be dropped: share is what stays",
          lambda moment, share: prune_moments(moment, 1 - share)),
         ("sizes count and not signs: a large negative entry is large, too; compare .abs()",
          lambda moment, share: _kept(moment, moment, share)),
         ("all entries shrink: those that stay keep their value, and the others become zero",
          lambda moment, share: share * moment),
         ("that is the mask alone: multiply the moment by it",
          lambda moment, share: (prune_moments(moment, share) != 0).float())],
        (), answer=answer_prune_moments),
})


def _polar(G: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(G, full_matrices=False)
    return u @ vh
