"""`fit`: from four names to a record. Loads, adapts, trains every stage a method has, measures, stores.

    run = fit(SaLoRA(r=8, b=0.5), task="rt", backbone="minilm-l6", profile="laptop", seed=0)
    run.history, run.metrics, run.ranks, run.config
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from . import measure
from .adapters import Adapters, adapt
from .config import TrainConfig
from .distributed import Team
from .evaluate import evaluate
from .features import Collate, encode
from .methods import Method
from .models import load_backbone, require_config
from .outcome import Callback, Outcome, Row, StoppedError, watched
from .progress import ProgressLine
from .run_config import RunConfig
from .runs import HISTORY, Run, Store, config_key, machine
from .site_measures import site_measures
from .sites import ARCHITECTURES, find_sites
from .tasks import TaskData, load_task
from .train import Trainer
from .writing import Generation, refuse_long


def fit(method: Method | str | Sequence[Method | str], task: str = "rt", backbone: str = "minilm-l6",
        profile: str | None = None, seed: int = 0, *, cache: bool = True, callbacks: Sequence[Callback] = (),
        progress: bool = True, store: Store | None = None, adjust: bool = True, notes: Sequence[str] = (),
        autosave: float = math.inf, **training: Any) -> Run:
    """Train one method on one task, or find the run that did.

    Args:
        method: a configuration, or a method's short name for its defaults; several, or "cola+salora", are
            composed (`methods.compose`).
        task, backbone: short names (`tasks.TASKS`, `models.BACKBONES`), or a hub name or folder of a model.
        profile: "tiny", "laptop" or "gpu"; None takes LOWRANK_PROFILE.
        cache: return a stored run of the same configuration, and take up an unfinished one.
        adjust: let the profile set what depends on the length of training and was left alone.
        notes: put in front of the run's own.  autosave: seconds after which a checkpoint is due.
        training: fields of `TrainConfig` to change.

    Raises:
        ValueError: something in the configuration is refused; nothing was written.
        KeyboardInterrupt, StoppedError: Ctrl-C or a callback; the same call goes on where it stopped.
    """
    config = RunConfig(method, task, backbone, profile, seed, training, adjust)  # type: ignore[arg-type]
    store, team = store or Store(), Team.here()
    key = team.recorded(config).key
    if cache and (found := team.told(lambda: store.get(key))):
        found.notes, found.found = list(dict.fromkeys([*notes, *found.notes])), True
        return found
    store.check()
    if progress and team.leads:
        for note in config.notes:
            print(note, flush=True)
    callbacks = [*callbacks, *([ProgressLine()] if progress else [])]
    try:
        with watched(callbacks if team.leads else (), config.label):
            run = _to_the_end(Job(config, store, cache, callbacks, autosave))
    except KeyboardInterrupt as stop:   # not with the trace of whatever was at work
        raise KeyboardInterrupt(str(stop) or _kept(store, key)) from None
    run.notes = [*notes, *run.notes]
    if team.leads:
        store.put(run)
        store.forget_checkpoints(key)
    return run


def _to_the_end(job: Job) -> Run:
    stages = job.stages()
    try:
        trainer = next(stages)
        while True:
            trainer = stages.send(trainer.run())
    except StopIteration as end:
        return end.value


def _kept(store: Store, key: str) -> str:
    """What an interrupt outside of the steps leaves, in a sentence."""
    some = any(store.folder.glob(f"{key}.*checkpoint.safetensors"))
    return (f"stopped; {'the steps are kept up to the last checkpoint' if some else 'no step was kept yet'}: run the "
            f"same line again to {'go on from there' if some else 'begin anew'}")


class Materials:
    """What runs are made of: rows and networks."""

    def data(self, task: str, c: TrainConfig, seed: int) -> TaskData:
        return load_task(task, n_train=c.n_train, n_validation=c.n_validation, n_test=c.n_test, seed=seed,
                         validation_from_train=c.validation_from_train)

    def model(self, backbone: str, data: TaskData, seed: int, c: TrainConfig) -> tuple[Any, Any]:
        return load_for(backbone, data, seed, c.base_dtype)

    def rows(self, data: TaskData, tokenizer: Any, c: TrainConfig, model: Any) -> Rows:
        return Rows(data, tokenizer, c, getattr(model.config, "is_encoder_decoder", False))


@dataclass
class Job:
    """One run in the making.

    form: the method as it is put on the network, where that is another form of the same one.
    alone: whether nothing else trains meanwhile; else a run's seconds are its share of the steps, and its own work.
    """

    config: RunConfig
    store: Store
    cache: bool = True
    callbacks: Sequence[Callback] = ()
    autosave: float = math.inf
    materials: Materials = field(default_factory=Materials)
    form: Callable[[Method], Method] = lambda method: method
    alone: bool = True

    def __post_init__(self) -> None:
        self.team = Team.here()
        self.recorded = self.team.recorded(self.config)  # `config` is of one process of several
        self.identity = self.config.identity
        self.key = config_key(self.recorded.described, self.identity)

    def _machine(self) -> dict[str, Any]:
        return machine() if self.team.size == 1 else {**machine(), "processes": self.team.size}

    def stages(self) -> Generator[Trainer, Outcome, Run]:
        """Yields a trainer for each stage that the method has, is sent its outcome, and returns the record."""
        started = time.perf_counter()
        c, task, backbone, seed = self.config.train, self.config.task, self.config.backbone, self.config.seed
        require_config(backbone)  # before minutes of reading rows
        data = self.materials.data(task, c, seed)
        measure.reset_peak_memory()
        history: list[Row] = []
        seconds: dict[str, float] = {}
        notes = [data.source, *self.config.notes]
        stage: Method | None = self.config.adjusted
        while stage is not None:
            model, tokenizer = self.materials.model(backbone, data, seed, c)
            self._refuse_changed()
            rows = self.materials.rows(data, tokenizer, c, model)
            rows.refuse_long(model)
            adapters = adapt(model, self.form(stage), seed=seed)
            flops = _step_flops(adapters, rows.train, self.recorded.train.batch_size)
            trainer = self._trainer(adapters, rows, stage)
            paused = time.perf_counter()
            outcome = yield trainer
            if not self.alone:
                started += time.perf_counter() - paused - outcome.seconds
            if not outcome.finished:
                raise StoppedError(f"stopped after step {outcome.step} of {trainer.total}; the same call goes on "
                                   "there")
            offset = int(sum(seconds.get(f"steps.{name}", 0) for name in ("search", "training")))
            history += [(step + offset, site, name, value) for step, site, name, value in outcome.history]
            notes += [*adapters.rule.notes(), *outcome.notes]
            stage = outcome.following
            part = "training" if stage is None else "search"
            seconds[part] = outcome.seconds
            seconds[f"steps.{part}"] = outcome.step
        metrics = {split: self.team.told(lambda split=split: rows.score(model, split))  # type: ignore[misc]
                   for split in ("validation", "test")}
        last = outcome.step + offset
        history += [(last, site, name, value) for site, name, value in site_measures(adapters)]
        seconds["total"] = time.perf_counter() - started
        still = sum(site.d * site.k for site in adapters.rule.still_sites())
        return Run(config=self.recorded.described, history=pd.DataFrame(history, columns=HISTORY), metrics=metrics,
                   ranks=adapters.ranks(), parameters=measure.parameter_counts(model, still), seconds=seconds,
                   memory=measure.peak_memory(), flops=flops, notes=notes, machine=self._machine(),
                   factors=_factors(adapters), identity=self.identity)

    def _refuse_changed(self) -> None:
        """Refuse rows and weights that were read while their files changed."""
        now = self.config.identity
        for part, name in (("data", self.config.task), ("weights", self.config.backbone)):
            if now[part] != self.identity[part]:
                raise ValueError(f"the {part} of '{name}' changed while this run was being prepared: call it again, "
                                 "once nothing writes there any more")

    def _trainer(self, adapters: Adapters, rows: Rows, stage: Method) -> Trainer:
        key, which = self.key, config_key(stage.to_dict())
        checkpoint = self.store.checkpoint(f"{key}.{which[:6]}")
        if not self.cache and self.team.leads:
            checkpoint.unlink(missing_ok=True)
        return Trainer(adapters, rows.train, rows.collate, self.config.train, seed=self.config.seed,
                       callbacks=self.callbacks, evaluate=lambda model: rows.score(model, "validation"),
                       checkpoint=checkpoint, identity=f"{key}:{which}", autosave=self.autosave)


class Rows:
    """A task's rows, tokenised once for one model."""

    def __init__(self, data: TaskData, tokenizer: Any, config: TrainConfig, encoder_decoder: bool) -> None:
        causal = data.task.kind == "choice" or (data.task.kind == "seq2seq" and not encoder_decoder)
        self.task, self.tokenizer, self.batch_size = data.task, tokenizer, config.batch_size
        self.n_written = config.n_written
        self.generation = Generation(max_new_tokens=data.task.max_target, num_beams=config.num_beams,
                                     length_penalty=config.length_penalty,
                                     no_repeat_ngram_size=config.no_repeat_ngram_size)
        self.splits = {name: encode(frame, data.task, tokenizer, config.max_length, causal=causal)
                       for name in ("train", "validation", "test") if (frame := getattr(data, name)) is not None}
        self.collate = Collate(tokenizer, data.task, causal=causal)

    def refuse_long(self, model: Any) -> None:
        """Refuse before the training what the model has no positions for: rows, and what is written after prompts.

        Raises:
            ValueError: names the row and what fits.
        """
        for rows in self.splits.values():
            refuse_long(model, rows)
            if self.task.kind == "seq2seq":
                refuse_long(model, rows, self.generation.max_new_tokens)

    @property
    def train(self) -> list[dict[str, Any]]:
        return self.splits["train"]

    def score(self, model: Any, split: str) -> dict[str, float]:
        """Metrics of a split, the headline first; validation rows stand in for a test without labels."""
        rows = self.splits.get(split, self.splits["validation"])
        writes = (self.n_written or len(rows)) if self.task.kind == "seq2seq" else None
        found = evaluate(model, rows, self.collate, self.task, batch_size=2 * self.batch_size,
                         tokenizer=self.tokenizer, generate_rows=writes, generation=self.generation)
        return {name: found[name] for name in [*self.task.metrics, *found] if name in found}


