"""Execute every notebook on a copy, and look where an error can hide.

    python tests/run_notebooks.py                           # what `make test` runs: profile tiny, two ways
    python tests/run_notebooks.py --write --profile laptop  # `make notebooks`: put the outputs in place

The source of a notebook is its text in notebooks/text (py:percent). The test runs all of them twice: by nbmake
with the exercises solved (LOWRANK_SOLUTIONS=1), then here with the stubs as a reader finds them; both share one
store of runs. --write runs them here alone and puts outputs in place only if all passed: without widget state,
execution times and the machine's own names.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lowrank_teach.course import contents

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
IN_PLACE_OF_A_WIDGET = "A slider stands here once this cell has run; the picture above shows some of its positions."
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
HIDDEN = ("could not be drawn", "stopped with an error")   # what widgets say when something went wrong
LONGEST = 90   # seconds a notebook may take in tiny on two cores that nobody else uses


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--profile", default="tiny")
    arguments.add_argument("--write", action="store_true", help="put the outputs in place if all passed")
    arguments.add_argument("--timeout", type=int, default=0, help="seconds a cell; 300 in tiny, else an hour")
    arguments.add_argument("names", nargs="*", help="such as 02_lora; all where none is named")
    chosen = arguments.parse_args()
    timeout = chosen.timeout or (300 if chosen.profile == "tiny" else 3600)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LOWRANK_PROFILE"] = chosen.profile
        os.environ["LOWRANK_REFERENCES"] = scratch if chosen.write and chosen.profile == "laptop" else ""
        os.environ.pop("LOWRANK_SOLUTIONS", None)
        solved = 0
        if not chosen.write:
            os.environ.setdefault("OMP_NUM_THREADS", "1")   # two notebooks at a time on two cores
            os.environ["LOWRANK_TEACH_RUNS"] = str(Path(scratch) / "runs")
            solved = by_nbmake(chosen.names, timeout)
        sources = [path for path in sorted((NOTEBOOKS / "text").glob("*.py"))
                   if not chosen.names or path.stem in chosen.names]
        at_once = 1 if chosen.write else 2   # where outputs are kept, timings must be undisturbed
        with ThreadPoolExecutor(at_once) as pool:
            results = dict(zip([path.stem for path in sources],
                               pool.map(lambda path: run(path, timeout), sources), strict=True))
        bad = [f"{name}: {problem}" for name, (_, problems, _) in results.items() for problem in problems]
        if chosen.write and not bad:
            put_in_place({name: notebook for name, (notebook, _, _) in results.items()}, Path(scratch))
            if chosen.profile == "laptop":
                contents.keep_minutes({name: seconds / 60 for name, (_, _, seconds) in results.items()})
    print("\n".join(bad) or f"{len(results)} notebooks passed")
    return 1 if bad or solved else 0


def by_nbmake(names: list[str], timeout: int) -> int:
    """All notebooks with the exercises solved, two at a time; pytest's exit status."""
    paths = [str(NOTEBOOKS / f"{name}.ipynb") for name in names] or [str(NOTEBOOKS)]
    command = [sys.executable, "-m", "pytest", "--nbmake", f"--nbmake-timeout={timeout}", "-n", "2", "-q",
               "--durations=0", "--durations-min=1", "-o", "timeout=0", "--ignore", str(NOTEBOOKS / "text"), *paths]
    print("with the exercises solved:", flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "LOWRANK_SOLUTIONS": "1"}, check=False).returncode


def run(source: Path, timeout: int) -> tuple[Any, list[str], float]:
    """A notebook made from its text and executed in a fresh kernel, what is wrong with it, and its seconds."""
    notebook = from_text(source)
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(NOTEBOOKS)}})
    start = time.perf_counter()
    problems = []
    try:
        client.execute()
    except CellExecutionError as error:
        problems.append(re.sub(r"\x1b\[[\d;]*m", "", str(error))[-3000:])   # without colours
    seconds = time.perf_counter() - start
    late = f", more than {LONGEST} s" if os.environ.get("LOWRANK_PROFILE") == "tiny" and seconds > LONGEST else ""
    print(f"{source.stem}: {seconds / 60:.1f} minutes ({seconds:.0f} s{late})", flush=True)
    return notebook, problems + [f"hidden in a widget: {error}" for error in hidden_errors(notebook)], seconds


def from_text(source: Path) -> Any:
    """The notebook of a text, with the same cell ids every time."""
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = nbformat.from_dict({"slideshow": {"slide_type": slide_type(cell)}})
    notebook.metadata["kernelspec"] = KERNEL
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def slide_type(cell: Any) -> str:
    """For `jupyter nbconvert --to slides`: a section is a slide, what follows in it goes below."""
    if cell.cell_type == "code":
        return "fragment"
    level = re.match(r"#+ ", cell.source)
    return {"# ": "slide", "## ": "slide", "### ": "subslide"}.get(level.group() if level else "", "subslide")


def hidden_errors(notebook: Any) -> Iterator[str]:
    """Errors that a run does not stop at: in the state of an Output widget, or in an explorer's sentence."""
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    for model in states.values():
        state = model.get("state", {})
        for output in state.get("outputs", []) or []:
            if output.get("output_type") == "error":
                yield f"{output.get('ename')}: {output.get('evalue')}"
        if any(words in str(state.get("value", "")) for words in HIDDEN):
            yield str(state["value"])


def strip(notebook: Any) -> Any:
    """Without widget state, widget views and execution times: a repository page renders it, and diffs are small."""
    notebook.metadata = nbformat.from_dict({key: value for key, value in notebook.metadata.items()
                                            if key in ("kernelspec", "language_info")})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:   # a line that was taken away in the end, such as how far a training is
            cell.outputs = [output for output in cell.outputs if output.get("data") != {"text/plain": ""}]
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if WIDGET in output.get("data", {}):
                output["data"] = nbformat.from_dict({"text/plain": IN_PLACE_OF_A_WIDGET})
    return notebook


def put_in_place(notebooks: dict[str, Any], references: Path) -> None:
    for name, notebook in notebooks.items():
        nbformat.write(strip(notebook), NOTEBOOKS / f"{name}.ipynb")
    for path in references.glob("*.json"):
        shutil.copy(path, ROOT / "figures" / "data" / path.name)


if __name__ == "__main__":
    sys.exit(main())
