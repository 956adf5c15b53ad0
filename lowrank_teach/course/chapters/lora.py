"""Notebook 02, LoRA: its workbench, pictures and findings, sliders and exercises; 00, 01, 04–06 and 10 use some.

The sliders cut a picture or a trained ΔW to rank i, exactly and live, or choose a stored run by rank and α.
d out, k in, r rank, n singular values, i of them kept, S steps, T tokens.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor, nn

from ...adapters import adapt
from ...analysis import measures, style
from ...analysis.statistics import smooth
from ...experiments.runs import Run
from ...lowrank import Adapted, LowRank
from ...methods import FullFineTuning, LoRA, Method
from ...methods.base import Rule
from ...models.backbones import load_backbone
from ...reproduction import ledger, rank_cuts, studies
from ...sites import select
from ...tasks.load import load_task
from ...training.config import train_config
from ..by_hand import Bench, guess, scored
from ..by_hand import losses_of as losses_of
from ..by_hand import say_equal as say_equal
from ..contents import readable
from ..exercises import EXERCISES, Task, adapted_matrix, predict
from ..explorer import SNAPPED, Control, Picture
from ..schematic import arrow, canvas, matrix

# ---- the workbench: a training that takes seconds and in which rounding hides nothing ---------------------

STEPS_BY_HAND = {"tiny": 8, "laptop": 24, "gpu": 40}
SHORT: dict[str, dict[str, int]] = {   # of the ablations
    "tiny": {"steps": 4, "n_train": 64, "n_validation": 32, "n_test": 16},
    "laptop": {"steps": 60, "n_test": 64}, "gpu": {"steps": 500}}
SEEDS = {"tiny": (0,), "laptop": (0, 1, 2), "gpu": (0, 1, 2)}


class Workbench(Bench):
    """160 examples of a task in batches of eight; the rate falls linearly to zero, without warm-up and clipping.

    others: fields of a `TrainConfig` that differ.
    """

    def __init__(self, task: str, profile: str, **others: float) -> None:
        settings = {"lr": 5e-3, "warmup": 0.0, "max_grad_norm": 0.0, **others}
        super().__init__(load_task(task, n_train=160, n_validation=8, n_test=8), train_config(
            "tiny", steps=STEPS_BY_HAND[profile], n_train=160, batch_size=8, **settings))


def through_layer(model: nn.Module, layer: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pass a batch forward and back in eval mode: x (T, k), which the layer read, and ∂loss/∂h (T, d).

    h is what the layer wrote. The gradients of the batch are left in the parameters' `grad`.
    """
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, read, wrote: found.extend((read[0], wrote)))
    model.eval().zero_grad()
    try:
        loss = model(**batch).loss
    finally:
        hook.remove()
    x, h = found
    h.retain_grad()
    loss.backward()
    return x.detach().flatten(0, 1), h.grad.flatten(0, 1)   # type: ignore[union-attr]


def weight_gradient(bench: Workbench, batches: int = 4) -> Tensor:
    """∂loss/∂W (d, k) of the last layer's W_v, pretrained, over the first batches in eval mode."""
    model = bench.network().eval()
    W = model.bert.encoder.layer[-1].attention.self.value.weight
    for batch in bench.batches[:batches]:
        model(**batch).loss.backward()
    return W.grad / batches


def guessing(task: str, sizes: Mapping[str, Any]) -> tuple[float, float | None]:
    """What a guesser reaches who knows only how often each label is: the loss, and the accuracy.

    Args: sizes: fields of a `TrainConfig`.  A task with numbers for labels has no accuracy, and the loss is their
    variance.
    """
    data = load_task(task, **{name: sizes[name] for name in ("n_train", "n_validation", "n_test")},
                     validation_from_train=sizes.get("validation_from_train", False))
    return guess(scored(data), len(data.task.labels))


# ---- predictions: the answers stay out of the notebook's own cells ----------------------------------------


def predict_shapes(d: int, k: int, r: int) -> None:
    branch = LowRank(k=k, d=d, r=r)
    count = sum(p.numel() for p in branch.parameters())
    predict(f"W_q is {d} × {k} and r = {r}. Which shapes do A and B have, and how many numbers train instead of the "
            f"{d * k:,} of W_q?",
            f"A is {tuple(branch.lora_A.shape)}, B is {tuple(branch.lora_B.shape)}: together {count:,} numbers, "
            f"{count / (d * k):.1%} of W_q. Twice the rank would be twice as many.")


