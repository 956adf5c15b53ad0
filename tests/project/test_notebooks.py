"""What stands in the repository: pairs that are equal, clean metadata, figures with captions and alt text.

Whether the notebooks run is for `run_notebooks.py`; here the committed files are read. Nothing is executed.
"""

from __future__ import annotations

import ast
import itertools
import pkgutil
import re
import statistics
from importlib import import_module
from pathlib import Path

import jupytext
import nbformat
import pytest
import run_notebooks

import lowrank_teach
from lowrank_teach.course.contents import NOTEBOOKS as COURSE
from lowrank_teach.course.exercises import fingerprint
from lowrank_teach.course.stubs import STUBS

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
TEXTS = sorted((FOLDER / "text").glob("*.py"))
LONGEST_CELL, LARGEST = 40, 650_000
MOST_WORDS, WORDS_AT_ONCE = 4500, 600   # half an hour of reading; three minutes until something happens
MACHINE = re.compile(r"/(?:root|home|Users|tmp|work)/")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def lines(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_its_text_and_is_on_the_map():
    assert [path.stem for path in PATHS] == [path.stem for path in TEXTS]
    assert set(COURSE) >= {path.stem for path in PATHS}


def test_a_pair_is_equal(path):
    text = jupytext.read(FOLDER / "text" / f"{path.stem}.py")
    stored = nbformat.read(path, as_version=4)
    assert [(c.cell_type, c.source) for c in stored.cells] == [(c.cell_type, c.source) for c in text.cells], (
        f"{path.name} and its text differ; the text is the source: run `make notebooks`")


def test_stubs_are_known_and_no_page_shows_a_failed_one(path):
    """What a check says of an untouched stub; a page with crosses looks broken, and its hints give answers away."""
    text = (FOLDER / "text" / f"{path.stem}.py").read_text(encoding="utf-8")
    handed_out = {node.name: fingerprint("\n".join(text.splitlines()[node.lineno - 1:node.end_lineno]))
                  for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
                  and any("exercise" in ast.unparse(by) for by in node.decorator_list)}
    assert handed_out == {name: STUBS.get(name) for name in handed_out}, "put these into course/stubs.py"
    for cell in code(nbformat.read(path, as_version=4)):
        said = "".join(str(output.get("text", "")) for output in cell.get("outputs", []))
        assert "✗" not in said
        checked = [name for name in handed_out if f"{name}.check()" in cell.source]
        assert all(f"Not tried yet: change {name} " in said for name in checked)


NAMED = re.compile(r"`(\w+)\.([A-Za-z_]\w*)")   # `module.name` in a text
MODULES = [found.name for found in pkgutil.walk_packages(lowrank_teach.__path__, "lowrank_teach.")
           if not found.ispkg]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_what_a_text_names_in_a_module_is_there(text):
    """`module.name` in the prose of a notebook, unless the notebook has a variable of that name."""
    source = text.read_text(encoding="utf-8")
    mine = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)}
    prose = "\n".join(line for line in source.splitlines() if line.startswith("# "))
    for module, name in set(NAMED.findall(prose)):
        homes = [home for home in MODULES if home.rpartition(".")[2] == module]
        assert module in mine or not homes or any(hasattr(import_module(home), name) for home in homes), (
            f"`{module}.{name}` is in none of {', '.join(homes)}")


