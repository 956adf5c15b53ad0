"""How the benchmarks measure: candidates in turn, ratios within a turn, the bytes of one step.

The machine does other things meanwhile. So every repeat calls each candidate once, in a rotating order, a ratio is
taken within its repeat, and medians over repeats are reported with quartiles. On a GPU times are CUDA events.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What is measured on: a backbone with a new head, a batch of rows × tokens, the branches, the device."""

    backbone: str = "minilm-l6"
    decoder: str = "smollm2-135m"
    rows: int = 16
    tokens: int = 32
    r: int = 8
    alpha: int = 16
    repeats: int = 12
    device: str = "cpu"
    dtype: str = "float32"
    quick: bool = False
    own: bool = False  # the process's own seconds instead of the clock's: for a busy machine, with one thread

    @property
    def place(self) -> str:
        """Ending of a record's name: none on the CPU, where the references are made."""
        return "" if (self.device, self.dtype) == ("cpu", "float32") else f"_{self.device}_{self.dtype}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    value, low, high: the median, and its 95 % interval where there are repeats.  unit: such as "×" or "ms".
    aim: the most it should be (`least`: the least).  why: what was found where the aim is missed.
    """

    name: str
    value: float
    unit: str = "×"
    low: float | None = None
    high: float | None = None
    aim: float | None = None
    least: bool = False
    why: str = ""

    @property
    def verdict(self) -> str:
        """"met", "missed", or "within noise" where the interval reaches the aim and the median does not."""
        if self.aim is None:
            return ""
        sign = -1 if self.least else 1
        if sign * self.value <= sign * self.aim:
            return "met"
        best = (self.high if self.least else self.low) or self.value
        return "within noise" if sign * best <= sign * self.aim else "missed"


def in_turn(steps: Mapping[str, Step], s: Settings) -> dict[str, list[float]]:
    """Seconds of each candidate in every repeat, after a first that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    clock = _cuda_seconds if s.device == "cuda" else _own_seconds if s.own else _seconds
    names = list(steps)
    for repeat in range(-1, s.repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            taken = clock(steps[name])
            if repeat >= 0:
                seconds[name].append(taken)
    return seconds


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _own_seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _cuda_seconds(step: Step) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "q1": low, "q3": high}


def ratios(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Candidate -> median and quartiles of its ratio to the reference in the same repeat."""
    return {name: quartiles([a / b for a, b in zip(taken, seconds[reference], strict=True)])
            for name, taken in seconds.items()}


def of_many(name: str, values: list[float], unit: str = "×", aim: float | None = None, *, least: bool = False,
            why: str = "") -> Row:
    """The median with its 95 % interval, ± 1.57 (q3 − q1) / √n (McGill, Tukey and Larsen 1978)."""
    found = quartiles(values)
    half = 1.57 * (found["q3"] - found["q1"]) / math.sqrt(len(values))
    return Row(name, found["median"], unit, found["median"] - half, found["median"] + half, aim, least, why)


def ratio(seconds: Mapping[str, list[float]], first: str, second: str, aim: float | None = None, *,
          name: str = "", why: str = "") -> Row:
    """The row of one candidate over another."""
    each = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    return of_many(name or f"{first} / {second}", each, aim=aim, why=why)


def weighed(make: Callable[[], Step], device: str = "cpu") -> tuple[Step, int]:
    """A candidate, and the most bytes that its tensors take in one step: weights, moments, activations, gradients.

    On a GPU the allocator says it. On the CPU it is what lies there between two steps and the highest sum of
    allocations during one; gradients of the step before are counted with it.
    """
    gc.freeze()  # what there is already is neither searched nor counted
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    step = make()
    for _ in range(2):  # moments are made in the first
        step()
    gc.collect()
    held = tensor_bytes()
    gc.unfreeze()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return step, torch.cuda.max_memory_allocated() - before
    return step, held + allocated(step)


def tensor_bytes() -> int:
    """Bytes of all tensors on the CPU that the garbage collector sees, shared ones once."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu" and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def allocated(step: Step) -> int:
    """The highest sum of what a step allocates on the CPU and has not yet given back, in bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"),
                    key=lambda e: e.start_ns())
    now = top = 0
    for event in events:
        now += event.nbytes()
        top = max(top, now)
    return top
