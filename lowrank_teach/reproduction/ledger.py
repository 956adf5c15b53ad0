"""The ledger: every claim with its verdict, the summary of all, and the runs behind a row made once more."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import false_discovery_control

from ..analysis.statistics import SEEDS
from ..experiments.runs import Store
from . import claims, results, studies, texts, verdicts
from .arms import STUDIES, TASK_STUDIES, TEXT_STUDIES
from .studies import OnRun
from .verdicts import (
    BROKEN,
    CHANCE,
    CONTRADICTED,
    DECIDED,
    EQUAL,
    EXACT,
    NO_RUNS,
    OPEN,
    SUPPORTED,
    UNSOUND,
    UNTESTABLE,
    VERDICTS,
    Arm,
    Beyond,
    Claim,
    Compared,
    Exact,
    Folder,
    FromBench,
    FromRuns,
    Row,
    folder_of,
    number,
    rows,
)

# ---- the ledger --------------------------------------------------------------------------------------------
# The claims ledger: every checkable statement of the papers, held against runs, with a verdict nobody typed.
#
#     ledger.table("COLA")          # statement, the paper's number, ours, interval, verdict
#     ledger.ledger()               # the same as rows, for all papers
#     ledger.reproduce("COLA 1")    # its runs once more, and the new verdict beside the stored one
#
# A verdict comes from stored studies (`lowrank_teach.reproduction.studies`) by the rule in `verdicts`, from a check
# run on the spot, or says what is missing. Taught in 11; `lowrank-teach claims` prints it.
CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "LoRA": claims.LORA_CLAIMS, "COLA": claims.COLA_CLAIMS, "SaLoRA": claims.SALORA_CLAIMS,
    "Delta-LoRA": claims.DELTA_LORA_CLAIMS,
    "AutoLoRA": claims.AUTOLORA_CLAIMS}


def ledger(paper: str | Iterable[str] | None = None, folder: Folder = None, task: str | None = None,
           verdict: str | None = None) -> list[Row]:
    """Return the rows of one paper, of several, or of all.

    Args:
        folder: of the stored studies; None takes the checkout's own.
        task, verdict: only rows of this task, or with this verdict.

    Raises:
        KeyError: there are no claims of this paper, no rows of this task, or no such verdict.
    """
    papers = list(CLAIMS) if paper is None else [paper] if isinstance(paper, str) else list(paper)
    if unknown := [name for name in papers if name not in CLAIMS]:
        raise KeyError(f"no claims of {unknown[0]!r}; there are claims of {', '.join(CLAIMS)}")
    found = corrected([row for name, claims in CLAIMS.items() for row in rows(name, claims, folder)])
    tasks = sorted({row.task for row in found} - {""})
    if task is not None and task not in tasks:
        raise KeyError(f"no rows of task {task!r}; there are rows of {', '.join(tasks)}")
    if verdict is not None and verdict not in VERDICTS:
        raise KeyError(f"no verdict {verdict!r}; there are {', '.join(VERDICTS)}")
    return [row for row in found if row.paper in papers and task in (None, row.task)
            and verdict in (None, row.verdict)]


def corrected(found: Sequence[Row]) -> list[Row]:
    """Return the rows, each told whether its verdict stands among all that were tested.

    Two families, each held to a false discovery rate of 5 % (Benjamini and Hochberg 1995): all tests that there is no
    difference, on which "supported" and "contradicted" rest, and all tests that there is one of the margin or more,
    on which equality does.
    """
    difference = _adjusted({row.key: row.p for row in found if row.p is not None})
    equality = _adjusted({row.key: row.p_equal for row in found if row.p_equal is not None})
    out = []
    for row in found:
        of_equality = row.verdict == EQUAL or (row.side == "≈" and row.verdict == SUPPORTED)
        q = (equality if of_equality else difference).get(row.key)
        out.append(row if q is None or row.verdict not in DECIDED else replace(row, survives=bool(q <= CHANCE)))
    return out


def _adjusted(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values by key, adjusted for their number."""
    return dict(zip(p, false_discovery_control(list(p.values())), strict=True)) if p else {}