def test_metadata_is_clean(path):
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    assert stored.metadata["kernelspec"] == run_notebooks.KERNEL      # without it, a dialog blocks the run
    assert "widgets" not in stored.metadata                           # with it, repository pages do not render
    for cell in stored.cells:
        assert cell.metadata == {"slideshow": {"slide_type": run_notebooks.slide_type(cell)}}
        for output in cell.get("outputs", []):
            assert run_notebooks.WIDGET not in output.get("data", {})
    assert path.stat().st_size <= LARGEST
    assert not MACHINE.search(re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8")))


def test_every_cell_ran_in_order_without_an_error(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [(output.output_type, output.get("name")) for cell in cells for output in cell.outputs]
    assert not [kind for kind in kinds if kind[0] == "error"]
    assert ("stream", "stderr") not in kinds                          # a warning is a thing to repair, or to explain


def test_every_figure_has_alt_text_and_a_caption(notebook):
    figures = 0
    for cell in code(notebook):
        for i, output in enumerate(cell.outputs):
            if "image/png" not in output.get("data", {}):
                continue
            figures += 1
            alt = output.metadata["image/png"]["alt"]
            assert len(alt.split()) >= 6
            assert output.data["text/plain"] == alt
            caption = cell.outputs[i + 1].data["text/markdown"]
            assert caption.startswith("*")
            assert caption.endswith("*")
            assert "text/html" not in output.data
    assert figures >= 3


def test_cells_are_short_and_there_is_something_to_read(path, capsys):
    """What draws and checks stands in the chapters, so prose is held by its own length, not by that of the code."""
    stored = nbformat.read(path, as_version=4)
    lengths = [len(lines(cell)) for cell in code(stored)]
    words = [len(cell.source.split()) if cell.cell_type == "markdown" else None for cell in stored.cells]
    runs = [sum(filter(None, run)) for is_code, run in itertools.groupby(words, lambda n: n is None) if not is_code]
    with capsys.disabled():
        print(f"\n{path.stem}: {len(stored.cells)} cells; code cells {statistics.median(lengths):g} lines (median), "
              f"{max(lengths)} at most; {sum(runs)} words, {max(runs[:-1])} at most between two code cells", end="")
    assert max(lengths) <= LONGEST_CELL
    assert statistics.median(lengths) <= 8
    assert 3 * sum(lengths) <= sum(runs) <= MOST_WORDS
    assert max(runs[:-1]) <= WORDS_AT_ONCE


def test_every_code_cell_ends_in_something_visible(notebook):
    silent = [cell.source.splitlines()[0] for cell in code(notebook) if not cell.outputs]
    assert len(silent) <= 1, f"cells without an output: {silent}"


def test_sections_are_slides():
    kinds = [run_notebooks.slide_type(cell) for cell in (
        nbformat.v4.new_markdown_cell("# 02 · LoRA"), nbformat.v4.new_markdown_cell("## 1 · Question"),
        nbformat.v4.new_markdown_cell("Words."), nbformat.v4.new_code_cell("1"))]
    assert kinds == ["slide", "slide", "subslide", "fragment"]


def test_hidden_errors_are_found():
    output = {"output_type": "error", "ename": "ValueError", "evalue": "hidden"}
    states = {"a": {"state": {"outputs": [output]}}, "c": {"state": {"value": 3}},
              "b": {"state": {"value": "<b>This state could not be drawn</b>"}}}
    bad = nbformat.v4.new_notebook(metadata={"widgets": {run_notebooks.STATE: {"state": states}}})
    assert len(list(run_notebooks.hidden_errors(bad))) == 2
    assert not list(run_notebooks.hidden_errors(nbformat.v4.new_notebook()))


def test_stripping_leaves_a_line_where_a_widget_was():
    cell = nbformat.v4.new_code_cell("x", metadata={"execution": {"a": "1"}}, outputs=[nbformat.v4.new_output(
        "display_data", {run_notebooks.WIDGET: {"model_id": "1"}, "text/plain": "VBox(…)"})])
    gone = nbformat.v4.new_output("display_data", {"text/plain": ""})   # a line of progress, after its end
    cell.outputs.insert(0, gone)
    stripped = run_notebooks.strip(nbformat.v4.new_notebook(cells=[cell], metadata={
        "kernelspec": run_notebooks.KERNEL, "widgets": {}}))
    assert "widgets" not in stripped.metadata
    assert stripped.cells[0].metadata == {}
    assert len(stripped.cells[0].outputs) == 1
    assert stripped.cells[0].outputs[0].data == {"text/plain": run_notebooks.IN_PLACE_OF_A_WIDGET}
