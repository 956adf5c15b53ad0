"""The command line `lowrank-teach`, a thin layer over the package's functions.

Every command takes `--json`. An error that the package raises on purpose is printed as one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from typer.core import TyperGroup

from .console import InterruptedTraining, LiveTable, console, counted_runs, loading, spell_output
from .errors import Refusal, brief

if TYPE_CHECKING:
    from .experiments.fit import RunConfig
    from .experiments.runs import Run
    from .experiments.sweep import SweepError
    from .reproduction.presets import Preset


# ---- options that several commands share ---------------------------------------------------------------------

FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")   # as `tasks.own_file.READERS`
Document = dict[str, Any] | None  # what a command returns for --json, which `main` prints

METHODS_HELP = ("lora, cola, salora, delta_lora, autolora, head, full, dylora, houlsby, pfeiffer, adalora, prefix, "
                "prompt; cola+salora trains both at once")
MethodName = Annotated[str | None, typer.Argument(help=METHODS_HELP + "; with --preset a baseline of that table")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="short name, which `lowrank-teach tasks` lists, or a "
                                       "CSV, TSV, JSON Lines or Parquet file of yours")]
TextColumns = Annotated[list[str] | None, typer.Option("--text", help="with a file: its column of texts [default: "
                                                       "text]; twice for a pair")]
LabelColumn = Annotated[str | None, typer.Option("--label", help="with a file: its column of classes [default: "
                                                 "label]")]
TestFile = Annotated[Path | None, typer.Option("--test", help="with a file: another of test rows; else a tenth of "
                                               "the texts is cut out")]
Encoding = Annotated[str | None, typer.Option(help="with a CSV or TSV file: such as cp1252 [default: utf-8]")]
BackboneName = Annotated[str, typer.Option("--backbone", "-b", help="short name, hub name or local folder")]
ProfileName = Annotated[str, typer.Option("--profile", "-p", help="tiny, laptop or gpu")]
MOST_SEEDS = 10_000
OwnSeeds = Annotated[int, typer.Option("--seeds", min=0, max=MOST_SEEDS, help="how many; 0 takes the study's own")]
Seed = Annotated[int, typer.Option("--seed", "-s")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a value of the method or of the training, "
                                                    "as name=value; may be repeated")]
PresetName = Annotated[str | None, typer.Option("--preset", help="a cell of a paper's table, such as "
                                                "salora/roberta-base/cola; `lowrank-teach presets` lists them")]
StandIn = Annotated[bool, typer.Option("--stand-in", help="with --preset: a packaged model in place of the paper's")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, nothing else")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="train again even if the run is stored")]

# None, where a preset can set the option, so that an option that was left out is recognized
OwnTask = Annotated[str | None, typer.Option("--task", "-t", help="short name, or a file, as for `compare` "
                                             "[default: rt]")]
OwnBackbone = Annotated[str | None, typer.Option("--backbone", "-b", help="short name, hub name or local folder "
                                                 "[default: minilm-l6]")]
OwnProfile = Annotated[str | None, typer.Option("--profile", "-p", help="tiny, laptop or gpu [default: laptop; with "
                                                "--preset as long as the paper]")]


@dataclass
class Chosen:
    """The run that a command line names: the arguments of `fit`, and the preset, if one was named."""

    label: str
    arguments: dict[str, Any]
    preset: Preset | None = None

    @property
    def title(self) -> str:
        """The title of the table on the terminal."""
        names = (self.arguments[name] for name in ("task", "backbone", "profile"))
        return ", ".join([*([self.preset.name] if self.preset else []), *names])

    @contextmanager
    def or_stand_in(self) -> Iterator[None]:
        """Extend a CheckpointError about the preset's model by this command line with `--stand-in`."""
        from .models.backbones import CheckpointError

        try:
            yield
        except CheckpointError as error:
            if self.preset is None or self.arguments["backbone"] != self.preset.backbone:
                raise
            line = shlex.join(["lowrank-teach", *sys.argv[1:], "--stand-in"])
            raise CheckpointError(self.preset.missing(line, error)) from error


def choose(method: str | None, task: str | None, backbone: str | None, profile: str | None,
           settings: list[str] | None, preset: str | None, stand_in: bool) -> Chosen:
    """Return the run that a command line names, by method, task and backbone, or by a preset and changes of it.

    Raises:
        ValueError: options contradict each other, or a name is unknown.
    """
    if preset is None:
        if method is None or stand_in:
            raise ValueError("--stand-in goes with --preset" if stand_in else "name a method, or a cell of a paper's "
                             "table with --preset; `lowrank-teach presets` lists them")
        configured, training = configure(method, settings or [])
        usual = {"task": "rt", "backbone": "minilm-l6", "profile": "laptop"}
        named = {"task": task, "backbone": backbone, "profile": profile}   # an empty name counts as given
        return Chosen(method, {"method": configured, **usual, **training,
                               **{option: name for option, name in named.items() if name is not None}})
    from .reproduction.presets import preset as find

    one = find(preset)
    changed = read_settings(settings, [one.configured(method).name])
    if task is not None or (stand_in and backbone is not None):
        raise ValueError(f"{one.name} names its task: leave --task out" if task is not None else
                         "--stand-in and --backbone both name a model: leave one out")
    arguments = one.arguments(profile, method=method, stand_in=stand_in, backbone=backbone,
                              **changed)
    return Chosen(method or one.name.split("/")[0], arguments, one)


