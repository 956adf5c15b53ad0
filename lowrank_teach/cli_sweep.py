"""`lowrank-teach sweep`: a grid of runs from one line, on this machine's processes or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from .board import console, loading
from .cli_options import MOST_SEEDS, AsJson, Document, ProfileName, settled, value

if TYPE_CHECKING:
    from .run_config import RunConfig
    from .runs import Run
    from .sweeps import SweepError

Methods = Annotated[list[str], typer.Option("--method", "-m", help="may be repeated; cola+salora is one")]
Tasks = Annotated[list[str], typer.Option("--task", "-t", help="may be repeated")]
Backbones = Annotated[list[str], typer.Option("--backbone", "-b", help="may be repeated")]
Tried = Annotated[list[str] | None, typer.Option("--set", help="a value of the methods or of the training, or "
                                                 "several to try: lr=1e-3,2e-3; may be repeated")]


def sweep(method: Methods = ["lora"], task: Tasks = ["rt"], backbone: Backbones = ["minilm-l6"],  # noqa: B006
          profile: ProfileName = "laptop",
          seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="how many, from 0")] = 1,
          settings: Tried = None,
          processes: Annotated[int | None, typer.Option(help="workers of one thread; 0 trains in this "
                                                        "process; if left out one a core, or what measures fastest "
                                                        "where there is much to train")] = None,
          ray: Annotated[str | None, typer.Option(help="address of a Ray cluster, auto, or local to start one "
                                                  "here")] = None,
          replicas: Annotated[int | None, typer.Option(help="runs in one pass of a worker, at most; if left out "
                                                       "with a GPU as many as fit, else 1, or what measures fastest "
                                                       "where there is much to train")] = None,
          plan: Annotated[bool, typer.Option("--plan", help="say how many runs and how long, and stop")] = False,
          as_json: AsJson = False) -> Document:
    """Train every combination of methods, tasks, backbones, values and seeds; what is stored is not trained again."""
    with loading(not as_json):
        from .run_config import grid
        from .sweeps import SweepError
        from .sweeps import sweep as train

    configs = grid(method, task, backbone, seeds=seeds, profile=profile, **settled(settings, method, several))
    if plan:
        return _plan(configs, processes, as_json)
    try:
        runs = train(configs, processes, ray, replicas=replicas, progress=not as_json)
    except SweepError as error:
        return _after_failures(configs, error, as_json)
    if as_json:
        return _document(configs, runs)
    console.print(summary(configs, runs))
    return None


def several(pair: str) -> tuple[str, list[Any]]:
    """ "lr=1e-3,2e-3" -> ("lr", [0.001, 0.002]); commas within brackets or quotes part nothing.

    Raises:
        ValueError: there is no = in it.
    """
    name, _ = value(pair)
    pieces, depth, quoted = [""], 0, False
    for letter in pair.partition("=")[2]:
        quoted ^= letter == '"'
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            pieces.append("")
        else:
            pieces[-1] += letter
    return name, [value(f"{name}={piece.strip()}")[1] for piece in pieces]


def _plan(configs: list[RunConfig], processes: int | None, as_json: bool) -> Document:
    from .sweeps import estimate
    from .sweeps.engine import usable_processes

    workers = processes or usable_processes()
    found = estimate(configs)
    if as_json:
        return {"runs": found.runs, "stored": found.stored, "missing": found.missing, "processes": workers,
                "seconds": found.seconds / workers if found.missing > len(found.unknown) else None,
                "unknown": list(found.unknown)}
    console.print(found.words(workers))
    return None


def _after_failures(configs: list[RunConfig], error: SweepError, as_json: bool) -> Document:
    """Show what there is, then fail with the sentence of what there is not."""
    done = [(config, run) for config, run in zip(configs, error.runs, strict=True) if run is not None]
    if not as_json and done:
        console.print(summary(*map(list, zip(*done, strict=True))))  # type: ignore[arg-type]
    raise error


def _document(configs: list[RunConfig], runs: list[Run]) -> dict[str, Any]:
    return {"runs": [{"key": run.key, "label": config.label, "config": run.config, "metrics": run.metrics,
                      "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
                     for config, run in zip(configs, runs, strict=True)]}


def summary(configs: list[RunConfig], runs: list[Run]) -> Table:
    """One row a task, model, method and set of values: how many seeds, their mean and deviation on the test rows."""
    from statistics import fmean, stdev

    from .sweeps.labels import varied

    several_models = len({config.backbone for config in configs}) > 1
    arms: dict[tuple[str, ...], list[Run]] = {}
    for config, words, run in zip(configs, varied(configs), runs, strict=True):
        model = [config.backbone] if several_models else []
        arms.setdefault((config.task, *model, config.method.name, words), []).append(run)
    first = ("task", *(["backbone"] if several_models else []), "method", "values")
    shown = Table(*(Column(heading, overflow="fold") for heading in first), box=None, header_style="bold")
    for heading in ("seeds", "metric", "mean", "± (seeds)", "validation"):
        shown.add_column(heading, justify="right")
    for arm, members in arms.items():
        scores = [run.score()[1] for run in members]
        spread = f"{stdev(scores):.3f}" if len(scores) > 1 else "–"
        shown.add_row(*arm, str(len(members)), members[0].score()[0], f"{fmean(scores):.3f}", spread,
                      f"{fmean(run.score('validation')[1] for run in members):.3f}")
    return shown