def load_for(backbone: str, data: TaskData, seed: int, base_dtype: str = "float32") -> tuple[Any, Any]:
    """A backbone with the head that a task asks for, and its tokenizer; as `load_backbone`.

    base_dtype: as in `TrainConfig`.
    """
    task = data.task
    labels = {"classification": len(task.labels), "tagging": len(task.labels), "regression": 1}.get(task.kind)
    kind = {"seq2seq": None, "choice": "causal"}.get(task.kind, task.kind)
    if base_dtype == "float32":
        return load_backbone(backbone, num_labels=labels, kind=kind, seed=seed)
    return load_backbone(backbone, num_labels=labels, kind=kind, seed=seed, dtype="bfloat16",
                         four_bit=base_dtype == "4bit")


def _step_flops(adapters: Adapters, rows: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """Analytic FLOPs of one step at the ranks it starts with, a batch of rows of mean length, by part."""
    length = sum(len(row["input_ids"]) for row in rows) / len(rows)
    attached = adapters.extra_names and not adapters.rule.own_updates()  # what stands beside no matrix is not counted
    if attached or getattr(adapters.model.config, "model_type", None) not in ARCHITECTURES:
        return {}
    shapes = {site.name: (site.d, site.k) for site in find_sites(adapters.model)}
    ranks = {name: rank for name, rank in adapters.ranks().items() if name in shapes}
    one = measure.model_flops(shapes, ranks, round(batch_size * length), round(length),
                              train_weight=bool(adapters.base_names))
    return {key: float(value) for key, value in dataclasses.asdict(one).items()}


def _factors(adapters: Adapters) -> dict[str, Any]:
    found = {name: branch.factors() for name, branch in adapters.items() if branch.drift is None}
    return found | {name: update[1:] for name, update in adapters.rule.own_updates().items()}
