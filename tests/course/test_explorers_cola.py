"""The chain's explorer: true to the toy, and its words say what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank_teach.analysis import style
from lowrank_teach.analysis import toy_problems as toy
from lowrank_teach.course import explorer
from lowrank_teach.course.chapters import cola


@pytest.fixture(scope="module")
def picture() -> cola.ColaChain:
    return cola.ColaChain()


def test_arrays_are_the_toy_s(picture):
    first = picture.arrays(links=3, r=2)
    chain, one = toy.fit_chain(picture.problem, 3, 2), toy.fit_chain(picture.problem, 1, 6)
    np.testing.assert_allclose(first["errors"], [chain.seen, chain.hidden, one.seen, one.hidden])
    np.testing.assert_allclose(first["s"], np.linalg.svd(chain.W, compute_uv=False)[:16])
    assert first["knots"] == chain.knots == [8, 16]
    assert first["rank"] == 6


def test_knots_are_drawn_where_they_are_and_only_those(picture):
    for links in (1, 4):
        found = picture.arrays(links=links, r=1)
        picture.update(found)
        inside = [mark.get_xdata()[0] for mark in picture.knots if mark.get_xdata()[0] >= 0]
        assert inside == found["knots"]
        assert len(inside) == links - 1


def test_the_words_carry_the_last_errors(picture):
    errors = picture.arrays(links=2, r=1)["errors"][:, -1]
    said = picture.words(links=2, r=1)
    assert all(f"{error:.2f}" in said for error in errors)
    assert said.startswith("2 links of rank 1, 24 sweeps in all, add up to rank 2")
    assert picture.words(links=1, r=2).startswith("One link of rank 2")


def test_a_single_link_is_its_own_rival(picture):
    seen, hidden, one_seen, one_hidden = picture.arrays(links=1, r=3)["errors"]
    np.testing.assert_array_equal(seen, one_seen)
    np.testing.assert_array_equal(hidden, one_hidden)


def test_a_small_problem_can_be_explored_too():
    small = cola.ColaChain(toy.completion(6, 8, rank=2), sweeps=8, most=(3, 4))
    assert "rank 6 reaches" in small.words(links=3, r=4)
    assert explorer.strip(small, [{"links": 1, "r": 1}, {"links": 3, "r": 4}]).get_figheight() > 0


def test_the_drawings_are_made_of_what_they_are_given():
    assert len(style.png_bytes(cola.chain_idea())) > 1000
    fig = cola.saving_figure({"a": {2: 0.01, 8: 0.0}, "b": {2: 0.001, 8: 0.0}})
    assert sorted(round(patch.get_width(), 6) for patch in fig.axes[0].patches) == [0, 0, 0.1, 1]


def test_moved_knots_are_the_toy_s_and_two_at_one_place_are_one():
    moving = cola.MovingKnots()
    state = {"first": 10, "second": 4, "third": 4, "count": 3}
    found = moving.arrays(**state)
    chain = toy.fit_chain(moving.problem, 0, moving.r, knots=[4, 10])
    assert found["knots"] == chain.knots == [4, 10]
    np.testing.assert_allclose(found["errors"][:2], [chain.seen, chain.hidden])
    np.testing.assert_allclose(found["norms"][:3], [np.linalg.norm(B @ A) for B, A in chain.links])
    assert found["norms"][3] == 0
    assert f"{chain.hidden[-1]:.2f}" in moving.words(**state)
    assert moving.words(**{**state, "count": 1}).startswith("A knot after sweep 10 of 24")
