"""Texts that runs wrote: made for the inputs of a task, scored, stored with samples, and read back. Taught in 08.

    python -m lowrank_teach.reproduction.texts e2e webnlg   # makes them again

    stored = load_texts("e2e")
    stored.scores("bleu")                # configuration -> one number a seed
    stored.interval("LoRA", "bleu")      # over test inputs drawn anew
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.statistics import draws_of, middle, smooth
from ..experiments.runs import Run, Store
from ..models.backbones import load_backbone
from ..sites import find_sites, matrix_of
from ..tasks import metrics as scores
from ..tasks import slot_errors as slots
from ..tasks.generation import Generation, generate
from ..tasks.load import load_task
from ..tasks.metrics import score
from ..tasks.task import TaskData
from ..tasks.tokenize import encode
from .arms import TEXT_STUDIES, TextStudy
from .results import Comparison, Value, made_on, pair, read, references_folder, write
from .studies import OnRun, Records, Runner

# ---- what a score adds up ------------------------------------------------------------------------------------
# A corpus score is no mean of scores of texts: BLEU adds up counts over all texts, then divides. So what is kept of
# each text is what the score adds up (`statistics`), and `combined` makes the score of any set of texts from the
# sums.
Array = np.ndarray


def _mean_of(score: Callable[..., float]) -> Callable[..., Array]:
    return lambda texts, many: np.array([[score([text], [references]), 1.0]
                                         for text, references in zip(texts, many, strict=True)])


def _bleu(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Return the matched groups of 1 to 4 words, groups written, length, length of the nearest reference: (N, 10)."""
    scorer = scores.need("sacrebleu", "BLEU").BLEU(lowercase=True)
    found = [scorer.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, many, strict=True)]
    return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], dtype=float)


