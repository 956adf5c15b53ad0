"""Notebook 00, start here: the memory bill, the map of the four papers, the first table, and a check of the machine.

r rank, L layers, N examples, S steps.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from packaging.requirements import Requirement

from ...analysis import measures, style
from ...experiments.compare import LINEUP
from ...experiments.memory import GIB, MemoryPlan, plan_memory
from ...experiments.runs import Run
from ...methods import FullFineTuning, LoRA
from ...tasks.task import TaskData
from ...training.config import TrainConfig
from ..by_hand import guess, scored
from ..exercises import predict
from ..schematic import arrow, canvas, matrix
from ..training_button import train_now as train_now  # what the notebook shows

# ---- the machine ------------------------------------------------------------------------------------------


def environment(packages: Iterable[str] = ("numpy", "torch", "ipywidgets"), *, prefix: str = "",
                variables: Mapping[str, str] | None = None) -> list[str]:
    """Say in sentences whether this kernel runs what is installed beside this package.

    Args:
        packages: import names of packages whose running version is compared with the installed one.
        prefix, variables: of another environment, for tests; by default this interpreter's own.
    """
    prefix, variables = prefix or sys.prefix, os.environ if variables is None else variables
    wanted = {one.name: one.specifier for one in map(Requirement, requires("lowrank-teach") or [])}
    said = [_runs(name, wanted, prefix) for name in packages]
    return [*said, _kernel(prefix, variables)]


def _runs(name: str, wanted: Mapping[str, Any], prefix: str) -> str:
    try:
        module = import_module(name)
        installed = version(name)
    except (ImportError, PackageNotFoundError):
        return f"✗ {name} is not installed here: run `make lab`, or pip install \"lowrank-teach[lab]\"."
    running, asked = str(module.__version__), wanted.get(name, "")
    if running != installed:
        return (f"✗ {name} {running} is running, but {installed} is installed: it was changed while this kernel ran. "
                "Restart the kernel.")
    if asked and not asked.contains(running, prereleases=True):
        return f"✗ {name} {running} is running, and this package asks for {asked}: run `make lab` again."
    if not _inside(module.__file__, prefix):
        return (f"✗ {name} {running} comes from {Path(module.__file__ or '').parent}, outside this kernel's "
                "environment: another installation hides the one that was meant.")
    return f"✓ {name} {running} is running; it is the version installed in this environment" + (
        f", and the package asks for {asked}." if asked else ".")


def _kernel(prefix: str, variables: Mapping[str, str]) -> str:
    here = distribution("lowrank-teach").version
    active = variables.get("VIRTUAL_ENV") or variables.get("CONDA_PREFIX") or prefix
    if Path(active).resolve() != Path(prefix).resolve():
        return (f"✗ The kernel's Python belongs to {prefix}, but the active environment is {active}: choose the "
                "kernel of that environment in the menu (Kernel, Change Kernel), or start with `make lab`.")
    return (f"✓ The kernel's Python {sys.version.split()[0]} belongs to the environment that is active, "
            f"and lowrank-teach {here} is installed there.")


def _inside(file: str | None, prefix: str) -> bool:
    return bool(file) and Path(prefix).resolve() in Path(str(file)).resolve().parents


# ---- the memory bill --------------------------------------------------------------------------------------

PARTS = {"frozen weights": ("weights", "kept", "unpacked"), "weights that train": ("branches", "head"),
         "gradients": ("gradients",), "AdamW's moments": ("moments",), "activations": ("activations", "logits")}


def bills(backbone: str = "llama-7b", length: int = 512) -> dict[str, MemoryPlan]:
    """Plan the memory of one training step of one text of `length` tokens, layers recomputed: name -> plan."""
    how = {"full fine-tuning": (FullFineTuning(), "float32"), "LoRA, W in 32 bits": (LoRA(), "float32"),
           "LoRA, W in 16 bits": (LoRA(), "bfloat16"), "LoRA, W in 4 bits": (LoRA(), "4bit")}
    return {name: plan_memory(method, backbone, TrainConfig(batch_size=1, base_dtype=dtype,
                                                            gradient_checkpointing=True), length=length)
            for name, (method, dtype) in how.items()}


def _parts(plan: MemoryPlan) -> dict[str, float]:
    """Part of the bill -> GiB. Full fine-tuning freezes nothing."""
    gib = {name: sum(getattr(plan, field) for field in fields) / GIB for name, fields in PARTS.items()}
    if plan.setting.startswith("full"):
        gib["weights that train"] += gib.pop("frozen weights")
    return {name: gib.get(name, 0.0) for name in PARTS}


def bill(plans: Mapping[str, MemoryPlan]) -> Figure:
    """Draw the memory of each plan as a bar of its parts, with two sizes of graphics cards as lines."""
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.5 * len(plans), "Memory of one training step of LLaMA-7B "
                                                           "(6.7 billion parameters)")
    inks = dict(zip(PARTS, colormaps["cividis"](np.linspace(0.95, 0.05, len(PARTS))), strict=True))
    names = list(plans)[::-1]
    left = np.zeros(len(names))
    for part, ink in inks.items():
        width = np.array([_parts(plans[name])[part] for name in names])
        ax.barh(names, width, left=left, color=ink, label=part, height=0.62, edgecolor="white", linewidth=0.5)
        for y, (x, w) in enumerate(zip(left, width, strict=True)):
            if w > 8:
                ax.text(x + w / 2, y, f"{w:.1f}", ha="center", va="center", fontsize=9,
                        color=style.text_color(ink))
        left += width
    for y, total in enumerate(left):
        ax.text(total + 1, y, f"{total:.1f} GiB", va="center", fontsize=10, fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    for card in (24, 80):
        ax.plot([card, card], [-0.5, len(names) - 0.5], color=style.BLACK, linestyle="--", linewidth=1)
        ax.text(card, len(names) - 0.45, f"a card of {card} GiB", ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(0, 1.17 * left.max()), ylim=(-0.5, len(names) - 0.05))
    style.dress(ax, "GiB", "")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    said = "; ".join(f"{name} {plan.total / GIB:.1f} GiB" for name, plan in plans.items())
    fig.set_label(f"Four stacked horizontal bars of memory by part: {said}. Dashed lines: cards of 24 and 80 GiB.")
    return fig


def finding_bill(plans: Mapping[str, MemoryPlan]) -> str:
    """Say what full fine-tuning and LoRA take, why they differ, and what a task leaves on the disk."""
    full, lora = plans["full fine-tuning"], plans["LoRA, W in 16 bits"]
    twin = _parts(plans["LoRA, W in 32 bits"])
    whole, state = full.total / GIB, ("gradients", "AdamW's moments")
    fits = [name for name, plan in plans.items() if plan.fits(24)]
    return (f"Full fine-tuning takes {whole:.0f} GiB, of which {sum(_parts(full)[p] for p in state):.0f} GiB are "
            f"gradients and moments. LoRA of rank 8 on W_q and W_v has {1024 * sum(twin[p] for p in state):.0f} MiB "
            f"of these, since it trains {lora.branches / 4 / 1e6:.1f} million parameters; what remains is the frozen "
            f"network. A card of 24 GiB has room for {len(fits)} of "
            f"these {len(plans)}{': ' if fits else ''}{'; '.join(fits)}. A trained task "
            f"is stored in {lora.branches / 2**20:.0f} MiB instead of {full.weights / GIB:.0f} GiB.")


def predict_size(d: int, k: int, r: int) -> None:
    """Ask for the number of values in A and B, and for the highest rank of their product."""
    predict(f"W_q is {d} × {k}. How many parameters does LoRA train there at r = {r}, and what share of W_q is that?",
            f"A has r · k = {r * k:,} and B has d · r = {d * r:,}, together {r * (d + k):,}: "
            f"{r * (d + k) / (d * k):.1%} of the {d * k:,} numbers of W_q. The product BA has all d · k entries, but "
            f"never a rank above {r}.")


def predict_whole_rank(r: int, links: int) -> None:
    """Ask for the rank of the whole change of COLA and Delta-LoRA."""
    predict(f"Each method trains branches of rank {r}. What is the highest rank that the whole change of W can have "
            f"in LoRA, in COLA with {links} links, and in Delta-LoRA?",
            f"LoRA: {r}, the branch is all there is. COLA: {links * r}, since {links} products of rank {r} are added."
            f" Delta-LoRA: {2 * r}, since the change is a multiple of the last BA minus a multiple of the BA with "
            "which W began to move, and nothing else is left of all the steps between.")


# ---- the map of the four papers ---------------------------------------------------------------------------


def paper_map() -> Figure:
    """Draw h = W x + s B A x, and what each of the four papers changes in it."""
    fig, ax = canvas(9.0, 4.9)
    y = 2.0
    ax.text(0.72, y + 0.6, "h  =", fontsize=15, ha="center", va="center")
    matrix(ax, 1.25, y, 1.2, 1.2, style.PALE, "W", "frozen, d × k")
    ax.text(2.85, y + 0.6, "x   +   s ·", fontsize=15, ha="left", va="center")
    matrix(ax, 4.3, y, 0.36, 1.2, style.BLUE, "B", "d × r")
    ax.text(4.95, y + 0.6, "·", fontsize=18, ha="center", va="center")
    matrix(ax, 5.25, y + 0.42, 1.2, 0.36, style.BLUE, "A", "r × k")
    ax.text(6.6, y + 0.6, "x", fontsize=15, ha="left", va="center")
    ax.text(7.25, y + 0.6, "LoRA: W is frozen,\nonly A and B train", fontsize=10, ha="left", va="center",
            color=style.BLUE)
    for label, x, low, lines, start, end in (
            ("cola", 0.15, 3.75, "COLA: a chain. Adds s·BA to W at a knot,\nthen trains a fresh pair A, B",
             (1.85, 3.7), (1.85, 3.28)),
            ("salora", 4.75, 3.75, "SaLoRA: a gate on each direction, B diag(g) A.\nGates that close are cut off",
             (5.6, 3.7), (4.95, 2.82)),
            ("delta_lora", 0.15, 0.15, "Delta-LoRA: W moves, too. After each step\nW gets λ times the change of s·BA",
             (1.85, 1.05), (1.85, 1.62)),
            ("autolora", 4.75, 0.15, "AutoLoRA: learns on held-out examples how\nmany directions r each matrix needs",
             (5.6, 1.05), (5.05, 2.25))):
        ink = style.METHOD_STYLE[label][1]
        ax.add_patch(Rectangle((x, low), 4.1, 0.86, facecolor=ink, edgecolor=ink, alpha=0.22))
        ax.text(x + 0.12, low + 0.43, lines, fontsize=10, ha="left", va="center")
        arrow(ax, start, end, color=ink, width=2.2)
    fig.set_label("The formula h = W x + s B A x drawn with matrices. Arrows lead from four boxes to the part that a "
                  "paper changes: COLA and Delta-LoRA to W, SaLoRA and AutoLoRA to the gap between B and A.")
    return fig


# ---- the network trained by hand --------------------------------------------------------------------------


def entropy(labels: Sequence[int]) -> float:
    """Return the loss, in nats, of who knows the share of each class and nothing of the text."""
    return guess(labels, classes=2)[0]


def majority(data: TaskData) -> float:
    """Return the share of test examples in their largest class: the accuracy of always saying it."""
    return guess(scored(data), len(data.task.labels))[1] or 0.0


def _smooth(losses: Sequence[float], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and running means of `width` losses."""
    means = np.convolve(losses, np.ones(width) / width, mode="valid")
    return np.arange(width, len(losses) + 1), means


