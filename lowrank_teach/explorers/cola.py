"""A chain solved live on matrix completion: its error with the knots, and the spectrum of all it has added up.

Used by 03 and 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist

from .. import style
from ..toys.frank_wolfe import Chain, Completion, completion, fit_chain
from ..widgets import Control, Picture

# d rows, k columns, r rank of a link, M links; S sweeps and the start


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
        right.set_ylim(0, 1.1 * self.wanted[0])
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
