"""The pictures behind SaLoRA's sliders: one hard-concrete gate, a budget on stored gates, stored runs over b.

Each is a `widgets.Picture`. The gate and the budget are computed live from `gates.Stretch` and `measure.density`;
`SaloraRuns` snaps to stored runs and says so. Used by 04 and 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from .. import measure, style
from ..gates import Stretch
from ..widgets import SNAPPED, Control, Picture

# n gates of all sites in a row, S stored steps, G points of a curve

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
    """The gates that a run ended with, under a budget that you choose: its pull, and what a rule would keep.

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
        return measure.density({site: self.stretch.open_probability(t) for site, t in theta.items()}, self.sizes)

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