def table(paper: str | Iterable[str] | None = None, folder: Folder = None, task: str | None = None,
          verdict: str | None = None) -> pd.DataFrame:
    """Return the ledger to read: one row a claim, indexed by its key; empty columns beside it are left out."""
    found = ledger(paper, folder, task, verdict)
    cells = [{"where": row.where, "statement": row.statement, "task": row.task or "–", "paper's number": row.says,
              "ours": row.ours, "difference [95 %]": row.interval_words(), "seeds": str(len(row.differences) or "–"),
              "verdict": row.verdict, "among all": standing(row), "setting, or reason": row.why,
              **{name: row.beside.get(name) or "–" for name in BESIDE}} for row in found]
    index = pd.Index([row.key for row in found], name="claim")
    frame = pd.DataFrame(cells, index=index, columns=None if cells else ["verdict"])
    return frame.drop(columns=[name for name in BESIDE if name in frame and (frame[name] == "–").all()])


BESIDE = ("test loss", "time", "memory", "rates")


def standing(row: Row) -> str:
    """Return whether a verdict stands among all that were tested, and what an open row could have shown."""
    if row.survives is not None:
        return "stands" if row.survives else "does not stand"
    if row.verdict == OPEN and row.detectable is not None:
        return f"would show {number(row.detectable)} {row.unit}"
    return "–"


def counts(found: Iterable[Row]) -> pd.DataFrame:
    """Return how many claims of each paper got each verdict; verdicts in their fixed order, a row a paper."""
    found = list(found)
    tally = pd.crosstab(pd.Series([row.paper for row in found]), pd.Series([row.verdict for row in found]))
    papers = [name for name in CLAIMS if name in tally.index]
    return tally.reindex(index=papers, columns=list(VERDICTS), fill_value=0).rename_axis(index="paper", columns=None)


def markdown(found: Iterable[Row]) -> str:
    """Return `counts` as the page of the ledger shows it, without verdicts that no claim has."""
    tally = counts(found)
    tally = tally.loc[:, tally.any()]
    lines = [f"| paper | {' | '.join(tally.columns)} |", "|---" * (len(tally.columns) + 1) + "|"]
    lines += [f"| {paper} | {' | '.join(str(n) for n in row)} |" for paper, row in zip(tally.index, tally.to_numpy(),
                                                                                     strict=True)]
    return "\n".join(lines)


def summary_markdown(folder: Folder = None) -> str:
    """Return the page of the site that says which claims held here and which did not; computed from the ledger."""
    found = ledger(folder=folder)
    return summary(found, markdown(found))


# ---- the summary -------------------------------------------------------------------------------------------
# What the runs say of the claims, as a page of Markdown: nothing in it is typed.
HEADS = {
    SUPPORTED: "Supported: the interval lies wholly on the claimed side",
    CONTRADICTED: "Contradicted: the interval lies wholly on the other side, and the difference is not equal to zero "
                  "within the margin",
    EQUAL: "Equal within the margin: no difference of a point or more",
    OPEN: "Open: none of these; in brackets the smallest true difference that such runs show in 4 of 5 cases",
    BROKEN: "Computed on the spot, and does not hold",
}


def from_runs(found: Iterable[Row]) -> list[Row]:
    """Return the rows whose verdict is computed from stored runs of five seeds or more."""
    return [row for row in found
            if row.interval is not None and row.over == "seeds" and len(row.differences) >= SEEDS]


def summary(found: Sequence[Row], table: str) -> str:
    """Return the page.

    Args: rows of the ledger; the table of their counts, as Markdown.
    """
    ran = from_runs(found)
    tuned = [row for row in ran if row.tuned]
    decided = [row for row in tuned if row.verdict in DECIDED]
    stands = sum(bool(row.survives) for row in decided)
    parts = [f"{len(ran)} of {len(found)} claims have a verdict computed from stored runs of {SEEDS} seeds or more; "
             f"{len(_of(found, EXACT))} hold exactly, computed on the spot. {len(tuned)} rest on tuned studies, at "
             f"the papers' own schedules (decided: {len(decided)}; standing among all that were tested, by Benjamini "
             f"and Hochberg at 5 %: {stands}). The others rest on short trainings or on measurements, and their "
             "setting stands beside them. Differences are means with 95 % intervals over seeds, and over test "
             "examples where these are known.", table]
    for verdict, head in HEADS.items():
        rows = _of(found, verdict)
        apart = [row for row in rows if not row.tuned and verdict != BROKEN]
        for name, group in (("", [row for row in rows if row not in apart]),
                            (" (short trainings and measurements)", apart)):
            if group:
                parts.append(f"**{head}**{name} ({len(group)})\n\n" + "\n".join(map(_line, group)))
    parts.append(f"**Without a verdict**: {len(_of(found, NO_RUNS))} wait for runs, {len(_of(found, UNSOUND))} have "
                 f"runs that must not be compared, {len(_of(found, UNTESTABLE))} need a model, a data set or a "
                 "metric that is not here. `lowrank-teach claims` prints every row with its reason; `lowrank-teach "
                 "reproduce CLAIM` makes the runs of one again.")
    return "\n\n".join(parts) + "\n"