def predict_first_gradient(d: int, k: int, r: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branch = LowRank(k=k, d=d, r=r)
    branch(torch.ones(1, k)).sum().backward()
    largest = [float(p.grad.abs().max()) for p in (branch.lora_A, branch.lora_B)]   # type: ignore[union-attr]
    assert largest[0] == 0 < largest[1], "with B = 0 the first step must move B alone"
    predict("Before training B = 0. Which of A and B receives a gradient in the very first step?",
            f"B alone. On an input of ones its largest gradient is {largest[1]:.2f} here and that of A is "
            f"{largest[0]:g}, because the output sees A only through B. A moves from the second step on.")


def predict_decay() -> None:
    branch = LowRank(k=12, d=12, r=2)
    nn.init.normal_(branch.lora_B)
    before = float(branch.delta().norm())
    for p in (branch.lora_A, branch.lora_B):
        p.grad = torch.zeros_like(p)   # the task says nothing: the decay acts alone
    torch.optim.AdamW(branch.parameters(), lr=0.1, weight_decay=0.1).step()
    left = float(branch.delta().norm()) / before
    predict("Weight decay shrinks every trained number a little at each step. Which network does it pull towards in "
            "full fine-tuning, and which one in LoRA?",
            "In full fine-tuning W itself shrinks, so the pull is towards a network of zeros. In LoRA only A and B "
            f"shrink, so the pull is towards the pretrained network: one step with rate 0.1 and decay 0.1 leaves "
            f"{left:.4f} of ΔW, which is (1 − 0.01)².")


def predict_rank_rule() -> None:
    predict("You go from r = 4 to r = 16 and keep α. What happens to the scale s = α / r, and what would you have to "
            "do to keep s?",
            "s becomes a quarter, because r is in the denominator. To keep s, multiply α by four. Which of the two "
            "is better is a question about the optimizer; section 9 computes and measures it.")


# ---- pictures ---------------------------------------------------------------------------------------------


def idea(*, gate: bool = True) -> Figure:
    """h = W x + s · B diag(g) A x: the frozen path above, the narrow trainable one below."""
    fig, ax = canvas(9.0, 3.7)
    matrix(ax, 0.35, 0.9, 0.22, 1.9, style.GREY, "x", "k numbers in")
    matrix(ax, 3.1, 1.95, 1.5, 1.5, style.GREY, "W", "d × k, frozen")
    matrix(ax, 1.9, 0.62, 1.5, 0.24, style.BLUE, "A", "r × k, trains")
    matrix(ax, 4.95, 0.3, 0.24, 1.5, style.BLUE, "B")
    matrix(ax, 8.3, 0.9, 0.22, 1.9, style.GREY, "h", "d numbers out")
    ax.text(5.29, 1.7, "d × r, trains", ha="left", va="top", fontsize=9)
    ax.text(6.25, 0.74, "× s = α / r", fontsize=12, ha="center", va="center", color=style.BLUE)
    ax.text(7.3, 1.85, "+", fontsize=20, ha="center", va="center")
    paths = [((0.65, 2.1), (3.05, 2.7)), ((0.65, 1.6), (1.85, 0.74)), ((5.25, 0.74), (5.55, 0.74)),
             ((4.65, 2.7), (7.12, 1.95)), ((6.95, 0.74), (7.2, 1.62)), ((7.5, 1.85), (8.25, 1.85))]
    if gate:
        matrix(ax, 4.0, 0.62, 0.24, 0.24, style.ORANGE, "g", "r gates")
        paths += [((3.45, 0.74), (3.95, 0.74)), ((4.29, 0.74), (4.9, 0.74))]
    else:
        paths += [((3.45, 0.74), (4.9, 0.74))]
    for start, end in paths:
        arrow(ax, start, end)
    return fig


def ratio_bars(values: Mapping[str, float], *, xlabel: str) -> Figure:
    """Horizontal bars of ratios to a baseline that is 1, each with its number."""
    fig, (ax,) = style.panels(1, 1, 0.5 + 0.42 * len(values), None, width=8.0)
    names = list(values)[::-1]
    bars = ax.barh(names, [values[name] for name in names], color=style.BLUE, height=0.6)
    ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=4)
    ax.axvline(1.0, color=style.ORANGE, linestyle="--", linewidth=1.5)
    ax.set_xlim(0, 1.15 * max(1.0, *values.values()))
    style.dress(ax, xlabel, "")
    ax.grid(axis="y", visible=False)
    return fig


def _words(*parts: str) -> str:
    """"a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _chance(ax: Axes, level: float) -> None:
    ax.axhline(level, color=style.GREY, linestyle=":", linewidth=1.4,
               label=f"guessing by the label shares, {level:.2f}")


def idea_finding(d: int, k: int, r: int) -> str:
    """How thin the strips are in the network at hand."""
    return (f"Only the blue strips train. For a {d} × {k} matrix and r = {r} they hold {r * (d + k):,} numbers "
            f"beside the {d * k:,} frozen ones, so they are thinner still than they are drawn.")


def by_hand(losses: Sequence[float], chance: float) -> Figure:
    """The loss of every step of the loop by hand, beside guessing."""
    fig, (ax,) = style.panels(1, 1, 2.9, None, width=8.0)
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=style.BLUE, marker="s", markersize=4, linewidth=1.6, label="loop by hand")
    _chance(ax, chance)
    style.dress(ax, "Optimizer step", "Loss of the batch", "Training loss of the loop by hand")
    style.index_axis(ax, len(losses))
    style.legend(fig)
    fig.set_label(f"Training loss over {len(losses)} steps, from {losses[0]:.2f} to {losses[-1]:.2f}, with a dotted "
                  f"line at {chance:.2f} for guessing.")
    return fig


def finding_by_hand(losses: Sequence[float], chance: float) -> str:
    """What the loss did, beside guessing."""
    width = max(2, len(losses) // 4)
    first, last = float(np.mean(losses[:width])), float(np.mean(losses[-width:]))
    side = "below" if last < chance - 0.01 else "above" if last > chance + 0.01 else "level with"
    return (f"The mean loss of the first {width} steps is {first:.3f} and of the last {width} {last:.3f}. That is "
            f"{side} the {chance:.3f} of a guesser who knows only how often each label occurs.")


LOOKS = {"LoRA": style.METHOD_STYLE["lora"], "full fine-tuning": style.METHOD_STYLE["full"],
         "head only": style.METHOD_STYLE["head"]}


def training_figure(runs: Mapping[str, Run]) -> Figure:
    """The training loss of some runs, means of ten steps, beside guessing.

    Args: name of LOOKS -> run.
    """
    fig, (ax,) = style.panels(1, 1, 3.1, None, width=8.0)
    for name, run in runs.items():
        _, color, line, _ = LOOKS[name]
        ax.plot(*smooth(run.series("loss")), color=color, linestyle=line, linewidth=2, label=name)
    first = next(iter(runs.values()))
    _chance(ax, guessing(first.config["task"], first.config["training"])[0])
    style.dress(ax, "Optimizer step", "Loss (mean of 10 steps)", f"{first.config['task']}: training loss")
    style.legend(fig)
    fig.set_label("Training loss against the step, a line each for " + _words(*runs) + ", and a dotted line for "
                  "guessing. Last ten steps: " + ", ".join(f"{n} {_end(run):.2f}" for n, run in runs.items()) + ".")
    return fig


def _end(run: Run) -> float:
    return float(np.mean(run.series("loss")[1][-10:]))


def finding_of_training(runs: Mapping[str, Run]) -> str:
    """Where the losses end, and whether they still fall."""
    first = next(iter(runs.values()))
    chance = guessing(first.config["task"], first.config["training"])[0]
    ends = {name: _end(run) for name, run in runs.items()}
    order = sorted(ends, key=ends.__getitem__)
    still = [name for name, run in runs.items() if (values := np.array(run.series("loss")[1])).size >= 40
             and values[-20:].mean() < values[-40:-20].mean() - 0.01]
    last = (f" Between the last 20 steps and the 20 before them the loss of {_words(*still)} still fell: this "
            "training is short." if still else "")
    return (f"The mean loss of the last ten steps is {_words(*(f'{ends[n]:.3f} ({n})' for n in order))}; guessing "
            f"gives {chance:.3f}.{last}")


def scores(runs: Mapping[str, Run]) -> Any:
    """A table of test scores, with the guesser's, and of what trained, to be read."""
    first = next(iter(runs.values()))
    name, (loss, share) = first.score("test")[0], guessing(first.config["task"], first.config["training"])
    guess = f"{share:.3f}" if name == "accuracy" and share else "–"
    rows = {label: [f"{run.score('test')[1]:.3f}", f"{run.metrics['test']['loss']:.3f}",
                    f"{run.parameters['trainable']:,}", f"{run.config['training']['lr']:g}"]
            for label, run in runs.items()}
    rows["guessing (the larger class)"] = [guess, f"{loss:.3f}", "0", "–"]
    columns = [f"test {name}", "test loss", "numbers that train", "learning rate"]
    return readable(pd.DataFrame.from_dict(rows, orient="index", columns=columns), "scores")


