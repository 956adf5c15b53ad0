"""What a comparison leaves: runs of several arms over seeds, in one file of numbers with its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Comparison:
    """Stored runs.

    about: what was compared, on what, by which code and machine.  records: one dict a run, with its arm and seed.
    """

    about: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(record["arm"] for record in self.records))

    def of(self, arm: str) -> list[Mapping[str, Any]]:
        """The runs of an arm, by seed."""
        return sorted((r for r in self.records if r["arm"] == arm), key=lambda r: r["seed"])

    def record(self, arm: str, seed: int = 0) -> Mapping[str, Any]:
        """One run.

        Raises:
            KeyError: there is no such run.
        """
        for found in self.of(arm):
            if found["seed"] == seed:
                return found
        raise KeyError(f"no run of {arm!r} with seed {seed}; arms: {self.arms}")


class Scored(Comparison):
    """Runs whose records have metrics by split, such as record["test"]["accuracy"]."""

    metric: ClassVar[str]   # where none is named

    def values(self, name: str = "", split: str = "test") -> dict[str, list[float]]:
        """Arm -> one metric of each seed, in the order of the seeds."""
        return {arm: [r[split][name or self.metric] for r in self.of(arm)] for arm in self.arms}

    def differences(self, arm: str, other: str, name: str = "", split: str = "test") -> list[float]:
        """arm − other on each seed that both have: what pairing leaves."""
        a, b = ({r["seed"]: r[split][name or self.metric] for r in self.of(one)} for one in (arm, other))
        return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def made_on(machine: Mapping[str, Any]) -> str:
    """The end of a sentence on where numbers come from."""
    return f"made on {machine['processor']} with torch {machine['torch']}, commit {machine['commit']}"


def write(path: Path, about: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Both in one file of JSON; what stood there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "records": records}, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path, missing: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(about, records) of what `write` wrote.

    Raises:
        FileNotFoundError: it is not there; `missing` is said, with how to make it.
    """
    if not path.exists():
        raise FileNotFoundError(missing)
    about = json.loads(path.read_text(encoding="utf-8"))
    return about, about.pop("records")
