"""Explorers: pure functions of their state, pictures that change, in time, and strips of the same picture."""

from __future__ import annotations

import io
import statistics
import time

import numpy as np
import pytest
from PIL import Image

from lowrank_teach import drawings, explorers, style, widgets

BUDGET = 0.050   # seconds of the kernel's own time for one move; three times that by the clock


def pictures() -> dict[str, widgets.Picture]:
    g = np.random.default_rng(0)
    factors = {f"{layer}.{m}": (g.standard_normal((384, 8)) * np.arange(8, 0, -1), g.standard_normal((8, 384)))
               for layer in range(6) for m in "qv"}
    steps = np.arange(60)
    keys = [(r, a) for r in (1, 4, 16) for a in (4.0, 16.0, 64.0)]
    return {"ring": explorers.RankOfAPicture(), "cut": explorers.Truncation(factors),
            "grid": explorers.RankAlpha({(r, a): (steps, np.exp(-steps / r / a)) for r, a in keys},
                                        {(r, a): r / a for r, a in keys}, "validation loss")}


PICTURES = pictures()
CONTROLS = [(name, control) for name, picture in PICTURES.items() for control in picture.controls]


@pytest.mark.parametrize("name", PICTURES)
def test_arrays_are_a_pure_function_of_the_state(name):
    picture = PICTURES[name]
    low = {c.name: c.low for c in picture.controls}
    first = picture.arrays(**picture.start())
    picture.png(**low)
    again = picture.arrays(**picture.start())
    assert first.keys() == again.keys()
    for key, value in first.items():
        np.testing.assert_equal(again[key], value)


@pytest.mark.parametrize(("name", "control"), CONTROLS, ids=lambda v: getattr(v, "name", v))
def test_every_slider_changes_the_picture_and_the_words_and_comes_back(name, control):
    picture = PICTURES[name]
    states = [{**picture.start(), control.name: value} for value in (control.low, control.high)]
    first, other = (picture.png(**state) for state in states)
    assert first != other
    assert picture.words(**states[0]) != picture.words(**states[1])
    assert picture.png(**states[0]) == first
    assert Image.open(io.BytesIO(first)).format == "PNG"


@pytest.mark.parametrize("name", PICTURES)
def test_a_move_stays_within_its_time(name, capsys):
    picture, control = PICTURES[name], PICTURES[name].controls[-1]
    own, clock = [], []
    for value in np.resize(np.arange(control.low, control.high + 1), 25).tolist():
        start, wall = time.process_time(), time.perf_counter()
        picture.png(**{**picture.start(), control.name: value})
        picture.words(**{**picture.start(), control.name: value})
        own.append(time.process_time() - start)
        clock.append(time.perf_counter() - wall)
    with capsys.disabled():
        print(f"\n{name}: a move takes {1000 * statistics.median(own):.0f} ms of the kernel "
              f"({1000 * statistics.median(clock):.0f} ms by the clock)", end="")
    assert statistics.median(own) <= BUDGET
    assert statistics.median(clock) <= 3 * BUDGET


@pytest.mark.parametrize("name", PICTURES)
def test_the_strip_is_made_of_what_the_slider_shows(name):
    picture = PICTURES[name]
    states = [{**picture.start(), picture.controls[-1].name: value}
              for value in (picture.controls[-1].low, picture.controls[-1].high)]
    buffer = io.BytesIO()
    widgets.strip(picture, states).savefig(buffer, format="png", dpi=style.DPI)
    drawn = np.asarray(Image.open(buffer).convert("RGB"))
    height = drawn.shape[0] // 2
    for i, state in enumerate(states):
        shown = np.asarray(Image.open(io.BytesIO(picture.png(**state))))
        np.testing.assert_array_equal(drawn[i * height:(i + 1) * height], shown)


def test_cuts_are_exact():
    ring, cut = PICTURES["ring"], PICTURES["cut"]
    np.testing.assert_allclose(ring.arrays(i=0)["matrix"], 0)
    u, s, vh = cut.svd["0.q"]
    whole = ((u * s) @ vh)[:48, :48]
    np.testing.assert_allclose(cut.arrays(matrix=0, i=8)["matrix"], whole / np.abs(whole).max(), atol=1e-9)
    assert "keeps 100.0%" in cut.words(matrix=0, i=8)
    assert "keeps 0.0%" in cut.words(matrix=0, i=0)
    assert "Site 5.v" in cut.words(matrix=11, i=3)


def test_the_grid_snaps_and_says_so():
    grid = PICTURES["grid"]
    assert grid.snap(3, 20) == (4, 16.0)
    assert grid.snap(1, 64) == (1, 64.0)
    assert "Asked r = 3, α = 20; shown r = 4, α = 16" in grid.words(rank=3, alpha=20)
    assert grid.kind == widgets.SNAPPED


def test_a_slider_its_box_and_the_sentence_move_together():
    pytest.importorskip("ipywidgets")
    page = widgets.explore(PICTURES["cut"])
    (_, second), image, text = page.children[:2], page.children[-2], page.children[-1]
    slider, box = second.children
    before, said = image.value, text.value
    slider.value = 2
    assert box.value == 2
    assert image.value != before
    assert text.value != said
    box.value = 5
    assert slider.value == 5
    assert "rank 5" in text.value
    assert widgets.LIVE in text.value


def test_an_error_in_a_picture_is_seen_on_the_page():
    pytest.importorskip("ipywidgets")

    class Broken(explorers.RankOfAPicture):
        def words(self, **state):
            return f"{1 / (2 - state['i'])}"

    picture = Broken()
    picture.controls = (widgets.Control("i", "i", 0, 5, 1),)
    page = widgets.explore(picture)
    with pytest.raises(ZeroDivisionError):
        page.children[0].children[0].value = 2
    assert "could not be drawn" in page.children[-1].value


@pytest.mark.parametrize("yours", [None, np.ones((2, 3)), np.ones(4)])
def test_your_own_result_is_drawn_whatever_it_is(yours):
    assert len(style.png_bytes(drawings.own_result(yours, np.zeros((2, 3))))) > 1000
