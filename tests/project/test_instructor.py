"""The instructor's page has a section for every notebook there is, each with its five parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowrank_teach.course.contents import NOTEBOOKS

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
HERE = sorted({path.stem for path in [*FOLDER.glob("*.ipynb"), *(FOLDER / "text").glob("*.py")]})
PARTS = ["Minutes", "What trips people", "Questions to discuss", "Sixty minutes, for a reading group",
         "In a course of three sessions"]


def sections() -> dict[str, str]:
    """Number of the notebook -> its section."""
    page = (FOLDER / "INSTRUCTOR.md").read_text(encoding="utf-8")
    found = re.split(r"^## (\d\d) · .+$", page, flags=re.M)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("name", HERE)
def test_every_notebook_has_its_section(name):
    section = sections()[name[:2]]
    assert re.findall(r"^### (.+)$", section, re.M) == PARTS
    assert NOTEBOOKS[name] in section
    minutes, trips, questions = re.split(r"^### .+$", section, flags=re.M)[1:4]
    assert minutes.count("\n|") >= 5
    assert len(re.findall(r"^- ", trips, re.M)) >= 3
    asked = re.split(r"^\*\*\d\. .+\*\*$", questions, flags=re.M)
    assert len(asked) >= 4
    assert all(len(answer.split()) >= 15 for answer in asked[1:])


def test_sections_stand_in_the_order_of_the_course():
    numbers = list(sections())
    assert numbers == sorted(numbers)
    assert set(numbers) <= {name[:2] for name in NOTEBOOKS}


def test_both_short_cuts_name_notebooks_that_are_there():
    page = (FOLDER / "INSTRUCTOR.md").read_text(encoding="utf-8")
    cuts = page.split("## 00 ·")[0]
    for title in ("## A course of three sessions", "## Sixty minutes with one paper"):
        assert title in cuts
    named = set(re.findall(r"(?<![\d`])(0\d|1[01])(?= (?:all|sections?)|\))", cuts))
    assert {"00", "01", "02", "03", "04", "05", "06"} <= named <= {name[:2] for name in HERE}