def configure(method: str, settings: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return a method's configuration and the training values from name=value pairs.

    Raises:
        ValueError: neither has a value of this name.
    """
    from .methods.composition import fields_of, named

    fields, values = fields_of(method), read_settings(settings, [method])
    own = {name: value for name, value in values.items() if name in fields}
    return named(method, **own), {name: value for name, value in values.items() if name not in own}


def read_settings(settings: Iterable[str] | None, methods: Iterable[str] = (),
            read: Callable[[str], tuple[str, Any]] | None = None) -> dict[str, Any]:
    """Return name -> value from the pairs of `--set`, for values of the training and of the named methods.

    read: a function that reads one pair; None is `read_setting`.

    Raises:
        ValueError: neither the training nor a method has a value of this name.
    """
    from .errors import among, require
    from .methods.composition import fields_of
    from .training.config import TrainConfig

    own = {name: method for method in methods for name in fields_of(method)}
    training = list(TrainConfig.__dataclass_fields__)
    values = dict(map(read or read_setting, settings or ()))
    unknown = [name for name in values if name not in own and name not in training]
    whose = [*dict.fromkeys(own.values()), "the training"]
    require(not unknown, f"{', '.join(unknown)}: no value of {' or of '.join(whose)} has this name; "
                         f"{whose[0]} has {among(list(own) or training, *unknown[:1])}")
    return values


def read_setting(pair: str) -> tuple[str, Any]:
    """Read "b=0.25" as ("b", 0.25); a value that is not JSON stays a string.

    Raises:
        ValueError: the pair has no "=".
    """
    from .errors import shown

    name, equals, text = pair.partition("=")
    if not equals:
        raise ValueError(f"--set takes name=value, not {shown(pair)}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or a number or list that is too large to read
        found = text
    return name, tuple(found) if isinstance(found, list) else found


# ---- lowrank-teach presets, plan -----------------------------------------------------------------------------

CellName = Annotated[str, typer.Argument(help="one cell in full; or the beginning of names, to list fewer")]


def presets(name: CellName = "", as_json: AsJson = False) -> Document:
    """List the cells of the papers' tables, or show one with the source of each of its values."""
    from .reproduction.presets import PRESETS, preset

    some = {key: one for key, one in PRESETS.items() if name not in PRESETS and key.startswith(name)}
    one = None if some else preset(name)  # raises ValueError with the nearest names
    if as_json:
        return _preset_document(one) if one else {key: _summary(item) for key, item in some.items()}
    if one:
        _print_preset(one)
        return None
    names = Column("preset", no_wrap=True, min_width=max(map(len, some), default=0))
    shown = Table(names, "table", "steps", "paper's number", "not given", box=None, header_style="bold")
    for key, item in some.items():
        numbers = [f"{metric} {number}" for metric, number in item.reported.items()]
        reported = ", ".join([*numbers[:1], *(["…"] if numbers[1:] else [])]) or "–"
        shown.add_row(key, item.table, f"{item.steps:,}", reported, str(len(item.not_given)))
    console.print(shown)
    console.print("To see one in full, with the source of each value: lowrank-teach presets NAME; to train it: "
                  "lowrank-teach train --preset NAME")
    return None


def _summary(one: Preset) -> dict[str, Any]:
    return {"table": one.table, "task": one.task, "backbone": one.backbone, "stand_in": one.stand_in,
            "steps": one.steps, "reported": dict(one.reported), "not_given": list(one.not_given)}


def _preset_document(one: Preset) -> dict[str, Any]:
    def plain(settings: Any) -> dict[str, Any]:
        return {name: dataclasses.asdict(setting) for name, setting in settings.items()}

    return {"name": one.name, **_summary(one), "reported_source": one.reported_source, "method": one.method.to_dict(),
            "training": one.training, "values": plain(one.values()), "seeds": dataclasses.asdict(one.seeds),
            "parameters": one.counts, "grid": dict(one.grid), "differs": list(one.differs),
            "baselines": {name: plain(settings) for name, settings in one.baselines.items()}}


FROM = {"paper": "paper", "code": "code", "ours": "not given"}


def _print_preset(one: Preset) -> None:
    say = console.print
    say(f"{one.name}: {one.table}; {one.backbone} on {one.task}, {one.steps:,} steps")
    shown = Table("value", "", "from", "source, or why", box=None, header_style="bold")
    for name, s in [*one.values().items(), ("seeds", one.seeds)]:
        source = s.source.removeprefix("not given").removeprefix("; ") if s.kind == "ours" else s.source
        cells = (name, _format(s.value), FROM[s.kind], source)
        shown.add_row(*cells, style="dim" if s.kind == "ours" else "")
    console.print(shown)
    numbers = ", ".join(f"{metric} {number}" for metric, number in one.reported.items())
    say(f"The paper's number: {numbers} ({one.reported_source})" if numbers else
        "The paper's number: none was found in a text, a table or a repository")
    if one.counts:
        say(f"Parameters in branches: {one.counts[1]:,}; the paper prints {one.counts[0]}")
    for name, values in one.grid.items():
        say(f"The paper searched {name} over {', '.join(map(_format, values))}, and reports the best")
    for difference in one.differs:
        say(f"Differs: {difference}")
    more = f"; a baseline of the same table: lowrank-teach train {next(iter(one.baselines))} --preset {one.name}"
    say(f"Train it: lowrank-teach train --preset {one.name}{more if one.baselines else ''}")


def _format(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def plan(method: MethodName = None, backbone: OwnBackbone = None, preset: PresetName = None,
         stand_in: StandIn = False, settings: Settings = None,
         memory: Annotated[bool, typer.Option("--memory", help="what a training step would hold, by part, without "
                                              "downloading weights")] = False,
         length: Annotated[int | None, typer.Option(help="with --memory: tokens of every example")] = None,
         card: Annotated[float, typer.Option(min=0, help="with --memory: GiB of the device")] = 24.0,
         as_json: AsJson = False) -> Document:
    """Show which matrices a method would adapt, with how many parameters, or how much memory a step would take."""
    chosen = choose(method, None, backbone, None, settings, preset, stand_in)
    return memory_plan(chosen, length, card, as_json) if memory else _print_sites(chosen, as_json)


def _print_sites(chosen: Chosen, as_json: bool) -> Document:
    from .adapters import adapt
    from .models.backbones import load_backbone, meta_model, published

    name = chosen.arguments["backbone"]
    model = meta_model(name) if published(name) else load_backbone(name)[0]
    shown = adapt(model, chosen.arguments["method"], seed=0).plan()
    if as_json:
        keys = ("site", "module", "d", "k", "r", "scaling", "parameters")
        return {"sites": [dict(zip(keys, row, strict=True)) for row in shown.rows], "head": shown.head,
                "total": shown.total}
    print(shown)
    return None


def memory_plan(chosen: Chosen, length: int | None = None, card: float = 24.0, as_json: bool = False,
                profile: str | None = None) -> Document:
    """Print the bytes of a training step by part, without loading weights.

    profile: the profile of a run, whose task adds a head.
    """
    from .experiments.memory import plan_memory
    from .tasks.table import TASKS
    from .training.config import PROFILES, TrainConfig

    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    values = {name: v for name, v in chosen.arguments.items() if name in fields}
    config = dataclasses.replace(PROFILES[profile] if profile in PROFILES else TrainConfig(), **values)
    task = TASKS[chosen.arguments["task"]]
    headed = task.kind in ("classification", "tagging", "regression") and (chosen.preset or profile)
    kind = task.kind if headed else None
    found = plan_memory(chosen.arguments["method"], chosen.arguments["backbone"], config, length=length, kind=kind,
                        labels=len(task.labels) or 2)
    if as_json:
        return {"setting": found.setting, "bytes": {name: size for name, size, _ in found.rows()},
                "total": found.total, "scores": found.scores, "notes": list(found.notes), "card": card,
                "fits": found.fits(card)}
    print(found)
    print(found.verdict(card))
    return None


# ---- lowrank-teach reproduce ---------------------------------------------------------------------------------

MOST_STEPS = 2**31 - 1
QUICK = {"seeds": 2, "steps": 10}   # enough to try the command, too little for a verdict


def reproduce(claim: Annotated[list[str], typer.Argument(help="a row of `lowrank-teach claims`, such as COLA 1")],
              plan: Annotated[bool, typer.Option("--plan", help="print only how many runs and minutes")] = False,
              seeds: OwnSeeds = 0,
              steps: Annotated[int, typer.Option(min=0, max=MOST_STEPS, help="of each; 0 takes the study's own")] = 0,
              quick: Annotated[bool, typer.Option("--quick", help="try it with 2 seeds of 10 steps; no verdict")
                               ] = False,
              again: Annotated[bool, typer.Option("--again", help="train all runs, even those stored")] = False,
              folder: Annotated[Path | None, typer.Option(help="folder of the stored studies")] = None,
              as_json: AsJson = False) -> Document:
    """Train the runs behind one claim again, and print the stored verdict beside the new one."""
    from .experiments.runs import Store
    from .reproduction import ledger

    key = " ".join(claim)
    seeds, steps = (seeds or QUICK["seeds"], steps or QUICK["steps"]) if quick else (seeds, steps)
    options: dict[str, Any] = {"seeds": seeds or None, "stored": folder, **({"steps": steps} if steps else {})}
    if plan:
        return _print_claim_plan(ledger.plan(key, **options), as_json)

    def on_run(*values: Any) -> None:
        done()
        print_run(*values)

    with loading(not as_json):
        planned = ledger.plan(key, **options).runs
    with tempfile.TemporaryDirectory() as empty, counted_runs(planned, not as_json) as done:
        try:
            found = ledger.reproduce(key, store=Store(empty) if again else None, on_run=on_run, **options)
        except KeyboardInterrupt:
            if again:
                raise KeyboardInterrupt("stopped; with --again no run is kept") from None
            raise
    if as_json:
        return {"stored": asdict(found.stored), "new": found.new and asdict(found.new), "runs": found.runs,
                "largest_change": found.gap, "said": ledger.said(found)}
    _print_verdicts(found.stored, found.new)
    console.print(ledger.said(found))
    return None


def _print_claim_plan(found: Any, as_json: bool) -> Document:
    if as_json:
        return asdict(found)
    time = ("an unknown time: no stored run says how long" if found.minutes is None else
            f"about {math.ceil(found.minutes)} min, by the seconds of the stored runs")
    console.print(found.why or (
        f"{found.runs} runs, all of them in the store" if found.stored == found.runs else
        f"{found.runs} runs, {found.stored} of them in the store; the others take {time}"))
    return None


def _print_verdicts(stored: Any, new: Any) -> None:
    shown = Table("", "stored", "now", title=f"{stored.key} ({stored.where}): {stored.statement}", box=None,
                  header_style="bold", title_justify="left")
    rows = {"paper": [stored.says, ""], "verdict": [row.verdict if row else "–" for row in (stored, new)],
            "difference": [row.interval_words() if row else "–" for row in (stored, new)],
            "ours": [row.ours if row else "–" for row in (stored, new)],
            "setting": [row.why if row else "–" for row in (stored, new)]}
    for name, cells in rows.items():
        shown.add_row(name, *cells)
    console.print(shown)


def print_run(task: str, arm: str, seed: int, lr: float | None, found: Any) -> None:
    """Print the score of a finished run of a study to standard error.

    lr: the learning rate that was chosen or is tried, or None if there is no choice.
    found: the run, or the scores of the texts that it wrote.
    """
    label = f"{arm}, seed {seed}" if lr is None else f"{task}, {arm}, seed {seed}, learning rate {lr:g}"
    if isinstance(found, Mapping):
        name, score = next(iter(found.items()))
        print(f"{label}: {name} {score:.3f}", file=sys.stderr, flush=True)
    else:
        name, score = found.score("validation")
        print(f"{label}: {name} {score:.3f} on validation examples", file=sys.stderr, flush=True)


# ---- lowrank-teach sweep -------------------------------------------------------------------------------------

Methods = Annotated[list[str], typer.Option("--method", "-m", help="may be repeated; cola+salora is one")]
Tasks = Annotated[list[str], typer.Option("--task", "-t", help="may be repeated")]
Backbones = Annotated[list[str], typer.Option("--backbone", "-b", help="may be repeated")]
Tried = Annotated[list[str] | None, typer.Option("--set", help="a value of the methods or of the training, or "
                                                 "several to try: lr=1e-3,2e-3; may be repeated")]


def sweep(method: Methods = ["lora"], task: Tasks = ["rt"], backbone: Backbones = ["minilm-l6"],  # noqa: B006
          profile: ProfileName = "laptop",
          seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="how many, from 0")] = 1,
          settings: Tried = None,
          processes: Annotated[int | None, typer.Option(help="workers of one thread; 0 trains in this process; if "
                                                        "left out one a core, or one in all with a GPU")] = None,
          ray: Annotated[str | None, typer.Option(help="address of a Ray cluster, auto, or local to start one "
                                                  "here")] = None,
          replicas: Annotated[int | None, typer.Option(help="runs in one pass of a worker, at most; if left out "
                                                       "with a GPU as many as fit, else 1")] = None,
          plan: Annotated[bool, typer.Option("--plan", help="say how many runs and how long, and stop")] = False,
          as_json: AsJson = False) -> Document:
    """Train every combination of methods, tasks, backbones, values and seeds; what is stored is not trained again."""
    with loading(not as_json):
        from .experiments.fit import grid
        from .experiments.sweep import SweepError
        from .experiments.sweep import sweep as train

    values = read_settings(settings, method, read_values)
    configs = grid(method, task, backbone, seeds=seeds, profile=profile, **values)
    if plan:
        return _print_sweep_plan(configs, processes, as_json)
    try:
        runs = train(configs, processes, ray, replicas=replicas, progress=not as_json)
    except SweepError as error:
        return _after_failures(configs, error, as_json)
    if as_json:
        return _sweep_document(configs, runs)
    console.print(summary(configs, runs))
    return None


