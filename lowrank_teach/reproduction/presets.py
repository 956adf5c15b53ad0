"""The cells of the papers' tables, each under one name, paper/backbone/task, with the source of every value."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import require_kind
from ..methods import METHODS, Method
from ..models.backbones import DIMENSIONS, CheckpointError, Published, reason
from ..tasks.table import TASKS
from ..training.config import PROFILES, TrainConfig, fit_to_profile

if TYPE_CHECKING:
    from ..experiments.runs import Run




# ---- a value and its source --------------------------------------------------------------------------------
# A value, and where it is from.
#
# Three kinds of source are kept apart: `paper`, what its text says; `code`, what its authors' scripts say, or those
# of the work whose configuration it says that it takes; `ours`, what neither gives, with the reason for our choice.
KINDS = ("paper", "code", "ours")


@dataclass(frozen=True)
class Setting:
    """One value; kind is one of KINDS; source says where it stands, or why we chose it."""

    value: Any
    kind: str
    source: str


Settings = Mapping[str, Setting]


def paper(value: Any, source: str = "the paper's text") -> Setting:
    return Setting(value, "paper", source)


def code(value: Any, source: str) -> Setting:
    return Setting(value, "code", source)


def ours(value: Any, why: str) -> Setting:
    return Setting(value, "ours", why)


# ---- a cell of a paper's table -----------------------------------------------------------------------------
# A preset: one cell of a paper's table with all its values, ready to be trained, or to be read.
DEFAULT = "not given; the default here"
WHERE_RUN = ("steps", "accumulation", "n_train", "n_validation", "n_test", "mixed_precision", "base_dtype",
             "gradient_checkpointing", "checkpoint_every")
WRITING = ("n_written", "num_beams", "length_penalty", "no_repeat_ngram_size")
STEP_COUNTS = ("K", "search_steps", "t_start", "t_end")  # method values that count steps where they are whole numbers
WRITTEN = {"tiny": 8}                                    # texts written at a shortened run's evaluation


@dataclass(frozen=True)
class Preset:
    """One cell of a paper's table, ready to be trained.

    name: paper/backbone/task; the paper's is the method's short name, the backbone's a key of `DIMENSIONS`.
    table: where the cell stands.  task: short name here.  seeds: that the number is over.
    settings: every value that was looked up or chosen, by the name it has here (of the method or of `TrainConfig`).
    reported: metric -> the number as it is printed there; only numbers that were found in a text or a repository.
    counts: parameters of the branches as printed, and as they are here.
    grid: values that the paper says it searched over, where it reports the best.
    differs: what of the paper's setting is not like this here.
    baselines: method -> what it is set to in the same table.
    train_rows: of the paper's split, where it is not all published ones.
    """

    name: str
    table: str
    task: str
    settings: Settings
    seeds: Setting
    reported: Mapping[str, str] = field(default_factory=dict)
    reported_source: str = ""
    counts: tuple[str, int] | None = None
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    baselines: Mapping[str, Settings] = field(default_factory=dict)
    train_rows: int = 0

    @property
    def checkpoint(self) -> Published:
        return DIMENSIONS[self.name.split("/")[1]]

    @property
    def backbone(self) -> str:
        """The checkpoint's name on the hub."""
        return self.checkpoint.hub

    @property
    def stand_in(self) -> str:
        """The packaged model that comes nearest to the paper's."""
        return self.checkpoint.stand_in

    @property
    def method(self) -> Method:
        return self.configured()

    def configured(self, method: str | None = None, **changes: Any) -> Method:
        """Return the paper's method, or a baseline of its table, with some values changed.

        Raises:
            ValueError: the table has no such baseline whose setting is known, or a value is out of range.
        """
        own = self.name.split("/")[0]
        if method not in (None, own, *self.baselines):
            known = ", ".join([own, *self.baselines])
            raise ValueError(f"{self.name} has no setting for {method!r}; it has {known}")
        settings = self.settings if method in (None, own) else self.baselines[str(method)]
        usual = {f.name: f.default for f in dataclasses.fields(METHODS[method or own])}
        values = {name: s.value for name, s in settings.items() if name in usual}
        asked = changes.keys() | {name for name, value in values.items() if value != usual[name]}
        return METHODS[method or own].rebuilt({**values, **changes}, asked)  # a profile may set what is our default

    @property
    def training(self) -> dict[str, Any]:
        """All fields of `TrainConfig`, as `fit` takes them."""
        fields = {f.name for f in dataclasses.fields(TrainConfig)}
        return dataclasses.asdict(TrainConfig(**{n: s.value for n, s in self.settings.items() if n in fields}))

    @property
    def steps(self) -> int:
        """Optimizer steps on the published rows."""
        return TrainConfig(**self.training).total_steps(self.rows)

    @property
    def rows(self) -> int:
        """Training rows of the paper's split."""
        task = TASKS[self.task]
        return self.train_rows or TASKS[task.trained_on or self.task].rows["train"]

    def values(self) -> dict[str, Setting]:
        """Return every value of the method and of the training, the ones left at a default included.

        What says how a run is carried out and not what it is (WHERE_RUN) is there only where it was set.
        """
        of = {**{f.name: getattr(self.method, f.name) for f in dataclasses.fields(self.method)}, **self.training}
        unused = {*WHERE_RUN, *(WRITING if TASKS[self.task].kind != "seq2seq" else ())} - self.settings.keys()
        return {name: self.settings.get(name, ours(value, DEFAULT)) for name, value in of.items()
                if name not in unused}

    @property
    def not_given(self) -> dict[str, Setting]:
        """What neither the paper nor its authors' scripts say, with our choice and the reason."""
        return {name: setting for name, setting in self.values().items() if setting.kind == "ours"}

    def arguments(self, profile: str | None = None, *, method: str | None = None, stand_in: bool = False,
                  backbone: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return what `fit` is to be called with: `lt.fit(**preset.arguments(), seed=0)`.

        Args:
            profile: None trains as long as the paper; a profile's name shortens the training (steps, rows, longest
                row) and leaves rates and method values as they are, but for those that a length decides.
            method: a baseline of the same table instead.
            stand_in: the packaged model in place of the paper's.  backbone: another one, such as a local folder.
            changes: values of the method or of `TrainConfig` to change.

        Raises:
            ValueError: a value has no such name or is out of range, or the profile is unknown.
        """
        fields = {f.name for f in dataclasses.fields(self.configured(method))}
        if unknown := sorted(changes.keys() - fields - self.training.keys()):
            raise ValueError(f"{', '.join(unknown)}: no value of the method or of the training has this name; the "
                             f"method has {', '.join(sorted(fields))}")
        own = {name: value for name, value in changes.items() if name in fields}
        training = {**self.training, **(_shortened(self.training, profile) if profile else {})}
        training |= {name: value for name, value in changes.items() if name not in own}
        configured = self.configured(method, **own)
        if profile:
            configured = fit_to_profile(self._as_shares(configured, own), profile)
        used = self.stand_in if stand_in else backbone or self.backbone
        return {"method": configured, "task": self.task, "backbone": used, "profile": profile or "gpu",
                "adjust": False, "notes": self._notes(configured, profile, method, used, changes), **training}

    def fit(self, seed: int = 0, *, profile: str | None = None, method: str | None = None, stand_in: bool = False,
            backbone: str | None = None, cache: bool = True, **options: Any) -> Run:
        """Train the cell, or find the run that did; as `fit` and `arguments`.

        Raises:
            CheckpointError: the paper's checkpoint cannot be had here; the sentence says what else there is.
        """
        from ..experiments.fit import fit

        passed = {name: options.pop(name) for name in ("callbacks", "progress", "store") if name in options}
        arguments = self.arguments(profile, method=method, stand_in=stand_in, backbone=backbone, **options)
        try:
            return fit(**arguments, seed=seed, cache=cache, **passed)
        except CheckpointError as error:
            if arguments["backbone"] != self.backbone:
                raise
            raise CheckpointError(self.missing(f'lt.preset("{self.name}").fit(stand_in=True)', error)) from error

    def missing(self, line: str, error: Exception) -> str:
        """Return what to do where the checkpoint cannot be had; `line` is what trains the stand-in."""
        return (f"{self.backbone}, the model of {self.name}, cannot be had here ({reason(error)}): name a folder "
                f"that holds it as the backbone, or train the packaged {self.stand_in} in its place, which is not "
                f"the paper's cell: {line}")

    def _as_shares(self, method: Method, changes: Mapping[str, Any]) -> Method:
        """Return the paper's step counts as shares of its own length: 500 of 26,290 steps are 1 of 30."""
        counted = {name: getattr(method, name) / self.steps for name in STEP_COUNTS if name not in changes
                   and isinstance(getattr(method, name, None), int) and getattr(method, name) > 0}
        return method.filled(**counted)

    def _notes(self, configured: Method, profile: str | None, method: str | None, used: str,
               changes: Mapping[str, Any]) -> list[str]:
        notes = [f"preset {self.name}: {self.table}"]
        if method not in (None, self.name.split("/")[0]):
            notes.append(f"the baseline {method} of that table")
        if used != self.backbone:
            notes.append(f"not the paper's cell: {used} in place of {self.backbone}")
        if profile:
            before = self.configured(method)
            moved = [f"{f.name} = {getattr(configured, f.name):g} instead of {getattr(before, f.name):g}"
                     for f in dataclasses.fields(configured) if f.name not in changes
                     and getattr(configured, f.name) != getattr(before, f.name)]
            notes.append(f"not the paper's length: as long as the profile {profile}, not {self.steps:,} steps"
                         + (f"; with it {', '.join(moved)}" if moved else ""))
        if changes:
            notes.append("changed: " + ", ".join(f"{name} = {value}" for name, value in changes.items()))
        return notes


