"""`fit_many`: a list of runs, those that can over one frozen network, a pass for many at once.

    runs = fit_many(grid(["lora", "salora"], seeds=5, lr=[1e-3, 2e-3, 5e-3]))

Which share a pass: runs on one backbone with heads of one size, the same kind of task, batch size and number format;
methods, ranks, seeds, rates, lengths and tasks may differ. Methods that write into W are put in the form that keeps
everything beside it (COLA's links stacked, Delta-LoRA lazily): the same function, so the same record. What cannot
share (full fine-tuning, adapters, soft prompts) is trained alone. How many go at once is planned from memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import torch

from ..tasks.table import TASKS
from ..tasks.task import TaskData
from ..training.callbacks import Callback, Outcome
from ..training.config import TrainConfig
from ..training.replicas import share_weights, train_together, why_not
from ..training.trainer import Trainer
from .fit import Job, Materials, Rows, RunConfig, load_for
from .identity import data_fingerprint, weights_fingerprint
from .memory import in_units, plan_memory
from .runs import Run, Store

SHARE_OF_FREE = 0.7   # of the memory that is free, for what replicas add


class Kept(Materials):
    """Rows read and tokenised once, and networks that share one copy of the pretrained weights."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def data(self, task: str, c: TrainConfig, seed: int) -> TaskData:
        drawn = TASKS[task].resplit is not None if task in TASKS else True   # rows that depend on the seed
        counts = c.n_train, c.n_validation, c.n_test, c.validation_from_train
        key = "data", task, data_fingerprint(task), *counts, seed if drawn else None
        return self._once(key, lambda: super(Kept, self).data(task, c, seed))

    def rows(self, data: TaskData, tokenizer: Any, c: TrainConfig, model: Any) -> Rows:
        written = c.num_beams, c.length_penalty, c.no_repeat_ngram_size, c.n_written
        key = "rows", id(data), id(tokenizer), c.max_length, c.batch_size, written
        return self._once(key, lambda: super(Kept, self).rows(data, tokenizer, c, model))

    def model(self, backbone: str, data: TaskData, seed: int, c: TrainConfig) -> tuple[Any, Any]:
        labels, weights = len(data.task.labels or ()), weights_fingerprint(backbone)
        key = "model", backbone, weights, data.task.kind, labels, c.base_dtype
        first, tokenizer = self._once(key, lambda: load_for(backbone, data, seed, c.base_dtype))
        model, _ = load_for(backbone, data, seed, c.base_dtype)
        share_weights(model, first, model.lowrank_new_parameters)
        return model, tokenizer


@dataclass
class PendingRun:
    """A run between two of its stages: the trainer that is to run next, or its end."""

    config: RunConfig
    stages: Generator[Trainer, Outcome, Run]
    trainer: Trainer | None = None
    end: Run | Exception | None = None

    def go_on(self, outcome: Outcome | Exception | None) -> None:
        """Hand over what the trainer left, and take the next one."""
        self.trainer = None
        if isinstance(outcome, Exception):
            self.end = outcome
            return
        try:
            self.trainer = self.stages.send(outcome)  # type: ignore[arg-type]
        except StopIteration as done:
            self.end = done.value
        except Exception as error:   # one run's refusal is not the others'
            self.end = error


def fit_many(configs: Iterable[RunConfig], *, store: Store | None = None, cache: bool = True,
             at_once: int | None = None, callbacks: Callable[[RunConfig], Sequence[Callback]] | None = None,
             say: Callable[[str], None] | None = print, on_run: Callable[[RunConfig, Run], None] | None = None,
             autosave: float = math.inf) -> list[Run | Exception]:
    """Train every run of a list, or find those that are stored; records are those of `fit`.

    Args:
        configs: from `grid`, or a list of `RunConfig`.
        at_once: replicas in one pass at most; None plans it from the memory that is free.
        callbacks: of a run: made for each configuration.  say: takes lines on the plan and how far it is; None for
            silence.  on_run: called as each run is done.  autosave: seconds after which a checkpoint is due.

    Returns, in the order of the configurations, each run, or the error that ended it and no other.

    Raises:
        KeyboardInterrupt: Ctrl-C; every run in progress left a checkpoint, and the same call goes on.
    """
    configs, store, say = list(configs), store or Store(), say or (lambda line: None)
    store.check()
    found: dict[RunConfig, Run | Exception] = {}
    for config in configs:
        if cache and (run := store.get(config.key)) is not None:
            found[config], run.found = run, True
    missing = dict.fromkeys(config for config in configs if config not in found)
    many = Many(store, cache, at_once, callbacks, say, autosave)
    try:
        for config, end in many.train(list(missing)):
            found[config] = end
            if isinstance(end, Run):
                store.put(end)
                store.forget_checkpoints(end.key)
                if on_run is not None:
                    on_run(config, end)
    except KeyboardInterrupt as stop:
        done = f"{len(found)} of {len(dict.fromkeys(configs))} runs are done and kept"
        raise KeyboardInterrupt(f"{str(stop) or 'stopped; run the same line again to go on'}; {done}") from None
    return [found[config] for config in configs]


