"""The explorer and the drawings of 01: exact cuts, scores that snap, every panel dressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowrank_teach.analysis import style
from lowrank_teach.course import explorer
from lowrank_teach.course.chapters import ranks
from lowrank_teach.course.chapters.ranks import CutNetwork

CUTS = (0, 1, 2, 4, 8, 16, 32, 64, 384)


@pytest.fixture(scope="module")
def parts():
    g = np.random.default_rng(0)
    return {f"{layer}.{m}": np.linalg.svd(g.standard_normal((384, 384)) / (1 + np.arange(384)), full_matrices=False)
            for layer in range(2) for m in "qv"}


@pytest.fixture(scope="module")
def picture(parts):
    return CutNetwork(parts, {i: 0.8 - 0.2 / (1 + i) for i in CUTS}, dict.fromkeys(CUTS, 0.03), "test accuracy")


def test_the_picture_is_the_cut_itself(picture, parts):
    u, s, vh = parts["1.q"]
    whole = ((u * s) @ vh)[:40, :40]
    for i in (0, 3, 64):
        exact = ((u[:, :i] * s[:i]) @ vh[:i])[:40, :40] / np.abs(whole).max()
        np.testing.assert_allclose(picture.arrays(matrix=2, i=i)["matrix"], exact, atol=1e-12)
    assert len(picture.arrays(matrix=0, i=5)["kept"]) == 5


def test_the_energy_said_is_that_of_the_directions_kept(picture, parts):
    _, s, _ = parts["0.v"]
    assert f"keeps {(s[:7] ** 2).sum() / (s ** 2).sum():.1%} of the energy" in picture.words(matrix=1, i=7)
    assert f"in {7 * 768:,} numbers instead of {384 * 384:,}" in picture.words(matrix=1, i=7)


@pytest.mark.parametrize(("asked", "shown"), [(0, 0), (1, 1), (5, 4), (7, 8), (12, 16), (50, 64), (384, 384)])
def test_the_score_snaps_to_the_nearest_cut_and_says_which(picture, asked, shown):
    assert picture.snap(asked) == shown
    says = picture.words(matrix=0, i=asked)
    assert ("no ΔW cut" if shown == 384 else f"cut to rank {shown}, ") in says
    assert f"{picture.scores[shown]:.3f}" in says
    assert "snapped" in picture.kind
    assert "live" in picture.kind


def test_the_slider_s_page_says_the_rank(picture):
    pytest.importorskip("ipywidgets")
    page = explorer.explore(picture)
    page.children[1].children[0].value = 3
    assert "rank 3 of 384" in page.children[-1].value


def test_the_sum_of_directions_ends_in_the_matrix():
    u, s, vh = np.linalg.svd(np.outer([1.0, 2.0, 3.0], [1.0, 0.0, 1.0, 0.0]) + np.eye(3, 4), full_matrices=False)
    fig = ranks.sum_of_directions(u, s, vh, 3)
    shown = [ax.collections[0].get_array() for ax in fig.axes[:6]]
    np.testing.assert_allclose(shown[5], (u * s) @ vh)          # the last below: all of it
    np.testing.assert_allclose(shown[0] + shown[1], shown[4])   # and on the way there
    assert fig.axes[0].get_title().startswith("direction 1")


def test_scores_stand_at_their_rank_and_each_seed_is_seen():
    scores = {"first": {"0": [0.5, 0.6, 0.7], "8": [0.7, 0.8, 0.9], "all": [0.8, 0.8, 0.8]},
              "rest": {"8": [0.5, 0.6, 0.7]}}
    fig = ranks.scores_by_rank(scores, ylabel="Accuracy", half={"0": 0.1, "8": 0.1, "all": 0.1})
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "8", "all"]
    means, dots = ax.lines[:2]
    np.testing.assert_allclose(means.get_ydata(), [0.6, 0.8, 0.8])
    np.testing.assert_allclose(dots.get_xydata()[:6], [[0, 0.5], [0, 0.6], [0, 0.7], [1, 0.7], [1, 0.8], [1, 0.9]])
    rest = next(line for line in ax.lines if line.get_label() == "rest")
    assert list(rest.get_xdata()) == [1]
    assert len(style.png_bytes(fig)) > 1000


def test_the_ellipse_is_drawn_with_equal_aspect_and_its_arrows_end_on_it():
    fig = ranks.ellipse(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    assert [ax.get_aspect() for ax in fig.axes] == [1.0, 1.0, 1.0]
    x, y = fig.axes[1].lines[0].get_data()
    assert np.hypot(x, y).max() == pytest.approx(3, abs=1e-3)
    assert np.hypot(x, y).min() == pytest.approx(1, abs=1e-3)
    flat_x, flat_y = fig.axes[2].lines[0].get_data()
    np.testing.assert_allclose(flat_x, flat_y, atol=1e-6)   # all on the line of u₁ = (1, 1)
    assert "90%" in ranks.finding_of_ellipse(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))


def test_the_ring_is_round():
    from lowrank_teach.course.chapters.lora import RankOfAPicture

    assert RankOfAPicture().axes[1].get_aspect() == 1.0


@pytest.mark.parametrize(("values", "verdict"), [
    ([0.9, 0.91, 0.92], "supported"), ([0.1, 0.11, 0.12], "contradicted"), ([0.2, 0.5, 0.9], "open")])
def test_a_verdict_asks_the_interval(values, verdict):
    assert ranks._verdict(values, 0.5) == verdict


def test_a_finding_says_when_little_was_won():
    flat = dict.fromkeys(CUTS, (0.6, 0.65))
    found = {ranks.REAL: flat, ranks.TWIN: flat}
    assert "little can be cut" in ranks.finding_of_cuts(found, 100)
    won = {ranks.REAL: {i: (0.6 + 0.1 * (i > 1), 0.65 - 0.1 * (i > 1)) for i in CUTS}, ranks.TWIN: flat}
    said = ranks.finding_of_cuts(won, 1000)
    assert "From rank 2 on" in said
    assert "one direction of each gives 0% of it back and eight give 100%" in said


def test_the_shares_kept_are_zero_without_and_one_with_every_direction():
    np.testing.assert_allclose(ranks.kept_by("first 0"), 0)
    np.testing.assert_allclose(ranks.kept_by("all"), 1)