def _shortened(training: Mapping[str, Any], profile: str) -> dict[str, Any]:
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose among {', '.join(PROFILES)}")
    p = PROFILES[profile]
    smaller = {name: min(training[name], getattr(p, name)) for name in ("batch_size", "max_length")}
    return {**smaller, "steps": p.steps, "epochs": 0.0, "accumulation": 1, "n_train": p.n_train,
            "n_validation": p.n_validation, "n_test": p.n_test, "n_written": WRITTEN.get(profile, 64)}


# ---- COLA --------------------------------------------------------------------------------------------------
# COLA, chain of LoRA (Xia, Qin and Hazan 2024, arXiv 2401.04151): OPT-1.3B (table 1) and Llama2-7B (table 2) on
# SuperGLUE prompts, in the setting of MeZO (Malladi et al. 2023), which the paper says it follows.
MEZO = "MeZO's code (princeton-nlp/MeZO), whose setting the paper follows"
GRID = "the paper reports the best of a grid and not which point it was; ours is one inside it"

# task -> training rows after validation was cut off; gains that the text names, and scores
ROWS = {"sst2": 1000, "wsc": 454, "cb": 150, "wic": 1000, "boolq": 1000, "multirc": 1000, "rte": 1000}
COLA_REPORTED: dict[str, dict[str, dict[str, str]]] = {
    "opt-1.3b": {"wsc": {"test score gain (points)": "3.66"}, "boolq": {"test score gain (points)": "1.38"},
                 "rte": {"test score gain (points)": "1.66"}},
    "llama-2-7b": {"rte": {"test score": "85.70", "test score gain (points)": "3.61"},
                   "sst2": {"test score gain (points)": "0 (means stated equal)"}},
}
COLA_BASELINE: dict[str, Setting] = {
    "r": paper(8), "lora_alpha": paper(16.0), "sites": paper("qv"), "lora_dropout": code(0.0, MEZO),
    "init": code("kaiming", MEZO),
}
COLA_METHOD: dict[str, Setting] = {
    **COLA_BASELINE,
    "chain": ours(2, "lengths 1, 2 and 3 are compared; that of the tables is not said, 2 is the one spelled out"),
    "knots": paper((), "length 2 ties after epoch 3 of 5, which the empty value comes to"),
    "keep_scaling": ours(True, "matters only where ranks step down; α/r is kept then"),
    "restart_schedule": ours(False, "one schedule is named, and only optimizer states are reset"),
    "reset_head_moments": ours(False, "there is no head in this setting"),
}
COLA_TRAINING: dict[str, Setting] = {
    "epochs": paper(5.0, "five in total, for every method"), "lr": ours(1e-4, GRID), "batch_size": ours(8, GRID),
    "weight_decay": ours(0.0, "not given; the default of transformers' Trainer, which MeZO uses"),
    "warmup": ours(0.0, "a linear schedule, no warm-up is named"),
    "max_length": code(2048, f"{MEZO}: nothing is cut"),
    "max_grad_norm": ours(1.0, "not given; the default of transformers' Trainer, which MeZO uses"),
    "n_train": paper(None, "1,000 / 500 / 1,000 rows by seed, smaller sets whole: the task's own rule"),
    "best": ours(False, "MeZO's code takes the best epoch back; with knots that is not defined"),
}
MEMORY: dict[str, Mapping[str, Setting]] = {
    "opt-1.3b": {},
    "llama-2-7b": {"base_dtype": ours("bfloat16", "so that 7B fits on one card; MeZO's code loads float16"),
                   "gradient_checkpointing": ours(True, "so that 7B fits on one card; changes no number")},
}