@dataclass
class Many:
    """Runs in the making, those that can in one pass."""

    store: Store
    cache: bool
    at_once: int | None
    callbacks: Callable[[RunConfig], Sequence[Callback]] | None
    say: Callable[[str], None]
    autosave: float = math.inf

    def train(self, configs: Sequence[RunConfig]) -> Iterable[tuple[RunConfig, Run | Exception]]:
        """Yield each run as it ends."""
        for group in groups(configs):
            size = min(len(group), self.at_once) if self.at_once else room_for(group)
            self.say(plan(group, size))
            materials, done = Kept() if len(group) > 1 else Materials(), 0
            while done < len(group):
                chosen = group[done:done + size]
                try:
                    yield from self._pass(chosen, materials)
                except torch.OutOfMemoryError:
                    if len(chosen) == 1:
                        raise
                    size = len(chosen) // 2
                    self.say(f"that did not fit into memory; from here {size} at once")
                    continue
                done += len(chosen)

    def _pass(self, configs: Sequence[RunConfig], materials: Materials) -> list[tuple[RunConfig, Run | Exception]]:
        making = [PendingRun(config, self._job(config, materials).stages()) for config in configs]
        for one in making:
            one.go_on(None)
        while waiting := [one for one in making if one.trainer is not None]:
            for together in _alike(waiting):
                self._stage(together)
        return [(one.config, one.end) for one in making if one.end is not None]

    def _job(self, config: RunConfig, materials: Materials) -> Job:
        mine = self.callbacks(config) if self.callbacks else ()
        alone = type(materials) is Materials
        return Job(config, self.store, self.cache, mine, self.autosave, materials,
                   form=(lambda method: method) if alone else methodcaller("with_frozen_base"), alone=alone)

    def _stage(self, making: list[PendingRun]) -> None:
        """Train the next stage of some runs: in one pass if they can share it, else one after another."""
        trainers = [one.trainer for one in making if one.trainer is not None]
        if len(making) > 1:
            outcomes: Sequence[Outcome | Exception] = train_together(trainers)
        else:
            outcomes = [_alone(trainers[0])]
        for one, outcome in zip(making, outcomes, strict=True):
            one.go_on(outcome)


def _alone(trainer: Trainer) -> Outcome | Exception:
    try:
        return trainer.run()
    except Exception as error:
        return error


def groups(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Return groups of runs that may share a pass, as far as their configurations tell; each of the others alone."""
    alike: dict[Any, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(_key(config), []).append(config)
    return list(alike.values())


def _key(config: RunConfig) -> Any:
    c, task = config.train, TASKS[config.task]
    method = config.adjusted.with_frozen_base()
    if method.writes_base or method.trains_base:  # it needs a network of its own
        return config.key
    return (config.backbone, task.kind, len(task.labels or ()), c.batch_size, c.accumulation, c.mixed_precision,
            c.base_dtype, c.gradient_checkpointing, c.max_length)


def _alike(making: Sequence[PendingRun]) -> list[list[PendingRun]]:
    """Return those whose next stage can share a pass, together."""
    found: dict[Any, list[PendingRun]] = {}
    for i, one in enumerate(making):
        assert one.trainer is not None
        alone = why_not(one.trainer.adapters)
        found.setdefault((i if alone else -1, len(one.trainer.streams["held_out"]) > 0), []).append(one)
    return list(found.values())


# ---- memory ------------------------------------------------------------------------------------------------


def room_for(configs: Sequence[RunConfig]) -> int:
    """Return how many of these runs' replicas fit into the memory that is free, at least one."""
    if len(configs) == 1:
        return 1
    return max(1, min(len(configs), int(SHARE_OF_FREE * free_memory() // _added(configs))))


def plan(configs: Sequence[RunConfig], size: int) -> str:
    """Return one sentence: in how many passes, and what a replica adds to the frozen network."""
    passes = math.ceil(len(configs) / size)
    what = f"{len(configs)} run{'s' if len(configs) > 1 else ''} on {configs[0].backbone}"
    if size == 1:
        return f"{what}, one after another"
    return (f"{what} in {passes} pass{'es' if passes > 1 else ''} of up to "
            f"{size}: each adds up to {in_units(_added(configs))} to one frozen network, and "
            f"{in_units(free_memory())} are free")


def _added(configs: Sequence[RunConfig]) -> int:
    """Return how many bytes the largest of these replicas adds: branches, head, gradients, moments, activations."""
    largest = max(configs, key=lambda config: config.adjusted.r)
    task = TASKS[largest.task]
    kind = {"seq2seq": None, "choice": "causal"}.get(task.kind, task.kind)
    found = plan_memory(largest.adjusted.with_frozen_base(), largest.backbone, largest.train, kind=kind,
                        labels=max(len(task.labels or ()), 2))
    return found.total - found.weights


def free_memory() -> int:
    """Return the bytes that are free where training runs: the GPU, or this machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
