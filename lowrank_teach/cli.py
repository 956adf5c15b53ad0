"""The command `lowrank-teach` with all that it can do: the same as in Python, from a terminal.

Every command takes `--json` for machines. What the library refuses is printed as its one sentence.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from typer.core import TyperGroup

from .board import Board, InterruptedTraining, console, counted, loading, spell_output
from .cli_options import (
    AsJson,
    BackboneName,
    Document,
    MethodName,
    NoCache,
    OwnBackbone,
    OwnProfile,
    OwnSeeds,
    OwnTask,
    PresetName,
    ProfileName,
    Seed,
    Settings,
    StandIn,
    TaskName,
    choose,
    settled,
)
from .cli_presets import memory_plan, plan, presets
from .cli_reproduce import reproduce, said
from .cli_sweep import sweep
from .errors import Refusal, brief


class Interruptible(TyperGroup):
    """Ctrl-C reaches `main` with its words, which typer would drop."""

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


@app.command(epilog="Example: `lowrank-teach train salora --task rt --profile laptop --set b=0.25`")
def train(method: MethodName = None, task: OwnTask = None, backbone: OwnBackbone = None, profile: OwnProfile = None,
          seed: Seed = 0, settings: Settings = None, preset: PresetName = None, stand_in: StandIn = False,
          dry_run: Annotated[bool, typer.Option("--plan", help="print a step's bytes by part, and stop")] = False,
          as_json: AsJson = False, no_cache: NoCache = False) -> Document:
    """Train one method on one task and store the run; or a cell of a paper's table, by its preset."""
    with loading(not as_json):
        from .experiment import fit
        from .run_config import RunConfig

        chosen = choose(method, task, backbone, profile, settings, preset, stand_in)
    asked = RunConfig(**{name: value for name, value in chosen.arguments.items()
                         if name in ("method", "task", "backbone", "profile", "adjust")})
    if dry_run:
        return memory_plan(chosen, as_json=as_json, profile=chosen.arguments["profile"])
    board = Board(f"{chosen.title}, seed {seed}", [chosen.label], asked.notes)
    with chosen.or_stand_in(), board.shown(not as_json):
        run = fit(**chosen.arguments, seed=seed, cache=not no_cache, progress=False, callbacks=[board])
        board.add(chosen.label, run)
    if as_json:
        return {"key": run.key, "config": run.config, "metrics": run.metrics, "ranks": run.ranks,
                "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
    for note in run.notes:
        console.print(note, style="dim")
    return None


@app.command(epilog="Example: `lowrank-teach compare --task rt --backbone minilm-l6 --profile laptop`")
def compare(task: TaskName = "rt", backbone: BackboneName = "minilm-l6", profile: ProfileName = "laptop",
            seed: Seed = 0, settings: Settings = None, as_json: AsJson = False, no_cache: NoCache = False,
            figures: Annotated[Path | None, typer.Option(help="write the figures to this folder")] = None
            ) -> Document:
    """Train head only, LoRA, COLA (chains of 2 and 3), SaLoRA, Delta-LoRA and AutoLoRA; print one table."""
    with loading(not as_json):
        from .figures import check_folder, write_figures
        from .lineup import LINEUP
        from .lineup import compare as run_all
        from .run_config import RunConfig

    if figures is not None:
        check_folder(figures)
    training = settled(settings)
    notes = [note for method in LINEUP.values() for note in RunConfig(method, task, backbone, profile).notes]
    board = Board(f"{task}, {backbone}, {profile}, seed {seed}", list(LINEUP), notes)
    with board.shown(not as_json):
        runs = run_all(task, backbone, profile, seed, cache=not no_cache, progress=False, callbacks=[board],
                       on_run=board.add, **training)
    made = write_figures(runs, figures) if figures is not None else []
    if as_json:
        return {"runs": {label: {"key": run.key, "metrics": run.metrics, "ranks": run.ranks,
                                 "parameters": run.parameters, "seconds": run.seconds, "notes": run.notes}
                         for label, run in runs.items()}, "figures": [str(path) for path in made]}
    _say_written(made)
    return None


@app.command(epilog="Example: `lowrank-teach study chain`")
def study(names: Annotated[list[str] | None, typer.Argument(help="which; without one they are listed")] = None,
          seeds: OwnSeeds = 0,
          folder: Annotated[Path, typer.Option(help="where the numbers go")] = Path("out/studies"),
          as_json: AsJson = False) -> Document:
    """Train a sweep or an ablation over seeds, and keep its numbers: `claims --folder` holds them to the papers."""
    with loading(not as_json):
        from . import studies
        from .methods.checks import among, require, shown

    defined: dict[str, Any] = {**studies.STUDIES, **studies.TASK_STUDIES}
    for name in names or ():   # before the first of them is trained
        require(name in defined, f"no study {shown(name)}; there are {among(list(defined), name)}")
    if not names:
        return _listed(defined, as_json)
    found: dict[str, Any] = {}
    for name in names:
        with counted(defined[name].runs(seeds), not as_json) as done:
            found[name], table = _trained(name, folder, seeds, done)
        if not as_json:
            console.print(table)
    if not as_json:
        _say_written([folder / f"{name}.json" for name in names])
    return found if as_json else None


def _listed(defined: dict[str, Any], as_json: bool) -> Document:
    listed = {name: {"question": s.question, "arms": list(s.arms), "seeds": s.seeds} for name, s in defined.items()}
    if as_json:
        return listed
    for name, one in listed.items():
        console.print(f"{name}: {one['question']} ({len(one['arms'])} arms, {one['seeds']} seeds)")
    return None


def _trained(name: str, folder: Path, seeds: int, done: Callable[[], None]) -> tuple[dict[str, Any], str]:
    """A study's numbers by arm, and its table."""
    from . import studies

    def say(*values: Any) -> None:
        done()
        said(*values)

    if name in studies.TASK_STUDIES:
        over = studies.train_across(name, studies.TASK_STUDIES[name], folder, seeds=seeds or None, on_run=say)
        return {arm: over.values(arm) for arm in over.arms}, over.table().to_string()
    found = studies.train(name, folder, seeds=range(seeds) if seeds else None, on_run=say)
    return found.values(next(iter(found.records[0]["test"]))), found.frame().to_string()


@app.command(epilog="Example: `lowrank-teach claims --paper COLA`")
def claims(paper: Annotated[str, typer.Option(help="LoRA, COLA, SaLoRA, Delta-LoRA or AutoLoRA; all if left out")]
           = "", folder: Annotated[Path | None, typer.Option(help="another folder of studies")] = None,
           page: Annotated[bool, typer.Option("--markdown", help="the page of the README: what held, what did not")]
           = False, as_json: AsJson = False) -> Document:
    """Hold the papers' claims against the stored runs: their number, ours, the interval, the verdict."""
    from . import claims as book
    from .methods.checks import require, shown
    from .studies import STUDIES, TASK_STUDIES

    names = {name.lower(): name for name in book.CLAIMS}
    if paper and paper.lower() not in names:
        raise ValueError(f"no claims of {shown(paper)}; there are claims of {', '.join(book.CLAIMS)}")
    require(folder is None or any((folder / f"{name}.json").exists() for name in (*STUDIES, *TASK_STUDIES)),
            f"there are no studies in {shown(str(folder))}; make one with `lowrank-teach study NAME --folder FOLDER` "
            "or leave --folder out for those of the checkout")
    if page:
        return print(book.summary_markdown(folder))
    found = book.ledger(names[paper.lower()] if paper else None, folder)
    tally = book.counts(found)
    if as_json:
        return {"claims": [asdict(row) for row in found], "counts": tally.to_dict("index")}
    ledger = Table("claim", "statement", "numbers", "verdict", "setting, or reason", box=None, header_style="bold")
    for row in found:
        numbers = {"paper": row.says, "ours": row.ours, "difference": row.interval_words()}
        cells = (f"{row.key}\n{row.where}", row.statement,
                 "\n".join(f"{name}: {text}" for name, text in numbers.items() if text != "–"), row.verdict, row.why)
        ledger.add_row(*cells)
    console.print(ledger)
    console.print(tally.to_string())
    return None


@app.command(epilog="Example: `lowrank-teach tasks --json`")
def tasks(as_json: AsJson = False) -> Document:
    """List the tasks: what they ask, their metrics, where their rows come from."""
    from .tasks import TASKS

    if as_json:
        return {name: {"kind": t.kind, "description": t.description, "metrics": t.metrics, "labels": t.labels,
                       "source": t.origin} for name, t in TASKS.items()}
    names = Column("task", no_wrap=True, min_width=max(map(len, TASKS)))
    shown = Table(names, "what it asks", "metrics", "rows from", box=None, header_style="bold")
    for name, task in TASKS.items():
        shown.add_row(name, task.description, ", ".join(task.metrics), task.origin)
    console.print(shown)
    return None


@app.command(epilog="Example: `lowrank-teach figures --folder figures`")
def figures(folder: Annotated[Path, typer.Option(help="holds data/*.json; the pictures go beside it")]
            = Path("figures"), again: Annotated[bool, typer.Option("--train", help="make the runs again first")]
            = False, profile: ProfileName = "laptop", as_json: AsJson = False) -> Document:
    """Draw every figure again from its stored numbers, without training (or with it: --train)."""
    from .figures import redraw, write_figures

    if again:
        from .lineup import compare as run_all

        made = write_figures(run_all(profile=profile, cache=False, progress=not as_json), folder)
    else:
        made = redraw(folder)
    if not made:
        raise ValueError(f"there are no numbers in {folder / 'data'}; make them with `lowrank-teach compare "
                         f"--figures {folder}`")
    if as_json:
        return {"figures": [str(path) for path in made]}
    _say_written(made)
    return None


def _say_written(paths: list[Path]) -> None:
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


def _print_json(value: Any) -> None:
    exact = sys.stdout.encoding.lower().startswith("utf")   # what reads a document must not find letters spelled
    print(json.dumps(_finite(value), indent=1, ensure_ascii=not exact, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON knows no nan and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Entry point: what is refused is one sentence on standard error and exit status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if int(os.environ.get("RANK", "0")):  # of several processes on one run the first speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    spell_output()
    try:
        # under --json, what a library prints on the way (a first download says so) must not reach standard output
        with redirect_stdout(sys.stderr) if "--json" in sys.argv else nullcontext():
            document = app(standalone_mode=False)
        if isinstance(document, dict):
            _print_json(document)
        elif document:  # typer's own exit status, 130 after Ctrl-C
            raise KeyboardInterrupt
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (KeyboardInterrupt, typer.Abort, InterruptedTraining) as stop:
        print(f"lowrank-teach: {str(stop) or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None
    except (Refusal, ValueError, OSError, ImportError) as error:
        if isinstance(error, ImportError) and "pip install" not in _sentence(error):
            raise  # no missing extra but a fault of ours
        print(f"lowrank-teach: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            print(f"lowrank-teach: {brief(error.format_message())}", file=sys.stderr)
            raise SystemExit(2) from None
        raise


def _sentence(error: Exception) -> str:
    """On one line, and not a long one; a module that is missing without more words comes with the way to get it."""
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and words.startswith("No module named"):
        words += "; install the course's extra: pip install 'lowrank-teach[lab]'"
    return brief(words)


if __name__ == "__main__":
    main()