def _of(found: Iterable[Row], verdict: str) -> list[Row]:
    return [row for row in found if row.verdict == verdict]


def _line(row: Row) -> str:
    """Return one row with its setting beside it."""
    numbers = f": {row.interval_words()}" if row.interval is not None else ""
    task = f", {row.task}" if row.task else ""
    shown = {True: "", False: "; does not stand among all", None: ""}[row.survives]
    able = f" [{number(row.detectable)}]" if row.verdict == OPEN and row.detectable is not None else ""
    setting = f" ({row.why})" if row.interval is not None and not row.tuned else ""
    return f"- {row.key} ({row.where}{task}): {row.statement}{numbers}{able}{shown}{setting}"


# ---- a row made again --------------------------------------------------------------------------------------
# The runs behind one row of the ledger, made again: the stored verdict beside the new one.
#
#     again = ledger.reproduce("COLA 1")
#     again.stored.verdict, again.new.verdict, again.gap
#     ledger.plan("COLA 1").minutes       # what that would take here, before it is begun
#
# A run that the store has is not trained again; a study's stored file is never written.
@dataclass(frozen=True)
class Reproduction:
    """One row twice.

    stored: as the ledger has it.  new: from the runs made now; None where there are none to make.
    why: then, why not.  runs: how many it rests on.
    """

    stored: Row
    new: Row | None = None
    why: str = ""
    runs: int = 0

    @property
    def gap(self) -> float | None:
        """Largest change of a seed's difference, in the row's unit; None where no seed is in both."""
        if self.new is None or not self.new.differences or not self.stored.differences:
            return None
        return max(abs(a - b) for a, b in zip(self.stored.differences, self.new.differences, strict=False))


@dataclass(frozen=True)
class RunPlan:
    """What a reproduction trains.

    runs: of all arms and seeds.  stored: those that the store has; of a study over tasks only runs that choose a
    rate are looked up.  minutes: of the others, by the seconds that the stored study took for its runs (at full
    length), None where it has none.  why: where there is nothing to train.
    """

    runs: int = 0
    stored: int = 0
    minutes: float | None = None
    why: str = ""


def find(key: str) -> tuple[str, str, Claim]:
    """Return (key, paper, claim) of a key such as "COLA 3", whatever its case.

    Raises:
        ValueError: there is no such row; with those there are.
    """
    paper, _, number = " ".join(key.split()).rpartition(" ")
    name = {name.lower(): name for name in CLAIMS}.get(paper.lower(), "")
    if not number.isdigit() or not 1 <= int(number) <= len(CLAIMS.get(name, ())):
        rows = ", ".join(f"{name} 1 to {len(of)}" for name, of in CLAIMS.items())
        raise ValueError(f"no claim {key!r}; there are {rows} (`lowrank-teach claims` prints them)")
    return f"{name} {int(number)}", name, CLAIMS[name][int(number) - 1]


def nothing_to_train(claim: Claim) -> str:
    """Return the why no runs stand behind a claim; "" where some do."""
    if isinstance(claim, Beyond) and claim.verdict == NO_RUNS:
        return f"no study trains it yet: it needs {claim.needs}"
    if isinstance(claim, Beyond):
        return f"it cannot be tested here: it needs {claim.needs}"
    if isinstance(claim, Exact):
        return f"it rests on no runs: it is computed on the spot ({claim.how})"
    if isinstance(claim.measure, FromBench):
        return f"it is measured, not trained: {claim.measure.command}"
    return ""


