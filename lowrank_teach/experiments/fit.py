"""`fit`: from four names to a record. Loads, adapts, trains every stage a method has, measures, stores.

    run = fit(SaLoRA(r=8, b=0.5), task="rt", backbone="minilm-l6", profile="laptop", seed=0)
    run.history, run.metrics, run.ranks, run.config
    fit("lora", keep_model=True).trained.model          # the network itself, loaded again by the same call
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..adapters import Adapters, adapt
from ..analysis import measures
from ..errors import StoppedError, among, require, require_seed, shown
from ..methods import Method
from ..methods.composition import as_method, compose, named
from ..models.backbones import load_backbone, require_config
from ..sites import ARCHITECTURES, find_sites, matrix_of
from ..tasks.evaluate import evaluate
from ..tasks.generation import Generation, refuse_long
from ..tasks.load import load_task
from ..tasks.task import TaskData
from ..tasks.tokenize import Collate, encode
from ..training import checkpoint
from ..training.callbacks import Callback, LogEntry, Outcome, ProgressLine, watched
from ..training.config import TrainConfig, default_profile, fit_to_profile, set_by_profile, train_config
from ..training.distributed import Team
from ..training.trainer import Trainer
from .identity import identity
from .runs import HISTORY, Run, Store, config_key, machine, packed

# ---- what is measured of each matrix -----------------------------------------------------------------------
# What each matrix has become: how far it turned, and the spectrum of its change.
#
# Of a low-rank branch this is read through its factors; of a weight that trained itself (full fine-tuning, FT‡) from
# the two matrices, before and after. Taught in 05.
Measured = tuple[str, str, float]   # site, name, value
KEPT = 64                           # singular values


def site_measures(adapters: Adapters) -> list[Measured]:
    """Measure every matrix that could change: cosine to its start; norm, ranks and spectrum of its change."""
    out: list[Measured] = []
    for name, branch in adapters.items():
        pretrained = adapters.owner(name).pretrained_of(name).float()
        if branch.accumulated_update is not None:
            delta = branch.delta().float()
            sigma, cosine = torch.linalg.svdvals(delta), measures.cosine(pretrained, pretrained + delta)
        else:
            left, right = branch.factors()
            sigma = measures.singular_values(left, right)
            cosine = measures.cosine_update(pretrained, left, right)
        out += [*_shared(name, cosine, sigma), (name, "rank", float(branch.r))]
    for name, (W, left, right) in adapters.rule.own_updates().items():
        out += [*_shared(name, measures.cosine_update(W, left, right), measures.singular_values(left, right)),
                (name, "rank", float(left.shape[1]))]
    for name, before, after in trained_weights(adapters):
        out += _shared(name, measures.cosine(before, after), torch.linalg.svdvals(after - before))
    return out


def trained_weights(adapters: Adapters) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (site, W before, W after), (d, k) in float32, of matrices of a known architecture that train whole."""
    if not adapters.base_names or getattr(adapters.model.config, "model_type", None) not in ARCHITECTURES:
        return
    still = adapters.rule.still_sites()
    for site in find_sites(adapters.model):
        weight = f"{site.path}.weight"
        if weight in adapters.base_names and site not in still:
            pair = matrix_of(adapters.model, site, adapters.start_of(weight)), matrix_of(adapters.model, site)
            before, after = (w.float() for w in pair)
            yield site.name, before, after


def _shared(name: str, cosine: float, sigma: Tensor) -> list[Measured]:
    spectrum = [(name, f"sigma.{i}", float(value)) for i, value in enumerate(sigma[:KEPT])]
    return [(name, "cosine", cosine), (name, "effective_rank", measures.effective_rank(sigma)),
            (name, "norm", float(sigma.square().sum().sqrt())), *spectrum]


# ---- fit ---------------------------------------------------------------------------------------------------

