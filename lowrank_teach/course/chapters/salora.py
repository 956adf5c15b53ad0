"""Notebook 04, SaLoRA: its pictures, sliders and exercises.

The sliders show one hard-concrete gate and a budget on stored gates, both computed live with `gates.Stretch` and
`measures.density`, and stored runs by target density. n sites or gates, r rank, d out, k in, T or S steps.
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
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...analysis import measures, style
from ...analysis.plots import Numbers
from ...gates import HardConcrete, Stretch
from ...lowrank import LowRank
from ...methods.salora import SaLoRA, SaLoRARule, _off_identity
from ..exercises import EXERCISES, Task
from ..explorer import SNAPPED, Control, Picture
from ..schematic import arrow, canvas, matrix

# ---- pictures ---------------------------------------------------------------------------------------------


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
    return fig


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
    style.dress(ax, "log θ", "Value (log)")
    ax.set_yscale("log")
    style.legend(fig)
    return fig


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
    style.dress(ax, "log θ when the window closed", "Gates")
    style.legend(fig)
    return fig


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
    style.legend(fig)
    return fig


def density_sweep(scores: Mapping[float, Numbers], reached: Mapping[str, Mapping[float, Numbers]], *,
                  score: str) -> Figure:
    """What a target density costs, and what becomes of it.

    Args: target b -> one score a seed, LoRA's at 1; name -> b -> one density a seed; score: the score's name.
    """
    fig, (left, right) = style.panels(2, 2, 2.9, None)
    for name, color, at in (("SaLoRA", style.GREEN, set(scores) - {1}), ("LoRA", style.BLUE, {1})):
        style.seed_strip(left, {b: scores[b] for b in sorted(at)}, color=color, label=name, upright=True)
    for name, look in style.looks(reached).items():
        style.seed_curve(right, reached[name], look)
    style.dress(left, "Target density b (LoRA: 1)", score)
    style.dress(right, "Target density b", "Density at the end")
    style.legend(fig)
    return fig


def dots_by_arm(columns: Mapping[str, Mapping[str, Numbers]], *, lines: Mapping[str, float] | None = None) -> Figure:
    """One panel a measure, one row an arm: a dot a seed, a bar at their mean.

    Args: measure -> arm -> one value a seed; all with the same arms; lines: measure -> a dashed reference.
    """
    arms = list(next(iter(columns.values())))
    fig, axes = style.panels(len(columns), len(columns), 0.9 + 0.34 * len(arms), None, sharey=True)
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        style.seed_strip(ax, {arm: values[arm] for arm in arms})
        if lines and name in lines:
            ax.axvline(lines[name], color=style.ORANGE, linestyle="--", label=f"target {lines[name]:g}")
        ax.margins(x=0.12)
        style.dress(ax, name, "")
    style.legend(fig)
    return fig


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


def prune_and_fold(lora_B: Tensor, log_theta: Tensor) -> Tensor:
    """The (d, r′) that is left of B (d, r) when the library closes the window: pruned, and its gates folded in."""
    d, r = lora_B.shape
    gate = HardConcrete(Stretch(), r)
    branch = LowRank(r, d, r, gate=gate)
    gate.log_theta.data, branch.lora_B.data, gate.phase = log_theta.clone(), lora_B.clone(), "deterministic"
    rule = SaLoRA().rule()
    rule.adapters = {"0": branch}  # type: ignore[assignment]
    rule.loop = SimpleNamespace(optimizer=torch.optim.SGD(branch.parameters()))  # type: ignore[assignment]
    rule._prune(branch, gate.settled().nonzero().flatten())
    rule._fold(branch)
    return branch.lora_B.detach()


def gates_of_a_run(log_theta: Tensor, noise: Noise) -> Tensor:
    """The library's sampled gates (T, r) at log θ (T, r), with the noise of each step."""
    gate = HardConcrete(Stretch(), log_theta.shape[1])
    gate.phase = "sampled"
    drawn = []
    for step, values in enumerate(log_theta):
        gate.log_theta.data, gate.u = values, noise(step)
        drawn.append(gate().detach())
    return torch.stack(drawn)


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


def _pruned(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """B with other factors on its columns: the deterministic gate's zeros decide which are left."""
    return lambda B, log_theta: (B * change(log_theta))[:, Stretch().deterministic(log_theta) > 0]


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
    ("the columns are right, but their gates are not folded in: the function would jump", _pruned(torch.ones_like)),
    ("folded with E[g]: use the deterministic gate, the one that the network has when the noise ends",
     _pruned(Stretch().mean)),
    ("folded with P(g > 0), a probability: use the deterministic gate", _pruned(Stretch().open_probability)),
    ("those are the directions that should go: keep where the gate is above zero",
     lambda B, t: B[:, Stretch().deterministic(t) == 0]))

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


def _columns(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(8, 6, generator=g), torch.tensor([-3.0, 0.4, -2.5, -1.1, -2.2, -4.0])


EXERCISES.update({
    "sample_gate": Task(
        sample_gate, _gate_cases,
        "add logit u and log θ, divide by τ, take the sigmoid, stretch to (γ, ζ), clip to [0, 1]", _SAMPLE,
        (Stretch.sample,), "u, log_theta and the result are (r,) each"),
    "open_probability": Task(
        open_probability, lambda: [case[1:] for case in _gate_cases()],
        "the gate is 0 where the stretched sigmoid is not above 0: solve that for logit u", _OPEN,
        (Stretch.open_probability,), "log_theta and the result are (r,)"),
    "expected_density": Task(
        expected_density, lambda: [_sites(0), _sites(1)],
        "above the bar each p times its site's d + k; below it the same with p = 1", _DENSITY,
        (SaLoRARule.density, measures.density), "p is (n, r), d and k are (n,): sum p over r first"),
    "ascend_lambda": Task(
        ascend_lambda, lambda: [(torch.tensor([0.0, 0.3, -0.5, 0.2]), torch.tensor([0.92, 0.6, 0.7, 0.3]), b, 0.1)
                                for b in (0.5, 0.4)],
        "λ plus η_c times (C − b)², then never below 0", _ASCEND, (SaLoRARule._ascend,),
        "lam, C and the result are (n,) each"),
    "orthogonality_penalty": Task(
        orthogonality_penalty, lambda: [_factors(0), _factors(1)],
        "‖A Aᵀ − I‖² + ‖BᵀB − I‖²: squares of all entries, added up, with I of r × r", _R,
        (SaLoRARule.orthogonality, _off_identity), "A is (r, k) and B is (d, r): A Aᵀ and BᵀB are (r, r)"),
    "prune_and_fold": Task(
        prune_and_fold, lambda: [_columns(0), _columns(1)],
        "the deterministic gate is 0 where log θ ≤ −log 11: drop those columns, multiply the others by their gates",
        _PRUNE, (SaLoRARule._prune, SaLoRARule._fold), "B is (d, r), the gates are (r,): one a column"),
    "gates_of_a_run": Task(
        gates_of_a_run, lambda: [(_path(seed), _noise(seed)) for seed in (1, 2)],
        "row t of the result is a draw at row t of log_theta with noise(t)", _DEBUG,
        (SaLoRARule.before_step, HardConcrete.forward), "log_theta is (T, r), noise(t) is (r,): stack T rows"),
})