def spectra_figure(run: Run, sites: Sequence[str]) -> Figure:
    """Singular values of some ΔW, and the share of energy that the first i hold; W_q dark, W_v light."""
    fig, (left, right) = style.panels(2, 2, 3.0, None)
    for site in sites:
        s = measures.singular_values(*run.factors[site])
        look = {"color": RULE_LOOKS[RULES[1 if site.endswith("q") else 2]]["color"], "marker": "s", "markersize": 3.5,
                "linestyle": "--" if site.startswith("0.") else "-", "label": style.site_label(site)}
        index = np.arange(1, len(s) + 1)
        left.plot(index, s, **look)
        right.plot(index, measures.energy(s), **look)
    style.dress(left, "Direction i", "Singular value of ΔW", "How the directions are weighed")
    style.dress(right, "Direction i", "Share of ‖ΔW‖² up to i", "What the first i directions hold")
    for ax in (left, right):
        style.index_axis(ax, max(run.ranks.values()))
        ax.set_ylim(bottom=0)
    style.legend(fig)
    fig.set_label(f"Left, the falling singular values of {len(sites)} matrices; right, the share of energy of the "
                  "first i directions, which rises to one. " + finding_of_spectra(run, sites))
    return fig


def finding_of_spectra(run: Run, sites: Sequence[str]) -> str:
    """The share of energy that the first direction holds."""
    first = {site: float(measures.energy(measures.singular_values(*run.factors[site]))[0]) for site in run.factors}
    said = _words(*(f"{first[site]:.0%} in {_plain(site)}" for site in sites))
    held = {site: measures.energy_rank(measures.singular_values(*run.factors[site])) for site in run.factors}
    return (f"The first direction alone holds {said} of the energy ‖ΔW‖². Over all {len(first)} matrices its share "
            f"lies between {min(first.values()):.0%} and {max(first.values()):.0%}, and 90 % of the energy needs "
            f"{min(held.values())} to {max(held.values())} of the directions.")


def _plain(site: str) -> str:
    layer, _, name = site.rpartition(".")
    return f"W_{name} of layer {layer}"


def sizes_figure(run: Run) -> Figure:
    """Norm and effective rank of every ΔW, and the angle by which it turns W, a table each."""
    norms, r = run.by_site("norm"), max(run.ranks.values())
    rows, layers = style.site_grid([norms])
    fig, axes = style.panels(3, 1, 1.15, None, width=8.0)
    for ax, values, title, fmt in zip(axes, (norms, run.by_site("effective_rank"), angles(run)),
                                      ("Size ‖ΔW‖ (Frobenius norm)", f"Effective rank, of r = {r}",
                                       "Angle between W and W + ΔW, degrees"), (".2f", ".1f", ".1f"), strict=True):
        style.heatmap(ax, style.site_table(values, rows, layers), [style.site_label(m) for m in rows], layers,
                      annot=True, fmt=fmt, cmap="viridis")
        style.dress(ax, "Layer" if ax is axes[-1] else "", "", title)
    fig.set_label("Three tables by matrix and layer: the norm of each weight change, its effective rank, and the "
                  "angle by which it turns W. " + finding_of_sizes(run))
    return fig


def angles(run: Run) -> dict[str, float]:
    """Site -> angle between W and W + ΔW, read as vectors, in degrees."""
    return {site: math.degrees(math.acos(min(1.0, c))) for site, c in run.by_site("cosine").items()}


def finding_of_sizes(run: Run) -> str:
    """The largest and the smallest change read aloud, and the mean effective rank by matrix."""
    norms, ranks = run.by_site("norm"), run.by_site("effective_rank")
    largest, smallest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    letters = list(dict.fromkeys(site.rpartition(".")[2] for site in norms))
    means = {m: float(np.mean([v for site, v in ranks.items() if site.endswith(f".{m}")])) for m in letters}
    said = _words(*(f"{means[m]:.1f} for W_{m}" for m in letters))
    return (f"Read aloud: the largest change is that of {_plain(largest)}, with norm {norms[largest]:.2f} and "
            f"effective rank {ranks[largest]:.1f}; the smallest is that of {_plain(smallest)}, {norms[smallest]:.2f} "
            f"and {ranks[smallest]:.1f}. The effective rank is {said} in the mean, of {max(run.ranks.values())} "
            f"directions that trained. No matrix turned by more than {max(angles(run).values()):.1f} degrees; two "
            "unrelated matrices stand at about 90 degrees to each other.")


# rank rules: how α follows r.  All are LoRA, so all are blue.
RULES = ("α fixed (the paper)", "s fixed", "α ∝ √r (rsLoRA)")
RULE_LOOKS: dict[str, dict[str, Any]] = {
    RULES[0]: {"color": style.BLUE, "linestyle": "-", "marker": "s"},
    RULES[1]: {"color": "#003A5D", "linestyle": "--", "marker": "o"},
    RULES[2]: {"color": "#5BA3D0", "linestyle": "-.", "marker": "^"}}


