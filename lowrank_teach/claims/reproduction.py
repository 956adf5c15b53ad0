"""The runs behind one row of the ledger, made again: the stored verdict beside the new one.

    again = claims.reproduce("COLA 1")
    again.stored.verdict, again.new.verdict, again.gap
    claims.plan("COLA 1").minutes       # what that would take here, before it is begun

A run that the store has is not trained again; a study's stored file is never written.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import studies, texts
from ..run_config import RunConfig
from ..runs import Store
from ..studies import generation, text_studies
from ..studies.definitions import BACKBONE, PROFILE, TASK, TRAINING
from . import verdicts
from .evidence import Arm, FromBench, FromRuns
from .over_texts import folder_of
from .rows import Beyond, Claim, Compared, Exact, Folder, Row

OnRun = Callable[..., None]


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


def find(key: str, ledger: dict[str, tuple[Claim, ...]]) -> tuple[str, str, Claim]:
    """(key, paper, claim) of a key such as "COLA 3", whatever its case.

    Raises:
        ValueError: there is no such row; with those there are.
    """
    paper, _, number = " ".join(key.split()).rpartition(" ")
    name = {name.lower(): name for name in ledger}.get(paper.lower(), "")
    if not number.isdigit() or not 1 <= int(number) <= len(ledger.get(name, ())):
        rows = ", ".join(f"{name} 1 to {len(of)}" for name, of in ledger.items())
        raise ValueError(f"no claim {key!r}; there are {rows} (`lowrank-teach claims` prints them)")
    return f"{name} {int(number)}", name, ledger[name][int(number) - 1]


def nothing_to_train(claim: Claim) -> str:
    """Why no runs stand behind a claim; "" where some do."""
    if isinstance(claim, Beyond):
        return f"it cannot be tested here: it needs {claim.needs}"
    if isinstance(claim, Exact):
        return f"it rests on no runs: it is computed on the spot ({claim.how})"
    if isinstance(claim.measure, FromBench):
        return f"it is measured, not trained: {claim.measure.command}"
    return ""


def behind(claim: Compared) -> dict[str, list[str]]:
    """Study -> arms that a claim reads."""
    found: dict[str, list[str]] = {}
    assert isinstance(claim.measure, FromRuns)
    for study, arm in claim.measure.arms:
        if arm not in (arms := found.setdefault(study, [])):
            arms.append(arm)
    return found


def train_again(key: str, paper: str, claim: Claim, *, seeds: int | None = None, store: Store | None = None,
                on_run: OnRun | None = None, stored: Folder = None, **training: Any) -> Reproduction:
    """Train what the store lacks of a claim's runs, and judge it anew; see `claims.reproduce`."""
    before = claim.row(key, paper, stored)
    if why := nothing_to_train(claim):
        return Reproduction(before, before if isinstance(claim, Exact) else None, why)
    assert isinstance(claim, Compared)
    with tempfile.TemporaryDirectory() as place:
        folder, runs = Path(place) / "studies", 0
        for study, arms in behind(claim).items():
            values: dict[str, Any] = {"arms": arms, "store": store, "on_run": on_run, **training}
            if study in text_studies.TEXT_STUDIES:
                made = generation.make(study, folder_of(folder), seeds=seeds, beams=(), **values)
                runs += len({(r["arm"], r["seed"], r["lr"]) for r in [*made.about["grid"], *made.records] if r["lr"]})
            elif study in studies.TASK_STUDIES:
                over = studies.train_across(study, studies.TASK_STUDIES[study], folder, seeds=seeds, **values)
                runs += len({(r["task"], r["arm"], r["seed"], r["lr"]) for r in [*over.about["grid"], *over.records]})
            else:
                runs += len(studies.train(study, folder, seeds=None if seeds is None else range(seeds),
                                          **values).records)
        return Reproduction(before, claim.row(key, paper, folder), runs=runs)


