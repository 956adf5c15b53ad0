"""The page of 07: the toy against its closed form, the explorer, readings of a study by hand, cuts, pictures."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from helpers import logits, make_batch, shake, tiny

from lowrank_teach.adapters import adapt
from lowrank_teach.analysis import toy_problems
from lowrank_teach.course import explorer
from lowrank_teach.course.chapters import side_by_side
from lowrank_teach.course.chapters.side_by_side import BestOfGrid, PairedDifference
from lowrank_teach.methods import DyLoRA, LoRA
from lowrank_teach.reproduction.rank_cuts import cut_branches
from lowrank_teach.reproduction.results import SideBySide
from lowrank_teach.reproduction.verdicts import CONTRADICTED, NO_RUNS, OPEN, SUPPORTED

# ---- the toy ------------------------------------------------------------------------------------------------


def test_the_best_of_one_two_and_three_are_known():
    """1/√π and 3/(2√π), the closed forms."""
    known = [0.0, 1 / np.sqrt(np.pi), 1.5 / np.sqrt(np.pi)]
    assert [toy_problems.expected_best(n) for n in (1, 2, 3)] == pytest.approx(known, abs=1e-9)
    with pytest.raises(ValueError, match="one at least"):
        toy_problems.expected_best(0)


def test_what_is_reported_is_the_test_score_of_the_one_that_was_chosen():
    validation, test = np.array([[0.1, 0.9, 0.5], [0.8, 0.2, 0.7]]), np.array([[5.0, 6.0, 7.0], [8.0, 9.0, 4.0]])
    assert toy_problems.reported(validation, test).tolist() == [6.0, 8.0]
    assert toy_problems.reported(test, test).tolist() == [7.0, 9.0]


@pytest.mark.parametrize(("rates", "seeds", "shared"), [(3, 2, 0.2), (8, 1, 0.7), (5, 5, 0.0), (4, 1, 1.0)])
def test_the_simulated_gain_is_the_expected_one(rates, seeds, shared):
    drawn = toy_problems.draw(20000, rates, seeds)
    fresh = np.random.default_rng(1).standard_normal((20000, seeds)).mean(1)
    found = toy_problems.ways(*toy_problems.scores(drawn, shared), fresh)
    wanted = toy_problems.expected(rates, seeds, shared)
    assert list(found) == list(wanted) == list(toy_problems.WAYS)
    for way, values in found.items():
        assert values.mean() == pytest.approx(wanted[way], abs=0.035)


@pytest.mark.parametrize("shared", [0.0, 0.3, 1.0])
def test_a_run_has_unit_variance_and_the_splits_share_what_they_should(shared):
    validation, test = toy_problems.scores(toy_problems.draw(40000, 1, 1), shared)
    assert test.std() == pytest.approx(1, abs=0.02)
    assert np.corrcoef(validation[:, 0], test[:, 0])[0, 1] == pytest.approx(shared, abs=0.02)


# ---- the explorer -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture() -> BestOfGrid:
    return BestOfGrid(2.0, "points")


def test_one_rate_has_nothing_to_choose_from(picture):
    arrays = picture.arrays(rates=1, seeds=2, shared=0.5)
    first, second, _ = arrays["counts"].values()
    np.testing.assert_array_equal(first, second)
    assert all(curve[0] == 0 for curve in arrays["means"].values())


def test_the_picture_is_in_points_and_says_so(picture):
    assert picture.kind == explorer.LIVE
    means = picture.arrays(rates=10, seeds=4, shared=0.25)["means"]
    gain = 2.0 * toy_problems.expected_best(10) / 2
    assert [curve[9] for curve in means.values()] == pytest.approx([gain, 0.25 * gain, 0.0])
    said = picture.words(rates=10, seeds=4, shared=0.25)
    assert f"{gain:.2f} points" in said
    assert f"{0.25 * gain:.2f}" in said
    gaps = picture.gaps(10, 4, 0.25)
    assert gaps[toy_problems.WAYS[0]].mean() == pytest.approx(gain, abs=0.12)
    assert gaps[toy_problems.WAYS[1]].mean() == pytest.approx(0.25 * gain, abs=0.12)
    assert gaps[toy_problems.WAYS[2]].mean() == pytest.approx(0, abs=0.12)


# ---- the readings of a study --------------------------------------------------------------------------------

SCORES = {  # arm -> task -> (validation, test) of five seeds
    "LoRA": {"rt": ([0.7, 0.8, 0.6, 0.5, 0.4], [0.70, 0.72, 0.71, 0.69, 0.73]),
             "wic": ([0.5] * 5, [0.50, 0.52, 0.51, 0.50, 0.52])},
    "COLA": {"rt": ([0.6, 0.9, 0.7, 0.8, 0.5], [0.73, 0.76, 0.74, 0.71, 0.76]),
             "wic": ([0.5] * 5, [0.49, 0.51, 0.50, 0.49, 0.51])},
}


def grid_of(arm: str, rates: dict[float, tuple[float, float] | None]) -> list[dict]:
    """Two seeds at each rate, of one validation score and loss; None diverged."""
    return [{"task": "rt", "arm": arm, "seed": seed, "lr": rate,
             "validation": None if found is None else {"accuracy": found[0], "loss": found[1]}}
            for rate, found in rates.items() for seed in (0, 1)]


@pytest.fixture
def found() -> SideBySide:
    records = [{"arm": arm, "task": task, "seed": seed, "lr": 0.1, "validation": {"accuracy": validation},
                "test": {"accuracy": test}, "seconds": {"total": 3.0 if arm == "COLA" else 2.0},
                "parameters": {"adapter": 10 * (seed + 1)}, "ranks": {"0.q": 8, "0.v": 4}}
               for arm, tasks in SCORES.items() for task, splits in tasks.items()
               for seed, (validation, test) in enumerate(zip(*splits, strict=True))]
    # LoRA's ties, and the lower loss decides; COLA's best diverged once
    grid = grid_of("LoRA", {0.1: (0.7, 0.5), 0.2: (0.7, 0.4), 0.4: (0.6, 0.1)})
    grid += grid_of("COLA", {0.1: (0.6, 0.5), 0.2: (0.5, 0.5), 0.4: None})
    return SideBySide({"grid": grid}, records)


def test_a_judgement_says_what_the_interval_says(found):
    ahead = side_by_side.compare_methods(found, "COLA", "LoRA", "rt")
    assert ahead.mean == pytest.approx(3.0)
    assert ahead.clear
    assert ahead.says.startswith("COLA ahead of LoRA: 3.00 points (")
    behind = side_by_side.compare_methods(found, "COLA", "LoRA", "wic")
    assert behind.verdict == CONTRADICTED
    assert "COLA behind LoRA: −1.00" in behind.says
    assert side_by_side.compare_methods(found, "LoRA", "LoRA").verdict == OPEN
    assert set(side_by_side.compare_on_tasks(found, "COLA", "LoRA")) == {"rt", "wic"}
    few = side_by_side.compare_methods(SideBySide({}, [r for r in found.records if r["seed"] < 4]), "COLA", "LoRA")
    assert (few.verdict, few.interval, few.clear) == (NO_RUNS, None, False)
    assert "too few seeds" in few.says


def test_rates_are_chosen_again_from_validation_rows(found):
    assert side_by_side.chosen_again(found).to_dict() == {("rt", "LoRA"): 0.2, ("rt", "COLA"): 0.1}


def test_luck_is_the_scatter_and_what_the_two_scores_share(found):
    scatter, share = side_by_side.luck(found)
    by_hand = [100 * statistics.stdev(test) for tasks in SCORES.values() for _, test in tasks.values()]
    assert scatter == pytest.approx(statistics.median(by_hand))
    around = [np.concatenate([np.subtract(one[split], np.mean(one[split])) for one in
                              (SCORES["LoRA"]["rt"], SCORES["COLA"]["rt"])]) for split in (0, 1)]
    assert share == pytest.approx(np.corrcoef(*around)[0, 1])   # on wic the validation score is constant


def test_wins_and_places(found):
    wins = side_by_side.wins(found, ["LoRA", "COLA"])
    assert wins.loc["COLA", "LoRA"] == wins.loc["LoRA", "COLA"] == 1.0   # rt against wic
    assert np.isnan(wins.loc["LoRA", "LoRA"])
    assert side_by_side.places(found, ["LoRA", "COLA"]).loc["rt"].to_dict() == {"LoRA": 2.0, "COLA": 1.0}
    assert side_by_side.places(found, ["LoRA", "COLA"]).loc["wic"].to_dict() == {"LoRA": 1.0, "COLA": 2.0}


def test_cost_stands_beside_the_base(found):
    cost = side_by_side.cost(found)
    assert cost.loc["COLA", "time"] == 1.5
    assert cost.loc["COLA", "quartiles"] == "1.5–1.5"
    assert (cost["numbers"] == 30).all()
    assert (cost["mean rank"] == 6).all()
    assert cost.loc["LoRA", "score"] == pytest.approx((71 + 51) / 2)
    assert cost.loc["LoRA", "spread"] == pytest.approx(statistics.stdev([60.0, 62.0, 61.0, 59.5, 62.5]))


def test_the_mean_without_a_task_is_that_of_the_others(found):
    assert side_by_side.without_each(found, "COLA", "LoRA") == pytest.approx({"rt": -1.0, "wic": 3.0})
    alone = SideBySide({}, [r for r in found.records if r["task"] == "rt"])
    assert side_by_side.without_each(alone, "COLA", "LoRA") == pytest.approx({"rt": 3.0})


def test_reporting_the_best_seed_gains_what_it_is_above_the_mean(found):
    gains = side_by_side.by_reporting(found)["rt"]
    assert gains[side_by_side.VALIDATED] == pytest.approx([1.0, 2.0])   # seed 1 validates best in both
    assert gains[side_by_side.TESTED] == pytest.approx([2.0, 2.0])


# ---- branches cut short -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_svd", [False, True])
def test_a_cut_keeps_the_directions_it_says_and_puts_all_back(by_svd):
    model, batch = tiny(dtype=torch.float64), make_batch()
    adapters = adapt(model, LoRA(r=4), seed=0)
    shake(adapters)
    before, delta = logits(model, batch), adapters["0.q"].delta().clone()
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    branch = adapters["0.q"]
    first = branch.scaling * branch.lora_B[:, :2] @ branch.lora_A[:2]
    wanted = (u[:, :2] * s[:2]) @ vh[:2] if by_svd else first.detach().clone()
    with cut_branches(adapters, 2, by_svd=by_svd):
        torch.testing.assert_close(adapters["0.q"].delta(), wanted, rtol=0, atol=1e-10)
        assert not torch.equal(logits(model, batch), before)
    assert torch.equal(logits(model, batch), before)
    with cut_branches(adapters, 4, by_svd=by_svd):
        torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-10)


def test_a_cut_is_put_back_after_an_error_and_refused_where_it_means_nothing():
    adapters = adapt(tiny(), LoRA(r=2), seed=0)
    shake(adapters)
    kept = adapters["0.q"].lora_B.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), cut_branches(adapters, 1):
        raise RuntimeError("stop")
    assert torch.equal(adapters["0.q"].lora_B, kept)
    with pytest.raises(ValueError, match="rank 3 is outside"), cut_branches(adapters, 3):
        pass
    with pytest.raises(ValueError, match="a gate"), cut_branches(adapt(tiny(), DyLoRA(r=2), seed=0), 1):
        pass


# ---- the pictures -------------------------------------------------------------------------------------------


def test_a_table_shows_every_difference_and_frames_the_clear_ones():
    means, clear = np.array([[1.0, -2.0], [0.5, 0.0]]), np.array([[False, True], [False, False]])
    fig = side_by_side.difference_table(means, clear, ["a", "b"], ["rt", "wic"], "points")
    ax = fig.axes[0]
    assert [text.get_text() for text in ax.texts] == ["+1.0", "-2.0", "+0.5", "+0.0"]
    assert [text.get_bbox_patch() is not None for text in ax.texts] == [False, True, False, False]
    assert ax.collections[0].get_clim() == (-2.0, 2.0)
    limited = side_by_side.difference_table(means, clear, "ab", "cd", "points", limit=1.5)
    assert limited.axes[0].collections[0].get_clim()[1] == 1.5
    side_by_side.difference_table(np.zeros((1, 1)), np.zeros((1, 1), bool), "a", "b", "")


def test_intervals_stand_at_their_task_in_the_colour_of_their_verdict():
    rows = {"rt": PairedDifference("a", "b", [1.0, 2.0], (0.5, 2.5), SUPPORTED),
            "wic": PairedDifference("a", "b", [-1.0, 1.0], None, OPEN)}
    other = {**rows, "rt": PairedDifference("a", "b", [-1.0, -2.0], (-3.0, -0.5), CONTRADICTED)}
    fig = side_by_side.intervals_by_task({"a": rows, "b": other}, "points")
    first, second = fig.axes
    bars = [[line for line in ax.lines if line.get_linewidth() == 2.5] for ax in (first, second)]
    assert [len(of) for of in bars] == [1, 1]   # wic has no interval
    assert bars[0][0].get_xdata() == pytest.approx([0.5, 2.5])
    assert bars[0][0].get_color() != bars[1][0].get_color()
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["rt", "wic"]
    assert {text.get_text() for text in fig.legends[0].texts} == {SUPPORTED, CONTRADICTED, OPEN}


def test_all_tasks_stand_in_a_forest():
    one = PairedDifference("a", "b", [1.0, 2.0], (0.5, 2.5), SUPPORTED)
    fig = side_by_side.over_all_tasks({"a − b": one}, "points")
    assert fig.axes[0].get_yticklabels()[0].get_text().startswith("a − b")
    assert [text.get_text() for text in fig.legends[0].texts] == [SUPPORTED]


def test_series_keep_their_look_from_row_to_row():
    fig = side_by_side.dots_from_zero({"a": {"one": [1.0, 2.0], "all": [1.5]}, "b": {"one": [], "all": [-1.0]}},
                                      "points")
    lines = {(line.get_label(), line.get_color()) for line in fig.axes[0].lines if line.get_label() in ("one", "all")}
    assert len(lines) == 2
    assert len(fig.legends[0].texts) == 2


def test_curves_on_top_show_their_distance():
    alone, together = {"seed 0": [1.0, 0.8, 0.6]}, {"seed 0": [1.0, 0.8001, 0.6]}
    left, right = side_by_side.on_top(alone, together).axes
    assert [list(line.get_ydata()) for line in left.lines] == [alone["seed 0"], together["seed 0"]]
    assert right.lines[0].get_ydata()[1] == pytest.approx(1e-4)
    foot = right.lines[1].get_ydata()[0]   # where nought stands
    assert (right.lines[0].get_ydata()[[0, 2]] == foot).all()
    assert right.get_ylim()[0] < foot < 1e-7
    assert right.get_yscale() == "log"
