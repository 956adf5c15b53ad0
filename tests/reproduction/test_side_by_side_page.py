"""The page of 07: the toy against its closed form, the explorer, readings of a study by hand, cuts, pictures."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from helpers import logits, make_batch, shake, tiny

from lowrank_teach.adapters import adapt
from lowrank_teach.analysis import toy_problems
from lowrank_teach.analysis.statistics import paired_mean
from lowrank_teach.course import explorer
from lowrank_teach.course.chapters import side_by_side
from lowrank_teach.course.chapters.side_by_side import BestOfGrid, Pair
from lowrank_teach.methods import DyLoRA, LoRA
from lowrank_teach.reproduction.rank_cuts import cut_branches
from lowrank_teach.reproduction.results import SideBySide
from lowrank_teach.reproduction.verdicts import EQUAL, OPEN, SUPPORTED, Row

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
    return SideBySide({"grid": grid, "rate_of": {}, "name": "tuned_delta"}, records)


def test_luck_is_the_scatter_and_what_the_two_scores_share(found):
    scatter, share = side_by_side.luck(found)
    by_hand = [100 * statistics.stdev(test) for tasks in SCORES.values() for _, test in tasks.values()]
    assert scatter == pytest.approx(statistics.median(by_hand))
    around = [np.concatenate([np.subtract(one[split], np.mean(one[split])) for one in
                              (SCORES["LoRA"]["rt"], SCORES["COLA"]["rt"])]) for split in (0, 1)]
    assert share == pytest.approx(np.corrcoef(*around)[0, 1])   # on wic the validation score is constant


def test_a_grid_is_replayed_in_points_and_a_run_that_diverged_comes_last(found):
    score = side_by_side.replay(found, "rt", "COLA")
    assert score(0.1, 0)[0].tolist() == pytest.approx([60, 60])
    rates = np.array([0.4, 0.2, 0.1])
    scores, losses = (np.array(part) for part in zip(*(score(rate, 0) for rate in rates), strict=True))
    assert np.isneginf(scores[0]).all()
    assert side_by_side.order_rates(rates, scores, losses).tolist() == [0.1, 0.2, 0.4]
    assert score(0.1, 150)[0].size == 0   # no first round


def test_ways_of_reporting_stand_beside_the_mean_of_the_reported_seeds(found):
    rows = side_by_side.optimism({"tuned_delta": found})["tuned_delta, rt"]
    assert rows[side_by_side.BEST_RUN] == pytest.approx([70 - 60, 60 - 70])   # validation means are 60 and 70
    assert rows[side_by_side.BEST_RATE] == rows[side_by_side.BEST_RUN]        # both seeds of the grid are equal here
    assert rows[side_by_side.BEST_SEED] == pytest.approx([73 - 71, 76 - 74])


def pair_of(table: np.ndarray, verdict: str = OPEN) -> Pair:
    row = Row("x 1", "x", "", "", "", "", table.mean(1).tolist(), None, verdict, "")
    return Pair(f"a − b, {verdict}", row, table)


def test_the_parts_of_the_variance_add_up_to_the_error():
    draw = np.random.default_rng(0)
    table = 100 * (draw.normal(size=(5, 1)) + draw.normal(size=(1, 60)) + draw.normal(size=(5, 60)))
    assert side_by_side.scatter_of(pair_of(table), 5, 60) == pytest.approx(paired_mean(table).error)
    assert side_by_side.scatter_of(pair_of(table), 2, 20) > side_by_side.scatter_of(pair_of(table), 5, 60)
    assert side_by_side._mean_right([pair_of(table)], 0.0, 2, 200) == 0.5   # nothing to find: a coin


@pytest.mark.parametrize(("shift", "answer"), [(0.0, EQUAL), (0.2, EQUAL), (3.0, "ahead"), (-3.0, "behind")])
def test_an_answer_is_one_of_four(shift, answer):
    table = shift + 0.5 * np.random.default_rng(0).normal(size=(5, 400))
    assert side_by_side._verdict(paired_mean(table)) == answer
    assert side_by_side._verdict(paired_mean([[-9.0], [8.0], [3.0], [-2.0], [1.0]])) == OPEN


def test_a_bootstrap_over_both_is_wider_than_over_seeds_where_examples_decide():
    draw = np.random.default_rng(0)
    table = draw.normal(size=(1, 40)) + 0.1 * draw.normal(size=(5, 40))
    means = side_by_side.bootstrap_means(table, draw.integers(0, 5, (300, 5)), draw.integers(0, 40, (300, 40)))
    pair = pair_of(table)
    assert np.ptp(pair.both.interval()) > 3 * np.ptp(pair.seeds_only.interval())
    assert means.std() == pytest.approx(pair.both.error, rel=0.3)


def test_time_counts_the_window_of_the_gates_and_the_search():
    times = {arm: side_by_side.time_of("tuned_salora", arm, 100) for arm in ("LoRA, all six", "SaLoRA",
                                                                            "gates left on")}
    assert 100 < times["LoRA, all six"] < times["SaLoRA"] < times["gates left on"]
    assert side_by_side.time_of("tuned_delta", "LoRA", 100) == 100
    assert side_by_side.time_of("tuned_autolora", "AutoLoRA", 400) > 400 + 150
    assert side_by_side.time_of("tuned_delta", side_by_side.FINE_TUNING, 100) is None   # not timed


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


def test_series_keep_their_look_from_row_to_row():
    fig = side_by_side.dots_from_zero({"a": {"one": [1.0, 2.0], "all": [1.5]}, "b": {"one": [], "all": [-1.0]}},
                                      "points")
    lines = {(line.get_label(), line.get_color()) for line in fig.axes[0].lines if line.get_label() in ("one", "all")}
    assert len(lines) == 2
    assert len(fig.legends[0].texts) == 2


def test_a_comparison_shows_both_intervals_and_its_finding_names_it():
    draw = np.random.default_rng(0)
    pairs = [pair_of(draw.normal(3, 2, (5, 50)), SUPPORTED), pair_of(draw.normal(0, 9, (5, 50)))]
    ax = side_by_side.compared(pairs).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == [pair.name for pair in pairs]
    thick = [line for line in ax.lines if line.get_linewidth() == 4]
    assert [tuple(line.get_xdata()) for line in thick] == [pair.both.interval() for pair in pairs]
    said = side_by_side.finding_of_compared(pairs)
    assert f"ahead: {pairs[0].name}." in said
    assert f"Open: {pairs[1].name} (would show" in said
