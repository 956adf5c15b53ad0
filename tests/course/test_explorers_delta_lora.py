"""The explorer of λ and K: solved live, and true in its words."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank_teach.analysis import style
from lowrank_teach.course import explorer
from lowrank_teach.course.chapters import delta_lora


@pytest.fixture(scope="module")
def picture() -> delta_lora.DeltaTrajectory:
    return delta_lora.DeltaTrajectory()


@pytest.mark.parametrize(("state", "rank"), [({"lam": 2.0, "K": 0}, 2), ({"lam": 2.0, "K": 30}, 4),
                                             ({"lam": 0.0, "K": 30}, 2), ({"lam": 5.0, "K": 120}, 2)])
def test_the_rank_is_r_or_2r(picture, state, rank):
    found = picture.arrays(**state)
    assert found["rank"] == rank
    assert f"rank {rank} " in picture.words(**state)


def test_which_curves_coincide(picture):
    """λ = 0 and K = T: LoRA's own. K = 0: LoRA's at α (1 + λ). Else neither."""
    for state, twin in (({"lam": 0.0, "K": 30}, "LoRA"), ({"lam": 2.0, "K": 120}, "LoRA"),
                        ({"lam": 2.0, "K": 0}, "LoRA, α(1+λ)")):
        for curves in (picture.arrays(**state)[what] for what in ("loss", "cosine")):
            np.testing.assert_allclose(curves["Delta-LoRA"], curves[twin], atol=1e-5)
    loss = picture.arrays(lam=2.0, K=30)["loss"]
    assert np.abs(loss["Delta-LoRA"][:31] - loss["LoRA"][:31]).max() == 0
    assert min(np.abs(loss["Delta-LoRA"] - loss[other]).max() for other in ("LoRA", "LoRA, α(1+λ)")) > 0.05


def test_it_says_that_it_is_live_and_its_sliders_take_fractions(picture):
    assert picture.kind == explorer.LIVE
    assert [c.whole for c in picture.controls] == [False, True]
    page = pytest.importorskip("ipywidgets") and explorer.explore(picture)
    before = page.children[-2].value
    page.children[0].children[0].value = 0.5
    assert page.children[-2].value != before
    assert "λ = 0.5" in page.children[-1].value


def test_the_drawings_name_their_axes_and_show_every_line():
    fall = 10.0 ** -np.arange(20)
    made = {"cliff": delta_lora.rank_cliff({"0.q": fall, "0.v": fall / 2}, {"r": 4, "2r": 8}, first=12),
            "pairs": delta_lora.paired_differences({"λ": {"a − b": [0.1, -0.2], "a − c": [0.3]}},
                                                   xlabel="difference"),
            "curves": delta_lora.trajectories({"lora": fall, "other": fall}, ylabel="Loss", start=5)}
    axes = {name: fig.axes[0] for name, fig in made.items()}
    assert [len(line.get_xdata()) for line in axes["cliff"].lines[:2]] == [12, 12]
    assert [line.get_xdata()[0] for line in axes["cliff"].lines[2:]] == [4.5, 8.5]
    assert axes["cliff"].get_yscale() == "log"
    assert [text.get_text() for text in axes["pairs"].get_yticklabels()] == ["a − b", "a − c"]
    np.testing.assert_allclose(axes["pairs"].lines[0].get_xdata(), [-0.05, 0.3])
    assert all(ax.get_xlabel() for ax in axes.values())
    assert len(style.png_bytes(delta_lora.delta_idea())) > 1000