def learning(losses: Mapping[str, Sequence[float]], chance: float) -> Figure:
    """Draw training losses, label -> (S,), as running means of ten steps, with the entropy of the classes."""
    fig, (ax,) = style.panels(1, 1, 3.1, None, width=8.2)
    for name, look in style.looks(losses).items():
        ax.plot(*_smooth(losses[name], 10), **{**look, "marker": "", "linewidth": 2})
    ax.axhline(chance, color=style.BLACK, linestyle="--", linewidth=1, label=f"chance: entropy {chance:.2f}")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    style.dress(ax, "Optimizer step", "Training loss (mean of 10 steps)", "Training loss beside chance")
    style.legend(fig)
    said = ", ".join(f"{style.METHOD_STYLE.get(name, (name,))[0]} ends at {np.mean(loss[-10:]):.2f}"
                     for name, loss in losses.items())
    fig.set_label(f"Training loss by optimizer step, one line a method; {said}. A dashed line marks chance, "
                  f"{chance:.2f}.")
    return fig


def finding_learning(losses: Mapping[str, Sequence[float]], chance: float) -> str:
    """Say of each curve where it ends, and which end below chance."""
    ends = {style.METHOD_STYLE.get(name, (name,))[0]: float(np.mean(loss[-10:])) for name, loss in losses.items()}
    order = sorted(ends, key=ends.__getitem__)
    said = "; ".join(f"{name}: {ends[name]:.2f}" for name in order)
    below = [name for name in order if ends[name] < chance - 0.02]
    gap, verb = ends[order[-1]] - ends[order[0]], "is" if len(below) == 1 else "are"
    return (f"Mean loss of the last ten steps: {said}. Of these {len(order)}, {len(below)} {verb} below chance "
            f"({chance:.2f}) by more than 0.02. The lowest and the highest are {gap:.2f} apart; ten steps of 16 "
            "examples are few, so small gaps between two curves mean nothing.")


