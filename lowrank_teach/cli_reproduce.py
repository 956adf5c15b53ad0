"""`lowrank-teach reproduce CLAIM`: the runs behind one row of the ledger, made again."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .board import console, counted, loading
from .cli_options import AsJson, Document, OwnSeeds

MOST_STEPS = 2**31 - 1
QUICK = {"seeds": 2, "steps": 10}   # a look at the machinery: too short and too few for a verdict


def reproduce(claim: Annotated[list[str], typer.Argument(help="a row of `lowrank-teach claims`, such as COLA 1")],
              plan: Annotated[bool, typer.Option("--plan", help="only say how many runs and minutes")] = False,
              seeds: OwnSeeds = 0,
              steps: Annotated[int, typer.Option(min=0, max=MOST_STEPS, help="of each; 0 takes the study's own")] = 0,
              quick: Annotated[bool, typer.Option("--quick", help="2 seeds of 10 steps: no verdict, a try")] = False,
              again: Annotated[bool, typer.Option("--again", help="train all, whatever the store has")] = False,
              folder: Annotated[Path | None, typer.Option(help="the stored studies to hold it against")] = None,
              as_json: AsJson = False) -> Document:
    """Make the runs behind one claim again, and print the stored verdict beside the new one."""
    from . import claims
    from .runs import Store

    key = " ".join(claim)
    seeds, steps = (seeds or QUICK["seeds"], steps or QUICK["steps"]) if quick else (seeds, steps)
    options: dict[str, Any] = {"seeds": seeds or None, "stored": folder, **({"steps": steps} if steps else {})}
    if plan:
        return _planned(claims.plan(key, **options), as_json)
    def say(*values: Any) -> None:
        done()
        said(*values)

    with loading(not as_json):
        planned = claims.plan(key, **options).runs
    with tempfile.TemporaryDirectory() as empty, counted(planned, not as_json) as done:
        try:
            found = claims.reproduce(key, store=Store(empty) if again else None, on_run=say, **options)
        except KeyboardInterrupt:
            if again:
                raise KeyboardInterrupt("stopped; with --again no run is kept") from None
            raise
    if as_json:
        return {"stored": asdict(found.stored), "new": found.new and asdict(found.new), "runs": found.runs,
                "largest_change": found.gap, "said": claims.said(found)}
    _print(found.stored, found.new)
    console.print(claims.said(found))
    return None


def _planned(found: Any, as_json: bool) -> Document:
    if as_json:
        return asdict(found)
    time = ("an unknown time: no stored run says how long" if found.minutes is None else
            f"about {math.ceil(found.minutes)} min, by the seconds of the stored runs")
    words = found.why or (f"{found.runs} runs, all of them in the store" if found.stored == found.runs else
                          f"{found.runs} runs, {found.stored} of them in the store; the others take {time}")
    console.print(words)
    return None


def _print(stored: Any, new: Any) -> None:
    shown = Table("", "stored", "now", title=f"{stored.key} ({stored.where}): {stored.statement}", box=None,
                  header_style="bold", title_justify="left")
    rows = {"paper": [stored.says, ""], "verdict": [row.verdict if row else "–" for row in (stored, new)],
            "difference": [row.interval_words() if row else "–" for row in (stored, new)],
            "ours": [row.ours if row else "–" for row in (stored, new)],
            "setting": [row.why if row else "–" for row in (stored, new)]}
    for name, cells in rows.items():
        shown.add_row(name, *cells)
    console.print(shown)


def said(*values: Any) -> None:
    """A run is done: (arm, seed, run) of a study, (task, arm, seed, rate, run) of one over tasks, scores of texts."""
    *where, run = values
    words = ("{}, seed {}" if len(where) == 2 else "{}, {}, seed {}, rate {:g}").format(*where)
    if isinstance(run, Mapping):
        name, score = next(iter(run.items()))
        print(f"{words}: {name} {score:.3f}", file=sys.stderr, flush=True)
    else:
        name, score = run.score("validation")
        print(f"{words}: {name} {score:.3f} on validation rows", file=sys.stderr, flush=True)
