"""Studies trained and read again: on one task, over tasks, and texts that runs wrote."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..analysis.statistics import smooth
from ..errors import DivergedError
from ..experiments.fit import fit
from ..experiments.runs import Run, Store, machine
from ..models.backbones import load_backbone
from ..sites import find_sites, matrix_of
from ..tasks import metrics as scores
from ..tasks import slot_errors as slots
from ..tasks.generation import Generation, generate
from ..tasks.load import load_task
from ..tasks.metrics import score
from ..tasks.task import TaskData
from ..tasks.tokenize import encode
from .arms import (
    ARMS,
    BACKBONE,
    PROFILE,
    RATE_OF,
    STUDIES,
    TASK,
    TASK_STUDIES,
    TEXT_STUDIES,
    TEXTS_BACKBONE,
    TEXTS_PROFILE,
    TRAINING,
    Study,
    TaskStudy,
    settings,
)
from .results import Comparison, Scored, SideBySide, made_on, read, references_folder, write

# ---- a study over tasks ------------------------------------------------------------------------------------
# A study over tasks: arms side by side, each at the rate that serves it best on validation rows.
#
# Task by task: every arm is trained at each rate of a grid with the first seeds, its rate is chosen by the headline
# metric on validation rows, and it is trained with the other seeds at that rate. Test rows decide nothing. The file
# is written anew after each task, and holds the runs of the grid too, with their validation scores alone.
#
#     found = studies.load_across("side_by_side")
#     found.values("LoRA")              # task -> one test score a seed
#     found.difference("COLA", "LoRA")  # one a seed: the mean over tasks, in points
OnRun = Callable[[str, str, int, float, Run], None]   # task, arm, seed, rate, run


def train_across(name: str, study: TaskStudy, folder: Path | str | None = None, *,
                 tasks: Iterable[str] | None = None, seeds: int | None = None, arms: Iterable[str] | None = None,
                 store: Store | None = None, on_run: OnRun | None = None, **training: Any) -> SideBySide:
    """Train a study over tasks, or find the runs that were.

    Args:
        name: of its file.  tasks, arms: some of the study's, None takes all.  seeds: how many, None takes its own.
        on_run: called as each run is done.  training: fields of `TrainConfig` other than the stored ones.
    """
    chosen = list(study.tasks) if tasks is None else list(tasks)
    training = {**study.training, **training}
    about = {"name": name, "question": study.question, "varies": "method", "tasks": chosen, "rates": [*study.rates],
             "backbone": study.backbone, "profile": study.profile, "training": training,
             "of_task": {task: dict(study.tasks[task]) for task in chosen}, "rate_of": dict(study.rate_of),
             "chosen_with": [*study.chosen_with], "machine": machine()}
    job = _Job(study, list(study.arms if arms is None else arms), store, on_run, training)
    for task in chosen:
        job.task(task, study.seeds if seeds is None else seeds)
        found = SideBySide({**about, "commits": sorted(job.commits), "grid": job.grid}, job.records)
        write(path_of(name, folder), found.about, found.records)
    return found


def path_of(name: str, folder: Path | str | None = None) -> Path:
    return Path(folder or references_folder() / "studies") / f"{name}.json"


@dataclass
class _Job:
    """A study over tasks in the making."""

    study: TaskStudy
    arms: Sequence[str]
    store: Store | None
    on_run: OnRun | None
    training: Mapping[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    grid: list[dict[str, Any]] = field(default_factory=list)
    commits: set[str] = field(default_factory=set)

    def task(self, task: str, seeds: int) -> None:
        """All runs of one task: first the rates, then the seeds."""
        chosen_by = {label: self.study.rate_of.get(label, label) for label in self.arms}
        rates = {label: self.choose(task, label) for label in dict.fromkeys(chosen_by.values())}
        for seed in range(seeds):
            for label in self.arms:
                rate = rates[chosen_by[label]]
                self.records.append(record(task, label, seed, rate, self.fit(task, label, seed, rate)))

    def choose(self, task: str, label: str) -> float:
        """The rate with the best mean validation score; where scores tie, the one with the lower loss.

        Raises:
            DivergedError: at every rate of the grid.
        """
        means: dict[float, tuple[float, float]] = {}
        for rate in self.study.rates:
            tried = [self.attempt(task, label, seed, rate) for seed in self.study.chosen_with]
            if None not in tried:
                scores = [(_headline(found), -found["loss"]) for found in tried if found is not None]
                means[rate] = tuple(statistics.fmean(x) for x in zip(*scores, strict=True))  # type: ignore[assignment]
        if not means:
            raise DivergedError(f"{label} on {task} diverges at every rate of the grid; lower the rates")
        return max(means, key=means.__getitem__)

    def attempt(self, task: str, label: str, seed: int, rate: float) -> dict[str, float] | None:
        """Validation scores of one run of the grid; None where it diverged."""
        try:
            found = self.fit(task, label, seed, rate).metrics["validation"]
        except DivergedError:
            found = None
        self.grid.append({"task": task, "arm": label, "seed": seed, "lr": rate, "validation": found})
        return found

    def fit(self, task: str, label: str, seed: int, rate: float) -> Run:
        arm = self.study.arms[label]
        values = {**self.training, **self.study.tasks[task], **arm.training, "lr": rate}
        run = fit(arm.method, task, self.study.backbone, self.study.profile, seed, progress=False, store=self.store,
                  **values)
        self.commits.add(str(run.machine.get("commit")))
        if self.on_run is not None:
            self.on_run(task, label, seed, rate, run)
        return run


def _headline(metrics: Mapping[str, float]) -> float:
    return next(iter(metrics.values()))


def record(task: str, label: str, seed: int, rate: float, run: Run) -> dict[str, Any]:
    """What is kept of a run: numbers, no factors and no history."""
    return {"task": task, "arm": label, "seed": seed, "lr": rate, "key": run.key,
            "identity": run.identity, "method": run.config["method"],
            "test": run.metrics["test"], "validation": run.metrics["validation"], "seconds": run.seconds,
            "parameters": run.parameters, "ranks": run.ranks}


# ---- a study on one task -----------------------------------------------------------------------------------
# A study trained, stored as one file of numbers with its provenance, and read back.
#
# `train` goes seed by seed over all arms, so that an interrupted study is balanced; every run is kept in the run
# store, and the same call goes on. The file stands in figures/data/studies and is what notebooks draw from and
# verdicts are computed from.
Curve = tuple[list[float], list[float]]   # steps, values


class Results(Scored):
    """What a study found: of each run test, validation, seconds, ranks, series, sites beside its arm and seed."""

    metric = "accuracy"

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
            of, scores = self.of(arm), pd.Series(self.values(name)[arm])
            rows.append({"arm": arm, "seeds": len(of), f"test {name}": scores.mean(), "± (seeds)": scores.std(),
                         "validation loss": pd.Series([r["validation"]["loss"] for r in of]).mean(),
                         "seconds": pd.Series([r["seconds"]["total"] for r in of]).mean()})
        return pd.DataFrame(rows).set_index("arm")

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        a = self.about
        return (f"stored study {a['name']!r}: {len(self.records)} runs, {a['backbone']} on {a['task']}, "
                f"{a['training']['steps']} steps; {made_on(a['machine'])}")


def load(name: str, folder: Path | str | None = None) -> Results:
    """A stored study.

    Raises:
        KeyError: there is no study of this name.  FileNotFoundError: it has not been trained here.
    """
    _defined(name)
    path = Path(folder or references_folder() / "studies") / f"{name}.json"
    missing = f"study {name!r} has no numbers yet; train it: lowrank-teach study {name} --folder {path.parent}"
    return Results(*read(path, missing))


def train(name: str, folder: Path | str | None = None, *, seeds: Iterable[int] | None = None,
          arms: Iterable[str] | None = None, task: str = TASK, backbone: str = BACKBONE, profile: str = PROFILE,
          store: Store | None = None,
          on_run: Callable[[str, int, Run], None] | None = None, **training: Any) -> Results:
    """Train a study, or find the runs that were; its file is written anew after each seed.

    Args:
        seeds, arms: None takes the study's own.  on_run: called as each run is done.
        task, backbone, profile, training: another setting than the stored one.
    """
    study, training = _defined(name), {**TRAINING, **training}
    chosen = {label: study.arms[label] for label in (study.arms if arms is None else arms)}
    path = Path(folder or references_folder() / "studies") / f"{name}.json"
    about: dict[str, Any] = {"name": name, "question": study.question, "varies": study.varies, "task": task,
                             "backbone": backbone, "profile": profile, "training": training, "machine": machine()}
    records: list[dict[str, Any]] = []
    commits: set[str] = set()   # of the code that trained, which may be older than the code that writes the file
    for seed in range(study.seeds) if seeds is None else seeds:
        for label, arm in chosen.items():
            run = fit(arm.method, task, backbone, profile, seed, progress=False, store=store,
                      **{**training, **arm.training})
            records.append(_record(study, label, seed, run))
            commits.add(str(run.machine.get("commit")))
            if on_run is not None:
                on_run(label, seed, run)
        about["commits"] = sorted(commits)
        write(path, about, records)
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
    return {"arm": label, "seed": seed, "key": run.key, "identity": run.identity,
            "method": run.config["method"], "test": run.metrics["test"],
            "validation": run.metrics["validation"], "seconds": run.seconds, "memory": run.memory,
            "parameters": run.parameters, "flops": run.flops, "ranks": run.ranks, "series": series, "sites": sites}


def _short(curve: tuple[Sequence[float], Sequence[float]]) -> list[list[float]]:
    return [list(curve[0]), [round(float(value), 5) for value in curve[1]]]


# ---- stored studies ----------------------------------------------------------------------------------------
# Sweeps and ablations over seeds, stored with their provenance: what bands and verdicts are drawn from.
#
#     found = studies.load("chain")
#     found.values("accuracy")          # arm -> one number a seed
#     studies.train("chain", seeds=[0])  # again, here; `lowrank-teach study chain` does it in out/studies
#
#     found = studies.load_across("side_by_side")   # over tasks, each arm at the rate chosen on validation rows
#     found.table()
def load_across(name: str, folder: Path | str | None = None) -> SideBySide:
    """A stored study over tasks.

    Raises:
        KeyError: there is no such study.  FileNotFoundError: it has not been trained here.
    """
    if name not in TASK_STUDIES:
        raise KeyError(f"no study over tasks {name!r}; there are {', '.join(TASK_STUDIES)}")
    path = path_of(name, folder)
    missing = f"study {name!r} has no numbers yet; train it: lowrank-teach study {name} --folder {path.parent}"
    return SideBySide(*read(path, missing))


# ---- texts that runs wrote ---------------------------------------------------------------------------------
# Texts that stored runs wrote: their scores, what the choice of test inputs leaves open, samples with errors marked.
#
#     python -m lowrank_teach.reproduction.studies e2e webnlg   # makes them again
#
#     stored = load_texts("e2e")
#     stored.scores("bleu")                # arm -> one number a seed
#     stored.interval("LoRA", "bleu")      # over test inputs drawn anew
#
# A corpus score is no mean of scores of texts: BLEU adds up counts over all texts, then divides. So what is kept of
# each text is what the score adds up (`statistics`), and `combined` makes the score of any set of texts from the
# sums. Taught in 08.
Array = np.ndarray


# -- what a score adds up

def _mean_of(score: Callable[..., float]) -> Callable[..., Array]:
    return lambda texts, many: np.array([[score([text], [references]), 1.0]
                                         for text, references in zip(texts, many, strict=True)])


def _bleu(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Matched groups of 1 to 4 words, groups written, length, length of the nearest reference: (N, 10)."""
    scorer = scores.need("sacrebleu", "BLEU").BLEU(lowercase=True)
    found = [scorer.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, many, strict=True)]
    return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], dtype=float)