def fit(method: Method | str | Sequence[Method | str], task: str = "rt", backbone: str = "minilm-l6",
        profile: str | None = None, seed: int = 0, *, cache: bool = True, callbacks: Sequence[Callback] = (),
        progress: bool = True, store: Store | None = None, adjust: bool = True, notes: Sequence[str] = (),
        autosave: float = math.inf, keep_model: bool = False, longest: int | None = None, **training: Any) -> Run:
    """Train one method on one task, or find the run that did.

    Args:
        method: a configuration, or a method's short name for its defaults; several, or "cola+salora", are
            composed (`methods.compose`).
        task, backbone: short names (`tasks.TASKS`, `models.BACKBONES`), or a hub name or folder of a model.
        profile: "tiny", "laptop" or "gpu"; None takes LOWRANK_PROFILE.
        cache: return a stored run of the same configuration, and take up an unfinished one.
        adjust: let the profile set what depends on the length of training and was left alone.
        notes: put in front of the run's own.  autosave: seconds after which a checkpoint is due.
        keep_model: give the trained network back as `run.trained`. What training changed is kept beside the record,
            so the same call loads it again; a stored run whose network was not kept is trained again.
        longest: leave out training examples of more tokens, where cutting them would take the answer away.
        training: fields of `TrainConfig` to change.

    Raises:
        ValueError: something in the configuration is refused; nothing was written.
        KeyboardInterrupt, StoppedError: Ctrl-C or a callback; the same call goes on where it stopped.
    """
    config = RunConfig(method, task, backbone, profile, seed, training, adjust, longest)  # type: ignore[arg-type]
    store, team = store or Store(), Team.here()
    callbacks = [*callbacks, *([ProgressLine()] if progress else [])]
    job = Job(config, store, cache, callbacks, autosave, keep_model=keep_model)
    if cache and (found := team.broadcast(lambda: store.get(job.key))):
        found.trained = job.restored() if keep_model else None
        if found.trained or not keep_model:
            found.notes, found.found = list(dict.fromkeys([*notes, *found.notes])), True
            return found
    store.check()
    if progress and team.is_main:
        for note in config.notes:
            print(note, flush=True)
    try:
        with watched(callbacks if team.is_main else (), config.label):
            run = _to_the_end(job)
    except KeyboardInterrupt as stop:   # not with the trace of whatever was at work
        raise KeyboardInterrupt(str(stop) or _kept(store, job.key)) from None
    run.notes = [*notes, *run.notes]
    if team.is_main:
        store.put(run)
        if run.trained is not None:
            write_network(store.network(job.key), run.trained.adapters)
        store.forget_checkpoints(job.key)
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
    """Return what an interrupt outside of the steps leaves, in a sentence."""
    some = any(store.folder.glob(f"{key}.*checkpoint.safetensors"))
    return (f"stopped; {'the steps are kept up to the last checkpoint' if some else 'no step was kept yet'}: run the "
            f"same line again to {'go on from there' if some else 'begin anew'}")


@dataclass
class Trained:
    """A network after its training, in eval mode.

    adapters: on the model.  data: the task's examples as tables.  rows: the same, tokenised; `rows.score` scores.
    """

    model: Any
    tokenizer: Any
    adapters: Adapters
    data: TaskData
    rows: Rows