def read_values(pair: str) -> tuple[str, list[Any]]:
    """Read "lr=1e-3,2e-3" as ("lr", [0.001, 0.002]); commas within brackets or quotes do not separate values.

    Raises:
        ValueError: the pair has no "=".
    """
    name, _ = read_setting(pair)
    pieces, depth, quoted = [""], 0, False
    for letter in pair.partition("=")[2]:
        quoted ^= letter == '"'
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            pieces.append("")
        else:
            pieces[-1] += letter
    return name, [read_setting(f"{name}={piece.strip()}")[1] for piece in pieces]


def _print_sweep_plan(configs: list[RunConfig], processes: int | None, as_json: bool) -> Document:
    from .experiments.estimate import estimate
    from .experiments.sweep import usable_processes

    workers = processes or usable_processes()
    found = estimate(configs)
    if as_json:
        return {"runs": found.runs, "stored": found.stored, "missing": found.missing, "processes": workers,
                "seconds": found.seconds / workers if found.missing > len(found.unknown) else None,
                "unknown": list(found.unknown)}
    console.print(found.words(workers))
    return None


def _after_failures(configs: list[RunConfig], error: SweepError, as_json: bool) -> Document:
    """Print the table of the runs that finished, then raise the error."""
    done = [(config, run) for config, run in zip(configs, error.runs, strict=True) if run is not None]
    if not as_json and done:
        console.print(summary(*map(list, zip(*done, strict=True))))  # type: ignore[arg-type]
    raise error