def _cola_preset(backbone: str, task: str) -> Preset:
    table = {"opt-1.3b": "table 1, OPT-1.3B", "llama-2-7b": "table 2, Llama2-7B"}[backbone]
    reported = COLA_REPORTED[backbone].get(task, {})
    return Preset(
        f"cola/{backbone}/{task}", table, f"{task}-prompt", {**COLA_METHOD, **COLA_TRAINING, **MEMORY[backbone]},
        seeds=paper((0, 1, 2, 3, 4), "five; which ones is not given"),
        reported=reported, reported_source="text on " + table.split(",")[0] if reported else "",
        grid={"lr": (1e-3, 8e-4, 5e-4, 1e-4, 5e-5), "batch_size": (4, 8)}, baselines={"lora": COLA_BASELINE},
        train_rows=ROWS[task])


COLA_PRESETS = [_cola_preset(backbone, task) for backbone in MEMORY for task in ROWS]


# ---- LoRA --------------------------------------------------------------------------------------------------
# LoRA (Hu et al. 2021, arXiv 2106.09685): GLUE with RoBERTa (table 2), E2E with GPT-2 medium (table 3).
#
# Read from microsoft/LoRA@c4593f0: its scripts, and the two tables as pictures. GLUE's configuration is the one that
# Delta-LoRA says it takes, and that we take where SaLoRA gives none.
SCRIPT = "LoRA's script (microsoft/LoRA@c4593f0)"
ADAPTER = ("LoRA's scripts begin MRPC, RTE and STS-B from an adapter trained on MNLI; here it is from the pretrained "
           "weights, so that the printed number is not comparable")