def finding_by_hand(losses: Mapping[str, Sequence[float]], right: Mapping[str, np.ndarray], largest: float) -> str:
    """Say where both losses end and what LoRA's branches add on test examples, with a 95 % interval of the examples.

    Args: label -> (S,) losses; label -> (N,) whether an example was right, both with "head" and "lora"; largest:
    share of the largest class.
    """
    lora, head = (float(np.mean(losses[name][-10:])) for name in ("lora", "head"))
    mean, half = _paired(right["lora"], right["head"])
    what = "more than the examples leave open" if abs(mean) > half else "no more than the examples leave open"
    return (f"The loss of the last ten steps is {lora:.2f} with LoRA and {head:.2f} with the frozen network. On "
            f"{len(right['lora'])} test examples LoRA is right in {right['lora'].mean():.1%}, the frozen network in "
            f"{right['head'].mean():.1%}, and saying always the larger class in {largest:.1%}. LoRA − frozen is "
            f"{100 * mean:+.1f} ± {100 * half:.1f} points: {what}.")


def _paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the mean of a − b over examples and half of its 95 % interval."""
    d = a.astype(float) - b.astype(float)
    return float(d.mean()), float(1.96 * d.std(ddof=1) / math.sqrt(len(d)))


# ---- all methods ------------------------------------------------------------------------------------------

LINE: dict[str, Any] = {name: LINEUP[name] for name in ("head", "lora", "cola-3", "salora", "delta_lora", "autolora")}
COST = {"head": 0.4, "salora": 2.2, "autolora": 1.8}   # of a step, LoRA's is one; only for the time left


def head_rate(backbone: str, rate: float) -> float:
    """Return a learning rate at which the head alone learns: 0.05 for a classifier on a pooler that was pretrained.

    At the others' rate, which a head with a new pooler keeps, such a classifier stays at the larger class.
    """
    return 0.05 if backbone == "minilm-l6" else rate


def progress(runs: Mapping[str, Run], methods: Iterable[str] = tuple(LINE)) -> str:
    """Say of the last run how long it took, or that it was found, and about how long the rest will take."""
    label, run = list(runs.items())[-1]
    name = style.METHOD_STYLE[label][0]
    waiting = [one for one in methods if one not in runs]
    spent = {one: run.seconds["total"] for one, run in runs.items() if not run.found}
    took = f"{name}: found in the store, not trained again" if run.found else (
        f"{name}: trained in {run.seconds['total']:.0f} s")
    if not waiting:
        return f"{took}; all are done"
    if not spent:
        return f"{took}; {len(waiting)} to go"
    pace = sum(spent.values()) / sum(COST.get(one, 1.0) for one in spent)
    return f"{took}; {len(waiting)} to go, about {pace * sum(COST.get(one, 1.0) for one in waiting):.0f} s"


def whole_ranks(run: Run) -> list[int]:
    """Return the numerical rank of each matrix's whole change: what W received and what stands beside it."""
    return [measures.numerical_rank(measures.singular_values(*pair)) for pair in run.factors.values()]