def behind(claim: Compared) -> dict[str, list[str]]:
    """Return the study -> arms that a claim reads."""
    found: dict[str, list[str]] = {}
    assert isinstance(claim.measure, FromRuns)
    for study, arm in claim.measure.arms:
        if arm not in (arms := found.setdefault(study, [])):
            arms.append(arm)
    return found


def reproduce(claim: str, *, seeds: int | None = None, store: Store | None = None, on_run: OnRun | None = None,
              stored: Folder = None, **training: Any) -> Reproduction:
    """Train the runs behind one row again, as far as the store lacks them, and judge the row anew.

    Args:
        claim: a key of the ledger, such as "COLA 3".  seeds: how many from 0; None takes the study's own.
        stored: the folder of the verdict to hold it against; None takes the checkout's own. It is not written.
        on_run: called as each run is done, as `studies.train` does.
        training: fields of `TrainConfig` that differ from the study's, such as steps for a short try.

    Raises:
        ValueError: there is no such claim, or a value is refused.
    """
    key, paper, one = find(claim)
    before = one.row(key, paper, stored)
    if why := nothing_to_train(one):
        return Reproduction(before, before if isinstance(one, Exact) else None, why)
    assert isinstance(one, Compared)
    with tempfile.TemporaryDirectory() as place:
        folder, runs = Path(place) / "studies", 0
        for study, arms in behind(one).items():
            values: dict[str, Any] = {"arms": arms, "store": store, "on_run": on_run, "seeds": seeds,
                                      **({"tasks": [one.task]} if one.task else {}), **training}
            made = (texts.make(study, folder_of(folder), beams=(), **values) if study in TEXT_STUDIES else
                    studies.train(study, folder, **values))
            runs += _trained(made)
        return Reproduction(before, one.row(key, paper, folder), runs=runs)


def _trained(found: results.Comparison) -> int:
    """Return how many runs stand behind the records and the choice of rates."""
    return len({(r.get("task", found.about.get("task")), r["arm"], r["seed"], r.get("lr"))
                for r in [*found.about.get("grid", ()), *found.records] if r["arm"] != texts.UNTRAINED})


def plan(claim: str, *, seeds: int | None = None, store: Store | None = None, stored: Folder = None,
         **training: Any) -> RunPlan:
    """Return what `reproduce` would train, and how long that would take. As `reproduce`."""
    _, _, one = find(claim)
    if why := nothing_to_train(one):
        return RunPlan(why=why)
    assert isinstance(one, Compared)
    store, runs, there, seconds = store or Store(), 0, 0, 0.0
    for name, arms in behind(one).items():
        study = {**STUDIES, **TASK_STUDIES, **TEXT_STUDIES}[name].changed(training=training, seeds=seeds)
        if one.task:
            study = study.changed(tasks={one.task: study.tasks[one.task]})
        for arm, configs in study.plan(arms, study.seeds).items():
            left = [config for config in configs
                    if not (config and (store.path(config.key) / "run.json").exists())]
            runs, there = runs + len(configs), there + len(configs) - len(left)
            if left:
                whole = study.training["steps"]
                shares = (config.train.steps / whole if config else 1.0 for config in left)
                seconds += sum(shares) * _seconds((name, arm), stored)
    return RunPlan(runs, there, None if math.isnan(seconds) else seconds / 60)


def _seconds(arm: Arm, stored: Folder) -> float:
    """Return the mean seconds of a stored run of an arm; nan where there is none."""
    try:
        found = verdicts.stored(arm[0], stored).of(arm[1])
    except FileNotFoundError:
        found = []
    return statistics.fmean(r["seconds"]["total"] for r in found) if found else float("nan")


def said(again: Reproduction) -> str:
    """Return one sentence: does the new verdict agree with the stored one?"""
    if again.why or again.new is None:
        return again.why
    if again.stored.verdict == verdicts.NO_RUNS:
        return f"no stored verdict; new: {again.new.verdict}"
    if again.new.verdict == verdicts.NO_RUNS:
        return f"too few seeds for a new verdict: {again.new.why.split(';')[0]}{_change(again)}"
    same = again.new.verdict == again.stored.verdict
    words = "the same verdict" if same else f"{again.stored.verdict!r} becomes {again.new.verdict!r}"
    return words + _change(again)


def _change(again: Reproduction) -> str:
    if again.gap is None or again.new is None:
        return ""
    return f"; a seed's difference changes by {again.gap:.3g} {again.new.unit} at most"