MNLI = "the printed accuracy is over matched and mismatched rows; here over the matched ones"
TRAINER = "not given; what transformers' Trainer does, which the scripts use"


@dataclass(frozen=True)
class Glue:
    """One row of the scripts: batch on each device, devices, peak rate, epochs, tokens; the printed score."""

    device_batch: int
    devices: int
    lr: float
    epochs: int
    max_length: int
    score: str

    def settings(self) -> dict[str, Setting]:
        """Return what the scripts say of the training."""
        where = f"{self.device_batch} rows on each of {self.devices} devices, {SCRIPT}"
        return {"batch_size": code(self.device_batch * self.devices, where), "lr": code(self.lr, SCRIPT),
                "epochs": code(float(self.epochs), SCRIPT), "max_length": code(self.max_length, SCRIPT),
                "weight_decay": code(0.1, SCRIPT), "warmup": code(0.06, SCRIPT),
                "max_grad_norm": ours(1.0, TRAINER), "head_lr": ours(None, "not given; the rate of the branches")}


GLUE: dict[str, dict[str, Glue]] = {
    "roberta-base": {
        "mnli": Glue(16, 8, 5e-4, 30, 512, "87.5 ± .3"), "sst2": Glue(16, 8, 5e-4, 60, 512, "95.1 ± .2"),
        "mrpc": Glue(16, 8, 4e-4, 30, 512, "89.7 ± .7"), "cola": Glue(32, 2, 4e-4, 80, 512, "63.4 ± 1.2"),
        "qnli": Glue(32, 8, 4e-4, 25, 512, "93.3 ± .3"), "qqp": Glue(16, 8, 5e-4, 25, 512, "90.8 ± .1"),
        "rte": Glue(32, 8, 5e-4, 80, 512, "86.6 ± .7"), "stsb": Glue(16, 8, 4e-4, 40, 512, "91.5 ± .2"),
    },
    "roberta-large": {
        "mnli": Glue(4, 8, 3e-4, 10, 128, "90.6 ± .2"), "sst2": Glue(8, 8, 4e-4, 10, 512, "96.2 ± .5"),
        "mrpc": Glue(4, 8, 3e-4, 20, 512, "90.9 ± 1.2"), "cola": Glue(4, 8, 3e-4, 20, 128, "68.2 ± 1.9"),
        "qnli": Glue(4, 8, 2e-4, 10, 512, "94.9 ± .3"), "qqp": Glue(4, 8, 3e-4, 20, 512, "91.6 ± .1"),
        "rte": Glue(8, 8, 4e-4, 20, 512, "87.4 ± 2.5"), "stsb": Glue(4, 8, 3e-4, 10, 128, "92.6 ± .2"),
    },
}  # fmt: skip
METRIC = {"mnli": "acc (overall m/mm)", "cola": "MCC", "stsb": "Pearson"}  # where it is not "acc"

