"""The three kinds of claim, and what each becomes: a row of the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import verdicts
from .verdicts import Evidence

Folder = Path | str | None
Measure = Callable[[Folder], Evidence]


@dataclass(frozen=True)
class Row:
    """One claim with its verdict.

    key: such as "COLA 3".  where: table or figure.  says: the paper's number, "–" where none is verified.
    ours: mean and spread by arm.  differences: one a seed, in `unit`.  interval: 95 %, as `paired_bootstrap`.
    side, margin: what the claim says of the difference.  over: as in `Evidence`.
    why: setting, or the reason for there being no verdict.
    """

    key: str
    paper: str
    where: str
    statement: str
    says: str
    ours: str
    differences: Sequence[float]
    interval: tuple[float, float] | None
    verdict: str
    why: str
    unit: str = ""
    side: str = ""
    margin: float = 0.0
    over: str = "seeds"

    @property
    def difference(self) -> float | None:
        """Mean of the differences, or the middle of an interval that was measured without seeds."""
        if len(self.differences):
            return float(np.mean(self.differences))
        return None if self.interval is None else sum(self.interval) / 2

    def interval_words(self) -> str:
        """Such as "−0.30 [−1.20, 0.60] points"; without an interval the mean alone, "–" without runs."""
        if self.difference is None:
            return "–"
        ends = "" if self.interval is None else " [{}, {}]".format(*map(number, self.interval))
        return f"{number(self.difference)}{ends} {self.unit}".strip()


@dataclass(frozen=True)
class Compared:
    """A claim about which side of zero something lies on, over seeds.

    measure: folder of the studies -> Evidence; FileNotFoundError where there are no runs.
    side: ">", "<", or "≈" for within ± margin.  unit: of the differences, scaled by `scale` for reading.
    """

    where: str
    statement: str
    measure: Measure
    side: str = ">"
    says: str = "–"
    margin: float = 0.0
    unit: str = "points"
    scale: float = 100.0
    note: str = ""

    def row(self, key: str, paper: str, folder: Folder) -> Row:
        try:
            found = self.measure(folder)
        except FileNotFoundError as missing:
            return Row(key, paper, self.where, self.statement, self.says, "–", (), None, verdicts.NO_RUNS,
                       str(missing), self.unit, self.side, self.margin)
        scaled = [self.scale * d for d in found.differences]
        if found.interval is None:
            said, interval = verdicts.verdict(scaled, self.side, self.margin)
        else:
            interval = (self.scale * found.interval[0], self.scale * found.interval[1])
            said = verdicts.judge(interval, self.side, self.margin)
        few = f"{len(scaled)} of {verdicts.SEEDS} seeds" if said == verdicts.NO_RUNS else ""
        why = "; ".join(filter(None, (few, found.setting, self.note)))
        return Row(key, paper, self.where, self.statement, self.says, ours(found.ours, self.scale), scaled, interval,
                   said, why, self.unit, self.side, self.margin, found.over)


@dataclass(frozen=True)
class Exact:
    """A statement about the method itself: computed on the spot, in float64, with no seeds to average over.

    check: the largest violation found; it holds up to `tolerance`.  how: what was computed.
    """

    where: str
    statement: str
    check: Callable[[], float]
    how: str
    says: str = "–"
    tolerance: float = 1e-12

    def row(self, key: str, paper: str, folder: Folder) -> Row:
        gap = self.check()
        said = verdicts.EXACT if gap <= self.tolerance else verdicts.BROKEN
        return Row(key, paper, self.where, self.statement, self.says, f"largest violation {gap:.0e}" if gap else
                   "no violation", (), None, said, self.how)


@dataclass(frozen=True)
class Beyond:
    """A statement that nothing here can speak to. needs: the model, data or metric that is missing."""

    where: str
    statement: str
    needs: str
    says: str = "–"
    note: str = ""

    def row(self, key: str, paper: str, folder: Folder) -> Row:
        why = "; ".join(filter(None, (f"needs {self.needs}", self.note)))
        return Row(key, paper, self.where, self.statement, self.says, "–", (), None, verdicts.UNTESTABLE, why)


Claim = Compared | Exact | Beyond


def rows(paper: str, claims: Sequence[Claim], folder: Folder = None) -> list[Row]:
    """Every claim of a paper with its verdict, in the paper's order."""
    return [claim.row(f"{paper} {i}", paper, folder) for i, claim in enumerate(claims, 1)]


def number(x: float) -> str:
    """Two or three digits that count, and a true minus sign."""
    size = abs(x := 0.0 if abs(x) < 1e-9 else x)   # rounding
    how = ",.0f" if size >= 1000 else ".1f" if size >= 10 else ".2f" if size >= 0.1 or not x else ".1g"
    return f"{x:{how}}".replace("-", "−")


def ours(by_arm: Mapping[str, Sequence[float]], scale: float) -> str:
    """ "LoRA: 72.1 ± 0.8; COLA: 71.9 ± 0.5": mean and standard deviation over seeds."""
    def words(values: Sequence[float]) -> str:
        v = scale * np.asarray(values, dtype=float)
        return number(float(v.mean())) + (f" ± {number(float(v.std(ddof=1)))}" if len(v) > 1 else "")

    return "; ".join(f"{arm}: {words(values)}" for arm, values in by_arm.items() if len(values)) or "–"