def write_network(path: Path, adapters: Adapters) -> None:
    """Keep what training changed, in one file: branches, head, and whatever else trained.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    tensors, values = adapters.state_dict()
    checkpoint.write(path, tensors, {"method": json.dumps(adapters.method.to_dict()), "values": json.dumps(values)})


def read_network(path: Path) -> tuple[Method, dict[str, Tensor], dict[str, Any]] | None:
    """Return the method that was on the network, and its state; None, and a warning, if the file is damaged."""
    if not path.exists():
        return None
    try:
        tensors, header, whole = checkpoint.read(path)
        if not whole:
            raise ValueError("its content is not what was written")
        return Method.from_dict(json.loads(header["method"])), tensors, json.loads(header["values"])
    except checkpoint.UNREADABLE as error:
        warnings.warn(f"the kept network {path.name} is damaged ({error}); it is trained again", stacklevel=4)
        return None


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
    keep_model: whether the run holds its network.
    """

    config: RunConfig
    store: Store
    cache: bool = True
    callbacks: Sequence[Callback] = ()
    autosave: float = math.inf
    materials: Materials = field(default_factory=Materials)
    form: Callable[[Method], Method] = lambda method: method
    alone: bool = True
    keep_model: bool = False

    def __post_init__(self) -> None:
        self.team = Team.here()
        self.recorded = self.config.on(self.team)  # `config` is of one process of several
        self.identity = self.config.identity
        self.key = config_key(self.recorded.described, self.identity)

    def _machine(self) -> dict[str, Any]:
        return machine() if self.team.size == 1 else {**machine(), "processes": self.team.size}

    def stages(self) -> Generator[Trainer, Outcome, Run]:
        """Yield a trainer for each stage that the method has, take its outcome, and return the record."""
        started = time.perf_counter()
        require_config(self.config.backbone)  # before minutes of reading rows
        data = self.materials.data(self.config.task, self.config.train, self.config.seed)
        measures.reset_peak_memory()
        history: list[LogEntry] = []
        seconds: dict[str, float] = {}
        notes = [data.source, *self.config.notes]
        stage: Method | None = self.config.adjusted
        while stage is not None:
            network = self._network(data, self.form(stage))
            adapters, rows, model = network.adapters, network.rows, network.model
            examples = self._examples(rows)
            flops = _step_flops(adapters, examples, self.recorded.train.batch_size)
            trainer = self._trainer(adapters, rows, examples, stage)
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
        hits: dict[str, list[bool]] = {"validation": [], "test": []}
        metrics = {split: self.team.broadcast(partial(rows.score, model, split, hits[split])) for split in hits}
        last = outcome.step + offset
        history += [(last, site, name, value) for site, name, value in site_measures(adapters)]
        seconds["total"] = time.perf_counter() - started
        model.eval()
        still = sum(site.d * site.k for site in adapters.rule.still_sites())
        bits = {split: packed(found) for split, found in hits.items() if found}
        return Run(config=self.recorded.described, history=pd.DataFrame(history, columns=HISTORY), metrics=metrics,
                   ranks=adapters.ranks(), parameters=measures.parameter_counts(model, still), seconds=seconds,
                   memory=measures.peak_memory(), flops=flops, notes=notes, machine=self._machine(),
                   hits=bits, factors=_factors(adapters), identity=self.identity,
                   trained=network if self.keep_model else None)

    def restored(self) -> Trained | None:
        """Return the network of a stored run; None where none was kept."""
        if (kept := read_network(self.store.network(self.key))) is None:
            return None
        method, tensors, values = kept
        data = self.materials.data(self.config.task, self.config.train, self.config.seed)
        network = self._network(data, method)
        network.adapters.load_state_dict(tensors, values)
        network.model.eval()
        return network

    def _network(self, data: TaskData, method: Method) -> Trained:
        """Return the backbone with a method on it as training begins, and the rows for it."""
        c, seed = self.config.train, self.config.seed
        model, tokenizer = self.materials.model(self.config.backbone, data, seed, c)
        self._refuse_changed()
        rows = self.materials.rows(data, tokenizer, c, model)
        rows.refuse_long(model)
        return Trained(model, tokenizer, adapt(model, method, seed=seed), data, rows)

    def _refuse_changed(self) -> None:
        """Refuse rows and weights that were read while their files changed."""
        now = self.config.identity
        for part, name in (("data", self.config.task), ("weights", self.config.backbone)):
            if now[part] != self.identity[part]:
                raise ValueError(f"the {part} of '{name}' changed while this run was being prepared: call it again, "
                                 "once nothing writes there any more")

    def _examples(self, rows: Rows) -> list[dict[str, Any]]:
        """Return what is trained on: all rows, or those of at most `longest` tokens."""
        if (longest := self.config.longest) is None:
            return rows.train
        short = [row for row in rows.train if len(row["input_ids"]) <= longest]
        require(bool(short), f"longest = {longest} leaves no training example; the shortest has "
                             f"{min(len(row['input_ids']) for row in rows.train)} tokens")
        return short

    def _trainer(self, adapters: Adapters, rows: Rows, examples: Sequence[dict[str, Any]], stage: Method) -> Trainer:
        key, which = self.key, config_key(stage.to_dict())
        checkpoint = self.store.checkpoint(f"{key}.{which[:6]}")
        if not self.cache and self.team.is_main:
            checkpoint.unlink(missing_ok=True)
        return Trainer(adapters, examples, rows.collate, self.config.train, seed=self.config.seed,
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

    def score(self, model: Any, split: str, hits: list[bool] | None = None) -> dict[str, float]:
        """Return the metrics of a split, the headline first; validation rows stand in for a test without labels.

        hits: as in `evaluate`.
        """
        rows = self.splits.get(split, self.splits["validation"])
        writes = (self.n_written or len(rows)) if self.task.kind == "seq2seq" else None
        found = evaluate(model, rows, self.collate, self.task, batch_size=2 * self.batch_size,
                         tokenizer=self.tokenizer, generate_rows=writes, generation=self.generation,
                         hits=hits)
        return {name: found[name] for name in [*self.task.metrics, *found] if name in found}


def load_for(backbone: str, data: TaskData, seed: int, base_dtype: str = "float32") -> tuple[Any, Any]:
    """Return a backbone with the head that a task asks for, and its tokenizer; as `load_backbone`.

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
    """Return the analytic FLOPs of one step at the ranks it starts with, a batch of rows of mean length, by part."""
    length = sum(len(row["input_ids"]) for row in rows) / len(rows)
    attached = adapters.extra_names and not adapters.rule.own_updates()  # what stands beside no matrix is not counted
    if attached or getattr(adapters.model.config, "model_type", None) not in ARCHITECTURES:
        return {}
    shapes = {site.name: (site.d, site.k) for site in find_sites(adapters.model)}
    ranks = {name: rank for name, rank in adapters.ranks().items() if name in shapes}
    one = measures.model_flops(shapes, ranks, round(batch_size * length), round(length),
                              train_weight=bool(adapters.base_names))
    return {key: float(value) for key, value in dataclasses.asdict(one).items()}


def _factors(adapters: Adapters) -> dict[str, Any]:
    found = {name: branch.factors() for name, branch in adapters.items() if branch.accumulated_update is None}
    return found | {name: update[1:] for name, update in adapters.rule.own_updates().items()}


# What decides a run, as one value: `fit` takes its parts, `sweep` and `fit_many` take lists of them.
#
#     config = RunConfig("salora", "rt", seed=3, training={"lr": 2e-3})
#     config.key                    # the name of its record in the store
#     run = config.fit()            # or: sweep(grid(["lora", "salora"], seeds=5, lr=[1e-3, 2e-3]))
@dataclass(frozen=True)
class RunConfig:
    """One run, before it is trained; the arguments are those of `fit`.

    Args:
        method: a configuration, or a short name for its defaults.  task, backbone: short names.
        profile: "tiny", "laptop" or "gpu"; None takes LOWRANK_PROFILE, now and not when it is trained.
        training: fields of `TrainConfig` to change.
        adjust: let the profile set what depends on the length of training and was left alone.
        longest: as in `fit`.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    method: Method = field(hash=False)
    task: str = "rt"
    backbone: str = "minilm-l6"
    profile: str = None  # type: ignore[assignment]  # a name from here on
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    adjust: bool = field(default=True, hash=False)
    longest: int | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.task, str), f"task = {shown(self.task)} must be the short name of a task")
        from ..tasks.load import require_task  # late: it reads the sources of the rows, which few configurations need

        require_task(self.task)
        require(isinstance(self.backbone, str | PathLike), f"backbone = {shown(self.backbone)} must be a name or a "
                                                           "folder")
        require(isinstance(self.profile, str | None), f"unknown profile {shown(self.profile)}: give its name")
        require(isinstance(self.training, Mapping) and all(isinstance(name, str) for name in self.training),
                f"training = {shown(self.training)} must be a dict of fields of TrainConfig")
        require(isinstance(self.adjust, bool), f"adjust = {shown(self.adjust)} must be true or false")
        require(self.longest is None or (isinstance(self.longest, int) and self.longest > 0),
                f"longest = {shown(self.longest)} must be a number of tokens above 0, or None")
        settled = {"method": as_method(self.method), "backbone": os.path.expanduser(str(self.backbone)),
                   "seed": require_seed(self.seed), "profile": self.profile or default_profile(),
                   "training": dict(self.training)}
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        train_config(self.profile, **self.training)  # refused here, not when its turn comes

    @cached_property
    def train(self) -> TrainConfig:
        """How long and how fast: the profile with what is changed in it."""
        return train_config(self.profile, **self.training)

    @cached_property
    def adjusted(self) -> Method:
        """The method as it is trained, with what the profile sets."""
        return fit_to_profile(self.method, self.profile) if self.adjust else self.method

    @cached_property
    def described(self) -> dict[str, Any]:
        """Plain values, as they stand in the record under "config" and as they are read back."""
        values = {"method": self.adjusted.to_dict(), "task": self.task, "backbone": self.backbone, "seed": self.seed,
                  "profile": self.profile, "training": self.train.to_dict()}
        values |= {} if self.longest is None else {"longest": self.longest}   # a run without it keeps its key
        return json.loads(json.dumps(values))

    def __eq__(self, other: object) -> bool:
        """Whether they are the same run: methods that are equal may follow a profile or keep what was asked for."""
        return self.described == other.described if isinstance(other, RunConfig) else NotImplemented

    @property
    def notes(self) -> list[str]:
        """What the profile set in the method, for the reader and the record."""
        return [f"the profile {self.profile} set {', '.join(f'{key} = {value:g}' for key, value in values.items())} "
                f"of {name}; a value asked for is kept"
                for name, values in (set_by_profile(self.method, self.profile) if self.adjust else {}).items()]

    @property
    def identity(self) -> dict[str, str | None]:
        """Fingerprints of the rows and weights that stand under these names now; see `identity.identity`."""
        return identity(self.task, self.backbone)

    @property
    def key(self) -> str:
        """The name of the run's record, of what would be trained now; see `runs.config_key`."""
        return config_key(self.described, self.identity)

    @property
    def label(self) -> str:
        """Method, task and seed, in a few words."""
        return f"{self.method.name}, {self.task}, seed {self.seed}"

    def on(self, team: Team) -> RunConfig:
        """Return the run as it is recorded: that of one process with the batch of all."""
        if team.size == 1:
            return self
        return dataclasses.replace(self, training={**self.training, "batch_size": team.whole(self.train).batch_size})

    def fit(self, **options: Any) -> Run:
        """Train it, or find the run that did; options of `fit` such as store, callbacks, progress."""
        return fit(self.method, self.task, self.backbone, self.profile, self.seed, adjust=self.adjust,
                   longest=self.longest, **options, **self.training)