def _span(values: Sequence[int]) -> str:
    return "–".join(dict.fromkeys([str(min(values)), str(max(values))])) if values else "none"


def table(runs: Mapping[str, Run], data: TaskData) -> pd.DataFrame:
    """Make a row a method, and one of the majority class: accuracy, what trained, both ranks, times."""
    rows = [{"method": "majority class", "test accuracy": f"{majority(data):.3f}", "trained parameters": "0",
             "matrices": "none", "rank of the live branch": "none", "rank of the whole change": "none",
             "ms a step": "–", "seconds in all": "–"}]
    for label, run in runs.items():
        rows.append({
            "method": style.METHOD_STYLE[label][0], "test accuracy": f"{run.right().mean():.3f}",
            "trained parameters": f"{run.parameters['trainable']:,}", "matrices": str(len(run.ranks) or "none"),
            "rank of the live branch": _span(list(run.ranks.values())),
            "rank of the whole change": _span(whole_ranks(run)),
            "ms a step": f"{1000 * run.seconds['training'] / run.seconds['steps.training']:.0f}",
            "seconds in all": f"{run.seconds['total']:.0f}"})
    return pd.DataFrame(rows).set_index("method")


OWN = {"cola": ("chain",), "salora": ("b", "beta", "eta_c", "t_start", "t_end"), "delta_lora": ("lam", "K"),
       "autolora": ("search_steps", "eta_beta", "split")}


