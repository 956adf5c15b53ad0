"""What a sweep would take, before it is started: from stored runs like its own."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..run_config import RunConfig
from ..runs import Store
from .labels import labels


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
        """Sentences for a reader, for so many processes."""
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
    """In the unit that a reader would take: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(configs: Sequence[RunConfig], store: Store | None = None) -> Estimate:
    """Runs, stored ones, and the time of the others by stored runs on the same backbone, batch and row length.

    Of the nearest (the same method and task, the same method, any) the median seconds a step, and the median seconds
    beside the steps (loading, evaluating).
    """
    store = store or Store()
    known = _Timings(store)
    wanted = {config.key: config for config in configs}
    missing = [config for key, config in wanted.items() if not (store.path(key) / "run.json").exists()]
    judged = [(label, known.of(config.described)) for label, config in zip(labels(missing), missing, strict=True)]
    return Estimate(len(wanted), len(wanted) - len(missing), sum(seconds or 0.0 for _, seconds in judged),
                    tuple(label for label, seconds in judged if seconds is None))


class _Timings:
    """Seconds a step and seconds beside them, by what decides them, from near to far."""

    def __init__(self, store: Store) -> None:
        self.found: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
        for record in _records(store):
            seconds, config = record["seconds"], record["config"]
            stepping = seconds["training"] + seconds.get("search", 0.0)
            pair = stepping / config["training"]["steps"], seconds["total"] - stepping
            for like in _likenesses(config):
                self.found[like].append(pair)

    def of(self, config: dict[str, Any]) -> float | None:
        """Seconds of a run of this configuration; None where nothing like it is stored."""
        for like in _likenesses(config):
            if pairs := self.found.get(like):
                return median(p[0] for p in pairs) * config["training"]["steps"] + median(p[1] for p in pairs)
        return None


def _likenesses(config: dict[str, Any]) -> list[tuple]:
    """What two runs must share to take like long, from near to far."""
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