# what the authors' command trains and writes E2E with; Delta-LoRA takes it over
E2E: dict[str, Setting] = {
    "lr": code(2e-4, SCRIPT), "epochs": code(5.0, SCRIPT), "batch_size": code(8, SCRIPT),
    "weight_decay": code(0.01, SCRIPT), "warmup": code(500 / 26290, f"500 of 26,290 steps, {SCRIPT}"),
    "max_grad_norm": code(0.0, f"no clipping, {SCRIPT}"), "max_length": code(512, SCRIPT),
    "label_smoothing": code(0.1, SCRIPT), "num_beams": code(10, SCRIPT), "length_penalty": code(0.8, SCRIPT),
    "no_repeat_ngram_size": code(4, SCRIPT), "n_written": paper(None, "scores are over all test inputs"),
}


def differs(task: str, begins_from_adapter: bool = True) -> tuple[str, ...]:
    """Return how a GLUE task of a paper differs from ours."""
    from_adapter = begins_from_adapter and task in ("mrpc", "rte", "stsb")
    return (*([ADAPTER] if from_adapter else []), *([MNLI] if task == "mnli" else []))


def _lora_glue(backbone: str, task: str, row: Glue) -> Preset:
    size, count = {"roberta-base": ("0.3M", 294_912), "roberta-large": ("0.8M", 786_432)}[backbone]
    return Preset(
        f"lora/{backbone}/{task}", "table 2, GLUE", task,
        {"r": code(8, SCRIPT), "lora_alpha": code(16.0, SCRIPT), "sites": paper("qv"),
         "lora_dropout": ours(0.0, "not given; the GLUE scripts name none"),
         "init": ours("kaiming", "\"Gaussian\" in the text; loralib, which the scripts use, draws Kaiming-uniform"),
         **row.settings()},
        seeds=ours((0, 1, 2, 3, 4), "not given in what was read; the scripts have seed 0"),
        reported={METRIC.get(task, "acc"): row.score}, reported_source="table 2 (LoRA_NLU.PNG)",
        counts=(size, count), differs=differs(task))


_E2E = Preset(
    "lora/gpt2-medium/e2e", "table 3, E2E", "e2e",
    {"r": code(4, SCRIPT), "lora_alpha": code(32.0, SCRIPT), "lora_dropout": code(0.1, SCRIPT), "sites": paper("qv"),
     "init": ours("kaiming", "as in loralib, which the command uses"), **E2E},
    seeds=code((110,), SCRIPT),
    reported={"BLEU": "70.4 ± .1", "NIST": "8.85 ± .02", "METEOR": "46.8 ± .2", "ROUGE-L": "71.8 ± .1",
              "CIDEr": "2.53 ± .02"}, reported_source="table 3 (LoRA_GPT2.PNG)", counts=("0.35M", 393_216))

LORA_PRESETS = [*(_lora_glue(backbone, task, row) for backbone, rows in GLUE.items() for task, row in rows.items()),
                _E2E]


# ---- AutoLoRA ----------------------------------------------------------------------------------------------
# AutoLoRA (Zhang et al. 2024, NAACL, arXiv 2403.09113): GLUE with RoBERTa-base (table 1), three tasks of it with
# RoBERTa-large (figure 2), E2E and WebNLG with GPT-2 medium (table 2), BioNLP (table 3).
#
# What the text leaves open is read from the authors' code (ruz048/AutoLoRA), which has GLUE and BioNLP only; where
# text and code differ, the text stands here.
CODE = "the authors' code (ruz048/AutoLoRA)"
RETRAINING = f"of the training at the ranks found, {CODE}"
AUTOLORA_METHOD: dict[str, Setting] = {
    "r": paper(8, "k in the text"), "sites": paper("qv"), "lora_alpha": code(16.0, RETRAINING),
    "lora_dropout": code(0.1, RETRAINING), "init": ours("kaiming", "not given; peft's, which the code builds on"),
    "eta_beta": paper(1e-3), "split": paper(0.5, "1:1; the code has 70:30"),
    "constraint": paper("softmax"), "retrain": paper(True),
    "hypergradient": paper("finite_difference", "the second-order part is approximated; weight η, in the code 1"),
    "radius": code(0.01, f"Betty's, {CODE}"),
    "fixed_alpha": code(True, f"s = 16 / rank, so that it differs by matrix, {RETRAINING}"),
}
AUTOLORA_TRAINING: dict[str, Setting] = {
    "lr": paper(1e-4), "batch_size": paper(16), "warmup": code(0.06, RETRAINING), "max_length": code(512, CODE),
    "weight_decay": ours(0.01, "AdamW is named, its decay is not; torch's default"),
    "head_lr": ours(None, "not given; the rate of the branches"),
}
AUTOLORA_BASELINE: dict[str, Setting] = {
    "r": paper(4, "LoRA with about as many parameters"), "sites": paper("qv"),
    "lora_alpha": ours(16.0, "not given; as in the training at the ranks found"),
    "lora_dropout": code(0.1, RETRAINING),
}
SEARCH = "\"until convergence\"; 20 epochs in the code, over the half of the rows that weights are learned on"