def differences(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Make a row a method: how A starts, which matrices, the learning rate, and the numbers of its own rule."""
    rows = []
    for label, run in runs.items():
        method, training = run.config["method"], run.config["training"]
        letters = dict.fromkeys(f"W_{site.rpartition('.')[2]}" for site in run.ranks)
        own = ", ".join(f"{name} = {method[name]}" for name in OWN.get(method["method"], ()))
        rows.append({"method": style.METHOD_STYLE[label][0], "start of A": method["init"] if run.ranks else "no A",
                     "matrices of a layer": ", ".join(letters) or "none", "learning rate": f"{training['lr']:g}",
                     "the rule's own numbers": own or "none"})
    return pd.DataFrame(rows).set_index("method")


def what_differs(runs: Mapping[str, Run]) -> str:
    """Say in a sentence which settings are equal in all runs with branches, and which are not."""
    frame = differences({label: run for label, run in runs.items() if run.ranks})
    equal = [name for name in frame if frame[name].nunique() == 1]
    other = [name for name in frame if frame[name].nunique() > 1]
    return (f"Equal in all methods with a branch: {', '.join(equal) or 'none of these columns'}. Different: "
            f"{', '.join(other) or 'none'}.")


def scores(runs: Mapping[str, Run], data: TaskData) -> Figure:
    """Draw the accuracy of each run with the 95 % interval of its test examples, and the majority class."""
    largest = majority(data)
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.38 * len(runs), None, width=8.2)
    names = [style.METHOD_STYLE[label][0] for label in runs][::-1]
    for y, label in enumerate(list(runs)[::-1]):
        right = runs[label].right()
        p, half = right.mean(), 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / len(right))
        _, color, _, marker = style.METHOD_STYLE[label]
        ax.errorbar(p, y, xerr=half, color=color, marker=marker, markersize=8, capsize=4, linewidth=1.6)
        ax.annotate(f"{p:.3f}", (p, y), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    ax.axvline(largest, color=style.BLACK, linestyle="--", linewidth=1)
    ax.text(largest, len(runs) - 0.35, f"  always the larger class: {largest:.3f}", fontsize=9, va="center")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(runs) - 0.05)
    style.dress(ax, f"Accuracy on {len(runs['lora'].right())} test examples, with 95 % intervals", "")
    said = ", ".join(f"{style.METHOD_STYLE[label][0]} {run.right().mean():.3f}" for label, run in runs.items())
    fig.set_label(f"One dot with an interval a method on an axis of accuracy: {said}. A dashed line marks the larger "
                  f"class, {largest:.3f}.")
    return fig


def finding_scores(runs: Mapping[str, Run], data: TaskData) -> str:
    """Say which methods beat the head alone and which differ from LoRA by more than the test examples leave open."""
    name = {label: style.METHOD_STYLE[label][0] for label in runs}
    largest, head = majority(data), runs["head"].right()
    against_head = {label: _paired(run.right(), head) for label, run in runs.items() if label != "head"}
    better = [name[label] for label, (mean, half) in against_head.items() if mean > half]
    other = {label: _paired(run.right(), runs["lora"].right()) for label, run in runs.items()
             if label not in ("head", "lora")}
    apart = [f"{name[label]} ({100 * mean:+.1f} ± {100 * half:.1f} points)" for label, (mean, half) in other.items()
             if abs(mean) > half]
    p, n = head.mean(), len(head)
    control = ("is above the larger class" if p - 1.96 * math.sqrt(p * (1 - p) / n) > largest
               else "cannot be told from saying the larger class")
    beats = "every method with a branch" if len(better) == len(against_head) else ", ".join(better) or "no method"
    return (f"The head alone, {p:.3f}, {control}, {largest:.3f}. Compared example by example, {beats} is better than "
            f"the head alone. Different from LoRA by more than these {n} examples leave open: "
            f"{', '.join(apart) or 'none'}. This is one seed: another one moves each dot again.")


def finding_ranks(runs: Mapping[str, Run]) -> str:
    """Say which kinds of matrices kept most and least in SaLoRA, and how AutoLoRA's ranks spread."""
    kept: dict[str, list[int]] = {}
    for site, rank in runs["salora"].ranks.items():
        kept.setdefault(f"W_{site.rpartition('.')[2]}", []).append(rank)
    means = {letter: float(np.mean(ranks)) for letter, ranks in kept.items()}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    r, auto = runs["salora"].config["method"]["r"], list(runs["autolora"].ranks.values())
    spread = (f"SaLoRA keeps most in {most} ({means[most]:.1f} of {r} directions on average over the layers) and "
              f"least in {least} ({means[least]:.1f})" if means[most] > means[least] else
              f"SaLoRA keeps {means[most]:.1f} of {r} directions in every kind of matrix")
    return (f"{spread}. AutoLoRA chooses ranks from {min(auto)} to {max(auto)}, {np.mean(auto):.1f} on average. "
            "Whether such a pattern comes back with another seed is asked in 04 and 06.")


def checks(runs: Mapping[str, Run]) -> list[str]:
    """Check what must hold in every run on every machine, and say each in a sentence.

    Raises:
        AssertionError: one of them does not hold; says which.
    """
    first = {label: run.series("loss")[1][0] for label, run in runs.items() if label != "autolora"}
    gap = max(first.values()) - min(first.values())
    assert gap < 1e-3, f"B starts at zero, so all networks must start equal; their first losses differ by {gap:.1e}"
    share = max(run.parameters["trainable"] / run.parameters["total"] for run in runs.values())
    assert share < 0.02, f"a method trained {share:.1%} of the network; each should stay under 2 %"
    assert set(runs["lora"].ranks.values()) == {8}, "LoRA cuts nothing off, so all ranks must be 8"
    full = 8 * len(runs["salora"].ranks)
    kept = sum(runs["salora"].ranks.values())
    assert kept < full, "SaLoRA should have cut some directions off"
    links = runs["cola-3"].config["method"]["chain"]
    assert max(whole_ranks(runs["cola-3"])) <= 8 * links, "a chain's rank cannot exceed the sum of its links'"
    return [f"✓ B starts at zero, so all networks start equal: the largest difference of their first losses is "
            f"{gap:g} (AutoLoRA is left out, because its search holds half of the examples back).",
            f"✓ No method trains more than {share:.2%} of the parameters of its network.",
            f"✓ LoRA keeps all 8 directions everywhere; SaLoRA keeps {kept} of {full}.",
            f"✓ The whole change of COLA has at most rank {max(whole_ranks(runs['cola-3']))}, and {links} links of "
            f"rank 8 allow {8 * links}."]
