"""`lowrank-teach cells`: every task with a packaged backbone and every method, trained or listed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .board import console
from .cli_options import AsJson, Document


def cells(tasks: Annotated[list[str] | None, typer.Argument(help="only these tasks")] = None,
          train: Annotated[bool, typer.Option("--train", help="train the cells that are missing")] = False,
          method: Annotated[list[str] | None, typer.Option(help="only these columns; may be repeated")] = None,
          folder: Annotated[Path | None, typer.Option(help="where the numbers stand")] = None,
          markdown: Annotated[bool, typer.Option("--markdown", help="the table of the README")] = False,
          as_json: AsJson = False) -> Document:
    """List task × backbone × method with the scores that are stored; or train what is missing."""
    from . import cells as table
    from .methods.checks import require, shown

    def say(line: table.Line, name: str, outcome: Any) -> None:
        words = outcome if isinstance(outcome, str) else "{} {:.3f}".format(*outcome.score("test"))
        print(f"{line.name}, {name}: {words}", file=sys.stderr, flush=True)

    table.require_known(tasks or (), method or ())
    require(folder is not None or not train, "name the folder for the numbers with --folder, such as out; what is "
            f"missing in its {table.FILE} is trained")
    require(train or folder is None or (folder / table.FILE).exists(), f"there are no cells in {shown(str(folder))}: "
            f"name the folder that holds {table.FILE}, or train them with --train")
    records = table.train(tasks or (), method or (), folder, on_cell=say) if train else table.load(folder)
    if as_json:
        return {"cells": [r for r in records if not tasks or r["task"] in tasks]}
    if markdown:
        print(table.markdown(folder))
        return None
    listed = Table("task/backbone", "metric", "trained", "missing", box=None, header_style="bold")
    for line in table.LINES:
        if not tasks or line.task in tasks:
            found = {r["column"]: r for r in records if (r["task"], r["backbone"]) == (line.task, line.backbone)}
            missing = [name for name in line.columns if name not in found]
            metric = next((r["metric"] for r in found.values()), "")
            listed.add_row(line.name, metric, ", ".join(f"{name} {r['value']:.3f}" for name, r in found.items()),
                          ", ".join(missing) or "–")
    console.print(listed)
    return None