def grid(methods: Method | str | Sequence[Method | str], tasks: str | Sequence[str] = "rt",
         backbones: str | Sequence[str] = "minilm-l6", *, seeds: int | Iterable[int] = 1, profile: str | None = None,
         **values: Any) -> list[RunConfig]:
    """Return every combination, seed by seed, so that an interrupted sweep is balanced.

    Args:
        methods: configurations or short names; "cola+salora" is one.  seeds: how many, or which.
        values: of the methods or of the training; a list is a list of values to try, all else is one value. A value
            that only some methods have is varied for these alone.

    Raises:
        ValueError: no method here and no training has a value of this name, or one is out of range.
    """
    require(isinstance(seeds, int | Iterable) and not isinstance(seeds, bool), f"seeds = {shown(seeds)} must be how "
                                                                               "many, or which")
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    tried = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    _refuse_unknown(set(tried), _several(methods))
    chosen = list(itertools.chain(*(_varied(method, tried) for method in _several(methods))))
    return [RunConfig(method, task, backbone, profile, seed, training)  # type: ignore[arg-type]
            for seed in seeds for task in _several(tasks) for backbone in _several(backbones)
            for method, training in chosen]


def _several(what: Any) -> list[Any]:
    return list(what) if isinstance(what, list | tuple | range) else [what]


