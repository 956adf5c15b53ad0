"""The course as data: which notebook asks what, which are there, and the line that names this machine.

Used by every notebook; the table of the notebooks stands in the README, too.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..experiments.runs import machine
from ..reproduction.results import references_folder

NOTEBOOKS: dict[str, str] = {
    "00_start_here": "Why want this, and does my machine work?",
    "01_why_low_rank": "How much of a real weight change is low rank?",
    "02_lora": "What is the layer that everything else changes?",
    "03_cola": "Can a chain of small updates do what one cannot?",
    "04_salora": "Which rank directions does each matrix need?",
    "05_delta_lora": "Can W itself move for free?",
    "06_autolora": "Can ranks be learned on held-out data?",
    "07_side_by_side": "Which one, on what budget?",
    "08_generation": "Do the gains carry over to text?",
    "09_more_tasks": "And to tagging and style transfer?",
    "10_playground": "What do the sliders do?",
    "11_claims_ledger": "Which claims hold here?",
}


def course_map(folder: Path | str | None = None) -> pd.DataFrame:
    """Make a table with a row a notebook: its question, and the minutes of the stored run (`keep_minutes`)."""
    minutes = json.loads((Path(folder or references_folder()) / MINUTES).read_text(encoding="utf-8"))["minutes"]
    rows = [{"notebook": name, "question": question,
             "minutes of computing": f"{max(1, round(minutes[name]))}" if name in minutes else "–"}
            for name, question in NOTEBOOKS.items()]
    return pd.DataFrame(rows).set_index("notebook")


def readable(frame: pd.DataFrame, name: str, **formats: str) -> Any:
    """Style a table to be read: text to the left, nothing cut off, all text escaped.

    Args:
        name: of the table in the page's source, the same every time, so that outputs do not differ for nothing.
        formats: column, with _ for a blank -> a format of its numbers, such as "{:.2f}".
    """
    from pandas.io.formats.style import Styler  # lazily: it asks for jinja2

    words = [i for i, kind in enumerate(frame.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    left = [{"selector": cell, "props": [("text-align", "left")]} for cell in ["th", *(f"td.col{i}" for i in words)]]
    how = {column.replace("_", " "): form for column, form in formats.items()}
    names = {axis: [name and _as_html(name) for name in labels.names]
             for axis, labels in (("index", frame.index), ("columns", frame.columns))}
    # without a name for every cell, which would be half of the page's source
    shown = Styler(frame.rename_axis(**names), uuid=re.sub(r"[^\w-]", "_", name), cell_ids=False)
    shown.format({column: partial(_as_html, how=how.get(column, "")) for column in frame.columns})
    return shown.set_table_styles(left).format_index(_as_html, axis=0).format_index(_as_html, axis=1)


def _as_html(value: Any, how: str = "") -> str:
    """Format and escape a cell, a label or a name of a table."""
    return html.escape((how or ("{:.6f}" if pd.api.types.is_float(value) else "{}")).format(value))


def keep_kernel(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Save a notebook with the kernel's names that its file has: a hook of Jupyter's server, before it writes.

    An editor writes this machine's versions there, so that a page that was only opened would differ from its file.
    """
    stored = Path(contents_manager.root_dir, path.strip("/"))
    if model["type"] != "notebook" or not stored.is_file():
        return
    new, old = model["content"]["metadata"], json.loads(stored.read_text(encoding="utf-8"))["metadata"]
    if new.get("kernelspec", {}).get("name") == old.get("kernelspec", {}).get("name"):   # else it was chosen
        new |= {name: old[name] for name in ("kernelspec", "language_info") if name in old}


def begin(task: str = "sst2", packaged: str = "rt") -> tuple[str, str, str]:
    """Print where this notebook runs and on what it trains, and return task, backbone and profile.

    Args:
        task: LOWRANK_TASK names another.  packaged: in its place where its examples cannot be had.
    """
    from ..tasks.load import task_here
    from ..training.config import default_profile

    profile, wanted = default_profile(), os.environ.get("LOWRANK_TASK") or task
    chosen, why = task_here(wanted, packaged)
    backbone = "minilm-l3" if profile == "tiny" else "minilm-l6"
    print(machine_line())
    print(f"profile {profile}, network {backbone}, task {chosen}" + (f": {why}" if chosen != wanted else ""))
    return chosen, backbone, profile


def symbols(*names: str, papers: Iterable[str] = ("LoRA",)) -> Any:
    """Return the glossary's rows of these symbols, to be read: in words, in code, their shapes, and in the papers."""
    from .glossary import table

    return readable(table(names, papers), "symbols")


def claims(paper: str) -> Any:
    """Return the ledger's rows of a paper, to be read: what it says, what was measured, and the verdict."""
    from ..reproduction import ledger

    return readable(ledger.table(paper), "claims")


def machine_line() -> str:
    """Say in one line what every number of this notebook was measured on."""
    m = machine()
    accelerator = m["accelerator"] or "no GPU"
    return (f"{m['processor']}, {m['cores']} cores ({m['threads']} in use), {accelerator}; Python {m['python']}, "
            f"torch {m['torch']}, transformers {m['transformers']}")


MINUTES = "notebooks.json"   # the file of the minutes among the stored records


def keep_minutes(minutes: Mapping[str, float], folder: Path | str | None = None) -> None:
    """Store how many minutes notebooks took on this machine; what is known of the others stays."""
    path = Path(folder or references_folder()) / MINUTES
    known = json.loads(path.read_text(encoding="utf-8"))["minutes"] if path.exists() else {}
    new = {**known, **{name: round(value, 1) for name, value in minutes.items()}}
    data = {"minutes": dict(sorted(new.items())), "profile": "laptop", "machine": machine()}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown(folder: Path | str | None = None) -> str:
    """Write the course as the README shows it: questions, and minutes of the stored run from an empty store."""
    path = Path(folder or references_folder()) / MINUTES
    minutes = json.loads(path.read_text(encoding="utf-8"))["minutes"]
    lines = ["| notebook | question | minutes |", "|---|---|---|"]
    for name, question in NOTEBOOKS.items():
        took = minutes.get(name)
        shown = f"[{name}](notebooks/{name}.ipynb)" if took is not None else f"{name} *(to come)*"
        lines.append(f"| {shown} | {question} | {'–' if took is None else max(1, round(took))} |")
    return "\n".join(lines)