def _bleu_of(sums: Array) -> float:
    whole = [int(value) for value in sums]
    of_sums = scores.need("sacrebleu", "BLEU").BLEU.compute_bleu
    return float(of_sums(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score / 100)


def _ter(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Return the edits, and mean length of the references: (N, 2)."""
    scorer = scores.need("sacrebleu", "TER").TER()
    found = [scorer.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, many, strict=True)]
    return np.array([[one.num_edits, one.ref_length] for one in found], dtype=float)


def _cider(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Return one score for each text, with the idf of all references: (N, 2)."""
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
    """Return what a score adds up, one row a text: (N, m).

    Raises:
        KeyError: NIST and the like, whose sums are not kept.  ImportError: the score's package or data are missing.
    """
    return STATISTICS[name][0](texts, references)


def combined(name: str, rows: Array) -> float:
    """Return the corpus score of these rows (N, m) of `statistics`."""
    return STATISTICS[name][1](np.asarray(rows).sum(0))


def resampled(name: str, rows: Array, draws: Array) -> Array:
    """Return the score of each draw of inputs: rows (N, m), draws (R, N) of row numbers -> (R,)."""
    sums = np.asarray(rows)[draws].sum(1)                                     # (R, m)
    return np.array([STATISTICS[name][1](one) for one in sums])


# ---- what is stored ------------------------------------------------------------------------------------------

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
        return [record["seed"] for record in self.of(arm)]

    def scores(self, name: str) -> dict[str, list[float]]:
        """Return arm -> one score a seed, over all test inputs."""
        return self.by_arm(_score(name))

    def paired(self, arm: str, other: str, name: str) -> tuple[list[float], list[float]]:
        """Return a score of each of two arms, for the seeds that both have."""
        both = pair(self.of_each(arm, _score(name)), self.of_each(other, _score(name)))
        return both["first"].tolist(), both["second"].tolist()

    def rows(self, arm: str, name: str, seed: int = 0, part: str | None = None) -> Array:
        """Return what `statistics` kept of each text (N, m), of one part of the inputs or of all."""
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
        return score, *middle(found, level)

    def slot_errors(self, arm: str, seed: int = 0) -> Array:
        """Return, for each input, fields missing, values made up, fields there are: (N, 3)."""
        return np.array(self.record(arm, seed)["slots"], dtype=float)

    def sample(self, i: int) -> tuple[str, list[str], dict[str, tuple[str, slots.Check]]]:
        """Return the i-th sample: data, references, and of each arm the text and what `slot_errors` says of it."""
        one = self.samples[i]
        checked = {arm: slots.Check(tuple(slots.Mark(**mark) for mark in said["marks"]), tuple(said["missing"]),
                                    said["slots"]) for arm, said in one["checks"].items()}
        return one["source"], one["references"], {arm: (text, checked[arm]) for arm, text in one["texts"].items()}

    def line(self) -> str:
        """Return one sentence on where the texts come from."""
        a = self.about
        return (f"stored texts for {a['task']}: {a['backbone']}, {a['training']['steps']} steps of "
                f"{a['training']['batch_size']} rows, {a['inputs']} test inputs; "
                f"{made_on(a['machine'])}; again: {a['command']}")


def _score(name: str) -> Value:
    return lambda record: record["scores"][name]


def texts_path(task: str, folder: Path | str | None = None) -> Path:
    return Path(folder or references_folder()) / f"08_generation_{task}.json"


def load_texts(task: str = "e2e", folder: Path | str | None = None) -> Texts:
    """Return the stored texts for a task.

    Raises:
        FileNotFoundError: none were written here.
    """
    stored, records = read(texts_path(task, folder), f"no texts for {task!r} are stored; write them: "
                                                     f"python -m lowrank_teach.reproduction.texts {task}")
    return Texts(stored["about"], records, stored["samples"], stored["beams"])


# ---- texts written ---------------------------------------------------------------------------------------------
# LoRA, its control, Delta-LoRA and AutoLoRA on one causal model. What a run learned is added to the pretrained
# matrices, and the test inputs are written out greedily. Where a study has a grid of rates, each configuration takes
# the one whose texts for validation inputs score best; their validation loss is kept too, since it may say otherwise.
# Of the data only the samples are copied, with the licence beside them.
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
        self.metrics = TEXT_STUDIES[self.task.name].scores
        self.values = slots.value_lists(inputs.data.train[self.task.text[0]])
        self.left_out: dict[str, str] = {}   # metric -> why
        for name in self.metrics:
            try:
                score([name], ["a pub"], ["a pub by the river"], self.task)
            except ImportError as error:
                self.left_out[name] = str(error)

    def write(self, run: Run | None, count: int | None = None, num_beams: int = 1) -> list[str]:
        """Return one text an input, for the first `count` of them; a run of None is the pretrained model as it is."""
        model, tokenizer = load_backbone(self.backbone)
        if run is not None:
            deploy(model, run.factors)
        task = self.task
        rows = encode(self.inputs.rows.head(count or self.inputs.count), task, tokenizer,
                      causal=not model.config.is_encoder_decoder)
        return generate(model, rows, tokenizer, Generation(max_new_tokens=task.max_target, num_beams=num_beams))

    def judged(self, written: Sequence[str]) -> dict[str, Any]:
        """Return the scores over all inputs and by part, what they add up for each text, slot errors of each text."""
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
        """Return the first of the task's scores, of what a run writes."""
        name = self.metrics[0]
        return score([name], self.write(run), self.inputs.references, self.task)[name]

    def humans(self) -> dict[str, float]:
        """Return what the rule of `slot_errors` says of the references themselves, as shares of their fields."""
        checks = [slots.check(text, source, self.values)
                  for source, many in zip(self.inputs.sources, self.inputs.references, strict=True) for text in many]
        fields = sum(one.slots for one in checks)
        return {"missing": sum(len(one.missing) for one in checks) / fields,
                "made_up": sum(one.made_up for one in checks) / fields}

    def _names(self) -> list[str]:
        return [name for name in self.metrics if name not in self.left_out]


@dataclass(kw_only=True)
class TextRunner(Runner):
    """Trains the writers of a task, and keeps the scores of what they write, and samples.

    writer, judge: for test inputs, and for the validation inputs that a rate is chosen by.
    beams: widths tried with the first run.
    """

    writer: Writer
    judge: Writer
    beams: Sequence[int] = BEAMS

    def __post_init__(self) -> None:
        inputs = self.writer.inputs
        parts = inputs.parts or [""] * len(inputs.sources)
        self.samples: Records = [{"source": source, "references": references, "part": part, "texts": {}, "checks": {}}
                                 for source, references, part in zip(inputs.sources, inputs.references, parts,
                                                                     strict=True)][:SAMPLES]
        self.widths: dict[str, Any] = {}

    def validation(self, run: Run) -> Mapping[str, float]:
        return {self.writer.metrics[0]: self.judge.headline(run), "loss": run.metrics["validation"]["loss"]}

    def shown(self, run: Run | None, kept: Mapping[str, Any]) -> Any:
        if "scores" in kept:
            return kept["scores"]
        return {"validation score": next(iter(kept["validation"].values()))}

    def records_of(self, arm: str, seed: int, run: Run | None) -> Records:
        """Return scores, statistics and slot errors of the texts that a run writes; None is the pretrained model."""
        written = self.writer.write(run)
        if arm not in self.samples[0]["texts"]:   # of its first seed
            for sample, text in zip(self.samples, written, strict=False):
                sample["texts"][arm] = text
                sample["checks"][arm] = asdict(slots.check(text, sample["source"], self.writer.values))
        if run is not None and self.beams and not self.widths:
            self.widths = {"arm": arm, "widths": [_at_width(self.writer, run, width) for width in self.beams]}
        return [{**_of_run(run), **self.writer.judged(written)}]

    def run(self, arms: Iterable[str] | None = None, seeds: int | Iterable[int] | None = None) -> None:
        task = self.writer.task.name
        self.records += [{"task": task, "arm": UNTRAINED, "seed": 0, **one}
                         for one in self.records_of(UNTRAINED, 0, None)]
        self.tell(task, UNTRAINED, 0, None, self.records[-1]["scores"])
        super().run(arms, seeds)

    def save(self) -> None:
        write(self.path, {"about": self.described(), "samples": self.samples, "beams": self.widths}, self.records)


def make(task: str, folder: Path | str | None = None, *, seeds: int | None = None, inputs: int | None = None,
         rates: Sequence[float] | None = None, backbone: str | None = None, arms: Iterable[str] | None = None,
         beams: Sequence[int] = BEAMS, store: Store | None = None, on_run: OnRun | None = None,
         **training: Any) -> Texts:
    """Train every configuration with every seed, write the test inputs out, keep scores and samples.

    Args:
        folder: where the file goes; None takes figures/data of the checkout.
        arms: some of the study's, None for all.
        seeds, inputs, rates, backbone: as in `TextStudy`; None takes the task's own.
        beams: widths tried with the first configuration of the first seed.
        on_run: told of a run's scores, in the grid of that on validation inputs.
        training: fields of `TrainConfig` that differ; with an lr, that is the rate and no other is tried.

    Raises:
        ValueError: a task that no texts are stored for.  FileNotFoundError: its rows are not there.
    """
    if task not in TEXT_STUDIES:
        raise ValueError(f"texts are stored for {', '.join(TEXT_STUDIES)}, not for {task!r}")
    study = TEXT_STUDIES[task].changed(training=training, seeds=seeds, inputs=inputs, rates=rates, backbone=backbone)
    data = load_task(task)
    writer, judge = (Writer(Inputs(data, study.inputs, split), study.backbone) for split in ("test", "validation"))
    runner = TextRunner(study, texts_path(task, folder), _about(writer, study), store, on_run, writer=writer,
                        judge=judge, beams=beams)
    runner.run(arms)
    return load_texts(task, folder)


def _about(writer: Writer, study: TextStudy) -> dict[str, Any]:
    task, data = writer.task, writer.inputs.data
    folder = Path(study.backbone)   # of a model in a folder, only its name
    return {"licence": study.licence, "source": data.source,
            "backbone": folder.name if folder.is_absolute() else study.backbone, "seeds": list(range(study.seeds)),
            "inputs": len(writer.inputs.rows), "parts": writer.inputs.parts,
            **({} if study.rates else {"rates": [study.training["lr"]], "grid": []}),
            "generation": {"num_beams": 1, "max_new_tokens": task.max_target},
            "human": writer.humans(), "left_out": writer.left_out,
            "command": f"python -m lowrank_teach.reproduction.texts {task.name} --seeds {study.seeds} "
                       f"--inputs {study.inputs}"}


def _of_run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"lr": None, **{name: {} for name in ("method", "series", "seconds", "parameters", "ranks",
                                                     "validation")}}
    last = int(run.seconds["steps.training"])   # without a search, and counted from the training's own start
    steps, values = smooth((range(1, last + 1), run.series("loss")[1][-last:]), width=5)
    return {"lr": run.config["training"]["lr"], "key": run.key, "identity": run.identity,
            "commit": run.machine["commit"], "method": run.config["method"], "seconds": run.seconds,
            "parameters": run.parameters,
            "series": {"loss": [list(steps), [round(value, 4) for value in values]]}, "ranks": run.ranks,
            "validation": {"loss": run.metrics["validation"]["loss"]}}


def _at_width(writer: Writer, run: Run, width: int) -> dict[str, Any]:
    written = writer.write(run, SAMPLES, num_beams=width)
    judged = writer.judged(written)
    return {"num_beams": width, "scores": judged["scores"], "texts": written,
            "words": float(np.mean([len(text.split()) for text in written])), "slots": judged["slots"]}


def main() -> None:
    """Read the command line: which tasks, and how many seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=tuple(TEXT_STUDIES))
    parser.add_argument("--seeds", type=int, help="how many, from 0; the task's own where left out")
    parser.add_argument("--inputs", type=int, help="test inputs written out; the task's own where left out")
    parser.add_argument("--folder", type=Path, help="where the file goes; figures/data where left out")
    chosen = parser.parse_args()
    for task in chosen.tasks:
        make(task, chosen.folder, seeds=chosen.seeds, inputs=chosen.inputs,
             on_run=lambda *done: print(*done, flush=True))


if __name__ == "__main__":
    main()