def _sweep_document(configs: list[RunConfig], runs: list[Run]) -> dict[str, Any]:
    return {"runs": [{"key": run.key, "label": config.label, "config": run.config, "metrics": run.metrics,
                      "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
                     for config, run in zip(configs, runs, strict=True)]}


def summary(configs: list[RunConfig], runs: list[Run]) -> Table:
    """Return a table with one row for each task, model, method and set of values.

    It gives the number of seeds, the mean and standard deviation of their test scores, and the validation mean.
    """
    from statistics import fmean, stdev

    from .experiments.estimate import varied

    several_models = len({config.backbone for config in configs}) > 1
    groups: dict[tuple[str, ...], list[Run]] = {}
    for config, values, run in zip(configs, varied(configs), runs, strict=True):
        model = [config.backbone] if several_models else []
        groups.setdefault((config.task, *model, config.method.name, values), []).append(run)
    first = ("task", *(["backbone"] if several_models else []), "method", "values")
    shown = Table(*(Column(heading, overflow="fold") for heading in first), box=None, header_style="bold")
    for heading in ("seeds", "metric", "mean", "± (seeds)", "validation"):
        shown.add_column(heading, justify="right")
    for group, members in groups.items():
        scores = [run.score()[1] for run in members]
        spread = f"{stdev(scores):.3f}" if len(scores) > 1 else "–"
        shown.add_row(*group, str(len(members)), members[0].score()[0], f"{fmean(scores):.3f}", spread,
                      f"{fmean(run.score('validation')[1] for run in members):.3f}")
    return shown


# ---- the commands --------------------------------------------------------------------------------------------

class Interruptible(TyperGroup):
    """A group whose commands pass the message of a KeyboardInterrupt on to `main`; typer would drop it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise InterruptedTraining(str(stop)) from None


app = typer.Typer(cls=Interruptible, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown", help="Low-rank adaptation to learn, check and extend.")

app.command(epilog="Example: `lowrank-teach plan lora --backbone llama-7b --memory --set base_dtype=bfloat16`")(plan)
app.command(epilog="Example: `lowrank-teach presets salora/roberta-base/cola`")(presets)
app.command(epilog="Example: `lowrank-teach sweep -m lora -m salora -t rt --seeds 5 --set lr=1e-3,2e-3`")(sweep)
app.command(epilog="Example: `lowrank-teach reproduce COLA 1 --plan`")(reproduce)


def own_task(task: str | None, text: list[str] | None, label: str | None, test: Path | None,
             encoding: str | None) -> str | None:
    """Return the task's short name, which the name of a file becomes once its rows are read.

    Raises:
        ValueError: a file's options without a file.  Others: as `task_from_file`.
    """
    given = {"--text": text, "--label": label, "--test": test, "--encoding": encoding}
    named = [option for option, value in given.items() if value]
    if task is None or Path(task).suffix.lower() not in FILES:
        if named:
            raise ValueError(f"{named[0]} goes with --task and a file ({', '.join(FILES)}), and this task is "
                             f"{task or 'none'}")
        return task
    from .tasks.own_file import task_from_file

    return task_from_file(task, text or "text", label or "label", test=test, encoding=encoding or "utf-8").name


@app.command(epilog="Example: `lowrank-teach train salora --task rt --profile laptop --set b=0.25`")
def train(method: MethodName = None, task: OwnTask = None, backbone: OwnBackbone = None, profile: OwnProfile = None,
          seed: Seed = 0, settings: Settings = None, preset: PresetName = None, stand_in: StandIn = False,
          text: TextColumns = None, label: LabelColumn = None, test: TestFile = None, encoding: Encoding = None,
          dry_run: Annotated[bool, typer.Option("--plan", help="print a step's bytes by part, and stop")] = False,
          as_json: AsJson = False, no_cache: NoCache = False) -> Document:
    """Train one method on one task, or a cell of a paper's table by its preset, and store the run."""
    with loading(not as_json):
        from .experiments.compare import table
        from .experiments.fit import RunConfig, fit

        task = own_task(task, text, label, test, encoding)
        chosen = choose(method, task, backbone, profile, settings, preset, stand_in)
    asked = RunConfig(**{name: value for name, value in chosen.arguments.items()
                         if name in ("method", "task", "backbone", "profile", "adjust")})
    if dry_run:
        return memory_plan(chosen, as_json=as_json, profile=chosen.arguments["profile"])
    live = LiveTable(f"{chosen.title}, seed {seed}", [chosen.label], table, asked.notes)
    with chosen.or_stand_in(), live.shown(not as_json):
        run = fit(**chosen.arguments, seed=seed, cache=not no_cache, progress=False, callbacks=[live])
        live.add(chosen.label, run)
    if as_json:
        return {"key": run.key, "config": run.config, "metrics": run.metrics, "ranks": run.ranks,
                "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
    for note in run.notes:
        console.print(note, style="dim")
    return None


@app.command(epilog="Example: `lowrank-teach compare --task rt --backbone minilm-l6 --profile laptop`; with "
             "texts of yours: `lowrank-teach compare --task reviews.csv --text review --label verdict`")
def compare(task: TaskName = "rt", backbone: BackboneName = "minilm-l6", profile: ProfileName = "laptop",
            seed: Seed = 0, settings: Settings = None, text: TextColumns = None, label: LabelColumn = None,
            test: TestFile = None, encoding: Encoding = None, as_json: AsJson = False, no_cache: NoCache = False,
            figures: Annotated[Path | None, typer.Option(help="write the figures to this folder")] = None
            ) -> Document:
    """Train head only, LoRA, COLA (chains of 2 and 3), SaLoRA, Delta-LoRA and AutoLoRA; print one table."""
    with loading(not as_json):
        from .experiments.compare import LINEUP, table
        from .experiments.compare import compare as run_all
        from .experiments.fit import RunConfig
        from .reproduction.figures import check_folder, write_figures

        own, task = Path(task).suffix.lower() in FILES, own_task(task, text, label, test, encoding) or task
    if figures is not None:
        check_folder(figures)
    training = read_settings(settings)
    notes = [note for method in LINEUP.values() for note in RunConfig(method, task, backbone, profile).notes]
    live = LiveTable(f"{task}, {backbone}, {profile}, seed {seed}", list(LINEUP), table, notes)
    with live.shown(not as_json):
        runs = run_all(task, backbone, profile, seed, cache=not no_cache, progress=False, callbacks=[live],
                       on_run=live.add, **training)
    made = write_figures(runs, figures) if figures is not None else []
    if as_json:
        return {"runs": {label: {"key": run.key, "metrics": run.metrics, "ranks": run.ranks,
                                 "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
                         for label, run in runs.items()}, "figures": [str(path) for path in made]}
    if own:   # what was found in the file
        console.print(next(note for note in runs["head"].notes if note.startswith("rows from")), style="dim")
    _print_written(made)
    return None


@app.command(epilog="Example: `lowrank-teach study chain`")
def study(names: Annotated[list[str] | None, typer.Argument(help="names; without one, list all")] = None,
          seeds: OwnSeeds = 0,
          folder: Annotated[Path, typer.Option(help="where to write the numbers")] = Path("out/studies"),
          as_json: AsJson = False) -> Document:
    """Train a sweep or an ablation over seeds and store its numbers, for `claims --folder` to compare."""
    with loading(not as_json):
        from .errors import among, require, shown
        from .reproduction import arms

    defined: dict[str, Any] = {**arms.STUDIES, **arms.TASK_STUDIES}
    for name in names or ():   # before the first of them is trained
        require(name in defined, f"no study {shown(name)}; there are {among(list(defined), name)}")
    if not names:
        return _list_studies(defined, as_json)
    found: dict[str, Any] = {}
    for name in names:
        with counted_runs(defined[name].runs(seeds), not as_json) as done:
            found[name], table = _train_study(name, folder, seeds, done)
        if not as_json:
            console.print(table)
    if not as_json:
        _print_written([folder / f"{name}.json" for name in names])
    return found if as_json else None


def _list_studies(defined: dict[str, Any], as_json: bool) -> Document:
    listed = {name: {"question": s.question, "arms": list(s.arms), "seeds": s.seeds} for name, s in defined.items()}
    if as_json:
        return listed
    for name, one in listed.items():
        console.print(f"{name}: {one['question']} ({len(one['arms'])} configurations, {one['seeds']} seeds)")
    return None


def _train_study(name: str, folder: Path, seeds: int, done: Callable[[], None]) -> tuple[dict[str, Any], str]:
    """Train a study and return its numbers by configuration, and its table."""
    from .reproduction import arms, studies

    def on_run(*values: Any) -> None:
        done()
        print_run(*values)

    found: Any = studies.train(name, folder, seeds=seeds or None, on_run=on_run)
    if name in arms.TASK_STUDIES:
        return {arm: found.values(arm) for arm in found.arms}, found.table().to_string()
    return found.values(), found.frame(next(iter(found.records[0]["test"]))).to_string()


@app.command("suggest-lr", epilog="Example: `lowrank-teach suggest-lr lora --set r=16 --set lora_alpha=32`")
def suggest_lr(method: Annotated[str, typer.Argument(help="short name of a method")], settings: Settings = None,
               backbone: BackboneName = "minilm-l3", as_json: AsJson = False) -> Document:
    """Suggest a learning rate to start from, out of the stored grids, and say which runs it comes from."""
    from .reproduction import studies

    configured, _ = configure(method, settings or [])
    found = studies.suggest_rate(configured, backbone)
    if as_json:
        return asdict(found)
    console.print(f"{found.rate:.1g} (within a point of the best: {found.low:g} to {found.high:g})\n"
                  f"from {found.source}", soft_wrap=True)
    if found.differs:
        console.print(f"yours differs in {', '.join(found.differs)}: try a factor of 2 on both sides", soft_wrap=True)
    return None


@app.command(epilog="Example: `lowrank-teach claims --paper COLA`")
def claims(paper: Annotated[str, typer.Option(help="LoRA, COLA, SaLoRA, Delta-LoRA or AutoLoRA; all if left out")]
           = "", task: Annotated[str, typer.Option(help="only rows of this task, such as sst2")] = "",
           verdict: Annotated[str, typer.Option(help="only rows with this verdict, such as open")] = "",
           folder: Annotated[Path | None, typer.Option(help="another folder of studies")] = None,
           page: Annotated[bool, typer.Option("--markdown", help="the page of the site: what held, what did not")]
           = False, as_json: AsJson = False) -> Document:
    """Compare the papers' claims with the stored runs: their number, ours, the interval, the verdict."""
    from .errors import require, shown
    from .reproduction import ledger
    from .reproduction.arms import STUDIES, TASK_STUDIES

    names = {name.lower(): name for name in ledger.CLAIMS}
    if paper and paper.lower() not in names:
        raise ValueError(f"no claims of {shown(paper)}; there are claims of {', '.join(ledger.CLAIMS)}")
    require(folder is None or any((folder / f"{name}.json").exists() for name in (*STUDIES, *TASK_STUDIES)),
            f"there are no studies in {shown(str(folder))}; make one with `lowrank-teach study NAME --folder FOLDER` "
            "or leave --folder out for those of the checkout")
    if page:
        return print(ledger.summary_markdown(folder))
    try:
        found = ledger.ledger(names[paper.lower()] if paper else None, folder, task or None, verdict or None)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    if not found and not as_json:
        console.print("no row is like this")
        return None
    tally = ledger.counts(found)
    if as_json:
        return {"claims": [asdict(row) for row in found], "counts": tally.to_dict("index")}
    table = Table("claim", "statement", "numbers", "verdict", "setting, or reason", box=None, header_style="bold")
    for row in found:
        numbers = {"paper": row.says, "ours": row.ours, "difference": row.interval_words()}
        numbers |= {name: row.beside.get(name) or "–" for name in ledger.BESIDE}
        standing = ledger.standing(row).replace("–", "")
        cells = (f"{row.key}\n{row.where}", f"{row.statement}{row.task and f' ({row.task})'}",
                 "\n".join(f"{name}: {text}" for name, text in numbers.items() if text != "–"),
                 "\n".join(filter(None, (row.verdict, standing))), row.why)
        table.add_row(*cells)
    console.print(table)
    console.print(tally.to_string())
    return None


@app.command(epilog="Example: `lowrank-teach tasks --json`")
def tasks(as_json: AsJson = False) -> Document:
    """List the tasks: what they ask, their metrics, where their examples come from."""
    from .tasks.table import TASKS

    if as_json:
        return {name: {"kind": t.kind, "description": t.description, "metrics": t.metrics, "labels": t.labels,
                       "source": t.origin} for name, t in TASKS.items()}
    names = Column("task", no_wrap=True, min_width=max(map(len, TASKS)))
    shown = Table(names, "what it asks", "metrics", "examples from", box=None, header_style="bold")
    for name, task in TASKS.items():
        shown.add_row(name, task.description, ", ".join(task.metrics), task.origin)
    console.print(shown)
    return None


@app.command(epilog="Example: `lowrank-teach figures --folder figures`")
def figures(folder: Annotated[Path, typer.Option(help="holds data/*.json; the pictures go beside it")]
            = Path("figures"), again: Annotated[bool, typer.Option("--train", help="make the runs again first")]
            = False, profile: ProfileName = "laptop", as_json: AsJson = False) -> Document:
    """Draw every figure again from its stored numbers; with --train, train the runs again first."""
    from .reproduction.figures import redraw, write_figures

    if again:
        from .experiments.compare import compare as run_all

        made = write_figures(run_all(profile=profile, cache=False, progress=not as_json), folder)
    else:
        made = redraw(folder)
    if not made:
        raise ValueError(f"there are no numbers in {folder / 'data'}; make them with `lowrank-teach compare "
                         f"--figures {folder}`")
    if as_json:
        return {"figures": [str(path) for path in made]}
    _print_written(made)
    return None


@app.command(epilog="Example: `lowrank-teach audit my_adapter/ --base minilm-l6`")
def audit(adapters: Annotated[list[Path], typer.Argument(help="folders that peft or save_peft wrote, or safetensors "
                                                         "files; several are compared")],
          base: Annotated[str, typer.Option(help="the pretrained weights: a folder, a packaged model or a hub name; "
                                            "without them only the factors are looked at")] = "",
          out: Annotated[Path, typer.Option(help="folder for audit.html and the pictures")] = Path("out/audit"),
          as_json: AsJson = False) -> Document:
    """Show what a LoRA adapter learned, matrix by matrix, and what follows: a page, pictures and sentences."""
    from .integrations.audit import audit as look
    from .integrations.audit_page import write

    found = [look(one, base) for one in adapters]
    if as_json:
        return {"adapters": [one.document() for one in found]}
    for one in found:
        console.print(f"{one.name}: {len(one.reports)} matrices, {one.parameters:,} numbers", soft_wrap=True)
        for sentence in (*one.advice, *one.remarks):
            console.print(f"- {sentence}", soft_wrap=True, markup=False)
    _print_written(write(found, out)[:1])
    return None


@app.command(epilog="Example: `lowrank-teach compress my_adapter/ smaller/ --energy 0.95`")
def compress(adapter: Annotated[Path, typer.Argument(help="a folder that peft or save_peft wrote")],
             out: Annotated[Path, typer.Argument(help="the folder to write")],
             energy: Annotated[float, typer.Option(help="share of each change that is kept, such as 0.95")] = 0.0,
             rank: Annotated[int, typer.Option(help="the largest rank, in place of a share")] = 0,
             base: Annotated[str, typer.Option(help="measure on this model how much the outputs change")] = "",
             as_json: AsJson = False) -> Document:
    """Write a smaller adapter in peft's format, with the directions of each change that carry most of it."""
    from .integrations.audit import compress as cut
    from .integrations.audit import output_change

    ranks = cut(adapter, out, energy=energy, rank=rank)
    before, after = (sum(pair[i] for pair in ranks.values()) for i in (0, 1))
    change = output_change(adapter, out, base) if base else None
    if as_json:
        return {"ranks": {path: list(pair) for path, pair in ranks.items()}, "out": str(out),
                "output_change": change and asdict(change)}
    console.print(f"{before} directions of {len(ranks)} matrices became {after}; wrote {out}", soft_wrap=True)
    if change:
        console.print(str(change), soft_wrap=True)
    return None


def _print_written(paths: list[Path]) -> None:
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


def _print_json(value: Any) -> None:
    exact = sys.stdout.encoding.lower().startswith("utf")   # else JSON escapes; letters must not be spelled
    print(json.dumps(_finite(value), indent=1, ensure_ascii=not exact, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """Replace nan and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Run the command; an error raised on purpose prints one sentence on standard error, with exit status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if int(os.environ.get("RANK", "0")):  # of several processes only rank 0 prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process lives)
    spell_output()
    try:
        # with --json, other prints, such as of a download, must not reach standard output
        with redirect_stdout(sys.stderr) if "--json" in sys.argv else nullcontext():
            document = app(standalone_mode=False)
        if isinstance(document, dict):
            _print_json(document)
        elif document:  # typer's own exit status, 130 after Ctrl-C
            raise KeyboardInterrupt
    except BrokenPipeError:  # the reader of the pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (KeyboardInterrupt, typer.Abort, InterruptedTraining) as stop:
        print(f"lowrank-teach: {str(stop) or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None
    except (Refusal, ValueError, OSError, ImportError) as error:
        if isinstance(error, ImportError) and "pip install" not in _sentence(error):
            raise  # not a missing extra but a fault of this package
        print(f"lowrank-teach: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            print(f"lowrank-teach: {brief(error.format_message())}", file=sys.stderr)
            raise SystemExit(2) from None
        raise


def _sentence(error: Exception) -> str:
    """Return the error's message on one short line; a missing module gets the command that installs it."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and message.startswith("No module named"):
        message += "; install the course's extra: pip install 'lowrank-teach[lab]'"
    return brief(message)


if __name__ == "__main__":
    main()