def _varied(method: Method | str, tried: Mapping[str, list[Any]]) -> Iterable[tuple[Method, dict[str, Any]]]:
    """Return one method with each combination of the values that it or its training has."""
    own, training = _fields(method), {f.name for f in dataclasses.fields(TrainConfig)}
    names = [name for name in tried if name in own | training]
    for combination in itertools.product(*(tried[name] for name in names)):
        pairs = dict(zip(names, combination, strict=True))
        changed = _with(method, {name: value for name, value in pairs.items() if name in own})
        yield changed, {name: value for name, value in pairs.items() if name not in own}


def _fields(method: Method | str) -> set[str]:
    members = getattr(made := as_method(method), "members", (made,))
    return {f.name for member in members for f in dataclasses.fields(member)}


def _with(method: Method | str, values: Mapping[str, Any]) -> Method:
    """Return the method with other values; in a composition each goes to every member that has such a field."""
    if isinstance(method, str):
        return named(method, **values)
    members = getattr(method, "members", (method,))
    return compose(*(member.changed(**{k: v for k, v in values.items() if k in _fields(member)})
                     for member in members))


def _refuse_unknown(names: set[str], methods: Sequence[Method | str]) -> None:
    known = set().union({f.name for f in dataclasses.fields(TrainConfig)}, *map(_fields, methods))
    lost = sorted(names - known)
    require(not lost, f"{', '.join(lost)}: no value of the methods or of the training has this name; there are "
                      f"{among(sorted(known), *lost[:1])}")
