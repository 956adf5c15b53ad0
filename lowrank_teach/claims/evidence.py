"""Where the numbers of a claim come from: the stored studies, read seed by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import studies
from ..course import references_folder
from .rows import Folder, Measure
from .verdicts import Evidence

Record = Mapping[str, Any]
Arm = tuple[str, str]   # study, arm
Value = Callable[[Record], float]

FULL: Arm = ("fine_tuning", "full fine-tuning")
TURNED: Arm = ("fine_tuning", "FT‡, cosine kept")


@dataclass(frozen=True)
class FromRuns:
    """A measure, and the runs that it reads, so that they can be made again.

    arms: of stored studies.  find: as `rows.Measure`.
    """

    arms: tuple[Arm, ...]
    find: Measure

    def __call__(self, folder: Folder) -> Evidence:
        return self.find(folder)


@dataclass(frozen=True)
class FromBench:
    """A measure read from figures/data.  command: what measures it.  find: as `rows.Measure`."""

    command: str
    find: Measure

    def __call__(self, folder: Folder) -> Evidence:
        return self.find(folder)


def score(record: Record) -> float:
    """The headline metric on the test rows."""
    return float(next(iter(record["test"].values())))


def between(first: Arm, second: Arm, value: Value = score) -> FromRuns:
    """first − second on each seed that both have.

    Args:
        first, second: (study, arm); two studies may be paired, since all share task, backbone and order of rows.
        value: a run's record -> the number compared.
    """
    def measure(folder: Folder) -> Evidence:
        a, b = runs(first, folder), runs(second, folder)
        both = sorted(a.keys() & b.keys())
        ours = {label(first): [value(a[s]) for s in both], label(second): [value(b[s]) for s in both]}
        one, two = ours.values()
        return Evidence([x - y for x, y in zip(one, two, strict=True)], ours, setting(first[0], folder))

    return FromRuns((first, second), measure)


def spread(first: Arm, second: Arm, value: Value = score) -> FromRuns:
    """Distance from the arm's median, first − second: is the first less scattered over seeds?

    The scores are paired by seed as everywhere here; absolute deviations from the median are what Brown and Forsythe
    (1974) compare spreads by.
    """
    def measure(folder: Folder) -> Evidence:
        found = between(first, second, value)(folder)
        one, two = ([abs(x - statistics.median(values)) for x in values] for values in found.ours.values())
        return Evidence([x - y for x, y in zip(one, two, strict=True)],
                        dict(zip(found.ours, (one, two), strict=True)), found.setting)

    return FromRuns((first, second), measure)


def each(arm: Arm, value: Value, aim: Value | float = 0.0, name: str = "") -> FromRuns:
    """One number a run, less what the claim compares it with (a number, or one read from the record)."""
    def measure(folder: Folder) -> Evidence:
        found = [record for _, record in sorted(runs(arm, folder).items())]
        values = [value(record) for record in found]
        aims = [aim(record) if callable(aim) else aim for record in found]
        return Evidence([v - a for v, a in zip(values, aims, strict=True)], {name or label(arm): values},
                        setting(arm[0], folder))

    return FromRuns((arm,), measure)


def ratio(first: Arm, second: Arm, value: Value, aim: float = 1.0) -> FromRuns:
    """first / second on each seed that both have, less `aim`."""
    def measure(folder: Folder) -> Evidence:
        found = between(first, second, value)(folder)
        quotients = [x / y for x, y in zip(*found.ours.values(), strict=True)]
        return Evidence([q - aim for q in quotients], {f"{label(first)} / {label(second)}": quotients},
                        found.setting)

    return FromRuns((first, second), measure)


def step_time(first: str, second: str, aim: float = 1.0) -> FromBench:
    """Quotient of two step times of figures/data/bench_steps.json, less `aim`; its interval is over repeats.

    Both stand there as quotients to one reference, taken in turns: median and quartiles. A median's 95 % interval is
    ± 1.57 (q3 − q1) / √n (McGill, Tukey and Larsen 1978); the two relative widths add as if independent.
    """
    command = "python tests/benchmarks steps"

    def measure(folder: Folder) -> Evidence:
        bench = _bench("bench_steps", folder, command)
        one, two = (bench["to_reference"][name] for name in (first, second))
        n = bench["settings"]["repeats"]
        widths = [1.57 * (x["q3"] - x["q1"]) / math.sqrt(n) / x["median"] for x in (one, two)]
        middle = one["median"] / two["median"]
        half = middle * math.hypot(*widths)
        return Evidence((), {f"{first} / {second}": [middle]}, _bench_setting(bench),
                        (middle - half - aim, middle + half - aim), over="repeats")

    return FromBench(command, measure)


def peak_memory(first: str, second: str) -> FromBench:
    """By how many percent one candidate's peak of figures/data/bench_memory.json is above another's, one a repeat.

    Each repeat measures each candidate in a process of its own, in turns.
    """
    command = "python tests/benchmarks/peak_memory.py"

    def measure(folder: Folder) -> Evidence:
        bench = _bench("bench_memory", folder, command)
        one, two = (bench["peak_bytes"][name] for name in (first, second))
        ours = {f"{name}, MiB": [x / 2**20 for x in bench["peak_bytes"][name]] for name in (first, second)}
        return Evidence([100 * (x / y - 1) for x, y in zip(one, two, strict=True)], ours,
                        f"{_bench_setting(bench)}, each in a process of its own", over="repeats")

    return FromBench(command, measure)


def _bench(name: str, folder: Folder, command: str) -> Mapping[str, Any]:
    path = (Path(folder).parent if folder else references_folder()) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"not measured yet; measure it: {command}")
    return json.loads(path.read_text(encoding="utf-8"))


def _bench_setting(bench: Mapping[str, Any]) -> str:
    s = bench["settings"]
    return f"{s['backbone']}, {s['rows']} rows of {s['tokens']} tokens, {s['device']}, {s['repeats']} repeats in turn"


def runs(arm: Arm, folder: Folder) -> dict[int, Record]:
    """Seed -> record of one arm; none where the study has no run of it yet.

    Raises:
        FileNotFoundError: the study has no file.
    """
    return {record["seed"]: record for record in studies.load(arm[0], folder).records if record["arm"] == arm[1]}


def label(arm: Arm) -> str:
    """The arm's name, with what varies where the name is a bare number."""
    bare = arm[1].replace(".", "").isdigit()
    return f"{studies.STUDIES[arm[0]].varies} = {arm[1]}" if bare else arm[1]


def setting(study: str, folder: Folder) -> str:
    """What was trained on what, in a few words."""
    about = studies.load(study, folder).about
    return f"{about['backbone']} on {about['task']}, {about['training']['steps']} steps"


# -- numbers read from one record

def last(name: str) -> Value:
    """The last value of a series of the whole model."""
    return lambda record: float(record["series"][name][1][-1])


def site_mean(name: str) -> Value:
    """The mean over sites of a name's last value."""
    return lambda record: statistics.fmean(record["sites"][name].values())


def mean_rank(letters: tuple[str, ...] = ()) -> Value:
    """Mean rank over the sites whose matrix is one of these letters; over all for none."""
    def value(record: Record) -> float:
        return statistics.fmean(r for site, r in record["ranks"].items()
                                if not letters or site.rpartition(".")[2] in letters)

    return value


def log10(value: Value) -> Value:
    return lambda record: math.log10(max(value(record), 1e-12))


def seconds(record: Record) -> float:
    """Seconds spent in steps: of the search, where there is one, and of the training."""
    return float(record["seconds"]["training"] + record["seconds"].get("search", 0.0))
