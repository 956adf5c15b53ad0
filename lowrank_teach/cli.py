"""`lowrank-teach train | compare | plan | tasks | figures`: the same functions from a terminal.

Every command takes `--json` for machines. What the library refuses is printed as its one sentence.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .errors import Refusal

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown", help="Low-rank adaptation to learn, check and extend.")
console = Console()

TaskName = Annotated[str, typer.Option("--task", "-t", help="short name; `lowrank-teach tasks` lists them")]
BackboneName = Annotated[str, typer.Option("--backbone", "-b", help="short name, hub name or local folder")]
ProfileName = Annotated[str, typer.Option("--profile", "-p", help="tiny, laptop or gpu")]
Seed = Annotated[int, typer.Option("--seed", "-s")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a value of the method or of the training, "
                                                    "as name=value; may be repeated")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, nothing else")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="train again even if the run is stored")]


@app.command(epilog="Example: `lowrank-teach train salora --task rt --profile laptop --set b=0.25`")
def train(method: Annotated[str, typer.Argument(help="lora, cola, salora, delta_lora, autolora, head, full")],
          task: TaskName = "rt", backbone: BackboneName = "minilm-l6", profile: ProfileName = "laptop",
          seed: Seed = 0, settings: Settings = None, as_json: AsJson = False, no_cache: NoCache = False) -> None:
    """Train one method on one task and store the run."""
    from .fit import fit

    configured, training = _configure(method, settings or [])
    bar = None if as_json else _bar()
    with bar or _nothing():
        run = fit(configured, task, backbone, profile, seed, cache=not no_cache, progress=False,
                  callbacks=[_Steps(bar)] if bar else [], **training)
    if as_json:
        _print_json({"key": run.key, "config": run.config, "metrics": run.metrics, "ranks": run.ranks,
                     "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes})
        return
    from .compare import table

    console.print(_rich_table(table({run.label: run}), f"{task}, {backbone}, {profile}, seed {seed}"))
    for note in run.notes:
        console.print(f"[dim]{note}[/dim]")


@app.command(epilog="Example: `lowrank-teach compare --task rt --backbone minilm-l6 --profile laptop`")
def compare(task: TaskName = "rt", backbone: BackboneName = "minilm-l6", profile: ProfileName = "laptop",
            seed: Seed = 0, settings: Settings = None, as_json: AsJson = False, no_cache: NoCache = False,
            figures: Annotated[Path | None, typer.Option(help="write the figures to this folder")] = None) -> None:
    """Train head only, LoRA, COLA (chains of 2 and 3), SaLoRA, Delta-LoRA and AutoLoRA; print one table."""
    from .compare import LINEUP, table
    from .compare import compare as run_all

    training = dict(_value(pair) for pair in settings or [])
    runs: dict[str, Any] = {}
    bar = None if as_json else _bar()
    title = f"{task}, {backbone}, {profile}, seed {seed}"
    if bar is None:
        runs = run_all(task, backbone, profile, seed, cache=not no_cache, progress=False, **training)
    else:
        with Live(console=console, refresh_per_second=4) as live:
            def show(label: str, run: Any) -> None:
                runs[label] = run
                live.update(_rich_table(table(runs), title, waiting=[n for n in LINEUP if n not in runs]))

            steps = _Steps(bar, live, lambda: _rich_table(table(runs), title, [n for n in LINEUP if n not in runs])
                           if runs else None)
            run_all(task, backbone, profile, seed, cache=not no_cache, progress=False, callbacks=[steps],
                    on_run=show, **training)
    made: list[Path] = []
    if figures is not None:
        from .figures import write_figures

        made = write_figures(runs, figures)
    if as_json:
        _print_json({"runs": {label: {"key": run.key, "metrics": run.metrics, "ranks": run.ranks,
                                      "parameters": run.parameters, "seconds": run.seconds}
                              for label, run in runs.items()}, "figures": [str(path) for path in made]})
    else:
        for path in made:
            console.print(f"wrote {path}", highlight=False)


@app.command(epilog="Example: `lowrank-teach plan salora --backbone minilm-l6 --set r=4`")
def plan(method: Annotated[str, typer.Argument(help="lora, cola, salora, delta_lora, autolora")],
         backbone: BackboneName = "minilm-l6", settings: Settings = None, as_json: AsJson = False) -> None:
    """Show which matrices a method would adapt, and with how many parameters, without training."""
    from .adapters import adapt
    from .models import load_backbone

    configured, _ = _configure(method, settings or [])
    model, _ = load_backbone(backbone)
    shown = adapt(model, configured, seed=0).plan()
    if as_json:
        keys = ("site", "module", "d", "k", "r", "scaling", "parameters")
        _print_json({"sites": [dict(zip(keys, row, strict=True)) for row in shown.rows], "total": shown.total})
    else:
        print(shown)


@app.command(epilog="Example: `lowrank-teach tasks --json`")
def tasks(as_json: AsJson = False) -> None:
    """List the tasks: what they ask, their metrics, where their rows come from."""
    from .tasks import TASKS

    if as_json:
        _print_json({name: {"kind": t.kind, "description": t.description, "metrics": t.metrics,
                            "labels": t.labels, "source": t.origin} for name, t in TASKS.items()})
        return
    shown = Table("task", "what it asks", "metrics", "rows from", box=None, header_style="bold")
    for name, task in TASKS.items():
        shown.add_row(name, task.description, ", ".join(task.metrics), task.origin)
    console.print(shown)


@app.command(epilog="Example: `lowrank-teach figures --folder figures`")
def figures(folder: Annotated[Path, typer.Option(help="holds data/*.json; the pictures go beside it")]
            = Path("figures"), again: Annotated[bool, typer.Option("--train", help="make the runs again first")]
            = False, profile: ProfileName = "laptop", as_json: AsJson = False) -> None:
    """Draw every figure again from its stored numbers, without training (or with it: --train)."""
    from .figures import redraw, write_figures

    if again:
        from .compare import compare as run_all

        made = write_figures(run_all(profile=profile, cache=False, progress=not as_json), folder)
    else:
        made = redraw(folder)
    if not made:
        raise ValueError(f"there are no numbers in {folder / 'data'}; make them with `lowrank-teach compare "
                         f"--figures {folder}`")
    if as_json:
        _print_json({"figures": [str(path) for path in made]})
    else:
        for path in made:
            console.print(f"wrote {path}", highlight=False)


def _configure(method: str, settings: list[str]) -> tuple[Any, dict[str, Any]]:
    """A method's configuration and the training values, from name=value pairs."""
    from .config import TrainConfig
    from .methods import METHODS

    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose among {', '.join(METHODS)}")
    values = dict(_value(pair) for pair in settings)
    own = {name: value for name, value in values.items() if name in METHODS[method].__dataclass_fields__}
    training = {name: value for name, value in values.items() if name not in own}
    unknown = sorted(set(training) - set(TrainConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no value of {method} or of the training has this name; {method} has "
                         f"{', '.join(METHODS[method].__dataclass_fields__)}")
    return METHODS[method](**own), training


def _value(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    if not equals:
        raise ValueError(f"--set takes name=value, not {pair!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    return name, tuple(value) if isinstance(value, list) else value


def _rich_table(frame: Any, title: str, waiting: list[str] | None = None) -> Table:
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(["method", *frame.columns]):
        shown.add_column(column, justify="left" if i == 0 else "right")
    for label, row in frame.iterrows():
        shown.add_row(str(label), *(_cell(column, row[column]) for column in frame.columns))
    for label in waiting or []:
        shown.add_row(label, *("…" for _ in frame.columns), style="dim")
    return shown


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if column in ("trainable", "sum of ranks"):
        return f"{int(value):,}"
    return f"{value:.0f}" if column == "ms a step" else f"{value:.1f}" if column.endswith(" s") else f"{value:.3f}"


def _bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                    TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"), console=console,
                    transient=True)


class _Steps:
    """Moves a bar with the steps; within a Live display the table stands above the bar."""

    def __init__(self, bar: Any, live: Live | None = None, table: Any = None) -> None:
        self.bar, self.live, self.table, self.row = bar, live, table, None

    def on_step(self, clock: Any, values: dict[str, float]) -> None:
        if clock.step == 1 or self.row is None:
            if self.row is not None:
                self.bar.remove_task(self.row)
            self.row = self.bar.add_task("training", total=clock.total, loss=values["loss"])
        self.bar.update(self.row, completed=clock.step, loss=values["loss"])
        if self.live is not None:
            from rich.console import Group

            above = self.table() if self.table else None
            self.live.update(Group(above, self.bar) if above is not None else self.bar)

    def on_eval(self, clock: Any, metrics: dict[str, float]) -> None: ...


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def main() -> None:
    """Entry point: what is refused is one sentence on standard error and exit status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(standalone_mode=False)
    except (Refusal, ValueError, OSError) as error:
        print(f"lowrank-teach: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        print(f"lowrank-teach: {stop or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            print(f"lowrank-teach: {error.format_message()}", file=sys.stderr)
            raise SystemExit(2) from None
        raise


if __name__ == "__main__":
    main()