def _autolora_preset(backbone: str, task: str, table: str, epochs: Setting, seen: dict[str, Setting] | None = None,
            **more: object) -> Preset:
    length = {"epochs": epochs, "search_steps": code(20 * 0.5 / epochs.value, SEARCH)}
    return Preset(f"autolora/{backbone}/{task}", table, task,
                  {**AUTOLORA_METHOD, **AUTOLORA_TRAINING, **length, **(seen or {})},
                  seeds=ours((0, 1, 2, 3, 4), "not given"), baselines={"lora": AUTOLORA_BASELINE}, **more)  # type: ignore[arg-type]


def _autolora_glue(backbone: str, task: str, table: str) -> Preset:
    epochs = code(10.0 if task in ("qqp", "mnli") else 30.0, RETRAINING)
    return _autolora_preset(backbone, task, table, epochs, differs=differs(task, begins_from_adapter=False))


_WRITING = ("num_beams", "length_penalty", "no_repeat_ngram_size", "n_written")
_GENERATED = {name: ours(E2E[name].value, "not given; as LoRA's command") for name in _WRITING}
_BIONLP = {"batch_size": paper(32, "32 for tagging"),
           "max_length": ours(192, "not given; holds almost all rows whole")}

AUTOLORA_PRESETS = [
    *(_autolora_glue("roberta-base", task, "table 1, GLUE") for task in GLUE["roberta-base"]),
    *(_autolora_glue("roberta-large", task, "figure 2, GLUE") for task in ("mrpc", "qqp", "sst2")),
    *(_autolora_preset("gpt2-medium", task, "table 2, " + name, ours(5.0, "not given; as LoRA's command"), _GENERATED)
      for task, name in (("e2e", "E2E"), ("webnlg", "WebNLG"))),
    _autolora_preset("roberta-base", "jnlpba", "table 3, BioNLP", code(30.0, f"of BioNLP, {CODE}"), _BIONLP,
            differs=("the paper says BioNLP, which is taken to be the shared task of 2004 (JNLPBA)",
                     "its code trains again at batch 64 and rate 1e-3, with all biases")),
]


# ---- Delta-LoRA --------------------------------------------------------------------------------------------
# Delta-LoRA (Zi et al. 2023, arXiv 2309.02411): E2E (table 1) and WebNLG (table 2) with GPT-2 medium, XSum with
# BART-large (table 3), GLUE with RoBERTa-base (table 4). It names λ and K, and for all else the configuration of
# LoRA's or of AdaLoRA's authors, which is read from their scripts.
ADALORA = "AdaLoRA's script for XSum (QingruZhang/AdaLoRA), whose configuration the paper takes"
DELTA_LORA_METHOD: dict[str, Setting] = {
    "sites": paper("qv"), "lora_dropout": paper(0.0, "no dropout on the branch"), "init": paper("kaiming"),
    "form": paper("in_place", "W is written at every step; the lazy form is the same function"),
}
DELTA_LORA_REPORTED = {
    "e2e": ({"gain over LoRA: BLEU": "+1.24", "gain over LoRA: NIST": "+0.13", "gain over LoRA: METEOR": "+0.86",
             "gain over LoRA: ROUGE-L": "+1.13", "gain over LoRA: CIDEr": "+0.08"}, "text on table 1"),
    "webnlg": ({"gain over LoRA: BLEU Seen": "+0.79", "gain over LoRA: BLEU Unseen": "+1.08",
                "gain over LoRA: BLEU All": "+0.91", "gain over LoRA: METEOR All": "+0.01",
                "gain over LoRA: TER All": "0.02"}, "text on table 2"),
    "mrpc": ({"acc": "90.19"}, "a secondary page on table 4"),
    "sst2": ({"acc": "95.1"}, "a secondary page on table 4"),
}