def first_step_figure(first: Mapping[tuple[str, str, int], float]) -> Figure:
    """How far the first step lowers the loss to first order, over the rank, relative to the lowest rank.

    Args: (optimizer, rule, r) -> decrease; a panel an optimizer.
    """
    optimizers = list(dict.fromkeys(name for name, _, _ in first))
    ranks = sorted({r for _, _, r in first})
    fig, axes = style.panels(len(optimizers), len(optimizers), 3.0, None, sharey=True)
    for ax, name in zip(axes, optimizers, strict=True):
        for rule, look in RULE_LOOKS.items():
            base = first[name, rule, ranks[0]]
            ax.plot(ranks, [first[name, rule, r] / base for r in ranks], **look, markersize=5, label=rule)
        style.dress(ax, "Rank r (log)", "Gain of the first step (log)", f"One step of {name}; r = 1 is 1")
        _log_ranks(ax, ranks)
        ax.set_yscale("log")
    style.legend(fig)
    fig.set_label("Two log-log panels over the rank, one for a step of Adam and one for a step of gradient descent, "
                  "a line a rule. " + finding_of_first_step(first))
    return fig


def _log_ranks(ax: Axes, ranks: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.xaxis.set_minor_locator(NullLocator())


def finding_of_first_step(first: Mapping[tuple[str, str, int], float]) -> str:
    """By which factor the gain of one step grows from the lowest rank to the highest, by rule and optimizer."""
    ranks = sorted({r for _, _, r in first})
    said = []
    for name in dict.fromkeys(name for name, _, _ in first):
        grown = {rule: first[name, rule, ranks[-1]] / first[name, rule, ranks[0]] for rule in RULES}
        steady = min(grown, key=lambda rule: abs(math.log(grown[rule])))
        factors = _words(*(f"{grown[rule]:.3g} with {rule}" for rule in RULES))
        said.append(f"one step of {name} gains {factors}, so {steady} depends on the rank least")
    return f"From r = {ranks[0]} to r = {ranks[-1]} the gain of the first step changes by a factor: " + "; ".join(
        said) + "."


Losses = Mapping[tuple[str, int], Sequence[float]]


def rules_figure(losses: Losses, common: int = 4) -> Figure:
    """Validation loss over the rank, less that of the same seed at the common rank: a line a rule, a dot a seed.

    Args: (rule, r) -> one loss a seed.
    """
    ranks = sorted({r for _, r in losses})
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ax.axhline(0, color=style.GREY, linestyle=":", linewidth=1.4, label=f"as at r = {common}")
    for shift, (rule, look) in zip((0.95, 1.0, 1.05), RULE_LOOKS.items(), strict=True):
        apart = {r: np.subtract(losses[rule, r], losses[rule, common]) for r in ranks}
        ax.plot(ranks, [apart[r].mean() for r in ranks], **look, markersize=6, linewidth=1.8, label=rule)
        for r in ranks:
            ax.plot([r * shift] * len(apart[r]), apart[r], ".", color=look["color"], alpha=0.6)
    style.dress(ax, "Rank r (log)", f"Validation loss less that at r = {common}",
                f"How much the rank matters, by the rule for α (all agree at r = {common}, α = 16)")
    _log_ranks(ax, ranks)
    style.legend(fig)
    fig.set_label("Change of the validation loss against the rank, a line for each of three rules through a common "
                  f"point at rank {common}, small dots for seeds. " + finding_of_rules(losses))
    return fig


def finding_of_rules(losses: Losses) -> str:
    """How the loss changes from the lowest rank to the highest under each rule, seed by seed."""
    ranks = sorted({r for _, r in losses})
    change = {rule: np.subtract(losses[rule, ranks[-1]], losses[rule, ranks[0]]) for rule in RULES}
    said = _words(*(f"{d.mean():+.3f} with {rule} (seeds: {_words(*(f'{x:+.3f}' for x in d))})"
                    for rule, d in change.items()))
    more = int((np.abs(change[RULES[1]]) > np.abs(change[RULES[0]])).sum())
    mixed = [rule for rule, d in change.items() if (d > 0).any() and (d < 0).any()]
    doubt = (f" With {_words(*mixed)} the seeds disagree even on the sign, so that change cannot be told from chance."
             if mixed else "")
    return (f"From r = {ranks[0]} to r = {ranks[-1]} the validation loss changes by {said}. The rank matters more "
            f"with s fixed than with α fixed in {more} of {len(change[RULES[0]])} seeds.{doubt}")


def stored_ranks() -> str:
    """Test accuracy of the stored LoRA runs at fixed s, by rank: means and the paired step to the next rank."""
    stored = studies.load("salora_r")
    arms = [arm for arm in stored.arms if arm.startswith("LoRA ")]
    values = stored.values()
    lines = [stored.line()]
    for arm, before in zip(arms, [None, *arms], strict=False):
        step = np.subtract(values[arm], values[before]) if before else None
        more = (f", {100 * step.mean():+.1f} points on the rank before; higher in {int((step > 0).sum())} of "
                f"{len(step)} seeds" if step is not None else "")
        lines.append(f"r = {arm.removeprefix('LoRA '):>2}: accuracy {np.mean(values[arm]):.3f}{more}")
    return "\n".join(lines)


def starts_figure(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Validation loss by the start of A, a dot a seed.

    Args: name of the start -> one loss a seed.
    """
    fig, (ax,) = style.panels(1, 1, 1.9, None, width=8.0)
    style.seed_strip(ax, losses)
    style.dress(ax, "Validation loss", "Start of A", "The same LoRA from three starts")
    style.legend(fig)
    fig.set_label("A row of dots for each start of A, one a seed, with a stroke at the mean. "
                  + finding_of_starts(losses))
    return fig


def finding_of_starts(losses: Mapping[str, Sequence[float]]) -> str:
    """Mean loss of each start, and the paired difference of the best to the others."""
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    order = sorted(means, key=means.__getitem__)
    low, high = order[0], order[-1]
    apart = np.subtract(losses[high], losses[low])
    one_way = "for every seed" if (apart > 0).all() else f"for {int((apart > 0).sum())} of {len(apart)} seeds"
    so = ("So the start alone moves the result, and a comparison of methods has to start them alike."
          if (apart > 0).all() else "So in runs as short as these the start cannot be told from the seed.")
    return (f"The mean validation loss is {_words(*(f'{means[n]:.3f} from {n}' for n in order))}. The loss from "
            f"{low} is lower than from {high} {one_way}; the differences lie between {apart.min():.3f} and "
            f"{apart.max():.3f}. {so}")


def costs(method: Method, backbone: str) -> tuple[dict[str, float], str]:
    """LoRA's share of full fine-tuning's cost of one step on random words, and the numbers behind it.

    Operations are counted from the shapes, seconds are measured in turns, bytes counted from the tensors.
    """
    models = {}
    for name, one in (("LoRA", method), ("full", FullFineTuning())):
        models[name] = adapt(load_backbone(backbone, num_labels=2, seed=0)[0], one, seed=0).model.train()
    plain = load_backbone(backbone, num_labels=2, seed=0)[0]
    shapes = {site.name: (site.d, site.k) for site in select(plain, "all")}
    ranks = {site.name: method.r for site in select(plain, method.sites)}
    words = torch.randint(1000, 20000, (16, 32), generator=torch.Generator().manual_seed(0))
    cost = measures.step_costs(models, {"input_ids": words, "labels": torch.zeros(16, dtype=torch.long)},
                               steps=5)
    flops = {"LoRA": measures.model_flops(shapes, ranks, words.numel(), words.shape[1]).total,
             "full": measures.model_flops(shapes, {}, words.numel(), words.shape[1], train_weight=True).total}
    shares = {"operations": flops["LoRA"] / flops["full"],
              "seconds (median of steps)": cost["LoRA"].median / cost["full"].median,
              "gradients and Adam's moments": cost["LoRA"].state_bytes / cost["full"].state_bytes}
    assert 0.6 < shares["operations"] < 0.8, "LoRA's operations are not near two thirds"
    lines = [f"{name}: {flops[name] / 1e9:.1f} GFLOP, {1000 * one.median:.0f} ms, {one.state_bytes / 1e6:.1f} MB for "
             "gradients and Adam's moments" for name, one in cost.items()]
    return shares, "\n".join(lines)


def costs_figure(shares: Mapping[str, float]) -> Figure:
    """`ratio_bars` of the three costs."""
    fig = ratio_bars(shares, xlabel="LoRA's share of full fine-tuning's cost of a step (dashed: equal)")
    fig.set_label("Bars: " + _words(*(f"{what} {share:.3f}" for what, share in shares.items()))
                  + " of full fine-tuning's.")
    return fig


def finding_of_costs(shares: Mapping[str, float]) -> str:
    operations, seconds, state = shares.values()
    return (f"LoRA needs {operations:.0%} of the operations and {seconds:.0%} of the time of a step, and {state:.1%} "
            "of the memory for gradients and Adam's moments: it saves memory far more than time.")


def stored_grid() -> tuple[RankAlpha, str]:
    """The explorer of rank and α on the stored grid that notebook 10 shows, too, and a line on how that was made."""
    stored = rank_cuts.load_explorer_data()
    return RankAlpha(stored.curves, stored.losses, "validation loss"), stored.line()


def finding_of_grid(grid: RankAlpha) -> str:
    """Which of the two knobs moves the stored losses more, and the best cell."""
    by_alpha = np.mean([np.ptp([grid.scores[r, a] for a in grid.alphas]) for r in grid.ranks])
    by_rank = np.mean([np.ptp([grid.scores[r, a] for r in grid.ranks]) for a in grid.alphas])
    r, alpha = min(grid.scores, key=grid.scores.__getitem__)
    return (f"In the stored grid of {len(grid.scores)} runs, one seed each, the loss moves by {by_alpha:.4f} along α "
            f"at one rank and by {by_rank:.4f} along the rank at one α, in the mean. It is lowest at r = {r}, "
            f"α = {alpha:g}.")


def reading_of_claims() -> str:
    """Say in words what the ledger's first two rows rest on and what came out."""
    said = []
    for row in itertools.islice(ledger.ledger("LoRA"), 2):
        outcome = {"supported": "supports it", "contradicted": "contradicts it",
                   "equal within the margin": "finds both equal within the margin",
                   "open": "leaves it open"}.get(row.verdict, f"says: {row.verdict}")
        stands = {"does not stand": "; after the correction for many comparisons this verdict does not stand",
                  "stands": "; this verdict stands after the correction for many comparisons"}.get(
                      ledger.standing(row), "")
        said.append(f"{row.key}, “{row.statement}”: our measurement {outcome} ({row.interval_words()}, "
                    f"{len(row.differences)} seeds, {row.why}){stands}.")
    return "\n".join(said)


# ---- explorers: what the sliders move ---------------------------------------------------------------------


class _Spectrum(Picture):
    """Left the singular values, those kept blue; right the matrix cut to them; both as shares of the largest."""

    def _build(self, n: int, shape: tuple[int, int]) -> list[Artist]:
        left, right = self.axes
        self.bars = left.bar(np.arange(1, n + 1), np.ones(n), color=style.PALE)
        left.set_ylim(0, 1.05)
        self.image = right.imshow(np.zeros(shape), cmap="RdBu_r", vmin=-1, vmax=1)
        right.set_aspect("equal")   # a ring is round
        self.fig.colorbar(self.image, ax=right, pad=0.02)
        style.dress(left, "Direction", "Singular value / largest", " ")
        left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        style.dress(right, "Column", "Row", " ")
        right.grid(False)
        return [*self.bars, self.image, left.title, right.title]

    def update(self, arrays: dict[str, Any]) -> None:
        left, right = self.axes
        for bar, height, kept in zip(self.bars, arrays["s"], arrays["kept"], strict=True):
            bar.set_height(height)
            bar.set_color(style.BLUE if kept else style.PALE)
        self.image.set_data(arrays["matrix"])
        left.set_title(arrays["name"], fontsize=10)
        right.set_title(arrays["title"], fontsize=10)


class RankOfAPicture(_Spectrum):
    """A ring drawn as a matrix of size × size numbers, rebuilt from its first i directions."""

    def __init__(self, size: int = 40, most: int = 10) -> None:
        y, x = np.mgrid[-1:1:1j * size, -1:1:1j * size]
        self.ring = np.exp(-((np.hypot(x, y) - 0.6) / 0.18) ** 2)      # (size, size)
        self.u, self.s, self.vh = np.linalg.svd(self.ring)
        self.most = most
        self.controls = (Control("i", "directions kept", 0, most, 2),)
        super().__init__()

    def build(self) -> list[Artist]:
        return self._build(self.most, self.ring.shape)

    def arrays(self, **state: Any) -> dict[str, Any]:
        i = state["i"]
        return {"s": self.s[:self.most] / self.s[0], "kept": np.arange(self.most) < i, "name": "blue: kept",
                "matrix": (self.u[:, :i] * self.s[:i]) @ self.vh[:i], "title": f"rank {i}"}

    def words(self, **state: Any) -> str:
        i, side = state["i"], len(self.ring)
        kept = (self.s[:i] ** 2).sum() / (self.s ** 2).sum()
        return (f"Rank {i} holds {kept:.1%} of the picture's energy (the sum of its squared numbers) in "
                f"{i * 2 * side:,} numbers instead of {side * side:,}.")


class Truncation(_Spectrum):
    """A trained ΔW, given by its factors, cut down to its first i directions.

    Args: site -> (left (d, R), right (R, k)) as numpy; all sites of one R. block: rows and columns shown.
    """

    def __init__(self, factors: Mapping[str, tuple[np.ndarray, np.ndarray]], block: int = 48) -> None:
        self.sites, self.block = list(factors), block
        self.svd = {site: factor_svd(*pair) for site, pair in factors.items()}
        self.n = max(len(s) for _, s, _ in self.svd.values())
        self.controls = (Control("matrix", "matrix number", 0, len(self.sites) - 1, 0),
                         Control("i", "directions kept", 0, self.n, self.n))
        super().__init__()

    def build(self) -> list[Artist]:
        return self._build(self.n, (self.block, self.block))

    def arrays(self, **state: Any) -> dict[str, Any]:
        site, i = self.sites[state["matrix"]], state["i"]
        u, s, vh = self.svd[site]
        u, vh = u[:self.block], vh[:, :self.block]
        size = float(np.abs((u * s) @ vh).max()) or 1.0
        return {"s": np.pad(s, (0, self.n - len(s))) / (float(s.max()) or 1.0), "kept": np.arange(self.n) < i,
                "matrix": (u[:, :i] * s[:i]) @ vh[:i] / size,           # (block, block)
                "name": style.site_label(site), "title": f"ΔW cut to rank {i} (first {self.block} × {self.block})"}

    def words(self, **state: Any) -> str:
        site, i = self.sites[state["matrix"]], state["i"]
        u, s, vh = self.svd[site]
        total = float((s ** 2).sum()) or 1.0
        kept, d, k = float((s[:i] ** 2).sum()) / total, u.shape[0], vh.shape[1]
        return (f"Site {site}: rank {i} of {len(s)} keeps {kept:.1%} of the energy of ΔW and leaves an error of "
                f"{np.sqrt(max(0.0, 1 - kept)):.0%} of its size, in {i * (d + k):,} numbers instead of {d * k:,}.")


def factor_svd(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Call `measures.factor_svd` with arrays: U (d, n), s (n,), Vh (n, k)."""
    u, s, vh = measures.factor_svd(torch.as_tensor(left), torch.as_tensor(right))
    return u.numpy(), s.numpy(), vh.numpy()


class RankAlpha(Picture):
    """A grid of stored runs over rank and α: its scores, and the loss curve of the one chosen.

    Args: (r, α) -> (steps (S,), loss (S,)); (r, α) -> score; label: the score's name.
    """

    kind = SNAPPED

    def __init__(self, curves: Mapping[tuple[int, float], tuple[Sequence[float], Sequence[float]]],
                 scores: Mapping[tuple[int, float], float], label: str) -> None:
        self.curves, self.scores, self.label = dict(curves), dict(scores), label
        self.ranks, self.alphas = sorted({r for r, _ in curves}), sorted({alpha for _, alpha in curves})
        self.controls = tuple(Control(name, name, int(values[0]), int(values[-1]), int(values[len(values) // 2]))
                              for name, values in (("rank", self.ranks), ("alpha", self.alphas)))
        super().__init__()

    def snap(self, rank: float, alpha: float) -> tuple[int, float]:
        """The stored run nearest in the logarithm of each."""
        return (min(self.ranks, key=lambda r: abs(np.log(r / rank))),
                min(self.alphas, key=lambda a: abs(np.log(a / alpha))))

    def build(self) -> list[Artist]:
        left, right = self.axes
        table = np.array([[self.scores[r, a] for a in self.alphas] for r in self.ranks])
        image = left.imshow(table, cmap="cividis", aspect="auto")
        self.fig.colorbar(image, ax=left, pad=0.02)
        style.dress(left, "α", "Rank r", self.label)
        left.grid(False)
        left.set_xticks(range(len(self.alphas)), [f"{a:g}" for a in self.alphas])
        left.set_yticks(range(len(self.ranks)), [f"{r:g}" for r in self.ranks])
        self.mark = Rectangle((0, 0), 0.92, 0.92, fill=False, edgecolor=style.ORANGE, linewidth=3)
        left.add_patch(self.mark)
        for steps, loss in self.curves.values():
            right.plot(steps, loss, color=style.PALE, linewidth=0.8)
        self.line, = right.plot([], [], color=style.BLUE, linewidth=2)
        style.dress(right, "Optimizer step", "Training loss", " ")
        return [self.mark, self.line, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        r, alpha = self.snap(state["rank"], state["alpha"])
        return {"at": (self.alphas.index(alpha) - 0.46, self.ranks.index(r) - 0.46),
                "curve": self.curves[r, alpha], "title": f"blue: r = {r}, α = {alpha:g}"}

    def update(self, arrays: dict[str, Any]) -> None:
        self.mark.set_xy(arrays["at"])
        self.line.set_data(*arrays["curve"])
        self.axes[1].set_title(arrays["title"], fontsize=10)

    def words(self, **state: Any) -> str:
        r, alpha = self.snap(state["rank"], state["alpha"])
        return (f"Asked r = {state['rank']}, α = {state['alpha']}; shown r = {r}, α = {alpha:g}, so s = α / r = "
                f"{alpha / r:g}: {self.label} {self.scores[r, alpha]:.3f}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------


class LoRALinear(nn.Module):
    def __init__(self, linear: nn.Linear, r: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        d, k = linear.weight.shape
        self.lora_A = nn.Parameter((2 * torch.rand(r, k) - 1) / k ** 0.5)
        self.lora_B = nn.Parameter(torch.zeros(d, r))
        self.s = alpha / r

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.s * (x @ self.lora_A.T) @ self.lora_B.T


def _seen_of_layer(layer: Any) -> Tensor:
    """What a layer of r ≥ 2 is compared by, (6, d): its outputs with given factors; below, how A and B started.

    The last row says what the start of A is like (`_START`), whether B is zero, and how many numbers train.
    """
    A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    (r, k), d = A.shape, len(B)
    low, high = float(A.min()) * k ** 0.5, float(A.max()) * k ** 0.5
    start = (_START["zero"] if high == low == 0 else _START["positive"] if low >= 0 else
             _START["right"] if max(-low, high) <= 1.0001 and min(-low, high) > 0.9 else
             _START["large"] if max(-low, high) > 1.5 else _START["small"])
    trains = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.lora_A.copy_(torch.randn(r, k, generator=g))
        layer.lora_B.copy_(torch.randn(d, r, generator=g))
        outputs = layer(torch.randn(5, k, generator=g))
    facts = torch.zeros(1, outputs.shape[1])
    facts[0, :3] = torch.tensor([start, float(B.any()), trains / (r * (d + k))])
    return torch.cat([outputs, facts])


_START = {"right": 0.0, "zero": 1.0, "positive": 2.0, "large": 3.0, "small": 4.0}


def _layer_with(A: Callable[[Tensor], Tensor] | None = None, B: Callable[[Tensor], Tensor] | None = None,
                scale: Callable[[float, int], float] = lambda alpha, r: alpha / r, W: float = 1.0,
                frozen: bool = True) -> Callable[..., nn.Module]:
    """A mistake as the layer with another start, another scale, W times a number, or W that trains."""
    def made(linear: nn.Linear, r: int, alpha: float) -> nn.Module:
        layer = LoRALinear(copy.deepcopy(linear), r, alpha)
        layer.lora_A.data = (A or (lambda values: values))(layer.lora_A.data)
        layer.lora_B.data = (B or (lambda values: values))(layer.lora_B.data)
        layer.s = scale(alpha, r)
        with torch.no_grad():
            for p in layer.linear.parameters():
                p.mul_(W).requires_grad_(not frozen)
        return layer

    return made


def lora_gradients(x: Tensor, G: Tensor, lora_A: Tensor, lora_B: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    s = alpha / len(lora_A)
    grad_A = s * (G @ lora_B).T @ x
    grad_B = s * G.T @ (x @ lora_A.T)
    return grad_A, grad_B


def _layer(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> tuple[Any, Adapted]:
    adapters = adapted_matrix(W, LoRA(r=len(lora_A), lora_alpha=lora_alpha, sites=("0",)))
    adapters["0"].lora_A.data, adapters["0"].lora_B.data = lora_A.detach().clone(), lora_B.detach().clone()
    return adapters, adapters.owner("0")


def lora_merge(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    """The merged matrix (d, k) that the library writes into W."""
    adapters, owner = _layer(W, lora_A, lora_B, lora_alpha)
    adapters.merge()
    return owner.W.detach()


def answer_lora_merge(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    return W + lora_alpha / len(lora_A) * lora_B @ lora_A


def count_parameters(d: int, k: int, r: int) -> int:
    """Parameters of the library's branch on a (d, k) matrix."""
    return sum(p.numel() for p in LowRank(k, d, r).parameters())


def answer_count_parameters(d: int, k: int, r: int) -> int:
    return r * k + d * r


def alpha_by_rule(lora_alpha: float, r: int, new_r: int) -> list[float]:
    """α at rank new_r that keeps, of the library's branch at rank r: α; its scale s; s · √r."""
    s = _layer(torch.zeros(r, r), torch.zeros(r, r), torch.zeros(r, r), lora_alpha)[0]["0"].scaling
    return [s * r, s * new_r, s * math.sqrt(r) / math.sqrt(new_r) * new_r]


def answer_alpha_by_rule(lora_alpha: float, r: int, new_r: int) -> list[float]:
    fixed_alpha = lora_alpha
    fixed_s = lora_alpha / r * new_r
    rank_stabilised = lora_alpha * (new_r / r) ** 0.5
    return [fixed_alpha, fixed_s, rank_stabilised]


def _matrices(d: int, k: int, r: int, alpha: float) -> tuple[Tensor, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(d)
    return (torch.randn(d, k, generator=g), torch.randn(r, k, generator=g), torch.randn(d, r, generator=g), alpha)


_CASES = [_matrices(6, 9, 2, 8.0), _matrices(9, 6, 4, 2.0)]


def _passes() -> list[tuple]:
    """x (5, k), G (5, d) and a layer's factors."""
    made = []
    for W, A, B, alpha in _CASES:
        g = torch.Generator().manual_seed(len(W))
        made.append((torch.randn(5, A.shape[1], generator=g), torch.randn(5, len(B), generator=g), A, B, alpha))
    return made


_NO_SCALE = "the scale is missing: multiply the branch by s = α / r"
_ALPHA = "you scale by α, LoRA scales by α / r"
_UPSIDE_DOWN = "you scale by r / α, LoRA scales by α / r"
_NO_BRANCH = "that is W alone: the branch s · B A is missing"
_MINUS = "the branch is subtracted: it is added"
_NO_W = "that is the branch alone: W is missing"


def _merged(change: Callable[..., tuple]) -> Callable[..., Tensor]:
    return lambda *arguments: lora_merge(*change(*arguments))


def _changed(change: Callable[..., tuple]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *arguments: lora_gradients(*change(*arguments))


def _times(a: float, b: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """The gradients times numbers."""
    def wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
        grad_A, grad_B = lora_gradients(*arguments)
        return a * grad_A, b * grad_B

    return wrong


EXERCISES.update({
    "LoRALinear": Task(
        LoRALinear, lambda: [(nn.Linear(64, 40), 4, 8.0), (nn.Linear(48, 56), 8, 4.0)],
        "forward: x meets A first (k → r), then B (r → d), then the scale s = α / r; add it to W x. Start: A even "
        "between −1/√k and 1/√k, B zero",
        [("B does not start at zero, so ΔW is not zero and the pretrained network is gone",
          _layer_with(B=lambda B: B + 1)),
         ("both start at zero: then no gradient reaches either of them, ever; A must be drawn",
          _layer_with(A=lambda A: 0 * A)),
         ("A and B are swapped: A is drawn and B is zero", _layer_with(A=lambda A: 0 * A, B=lambda B: B + 1)),
         ("all of A is positive: torch.rand runs from 0 to 1, move it to −1 to 1 first",
          _layer_with(A=lambda A: A.abs() + 1e-3)),
         ("A starts too large: divide by √k", _layer_with(A=lambda A: A * A.shape[1] ** 0.5)),
         ("A starts too small: the bound is 1/√k, not 1/k", _layer_with(A=lambda A: A / A.shape[1] ** 0.5)),
         (_NO_SCALE, _layer_with(scale=lambda alpha, r: 1.0)),
         (_ALPHA, _layer_with(scale=lambda alpha, r: alpha)),
         (_UPSIDE_DOWN, _layer_with(scale=lambda alpha, r: r / alpha)),
         (_NO_BRANCH, _layer_with(scale=lambda alpha, r: 0.0)),
         (_MINUS, _layer_with(scale=lambda alpha, r: -alpha / r)),
         (_NO_W, _layer_with(W=0.0)),
         ("W trains: freeze the layer inside with requires_grad_(False)", _layer_with(frozen=False))],
        (LowRank.__init__, Adapted.forward, LowRank.add_to), "A is (r, k) and B is (d, r); rows of x are tokens, so "
        "A x is written x @ A.T", answer=LoRALinear, seen=_seen_of_layer),
    "lora_gradients": Task(
        lora_gradients, _passes, "with z = A x: ∂L/∂B = s Σ G zᵀ over the tokens, and ∂L/∂A = s Σ (Bᵀ G) xᵀ",
        [("the scale is missing: the branch is s · B A x, so s stands in both gradients",
          _changed(lambda x, G, A, B, a: (x, G, A, B, len(A)))),
         ("you scale by α: s is α / r", _changed(lambda x, G, A, B, a: (x, G, A, B, a * len(A)))),
         ("the scale stands there twice", _changed(lambda x, G, A, B, a: (x, G, A, B, a * a / len(A)))),
         ("that is the mean over the tokens: gradients of tokens add up",
          _changed(lambda x, G, A, B, a: (x, G / len(x), A, B, a))),
         ("that is the step downhill: the gradient points uphill", _times(-1.0, -1.0)),
         ("the gradient of A is still zero", _times(0.0, 1.0)),
         ("the gradient of B is still zero", _times(1.0, 0.0)),
         ("both are still zero", _times(0.0, 0.0))],
        (), "G is (T, d), x is (T, k): grad_A is (r, k) like A, grad_B is (d, r) like B",
        answer=lora_gradients, seen=lambda pair: torch.cat([pair[0], pair[1].T], dim=1)),
    "lora_merge": Task(
        lora_merge, lambda: list(_CASES), "B (d, r) times A (r, k) has W's shape (d, k); scale it and add it to W",
        [(_NO_SCALE, _merged(lambda W, A, B, a: (W, A, B, len(A)))),
         (_ALPHA, _merged(lambda W, A, B, a: (W, A, B, a * len(A)))),
         (_UPSIDE_DOWN, _merged(lambda W, A, B, a: (W, A, B, len(A) ** 2 / a))),
         (_NO_W, _merged(lambda W, A, B, a: (0 * W, A, B, a))),
         (_NO_BRANCH, _merged(lambda W, A, B, a: (W, A, 0 * B, a))),
         (_MINUS, _merged(lambda W, A, B, a: (W, A, -B, a))),
         ("the scale belongs to the branch alone, not to W",
          _merged(lambda W, A, B, a: (W * a / len(A), A, B, a)))],
        (LowRank.live_factors, LowRank.delta, Adapted.merge), answer=answer_lora_merge),
    "count_parameters": Task(
        count_parameters, lambda: [(384, 384, 8), (1536, 384, 4)], "A holds r × k numbers; how many does B hold?",
        [("that is W's own number of parameters, and W is frozen", lambda d, k, r: d * k),
         ("that is A alone: B trains, too", lambda d, k, r: r * k),
         ("that is B alone: A trains, too", lambda d, k, r: r * d),
         ("that is one direction: there are r of them", lambda d, k, r: d + k),
         ("A and B are counted side by side: add their sizes, do not multiply them", lambda d, k, r: d * r * k),
         ("A and B are counted side by side: add their sizes, do not multiply them", lambda d, k, r: d * r * r * k),
         ("W is frozen and is not counted", lambda d, k, r: d * k + count_parameters(d, k, r))],
        (LowRank.__init__,), answer=answer_count_parameters),
    "alpha_by_rule": Task(
        alpha_by_rule, lambda: [(16.0, 8, 2), (4.0, 4, 16)],
        "return three values of α at the new rank: one that stays, one that keeps α / r, one that keeps α / √r",
        [("α is kept in all three: the second keeps α / r, the third α / √r", lambda a, r, new: [a, a, a]),
         ("those are the scales s: the function is to return α", lambda a, r, new: [
             value / new for value in alpha_by_rule(a, r, new)]),
         ("the second is the wrong way round: a larger rank needs a larger α to keep s", lambda a, r, new: [
             a, a * r / new, alpha_by_rule(a, r, new)[2]]),
         ("both are the wrong way round: a larger rank needs a larger α", lambda a, r, new: [
             a, a * r / new, a * math.sqrt(r / new)]),
         ("the third is the wrong way round: α / √r is to stay", lambda a, r, new: [
             a, alpha_by_rule(a, r, new)[1], a * math.sqrt(r / new)]),
         ("divide by the old rank: only the ratio of the two ranks matters", lambda a, r, new: [
             a, a * new, a * math.sqrt(new)]),
         ("the second and third are swapped", lambda a, r, new: [
             alpha_by_rule(a, r, new)[i] for i in (0, 2, 1)])],
        (Rule.branch,), answer=answer_alpha_by_rule),
})
