"""Task × backbone × method: the cells of the papers' tables that ran here, each one command.

    lowrank-teach cells                       # what there is, and what is stored
    lowrank-teach cells --train --folder out cola rte      # train what is missing there in these lines

A line is a task with a packaged backbone and a length of training that two cores finish. What a line says is that
every cell of it trains, is scored by the task's own metric and leaves a record; so short a training does not say
which method is best (the studies do that). The numbers stand in figures/data/cells.json.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .course import references_folder
from .experiment import fit
from .methods import METHODS, Method
from .methods.checks import among, require, shown
from .runs import Run, Store, machine
from .tasks import TASKS

FILE = "cells.json"
PROFILE = "tiny"


@dataclass(frozen=True)
class Column:
    """One method of the table: its name, what is set beside its defaults, and the training it asks for."""

    title: str
    method: str
    values: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def configured(self) -> Method:
        return METHODS[self.method](**self.values)


# pretrained weights want a small step, soft prompts a large one
COLUMNS: dict[str, Column] = {
    "head": Column("head", "head"),
    "full": Column("FT", "full", training={"lr": 1e-4, "head_lr": 3e-3}),
    "full-no-embeddings": Column("FT†", "full", {"trains": "no_embeddings"}, {"lr": 1e-4, "head_lr": 3e-3}),
    "full-qv": Column("FT‡", "full", {"trains": "qv"}, {"lr": 1e-4, "head_lr": 3e-3}),
    "lora": Column("LoRA", "lora"), "cola": Column("COLA", "cola"), "salora": Column("SaLoRA", "salora"),
    "delta_lora": Column("Delta-LoRA", "delta_lora"), "autolora": Column("AutoLoRA", "autolora"),
    "dylora": Column("DyLoRA", "dylora"), "adalora": Column("AdaLoRA", "adalora"),
    "houlsby": Column("Houlsby", "houlsby"), "pfeiffer": Column("Pfeiffer", "pfeiffer"),
    "prefix": Column("prefix", "prefix", training={"lr": 1e-2}),
    "prompt": Column("prompt", "prompt", training={"lr": 3e-2}),
}
PAPERS = ("lora", "cola", "salora", "delta_lora", "autolora")
# written by a model that was tuned on something else: lowrank_teach.style_transfer
ELSEWHERE = ("yelp-transfer", "gyafc-transfer", "gyafc-music-transfer")


@dataclass(frozen=True)
class Line:
    """A task on a backbone: which columns, and what the tiny profile is changed to."""

    task: str
    backbone: str
    columns: tuple[str, ...] = tuple(COLUMNS)
    training: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)   # column -> training of it alone

    @property
    def name(self) -> str:
        return f"{self.task}/{self.backbone}"

    def trains(self, column: str) -> dict[str, Any]:
        """What is set beside the profile for one cell."""
        return {**self.training, **COLUMNS[column].training, **self.also.get(column, {})}


_WRITER = ("full-qv", *PAPERS, "adalora", "prefix", "prompt")
_FEW = {"steps": 10, "batch_size": 8, "n_train": 200, "n_validation": 40, "n_test": 40}
_GATES = {"salora": {"steps": 36}}   # in ten steps they cannot reach their density
_ENCODED = ("rt", "trec", "trec-fine", "bbc-match", "wnut16", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli",
            "mnli-mm", "qnli", "rte", "wsc", "cb", "wic", "boolq", "multirc", "jnlpba", "bionlp13pc", "yelp",
            "gyafc", "gyafc-music")
_PROMPTED = ("wsc-prompt", "cb-prompt", "wic-prompt", "boolq-prompt", "multirc-prompt", "rte-prompt", "sst2-prompt")
_WRITTEN, _SUMMED = ("e2e", "webnlg", "alpaca"), ("xsum", "bbc-headline")
LINES: tuple[Line, ...] = (
    *(Line(task, "minilm-l3", training={"max_length": 64}) for task in _ENCODED),
    *(Line(task, "smollm2-135m", PAPERS, {**_FEW, "max_length": 128}, _GATES) for task in _PROMPTED),
    *(Line(task, "smollm2-135m", _WRITER, {**_FEW, "max_length": 96}, _GATES) for task in _WRITTEN),
    *(Line(task, "flan-t5-small-titles", _WRITER, {**_FEW, "max_length": 128}, _GATES) for task in _SUMMED),
)


def command(line: Line, column: str) -> str:
    """What makes one cell, from a terminal."""
    c = COLUMNS[column]
    pairs = {**c.values, **line.trains(column)}
    settings = " ".join(f"--set {shlex.quote(f'{name}={value}')}" for name, value in pairs.items())
    return (f"lowrank-teach train {c.method} --task {line.task} --backbone {line.backbone} --profile {PROFILE} "
            f"{settings}").rstrip()


def train(tasks: Iterable[str] = (), columns: Iterable[str] = (), folder: Path | str | None = None, *,
          store: Store | None = None, on_cell: Callable[[Line, str, Run | str], None] | None = None
          ) -> list[dict[str, Any]]:
    """Train the cells that are missing, line by line; the file is written anew after each.

    tasks, columns: only these; all where none is named. A task whose rows cannot be had is passed over with the
    reason. Returns all records, the ones that were stored before included.

    Raises:
        ValueError: a task or a column has no such name.
    """
    tasks, columns = tuple(tasks), tuple(columns)
    require_known(tasks, columns)
    chosen = [line for line in LINES if not tasks or line.task in tasks]
    records = load(folder)
    for line in chosen:
        for name in line.columns:
            if (columns and name not in columns) or _found(records, line, name):
                continue
            try:
                run = fit(COLUMNS[name].configured(), line.task, line.backbone, PROFILE, progress=False, store=store,
                          **line.trains(name))
            except FileNotFoundError as error:  # no rows here: the sentence has the ways to get them
                if on_cell is not None:
                    on_cell(line, name, str(error))
                break
            records.append(_record(line, name, run))
            _write(records, folder)
            if on_cell is not None:
                on_cell(line, name, run)
    return records


def require_known(tasks: Iterable[str], columns: Iterable[str]) -> None:
    """Refuse what is neither the task of a line nor the name of a column.

    Raises:
        ValueError: names the first such word, and what there is.
    """
    for kind, names, known in (("line", tasks, [line.task for line in LINES]), ("column", columns, list(COLUMNS))):
        for name in names:
            require(name in known, f"no {kind} {shown(name)}; there are {among(list(dict.fromkeys(known)), name)}")


def _record(line: Line, column: str, run: Run) -> dict[str, Any]:
    metric, value = run.score("test")
    return {"task": line.task, "backbone": line.backbone, "column": column, "metric": metric, "value": value,
            "test": run.metrics["test"], "seed": run.config["seed"], "trainable": run.parameters["trainable"],
            "seconds": run.seconds["total"], "source": run.notes[0], "command": command(line, column),
            "key": run.key, "identity": run.identity, "commit": run.machine["commit"]}


def _found(records: list[dict[str, Any]], line: Line, column: str) -> dict[str, Any] | None:
    return next((r for r in records if (r["task"], r["backbone"], r["column"]) ==
                 (line.task, line.backbone, column)), None)


def _path(folder: Path | str | None) -> Path:
    return Path(folder or references_folder()) / FILE


def load(folder: Path | str | None = None) -> list[dict[str, Any]]:
    """The stored cells, in the order they were trained; none where nothing is stored."""
    path = _path(folder)
    return json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []


def _write(records: list[dict[str, Any]], folder: Path | str | None) -> None:
    path = _path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"profile": PROFILE, "machine": machine(), "cells": records}, ensure_ascii=False,
                               indent=0) + "\n", encoding="utf-8")


def markdown(folder: Path | str | None = None) -> str:
    """The table of the README: a line a task and backbone, a column a method, the task's metric on its test rows."""
    records = load(folder)
    titles = [c.title for c in COLUMNS.values()]
    lines = [f"| task | backbone | metric | {' | '.join(titles)} |", "|---" * (len(titles) + 3) + "|"]
    for line in LINES:
        found = {name: _found(records, line, name) for name in COLUMNS}
        cells = ["–" if r is None else f"{r['value']:.3g}" if abs(r["value"]) >= 1 else f"{r['value']:.3f}"
                 for r in found.values()]
        metric = next((r["metric"] for r in found.values() if r), TASKS[line.task].metrics[0])
        lines.append(f"| {line.task} | {line.backbone} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)