def _generation(task: str, table: str) -> Preset:
    r = ours(4, "not given; LoRA's configuration, which it takes, has r = 4 (its reviewers speak of rank 8 only)")
    alpha = code(32.0, SCRIPT)
    reported, where = DELTA_LORA_REPORTED[task]
    training = {**E2E, "lr": paper(2e-4, "of its ablations on E2E, and LoRA's"),
                "epochs": paper(5.0, "of its ablations on E2E, and LoRA's")}
    webnlg = {"warmup": code(500 / 11315, f"500 of 11,315 steps, {SCRIPT}")} if task == "webnlg" else {}
    dropout = code(0.1, SCRIPT)
    return Preset(
        f"delta_lora/gpt2-medium/{task}", table, task,
        {**DELTA_LORA_METHOD, "lam": paper(2.0), "K": paper(500), "r": r, "lora_alpha": alpha, **training, **webnlg},
        seeds=ours((0, 1, 2, 3, 4), "not given: no spread is printed"), reported=reported, reported_source=where,
        baselines={"lora": {"r": r, "lora_alpha": alpha, "sites": paper("qv"), "lora_dropout": dropout}},
        differs=("the printed text counts 21,855 training triples; here 18,102 pairs of input and reference",
                 ) if task == "webnlg" else ())


_XSUM = Preset(
    "delta_lora/bart-large/xsum", "table 3, XSum", "xsum",
    {**DELTA_LORA_METHOD, "lam": paper(0.5), "K": paper(1000),
     "sites": ours("qv", "given for GPT-2 and RoBERTa; AdaLoRA's configuration adapts all six matrices"),
     "r": code(8, f"the budget in {ADALORA}"), "lora_alpha": code(32.0, ADALORA), "lr": code(5e-4, ADALORA),
     "epochs": code(25.0, ADALORA), "batch_size": code(64, f"8 rows on each of 8 devices, {ADALORA}"),
     "warmup": code(3000 / 79725, f"3,000 of 79,725 steps, {ADALORA}"), "max_length": code(768, ADALORA),
     "weight_decay": code(0.0, f"none is named in {ADALORA}"),
     "max_grad_norm": ours(0.0, f"none is named in {ADALORA}"),
     "num_beams": code(8, ADALORA), "n_written": paper(None, "scores are over all test articles")},
    seeds=ours((0, 1, 2, 3, 4), "not given: no spread is printed"))


def _delta_lora_glue(task: str, row: Glue) -> Preset:
    shared = {"r": code(8, SCRIPT), "lora_alpha": code(16.0, SCRIPT), "sites": paper("qv")}
    reported, where = DELTA_LORA_REPORTED.get(task, ({}, ""))
    return Preset(
        f"delta_lora/roberta-base/{task}", "table 4, GLUE", task,
        {**DELTA_LORA_METHOD, **shared, **row.settings(), "lam": paper(0.5),
         "K": paper(0.06, "the steps of the warm-up, 6 %"),
         "max_length": paper(256, "256 in place of LoRA's 512")},
        seeds=ours((0, 1, 2, 3, 4), "not given: no spread is printed"), reported=reported, reported_source=where,
        baselines={"lora": shared}, differs=differs(task))


DELTA_LORA_PRESETS = [_generation("e2e", "table 1, E2E"), _generation("webnlg", "table 2, WebNLG"), _XSUM,
           *(_delta_lora_glue(task, row) for task, row in GLUE["roberta-base"].items())]


# ---- SaLoRA ------------------------------------------------------------------------------------------------
# SaLoRA (Hu et al. 2023, Mathematics 11(20), 4317): GLUE with RoBERTa (table 1); LLaMA-7B trained on Alpaca, then
# asked to change a text's style (table 2). Per-task rates, epochs and α were not found; where the paper names no
# value of the training we take that of LoRA's scripts for the same cell.
AS_LORA = "not given; as LoRA's script for this cell"
SALORA_RATES = (8e-5, 3e-5, 1e-4, 3e-4, 8e-4, 1e-3)
COUNTS = {"roberta-base": ("1.33M, and 576 gates", 1_327_104), "roberta-large": ("3.54M, and 1152 gates", 3_538_944)}
SHARED: dict[str, Setting] = {
    "r": paper(8), "lora_alpha": ours(16.0, "not given; 2r, so that s = 2 as in LoRA's GLUE scripts"),
    "lora_dropout": ours(0.0, "not given"),
}
SALORA_METHOD: dict[str, Setting] = {
    **SHARED, "sites": paper("all", "Q, K, V, O, U, D"),
    "init": ours("kaiming", "\"Gaussian\", with no scale; one start for all methods, so that none gains by it"),
    "b": paper(0.5), "beta": paper(0.1), "eta_c": paper(0.01, "one rate for gates and λ"),
    "t_start": ours(0.0, "the window's length is given, not its place; the text has 70 % of plain training"),
    "t_end": paper(0.3, "the window is 30 % of the training"),
    "tau": paper(1.0), "gamma": paper(-0.1), "zeta": paper(1.1),
    "gate_betas": ours((0.0, 0.999), "not given; with Adam's usual 0.9 momentum carries the density past b"),
    "lambda_betas": ours((0.9, 0.9), "not given; with Adam's usual 0.999 the ascent stalls"),
    "ascent": ours("adam", "\"gradient ascent\"; with plain SGD λ hardly moves"),
    "orthogonality": paper("sum", "equation 10"),
    "orthogonality_until": ours("window", "not given; after the fold it would pull B back to length one"),
    "prune": ours("threshold", "not given: what has a gate of 0 without its noise goes"),
    "after_window": paper("fold", "outside the window the training is LoRA's, and the triplets are what is kept"),
}