def plan_again(claim: Claim, *, seeds: int | None = None, store: Store | None = None, stored: Folder = None,
               **training: Any) -> RunPlan:
    """How many runs that is and how long they would take; see `claims.plan`."""
    if why := nothing_to_train(claim):
        return RunPlan(why=why)
    assert isinstance(claim, Compared)
    store, runs, there, seconds = store or Store(), 0, 0, 0.0
    for study, arms in behind(claim).items():
        wanted = (_of_texts if study in text_studies.TEXT_STUDIES else
                  _over_tasks if study in studies.TASK_STUDIES else _of_study)(study, arms, seeds, training)
        for arm, configs in wanted:
            known = sum((store.path(config.key) / "run.json").exists() for config in configs if config)
            runs, there = runs + len(configs), there + known
            if len(configs) > known:
                seconds += (len(configs) - known) * _seconds((study, arm), stored)
    return RunPlan(runs, there, None if math.isnan(seconds) else seconds / 60)


def _of_study(study: str, arms: list[str], seeds: int | None, training: dict[str, Any]
              ) -> Iterator[tuple[str, list[RunConfig | None]]]:
    """Arm -> its runs."""
    one = studies.STUDIES[study]
    for arm in arms:
        values = {**TRAINING, **training, **one.arms[arm].training}
        yield arm, [RunConfig(one.arms[arm].method, TASK, BACKBONE, PROFILE, seed, values)
                    for seed in range(one.seeds if seeds is None else seeds)]


def _over_tasks(study: str, arms: list[str], seeds: int | None, training: dict[str, Any]
                ) -> Iterator[tuple[str, list[RunConfig | None]]]:
    """Arm -> its runs; None for those whose rate is not chosen before the grid is trained."""
    one = studies.TASK_STUDIES[study]
    choosing = dict.fromkeys(one.rate_of.get(arm, arm) for arm in arms)
    many = one.seeds if seeds is None else seeds
    for arm in dict.fromkeys([*arms, *choosing]):
        configs: list[RunConfig | None] = []
        method, own = one.arms[arm].method, one.arms[arm].training
        for task, values in one.tasks.items():
            settled = {**one.training, **training, **values}
            if arm in choosing:
                configs += [RunConfig(method, task, one.backbone, one.profile, seed, {**settled, **own, "lr": rate})
                            for rate in one.rates for seed in one.chosen_with]
            if arm in arms:
                configs += [None] * len(set(range(many)) - (set(one.chosen_with) if arm in choosing else set()))
        yield arm, configs


def _of_texts(study: str, arms: list[str], seeds: int | None, training: dict[str, Any]
              ) -> Iterator[tuple[str, list[RunConfig | None]]]:
    """Arm -> its runs; None for those whose rate is not chosen before the grid is trained."""
    settled, rates = text_studies.settings(study, training)
    many = text_studies.TEXT_STUDIES[study].seeds if seeds is None else seeds

    def run(arm: str, seed: int, rate: float) -> RunConfig | None:
        return RunConfig(text_studies.ARMS[arm], study, text_studies.BACKBONE, text_studies.PROFILE, seed,
                         {**settled, "lr": rate})

    if len(rates) == 1:
        for arm in arms:
            yield arm, [run(arm, seed, rates[0]) for seed in range(many)]
        return
    choosing = dict.fromkeys(text_studies.RATE_OF.get(arm, arm) for arm in arms)
    for arm in dict.fromkeys([*arms, *choosing]):
        tried = [run(arm, 0, rate) for rate in rates] if arm in choosing else []
        yield arm, tried + [None] * ((many - (arm in choosing)) if arm in arms else 0)


def _seconds(arm: Arm, stored: Folder) -> float:
    """Mean seconds of a stored run of an arm; nan where there is none."""
    try:
        if arm[0] in text_studies.TEXT_STUDIES:
            found = texts.load(arm[0], folder_of(stored)).of(arm[1])
        else:
            over = arm[0] in studies.TASK_STUDIES
            found = (studies.load_across if over else studies.load)(arm[0], stored).of(arm[1])
    except FileNotFoundError:
        found = []
    return statistics.fmean(r["seconds"]["total"] for r in found) if found else float("nan")


def said(again: Reproduction) -> str:
    """One sentence: does the new verdict agree with the stored one?"""
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
