"""A study trained, stored as one file of numbers with its provenance, and read back.

`train` goes seed by seed over all arms, so that an interrupted study is balanced; every run is kept in the run
store, and the same call goes on. The file stands in figures/data/studies and is what notebooks draw from and
verdicts are computed from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..course import references_folder
from ..experiment import fit
from ..live import smooth
from ..runs import Run, Store, machine
from .definitions import BACKBONE, PROFILE, STUDIES, TASK, TRAINING, Study

Curve = tuple[list[float], list[float]]   # steps, values


@dataclass(frozen=True)
class Results:
    """What a study found.

    records: one dict a run, with arm, seed, test, validation, seconds, ranks, series, sites.
    about: the study's name, question, task, backbone, training and machine.
    """

    about: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(record["arm"] for record in self.records))

    def values(self, name: str = "accuracy", split: str = "test") -> dict[str, list[float]]:
        """Arm -> one metric of each seed, in the order of the seeds."""
        return {arm: [r[split][name] for r in self._of(arm)] for arm in self.arms}

    def differences(self, arm: str, other: str, name: str = "accuracy", split: str = "test") -> list[float]:
        """arm − other on each seed that both have: what pairing leaves."""
        a, b = ({r["seed"]: r[split][name] for r in self._of(one)} for one in (arm, other))
        return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]

    def record(self, arm: str, seed: int = 0) -> Mapping[str, Any]:
        """One run.

        Raises:
            KeyError: there is no such run.
        """
        for found in self._of(arm):
            if found["seed"] == seed:
                return found
        raise KeyError(f"no run of {arm!r} with seed {seed} in study {self.about['name']!r}; arms: {self.arms}")

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
            of, scores = self._of(arm), pd.Series(self.values(name)[arm])
            rows.append({"arm": arm, "seeds": len(of), f"test {name}": scores.mean(), "± (seeds)": scores.std(),
                         "validation loss": pd.Series([r["validation"]["loss"] for r in of]).mean(),
                         "seconds": pd.Series([r["seconds"]["total"] for r in of]).mean()})
        return pd.DataFrame(rows).set_index("arm")

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        a, m = self.about, self.about["machine"]
        return (f"stored study {a['name']!r}: {len(self.records)} runs, {a['backbone']} on {a['task']}, "
                f"{a['training']['steps']} steps; made on {m['processor']} with torch {m['torch']}, commit "
                f"{m['commit']}")

    def _of(self, arm: str) -> list[Mapping[str, Any]]:
        return sorted((r for r in self.records if r["arm"] == arm), key=lambda r: r["seed"])


def load(name: str, folder: Path | str | None = None) -> Results:
    """A stored study.

    Raises:
        KeyError: there is no study of this name.  FileNotFoundError: it has not been trained here.
    """
    _defined(name)
    path = Path(folder or references_folder() / "studies") / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"study {name!r} has no numbers yet; train it: lowrank-teach study {name}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Results({key: value for key, value in stored.items() if key != "records"}, stored["records"])


def train(name: str, folder: Path | str | None = None, *, seeds: Iterable[int] | None = None,
          task: str = TASK, backbone: str = BACKBONE, profile: str = PROFILE, store: Store | None = None,
          on_run: Callable[[str, int, Run], None] | None = None, **training: Any) -> Results:
    """Train a study, or find the runs that were; its file is written anew after each seed.

    Args:
        seeds: None takes the study's own.  on_run: called as each run is done.
        task, backbone, profile, training: another setting than the stored one.
    """
    study, training = _defined(name), {**TRAINING, **training}
    path = Path(folder or references_folder() / "studies") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"name": name, "question": study.question, "varies": study.varies, "task": task, "backbone": backbone,
             "profile": profile, "training": training, "machine": machine()}
    records: list[dict[str, Any]] = []
    for seed in range(study.seeds) if seeds is None else seeds:
        for label, arm in study.arms.items():
            run = fit(arm.method, task, backbone, profile, seed, progress=False, store=store,
                      **{**training, **arm.training})
            records.append(_record(study, label, seed, run))
            if on_run is not None:
                on_run(label, seed, run)
        path.write_text(json.dumps({**about, "records": records}, ensure_ascii=False) + "\n", encoding="utf-8")
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
    return {"arm": label, "seed": seed, "key": run.key, "method": run.config["method"], "test": run.metrics["test"],
            "validation": run.metrics["validation"], "seconds": run.seconds, "memory": run.memory,
            "parameters": run.parameters, "flops": run.flops, "ranks": run.ranks, "series": series, "sites": sites}


def _short(curve: tuple[Sequence[float], Sequence[float]]) -> list[list[float]]:
    return [list(curve[0]), [round(float(value), 5) for value in curve[1]]]
