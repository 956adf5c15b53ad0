"""What is said of a list of runs before it is trained: what to call each, and how long all would take."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .fit import RunConfig
from .runs import Store


def varied(configs: Sequence[RunConfig]) -> list[str]:
    """Return, for each run, the values in which runs of its method differ, such as "r=4, lr=0.001"."""
    plain = [_plain(config) for config in configs]
    found: dict[str, dict[str, set[str]]] = {}
    for config, values in zip(configs, plain, strict=True):
        for name, one in values.items():
            found.setdefault(config.method.name, {}).setdefault(name, set()).add(str(one))
    return [", ".join(f"{name}={one}" for name, one in values.items() if len(found[config.method.name][name]) > 1)
            for config, values in zip(configs, plain, strict=True)]


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """Return, for each run, method, task, seed, and what sets it apart, such as "lora, rt, seed 0, lr=0.001"."""
    several = len({config.backbone for config in configs}) > 1
    return [", ".join([config.label, *([config.backbone] if several else []), *([values] if values else [])])
            for config, values in zip(configs, varied(configs), strict=True)]


def _plain(config: RunConfig) -> dict[str, Any]:
    """Return all values of the method, those of a composition's members too, and of the training."""
    method = dict(config.described["method"])
    members = method.pop("members", [])
    return {name: one for values in (*members, method, config.described["training"]) for name, one in values.items()}


@dataclass(frozen=True)
class Estimate:
    """How many runs there are, how many are stored, and seconds for the rest.

    seconds: of the runs that can be judged, one after another.  unknown: labels of those that cannot.
    """

    runs: int
    stored: int
    seconds: float
    unknown: tuple[str, ...]

    @property
    def missing(self) -> int:
        return self.runs - self.stored

    def words(self, processes: int) -> str:
        """Return sentences for a reader, for so many processes."""
        known = self.missing - len(self.unknown)
        found = [f"{self.runs} runs, {self.stored} of them stored, {self.missing} to train"]
        if known:
            share = self.seconds / min(processes, known)
            workers = "1 process" if processes == 1 else f"{processes} processes"
            found.append(f"about {duration(share)} for {known} of them on {workers}, judged by stored runs on the "
                         "same model and batch, of the same method and task where there are some")
        if self.unknown:
            found.append(f"{len(self.unknown)} of them cannot be judged, such as {self.unknown[0]}: no run on that "
                         "model with that batch is stored; train one, and ask again")
        return "\n".join(found)


def duration(seconds: float) -> str:
    """Return a time in the unit that a reader would take: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(configs: Sequence[RunConfig], store: Store | None = None) -> Estimate:
    """Return how many runs, how many are stored, and the time of the others by stored runs that are like them.

    Of the nearest (the same method and task, the same method, any) the median seconds a step, and the median seconds
    beside the steps (loading, evaluating).
    """
    store = store or Store()
    known = _timings(store)
    wanted = {config.key: config for config in configs}
    missing = [config for key, config in wanted.items() if not (store.path(key) / "run.json").exists()]
    judged = [(label, _seconds(config.described, known))
              for label, config in zip(labels(missing), missing, strict=True)]
    return Estimate(len(wanted), len(wanted) - len(missing), sum(seconds or 0.0 for _, seconds in judged),
                    tuple(label for label, seconds in judged if seconds is None))


Timings = dict[tuple, list[tuple[float, float]]]   # of runs alike: seconds a step, and beside the steps


def _timings(store: Store) -> Timings:
    found: Timings = defaultdict(list)
    for record in _records(store):
        seconds, config = record["seconds"], record["config"]
        stepping = seconds["training"] + seconds.get("search", 0.0)
        for like in _likenesses(config):
            found[like].append((stepping / config["training"]["steps"], seconds["total"] - stepping))
    return found


def _seconds(config: dict[str, Any], known: Timings) -> float | None:
    """Return the seconds of a run of this configuration; None if nothing like it is stored."""
    for like in _likenesses(config):
        if like in known:
            each, beside = (median(values) for values in zip(*known[like], strict=True))
            return each * config["training"]["steps"] + beside
    return None


def _likenesses(config: dict[str, Any]) -> list[tuple]:
    """Return what two runs must share to take like long, from near to far."""
    training = config["training"]
    far = (config["backbone"], *(training[name] for name in ("batch_size", "max_length", "epochs")))
    near = (*far, config["method"]["method"])
    return [(*near, config["task"]), near, far]


def _records(store: Store) -> Iterator[dict[str, Any]]:
    for key in store.names():
        try:
            yield json.loads((store.path(key) / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # damaged: `Store.get` warns of it