def _salora_glue(backbone: str, task: str, row: Glue) -> Preset:
    training = {name: replace(setting, kind="ours", source=AS_LORA) for name, setting in row.settings().items()}
    training |= {"lr": ours(3e-4, "one of six rates that the paper searched over; which, is not given"),
                 "batch_size": ours(32, "32 is the batch of its table on cost; for scores none is given")}
    return Preset(
        f"salora/{backbone}/{task}", "table 1, GLUE", task, {**SALORA_METHOD, **training},
        seeds=ours((0, 1, 2, 3, 4), "not given"), counts=COUNTS[backbone], grid={"lr": SALORA_RATES},
        baselines={"lora": {**SHARED, "sites": paper("all", "as many parameters as SaLoRA's: 1.33M, 3.54M")}},
        differs=differs(task, begins_from_adapter=False))


_ALPACA: dict[str, Setting] = {
    **SALORA_METHOD,
    "sites": paper(("q", "k", "v", "o", "up", "down"), "Q, K, V, O, U, D: not LLaMA's gate projection"),
    "lr": ours(3e-4, "one of six rates that the paper searched over; which, is not given"),
    "epochs": ours(3.0, "not given; what Alpaca's own recipe trains"),
    "batch_size": ours(128, "not given; what Alpaca's own recipe takes"),
    "accumulation": ours(16, "so that 8 rows are in memory at a time; changes no number"),
    "max_length": ours(512, "not given; what Alpaca's own recipe takes"),
    "weight_decay": ours(0.0, "not given"), "warmup": ours(0.03, "not given; what Alpaca's own recipe takes"),
    "n_written": ours(None, "all test inputs"),
    "base_dtype": ours("bfloat16", "not given; so that 7B fits on one card"),
    "gradient_checkpointing": ours(True, "not given; so that 7B fits on one card; changes no number"),
}


def _llama(task: str) -> Preset:
    return Preset(
        f"salora/llama-7b/{task}", "table 2, LLaMA-7B: Alpaca, then style transfer untrained", task, _ALPACA,
        seeds=ours((0,), "not given"), grid={"lr": SALORA_RATES}, train_rows=36_232,
        differs=("50K cleaned instructions in the paper; here 70 % of the 51,760 published ones, as the rest is held "
                 "out",))


SALORA_PRESETS = [*(_salora_glue(backbone, task, row) for backbone, rows in GLUE.items() for task,
                    row in rows.items()),
           *(_llama(task) for task in ("alpaca", "yelp-transfer", "gyafc-transfer", "gyafc-music-transfer"))]


# ---- all by name -------------------------------------------------------------------------------------------
# The cells of the papers' tables, each under one name: paper/backbone/task.
#
#     lowrank-teach train --preset salora/roberta-base/cola      # the table's cell
#     lt.preset("salora/roberta-base/cola").fit(seed=0)          # the same
#     lt.preset("salora/roberta-base/cola").not_given            # what the paper leaves open, and what we took
#
# One file a paper. Each value stands with its source; a number is quoted as a paper's only where it was found in a
# text, a table or a repository.
PRESETS: dict[str, Preset] = {one.name: one for presets in (
    LORA_PRESETS, COLA_PRESETS, SALORA_PRESETS, DELTA_LORA_PRESETS, AUTOLORA_PRESETS) for one in presets}


def preset(name: str) -> Preset:
    """Return one cell of the presets.

    Raises:
        ValueError: there is none of this name, with the nearest ones; or it is no text.
    """
    require_kind("name", name, str, "a text: paper/backbone/task")
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 3, 0.6)
    start = [one for one in PRESETS if one.startswith(name.rstrip("/") + "/")]
    hint = f"did you mean {', '.join(near or start[:3])}?" if near or start else "`lowrank-teach presets` lists them"
    raise ValueError(f"no preset {name!r}: a name is paper/backbone/task; {hint}")
