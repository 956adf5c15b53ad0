"""Explorers: what holds for every one, then those of 02, the run browser and the page with its sliders.

What one explorer alone shows and says is tested beside its notebook's other tests.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import picture_checks
import pytest
from benchmarks import sliders
from picture_checks import EXPLORERS
from PIL import Image

from lowrank_teach.analysis import style
from lowrank_teach.course import contents, exercises, explorer
from lowrank_teach.course.chapters import lora, playground
from lowrank_teach.course.chapters.playground import Card, from_store, from_studies
from lowrank_teach.experiments.runs import HISTORY, Run, Store

PLAYGROUND = Path(__file__).resolve().parents[2] / "notebooks" / "text" / "10_playground.py"
ON_STORED = [name for name in EXPLORERS if name != "EntityThreshold"]   # that one asks for a tagger


def shelf() -> dict[str, dict[str, dict[int, Card]]]:
    """Two collections, unlike in everything: arms, seeds, matrices and what is known of them."""
    def card(name: str, score: float, **sites) -> Card:
        return Card(f"{name} on rt with a network", ("accuracy", score), ([5, 15, 25], [0.7, 0.6, score]), sites)

    flat, grown = {"0.q": 8, "0.v": 8}, {"0.q": 1.5, "0.v": 7.5}
    return {"study one": {"LoRA": {s: card("LoRA", 0.5 + 0.1 * s, rank=flat, effective_rank=grown) for s in (1, 0)},
                          "SaLoRA": {0: card("SaLoRA", 0.55, rank={"0.q": 0, "0.k": 3, "1.v": 5})}},
            "study two": {"head": {0: card("head only", 0.4)}}}


def pictures() -> dict[str, explorer.Picture]:
    g = np.random.default_rng(0)
    factors = {f"{layer}.{m}": (g.standard_normal((384, 8)) * np.arange(8, 0, -1), g.standard_normal((8, 384)))
               for layer in range(6) for m in "qv"}
    steps = np.arange(60)
    keys = [(r, a) for r in (1, 4, 16) for a in (4.0, 16.0, 64.0)]
    return {"ring": lora.RankOfAPicture(), "cut": lora.Truncation(factors),
            "runs": playground.RunBrowser(shelf()),
            "grid": lora.RankAlpha({(r, a): (steps, np.exp(-steps / r / a)) for r, a in keys},
                                        {(r, a): r / a for r, a in keys}, "validation loss")}


PICTURES = pictures()


# ---- what holds for every explorer --------------------------------------------------------------------------


def test_every_explorer_is_in_the_playground_and_in_the_benchmark():
    page = PLAYGROUND.read_text(encoding="utf-8")
    assert set(sliders.pictures()) == set(EXPLORERS)
    for name in ON_STORED:
        assert f'= pictures["{name}"]()' in page
    assert page.count("course.explore(") == page.count("course.strip(") == len(ON_STORED)
    assert page.count("**Try:**") == len(ON_STORED) + 2   # and two methods at once, and the training


def test_what_needs_a_trained_tagger_stands_where_one_is_trained():
    page = (PLAYGROUND.parent / "09_more_tasks.py").read_text(encoding="utf-8")
    assert "= EntityThreshold(" in page
    assert "EntityThreshold" not in ON_STORED


@pytest.fixture(scope="module", params=EXPLORERS)
def every(request) -> explorer.Picture:
    """Each explorer of the course, on the numbers that the notebooks show it with."""
    return sliders.pictures()[request.param]()


def test_arrays_are_a_pure_function_of_the_state(every):
    picture_checks.arrays_are_pure(every)


def test_every_slider_changes_the_picture_and_the_words_and_comes_back(every):
    assert every.controls
    for control in every.controls:
        picture_checks.a_slider_moves(every, control)


def test_a_move_stays_within_its_time(every):
    """It costs less than a small figure that is made anew: 0.1 to 0.7 of it, on any processor, busy or not."""
    before = sliders.plain_figure()
    taken = sliders.summary(sliders.measure(every, 9))
    assert taken["own"] <= max(before["own"], sliders.plain_figure()["own"])


def test_the_strip_is_made_of_what_the_slider_shows(every):
    states = [{**every.start(), every.controls[-1].name: value}
              for value in (every.controls[-1].low, every.controls[-1].high)]
    buffer = io.BytesIO()
    explorer.strip(every, states).savefig(buffer, format="png", dpi=style.DPI)
    drawn = np.asarray(Image.open(buffer).convert("RGB"))
    height = drawn.shape[0] // 2
    for i, state in enumerate(states):
        shown = np.asarray(Image.open(io.BytesIO(every.png(**state))))
        np.testing.assert_array_equal(drawn[i * height:(i + 1) * height], shown)


def test_every_slider_of_the_course_follows_its_box_and_changes_the_sentence(every):
    pytest.importorskip("ipywidgets")
    *rows, image, text = explorer.explore(every).children
    assert len(rows) == len(every.controls) >= 1
    for row, control in zip(rows, every.controls, strict=True):
        slider, box = row.children
        before, said = image.value, text.value
        box.value = control.low if slider.value == control.high else control.high
        assert slider.value == box.value
        assert (image.value != before, text.value != said) == (True, True)
        assert image.tooltip in text.value.replace("&#x27;", "'").replace("&gt;", ">").replace("&lt;", "<")
        assert every.kind in text.value


# ---- pictures cut to rank i, and a grid of runs -------------------------------------------------------------


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
    assert grid.kind == explorer.SNAPPED


def test_a_slider_its_box_and_the_sentence_move_together():
    pytest.importorskip("ipywidgets")
    page = explorer.explore(PICTURES["cut"])
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
    assert explorer.LIVE in text.value


def test_an_error_in_a_picture_is_seen_on_the_page():
    pytest.importorskip("ipywidgets")

    class Broken(lora.RankOfAPicture):
        def words(self, **state):
            return f"{1 / (2 - state['i'])}"

    picture = Broken()
    picture.controls = (explorer.Control("i", "i", 0, 5, 1),)
    page = explorer.explore(picture)
    with pytest.raises(ZeroDivisionError):
        page.children[0].children[0].value = 2
    assert "could not be drawn" in page.children[-1].value


@pytest.mark.parametrize("yours", [None, np.ones((2, 3)), np.ones(4)])
def test_your_own_result_is_drawn_whatever_it_is(yours):
    assert len(style.png_bytes(exercises.own_result(yours, np.zeros((2, 3))))) > 1000


# ---- the run browser ----------------------------------------------------------------------------------------


def test_the_browser_shows_the_run_that_was_asked_for():
    browser = PICTURES["runs"]
    assert [(c.name, c.high) for c in browser.controls] == [("collection", 1), ("arm", 1), ("seed", 1)]
    shown = browser.arrays(arm=0, seed=1)
    assert shown["titles"] == ("blue: LoRA, seed 1", "Effective rank")   # the rank is one for all: it tells nothing
    assert shown["line"] == ([5, 15, 25], [0.7, 0.6, 0.6])
    assert np.isnan(shown["others"][0]).sum() == 3                       # three runs in this collection
    words = browser.words(arm=0, seed=1)
    assert words.startswith("Study one, LoRA, seed 1: LoRA on rt with a network; test accuracy 0.600, place 1 of 3")
    ranks = browser.arrays(arm=1)
    assert ranks["titles"][1] == "Rank kept"
    np.testing.assert_equal(ranks["table"], [[0, np.nan], [3, np.nan], [np.nan, 5]])


def test_the_browser_snaps_and_says_so():
    browser = PICTURES["runs"]
    assert browser.kind == explorer.SNAPPED
    words = browser.words(collection=1, arm=1, seed=1)
    assert words.startswith("There is no arm 1 and no seed 1 here, so the last is shown. Study two, head, seed 0")
    assert browser.arrays(collection=1)["titles"][1] == "nothing kept by matrix"
    assert "There is no" not in browser.words(collection=0, arm=1, seed=0)


@pytest.mark.parametrize("nothing", [{}, {"runs": {}}, {"runs": {"lora": {}}}])
def test_an_empty_shelf_is_a_sentence(nothing):
    browser = playground.RunBrowser(nothing)
    assert browser.controls == ()
    assert "No run is stored here yet" in browser.words()
    assert Image.open(io.BytesIO(browser.png())).format == "PNG"
    pytest.importorskip("ipywidgets")
    assert "No run is stored" in explorer.explore(browser).children[-1].value


def test_an_empty_store_and_no_studies_give_nothing(tmp_path, monkeypatch):
    assert from_store(Store(tmp_path / "none")) == {}
    monkeypatch.setattr("lowrank_teach.reproduction.studies.references_folder", lambda: tmp_path)
    assert from_studies() == {}
    assert playground.RunBrowser().collections == {}


def test_runs_of_the_store_are_on_the_shelf(tmp_path):
    history = [*((i, "", "loss", 1 / i) for i in range(1, 41)),
               (40, "0.q", "cosine", 0.5), (40, "0.v", "cosine", 1.0)]
    store = Store(tmp_path)
    for seed in (1, 0):
        store.put(Run({"method": {"method": "cola", "chain": 2, "r": 8}, "task": "rt", "backbone": "x/some-net",
                       "seed": seed, "training": {"steps": 40}}, pd.DataFrame(history, columns=HISTORY),
                      {"test": {"accuracy": 0.75}}, {"0.q": 8, "0.v": 8}, {}, {}))
    (arm, by_seed), = from_store(store)["this machine's runs on rt with some-net"].items()
    assert arm == "cola-2, r = 8, 40 steps"
    assert sorted(by_seed) == [0, 1]
    assert by_seed[0].about == "COLA, chain of 2 on rt with some-net"
    name, angles = by_seed[0].matrices()
    assert name == "turned"
    assert angles == pytest.approx({"0.q": 60.0, "0.v": 0.0})


def test_a_collection_has_axes_of_its_own():
    """A long training of a deep network beside a short one of a shallow one."""
    def card(layers, steps):
        return Card("LoRA", ("accuracy", 0.5), ([1, steps], [1.0, 0.5]),
                    {"rank": {f"{i}.q": i + 1 for i in range(layers)}})

    browser = playground.RunBrowser({"small": {"a": {0: card(3, 40)}}, "large": {"a": {0: card(30, 900)}}})
    first = browser.frame(collection=0).copy()
    assert browser.axes[0].get_xlim()[1] < 50
    assert len(browser.axes[1].get_xticks()) == 3
    large = browser.frame(collection=1).copy()
    assert browser.axes[0].get_xlim()[1] > 900
    assert 10 < len(browser.axes[1].get_xticks()) <= 16
    assert browser.axes[1].get_title() == "Rank kept (yellow: 30)"
    assert not np.array_equal(first, large)
    assert np.array_equal(browser.frame(collection=0), first)   # and back, to the pixel


def test_every_stored_study_is_on_the_shelf():
    stored = from_studies()
    assert {"study chain", "study salora_parts", "study autolora_parts"} <= stored.keys()
    browser = playground.RunBrowser(stored)
    for collection, arms in enumerate(stored.values()):
        for arm in range(len(arms)):
            assert len(browser.png(collection=collection, arm=arm)) > 1000
            assert "test accuracy" in browser.words(collection=collection, arm=arm)


# ---- sliders and images -------------------------------------------------------------------------------------


def test_whole_numbers_and_fractions_get_their_own_sliders():
    w = pytest.importorskip("ipywidgets")
    whole, fraction = explorer.Control("i", "i", 0, 5, 1), explorer.Control("b", "b", -0.5, 0.5, 0.0, 0.1)
    assert (whole.whole, fraction.whole, explorer.Control("x", "x", 0, 1, 0.5).whole) == (True, False, False)
    seen = []

    class Fine(lora.RankOfAPicture):
        def words(self, **state):
            seen.append(state)
            return str(state)

    picture = Fine()
    picture.arrays = lambda **state: lora.RankOfAPicture.arrays(picture, i=2)
    picture.controls = (whole, fraction)
    (first, _), (second, box) = (row.children for row in explorer.explore(picture).children[:2])
    assert isinstance(first, w.IntSlider)
    assert isinstance(second, w.FloatSlider)
    assert second.step == box.step == 0.1
    second.value = 0.1 + 0.2                                   # what three steps add up to in the browser
    assert box.value == 0.3
    assert seen[-1] == {"i": 1, "b": 0.3}


def test_an_image_has_a_name_that_its_view_can_show():
    """ipywidgets 8 fails in the browser on an image with a title and no description."""
    pytest.importorskip("ipywidgets")
    image = explorer.named_image()
    image.tooltip = "what is seen"
    assert image.get_state()["description"] == ""
    assert image.get_state()["_model_name"] == "ImageModel"


# ---- tables -----------------------------------------------------------------------------------------------------


def test_no_text_of_a_table_is_markup():
    """Of cells, labels, the names of both axes, the table's name and the formats."""
    odd = '<b>&"'
    cells = {odd: [odd, [odd]], "n a": [1.0, 2.0], "m": [0.5, 0.25]}
    frame = pd.DataFrame(cells, index=pd.Index([odd, "x"], name=odd))
    frame.columns.name = odd
    page = contents.readable(frame, odd, n_a="{:.2f}" + odd).to_html()
    for several in (frame.T, frame.set_index(["m", "n a"], append=True)):
        page += contents.readable(several, odd).to_html()
    text = page.partition("<table")[2]
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;&quot;" in text
    assert "&amp;amp;" not in page   # once
    assert "&amp;lt;" not in page
    assert "1.00&lt;b&gt;&amp;&quot;" in text
    assert "0.500000" in text   # what no format is given for is shown as before
    assert re.search(r'<table id="T_[\w-]+">', page)
