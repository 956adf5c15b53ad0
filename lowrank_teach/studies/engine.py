"""A study trained, stored as one file of numbers with its provenance, and read back.

`train` goes seed by seed over all arms, so that an interrupted study is balanced; every run is kept in the run
store, and the same call goes on. The file stands in figures/data/studies and is what notebooks draw from and
verdicts are computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..comparison import Scored, made_on, read, write
from ..course import references_folder
from ..experiment import fit
from ..live import smooth
from ..runs import Run, Store, machine
from .definitions import BACKBONE, PROFILE, STUDIES, TASK, TRAINING, Study

Curve = tuple[list[float], list[float]]   # steps, values


class Results(Scored):
    """What a study found: of each run test, validation, seconds, ranks, series, sites beside its arm and seed."""

    metric = "accuracy"

    def series(self, arm: str, name: str = "loss", seed: int = 0) -> Curve:
        """Steps and values of one name of a run's history (the loss: means of ten steps)."""
        steps, values = self.record(arm, seed)["series"][name]
        return steps, values

    def by_site(self, arm: str, name: str, seed: int = 0) -> dict[str, float]:
        """Site -> last value of one name of a run."""
        return dict(self.record(arm, seed)["sites"][name])

    def frame(self, name: str = "accuracy") -> pd.DataFrame:
        """One row an arm: seeds, mean and standard deviation of the metric, validation loss, seconds a run."""
        rows = []
        for arm in self.arms:
            of, scores = self.of(arm), pd.Series(self.values(name)[arm])
            rows.append({"arm": arm, "seeds": len(of), f"test {name}": scores.mean(), "± (seeds)": scores.std(),
                         "validation loss": pd.Series([r["validation"]["loss"] for r in of]).mean(),
                         "seconds": pd.Series([r["seconds"]["total"] for r in of]).mean()})
        return pd.DataFrame(rows).set_index("arm")

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        a = self.about
        return (f"stored study {a['name']!r}: {len(self.records)} runs, {a['backbone']} on {a['task']}, "
                f"{a['training']['steps']} steps; {made_on(a['machine'])}")


def load(name: str, folder: Path | str | None = None) -> Results:
    """A stored study.

    Raises:
        KeyError: there is no study of this name.  FileNotFoundError: it has not been trained here.
    """
    _defined(name)
    path = Path(folder or references_folder() / "studies") / f"{name}.json"
    missing = f"study {name!r} has no numbers yet; train it: lowrank-teach study {name} --folder {path.parent}"
    return Results(*read(path, missing))


def train(name: str, folder: Path | str | None = None, *, seeds: Iterable[int] | None = None,
          arms: Iterable[str] | None = None, task: str = TASK, backbone: str = BACKBONE, profile: str = PROFILE,
          store: Store | None = None,
          on_run: Callable[[str, int, Run], None] | None = None, **training: Any) -> Results:
    """Train a study, or find the runs that were; its file is written anew after each seed.

    Args:
        seeds, arms: None takes the study's own.  on_run: called as each run is done.
        task, backbone, profile, training: another setting than the stored one.
    """
    study, training = _defined(name), {**TRAINING, **training}
    chosen = {label: study.arms[label] for label in (study.arms if arms is None else arms)}
    path = Path(folder or references_folder() / "studies") / f"{name}.json"
    about: dict[str, Any] = {"name": name, "question": study.question, "varies": study.varies, "task": task,
                             "backbone": backbone, "profile": profile, "training": training, "machine": machine()}
    records: list[dict[str, Any]] = []
    commits: set[str] = set()   # of the code that trained, which may be older than the code that writes the file
    for seed in range(study.seeds) if seeds is None else seeds:
        for label, arm in chosen.items():
            run = fit(arm.method, task, backbone, profile, seed, progress=False, store=store,
                      **{**training, **arm.training})
            records.append(_record(study, label, seed, run))
            commits.add(str(run.machine.get("commit")))
            if on_run is not None:
                on_run(label, seed, run)
        about["commits"] = sorted(commits)
        write(path, about, records)
    return Results(about, records)


def _defined(name: str) -> Study:
    if name not in STUDIES:
        raise KeyError(f"no study {name!r}; there are {', '.join(STUDIES)}")
    return STUDIES[name]


def _record(study: Study, label: str, seed: int, run: Run) -> dict[str, Any]:
    """What is kept of a run: numbers, no factors."""
    known = set(run.history["name"])
    series = {name: _short(smooth(run.series(name)) if name == "loss" else run.series(name))
              for name in study.series if name in known}
    sites = {name: {site: round(value, 6) for site, value in run.by_site(name).items()}
             for name in study.sites if name in known}
    return {"arm": label, "seed": seed, "key": run.key, "identity": run.identity,
            "method": run.config["method"], "test": run.metrics["test"],
            "validation": run.metrics["validation"], "seconds": run.seconds, "memory": run.memory,
            "parameters": run.parameters, "flops": run.flops, "ranks": run.ranks, "series": series, "sites": sites}


def _short(curve: tuple[Sequence[float], Sequence[float]]) -> list[list[float]]:
    return [list(curve[0]), [round(float(value), 5) for value in curve[1]]]