def _bleu_of(sums: Array) -> float:
    whole = [int(value) for value in sums]
    of_sums = scores.need("sacrebleu", "BLEU").BLEU.compute_bleu
    return float(of_sums(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score / 100)


def _ter(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Edits, and mean length of the references: (N, 2)."""
    scorer = scores.need("sacrebleu", "TER").TER()
    found = [scorer.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, many, strict=True)]
    return np.array([[one.num_edits, one.ref_length] for one in found], dtype=float)


def _cider(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """A score a text, with the idf of all references: (N, 2)."""
    scorer = scores.need("pycocoevalcap.cider.cider", "CIDEr").Cider()
    wanted = {i: [" ".join(scores.words_of(one)) for one in refs] for i, refs in enumerate(many)}
    each = scorer.compute_score(wanted, {i: [" ".join(scores.words_of(text))] for i, text in enumerate(texts)})[1]
    return np.stack([np.asarray(each, dtype=float), np.ones(len(texts))], axis=1)


def _ratio(sums: Array) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0


STATISTICS: dict[str, tuple[Callable[..., Array], Callable[[Array], float]]] = {
    "bleu": (_bleu, _bleu_of), "ter": (_ter, _ratio), "cider": (_cider, _ratio),
    "rougeL": (_mean_of(scores.rouge("rougeL")), _ratio), "meteor": (_mean_of(scores.meteor), _ratio)}


def text_statistics(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """What a score adds up, one row a text: (N, m).

    Raises:
        KeyError: NIST and the like, whose sums are not kept.  ImportError: the score's package or data are missing.
    """
    return STATISTICS[name][0](texts, references)


def combined(name: str, rows: Array) -> float:
    """The corpus score of these rows (N, m) of `statistics`."""
    return STATISTICS[name][1](np.asarray(rows).sum(0))


def resampled(name: str, rows: Array, draws: Array) -> Array:
    """The score of each draw of inputs: rows (N, m), draws (R, N) of row numbers -> (R,)."""
    sums = np.asarray(rows)[draws].sum(1)                                     # (R, m)
    return np.array([STATISTICS[name][1](one) for one in sums])


def draws_of(n: int, resamples: int = 500, seed: int = 0, out_of: int | None = None) -> Array:
    """Row numbers (R, n), drawn with replacement: the same for all arms, so that differences are paired."""
    return np.random.default_rng(seed).integers(out_of or n, size=(resamples, n))


# -- what is stored

@dataclass(frozen=True)
class Texts(Comparison):
    """Stored runs on one task.

    about: task, licence, backbone, training, generation, machine, command.
    records: one dict an arm and seed: scores, statistics, slot errors by input, loss curve.
    samples: inputs with references, and of each arm a text and its check.  beams: an arm's texts by beam width.
    """

    samples: Sequence[Mapping[str, Any]]
    beams: Mapping[str, Any]

    @property
    def parts(self) -> list[str]:
        """Of each test input: such as "seen" or "unseen"; empty where a task has none."""
        return list(self.about["parts"])

    def seeds(self, arm: str) -> list[int]:
        return sorted(one["seed"] for one in self.records if one["arm"] == arm)

    def scores(self, name: str) -> dict[str, list[float]]:
        """Arm -> one score a seed, over all test inputs."""
        return {arm: [self.record(arm, seed)["scores"][name] for seed in self.seeds(arm)] for arm in self.arms}

    def paired(self, arm: str, other: str, name: str) -> tuple[list[float], list[float]]:
        """A score of each of two arms, for the seeds that both have."""
        a, b = ({record["seed"]: record["scores"][name] for record in self.of(one)} for one in (arm, other))
        seeds = sorted(a.keys() & b.keys())
        return [a[seed] for seed in seeds], [b[seed] for seed in seeds]

    def rows(self, arm: str, name: str, seed: int = 0, part: str | None = None) -> Array:
        """What `statistics` kept of each text (N, m), of one part of the inputs or of all."""
        rows = np.array(self.record(arm, seed)["statistics"][name], dtype=float)
        return rows if part is None else rows[np.array(self.parts) == part]

    def interval(self, arm: str, name: str, *, seed: int = 0, other: str | None = None, part: str | None = None,
                 level: float = 0.95) -> tuple[float, float, float]:
        """Score, low and high end over inputs drawn anew (percentile bootstrap); of arm − other where one is named.

        It says what another set of test inputs could give, for this one training. What another seed of the training
        would give is not in it.
        """
        mine = self.rows(arm, name, seed, part)
        draws = draws_of(len(mine))
        found, score = resampled(name, mine, draws), combined(name, mine)
        if other is not None:
            theirs = self.rows(other, name, seed, part)
            found, score = found - resampled(name, theirs, draws), score - combined(name, theirs)
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return score, float(low), float(high)

    def slot_errors(self, arm: str, seed: int = 0) -> Array:
        """Of each input: fields missing, values made up, fields there are: (N, 3)."""
        return np.array(self.record(arm, seed)["slots"], dtype=float)

    def sample(self, i: int) -> tuple[str, list[str], dict[str, tuple[str, slots.Check]]]:
        """The i-th sample: its data, its references, and of each arm the text and what `slot_errors` says of it."""
        one = self.samples[i]
        checked = {arm: slots.Check(tuple(slots.Mark(**mark) for mark in said["marks"]), tuple(said["missing"]),
                                    said["slots"]) for arm, said in one["checks"].items()}
        return one["source"], one["references"], {arm: (text, checked[arm]) for arm, text in one["texts"].items()}

    def line(self) -> str:
        """One sentence on where the texts come from."""
        a = self.about
        return (f"stored texts for {a['task']}: {a['backbone']}, {a['training']['steps']} steps of "
                f"{a['training']['batch_size']} rows, {a['inputs']} test inputs; "
                f"{made_on(a['machine'])}; again: {a['command']}")


def texts_path(task: str, folder: Path | str | None = None) -> Path:
    return Path(folder or references_folder()) / f"08_generation_{task}.json"


def load_texts(task: str = "e2e", folder: Path | str | None = None) -> Texts:
    """The stored texts for a task.

    Raises:
        FileNotFoundError: none were written here.
    """
    path = texts_path(task, folder)
    if not path.exists():
        raise FileNotFoundError(f"no texts for {task!r} are stored; write them: "
                                f"python -m lowrank_teach.reproduction.studies {task}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Texts(stored["about"], stored["records"], stored["samples"], stored["beams"])


def main() -> None:
    """The command line: which tasks, and how many seeds."""
    from . import arms  # which import this file

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=tuple(arms.TEXT_STUDIES))
    parser.add_argument("--seeds", type=int, help="how many, from 0; the task's own where left out")
    parser.add_argument("--inputs", type=int, help="test inputs written out; the task's own where left out")
    parser.add_argument("--folder", type=Path, help="where the file goes; figures/data where left out")
    chosen = parser.parse_args()
    for task in chosen.tasks:
        make(task, chosen.folder, seeds=chosen.seeds, inputs=chosen.inputs,
                        on_run=lambda arm, seed, found: print(f"{arm}, seed {seed}: {found}", flush=True))



# ---- training the writers ----------------------------------------------------------------------------------
# Data to text, stored: LoRA, its control, Delta-LoRA and AutoLoRA on one causal model, and the texts they write.
#
#     python -m lowrank_teach.reproduction.studies e2e webnlg   # LOWRANK_TEACH_DATA names their folder
#
# Every training is a run of the store; what it learned is then added to the pretrained matrices, and the test inputs
# are written out greedily. Where a study has a grid of rates, each arm takes the one whose texts for validation
# inputs score best; their validation loss is kept too, since it may say otherwise. The file of a task is written anew
# after each run, so an interrupted study keeps what it has, and the same command goes on. Of the data only the
# samples are copied, with the licence beside them.
OnText = Callable[[str, int, Mapping[str, float]], None]   # arm, seed, what was measured

UNTRAINED = "not trained"
SAMPLES, BEAMS = 12, (1, 2, 4)   # inputs shown with their texts, widths tried on these


@torch.no_grad()
def deploy(model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add what a run has learned to a pretrained model: W += left right at each site of the record."""
    matrices = {site.name: matrix_of(model, site) for site in find_sites(model)}
    for name, (left, right) in factors.items():
        matrices[name].add_((left @ right).to(matrices[name]))


@dataclass
class Inputs:
    """The first test inputs of a task, or validation inputs, with all references of each."""

    data: TaskData
    count: int
    split: str = "test"

    @cached_property
    def rows(self) -> Any:
        """One row an input, its references in the column "references"."""
        task, rows = self.data.task, getattr(self.data, self.split)
        if rows is None:
            raise ValueError(f"{task.name} has no {self.split} rows to write texts for")
        wanted = rows.groupby(task.group, sort=False)[task.label].agg(list)
        first = rows.drop_duplicates(task.group).head(self.count).reset_index(drop=True)
        return first.assign(references=[wanted[group] for group in first[task.group]])

    @property
    def sources(self) -> list[str]:
        return self.rows[self.data.task.text[0]].tolist()

    @property
    def references(self) -> list[list[str]]:
        return self.rows["references"].tolist()

    @property
    def parts(self) -> list[str]:
        return self.rows[self.data.task.part].tolist() if self.data.task.part else []


class Writer:
    """A fresh model a run, its change added; the texts it writes for the inputs, and what they are worth."""

    def __init__(self, inputs: Inputs, backbone: str) -> None:
        self.inputs, self.task, self.backbone = inputs, inputs.data.task, backbone
        self.values = slots.value_lists(inputs.data.train[self.task.text[0]])
        self.left_out: dict[str, str] = {}   # metric -> why
        for name in TEXT_STUDIES[self.task.name].scores:
            try:
                score([name], ["a pub"], ["a pub by the river"], self.task)
            except ImportError as error:
                self.left_out[name] = str(error)

    def write(self, run: Run | None, count: int | None = None, num_beams: int = 1) -> list[str]:
        """One text an input, for the first `count` of them; a run of None is the pretrained model as it is."""
        model, tokenizer = load_backbone(self.backbone)
        if run is not None:
            deploy(model, run.factors)
        task = self.task
        rows = encode(self.inputs.rows.head(count or self.inputs.count), task, tokenizer,
                      causal=not model.config.is_encoder_decoder)
        return generate(model, rows, tokenizer, Generation(max_new_tokens=task.max_target, num_beams=num_beams))

    def judged(self, written: Sequence[str]) -> dict[str, Any]:
        """Scores over all inputs and by part, what they add up for each text, slot errors of each text."""
        references, names = self.inputs.references[:len(written)], self._names()
        found = score(names, written, references, self.task)
        parts = self.inputs.parts[:len(written)]
        for part in sorted(set(parts)):
            here = [i for i, one in enumerate(parts) if one == part]
            of_part = score(names, [written[i] for i in here], [references[i] for i in here], self.task)
            found |= {f"{name}.{part}": value for name, value in of_part.items()}
        sums = {name: text_statistics(name, written, references).round(4).tolist() for name in names
                if name in STATISTICS}
        checks = [slots.check(text, source, self.values)
                  for text, source in zip(written, self.inputs.sources, strict=False)]
        return {"scores": found, "statistics": sums,
                "slots": [[len(one.missing), one.made_up, one.slots] for one in checks]}

    def headline(self, run: Run) -> float:
        """The first of the task's scores, of what a run writes."""
        name = TEXT_STUDIES[self.task.name].scores[0]
        return score([name], self.write(run), self.inputs.references, self.task)[name]

    def humans(self) -> dict[str, float]:
        """What the rule of `slot_errors` says of the references themselves, as shares of the fields there are."""
        checks = [slots.check(text, source, self.values)
                  for source, many in zip(self.inputs.sources, self.inputs.references, strict=True) for text in many]
        fields = sum(one.slots for one in checks)
        return {"missing": sum(len(one.missing) for one in checks) / fields,
                "made_up": sum(one.made_up for one in checks) / fields}

    def _names(self) -> list[str]:
        return [name for name in TEXT_STUDIES[self.task.name].scores if name not in self.left_out]


@dataclass
class _Trainer:
    """The trainings of one study: arms at rates and seeds, each a run of the store."""

    task: str
    backbone: str
    training: Mapping[str, Any]
    rates: Sequence[float]
    store: Store | None
    on_run: OnText | None
    grid: list[dict[str, Any]] = field(default_factory=list)   # runs that chose a rate, with score and loss

    def fit(self, arm: str, seed: int, rate: float) -> Run:
        return fit(ARMS[arm], self.task, self.backbone, TEXTS_PROFILE, seed, progress=False, store=self.store,
                   **{**self.training, "lr": rate})

    def choose(self, arm: str, seed: int, worth: Callable[[Run], float]) -> float:
        """The rate whose run is worth most; where runs tie, the one with the lower validation loss.

        Raises:
            DivergedError: at every rate of the grid.
        """
        if len(self.rates) < 2:
            return float(self.rates[0])
        found: dict[float, tuple[float, float]] = {}
        for rate in self.rates:
            tried: dict[str, Any] = {"arm": arm, "seed": seed, "lr": rate, "score": None, "loss": None}
            with suppress(DivergedError):
                run = self.fit(arm, seed, rate)
                tried |= {"score": worth(run), "loss": run.metrics["validation"]["loss"]}
                found[rate] = tried["score"], -tried["loss"]
                self.say(f"{arm} at {rate:g}", seed, {"validation score": tried["score"]})
            self.grid.append(tried)
        if not found:
            raise DivergedError(f"{arm} on {self.task} diverges at every rate of the grid; lower the rates")
        return max(found, key=found.__getitem__)

    def say(self, arm: str, seed: int, found: Mapping[str, float]) -> None:
        if self.on_run is not None:
            self.on_run(arm, seed, found)


def make(task: str, folder: Path | str | None = None, *, seeds: int | None = None, inputs: int | None = None,
         rates: Sequence[float] | None = None, backbone: str = TEXTS_BACKBONE, arms: Iterable[str] | None = None,
         beams: Sequence[int] = BEAMS, store: Store | None = None, on_run: OnText | None = None,
         **training: Any) -> Texts:
    """Train every arm with every seed, write the test inputs out, keep scores and samples.

    Args:
        folder: where the file goes; None takes figures/data of the checkout.  arms: some of ARMS, None for all.
        seeds, inputs, rates: as in `TextStudy`; None takes the task's own.
        beams: widths tried with the first arm of the first seed.
        on_run: told of a run's scores, in the grid of that on validation inputs.
        training: fields of `TrainConfig` beside TRAINING; with an lr, that is the rate and no other is tried.

    Raises:
        ValueError: a task that no texts are stored for.  FileNotFoundError: its rows are not there.
    """
    if task not in TEXT_STUDIES:
        raise ValueError(f"texts are stored for {', '.join(TEXT_STUDIES)}, not for {task!r}")
    study, data = TEXT_STUDIES[task], load_task(task)
    training, own = settings(task, training)
    trainer = _Trainer(task, backbone, training, rates or own, store, on_run)
    count = study.inputs if inputs is None else inputs
    writer, judge = (Writer(Inputs(data, count, split), backbone) for split in ("test", "validation"))
    many = range(study.seeds if seeds is None else seeds)
    stored: dict[str, Any] = {"about": _about(writer, trainer, many), "records": [],
                              "samples": _samples(writer.inputs), "beams": {}}

    def keep(arm: str, seed: int, rate: float | None, run: Run | None) -> None:
        written = writer.write(run)
        stored["records"].append({"arm": arm, "seed": seed, "lr": rate, **_of_run(run), **writer.judged(written)})
        if seed == many[0]:
            for sample, text in zip(stored["samples"], written, strict=False):
                sample["texts"][arm] = text
                sample["checks"][arm] = asdict(slots.check(text, sample["source"], writer.values))
        _save(stored, texts_path(task, folder))
        trainer.say(arm, seed, stored["records"][-1]["scores"])

    keep(UNTRAINED, many[0], None, None)
    chosen_by = {arm: RATE_OF.get(arm, arm) for arm in (ARMS if arms is None else arms)}
    rate_of = {arm: trainer.choose(arm, many[0], judge.headline) for arm in dict.fromkeys(chosen_by.values())}
    for seed in many:
        for arm, chooser in chosen_by.items():
            run = trainer.fit(arm, seed, rate_of[chooser])
            keep(arm, seed, rate_of[chooser], run)
            if not stored["beams"] and beams:
                stored["beams"] = {"arm": arm, "widths": [_at_width(writer, run, width) for width in beams]}
    _save(stored, texts_path(task, folder))
    return load_texts(task, folder)


def _about(writer: Writer, trainer: _Trainer, seeds: Sequence[int]) -> dict[str, Any]:
    task, data = writer.task, writer.inputs.data
    folder = Path(writer.backbone)   # of a model in a folder, only its name
    count = writer.inputs.count
    return {"task": task.name, "licence": TEXT_STUDIES[task.name].licence, "source": data.source,
            "backbone": folder.name if folder.is_absolute() else writer.backbone,
            "profile": TEXTS_PROFILE, "training": trainer.training, "seeds": list(seeds),
            "inputs": len(writer.inputs.rows),
            "rates": [*trainer.rates], "rate_of": RATE_OF, "grid": trainer.grid,
            "parts": writer.inputs.parts, "generation": {"num_beams": 1, "max_new_tokens": task.max_target},
            "human": writer.humans(), "left_out": writer.left_out, "machine": machine(),
            "command": f"python -m lowrank_teach.reproduction.studies {task.name} --seeds {len(seeds)} "
                       f"--inputs {count}"}


def _samples(inputs: Inputs) -> list[dict[str, Any]]:
    """The first few inputs; of a task with parts, as many of each."""
    parts = inputs.parts or [""] * len(inputs.sources)
    return [{"source": source, "references": references, "part": part, "texts": {}, "checks": {}}
            for source, references, part in zip(inputs.sources, inputs.references, parts, strict=True)][:SAMPLES]


def _of_run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"method": {}, "series": {}, "seconds": {}, "parameters": {}, "ranks": {}, "validation": {}}
    last = int(run.seconds["steps.training"])   # without a search, and counted from the training's own start
    steps, values = smooth((range(1, last + 1), run.series("loss")[1][-last:]), width=5)
    return {"key": run.key, "identity": run.identity, "commit": run.machine["commit"],
            "method": run.config["method"],
            "seconds": run.seconds, "parameters": run.parameters,
            "series": {"loss": [list(steps), [round(value, 4) for value in values]]}, "ranks": run.ranks,
            "validation": {"loss": run.metrics["validation"]["loss"]}}


def _at_width(writer: Writer, run: Run, width: int) -> dict[str, Any]:
    written = writer.write(run, SAMPLES, num_beams=width)
    judged = writer.judged(written)
    return {"num_beams": width, "scores": judged["scores"], "texts": written,
            "words": float(np.mean([len(text.split()) for text in written])), "slots": judged["slots"]}


def _save(stored: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
