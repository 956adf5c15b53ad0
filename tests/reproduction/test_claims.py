"""The ledger: intervals that cover, a rule that cannot be argued with, and rows that come from records alone."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tiny_models import command

from lowrank_teach.analysis import statistics
from lowrank_teach.course.chapters import ledger as drawings
from lowrank_teach.course.chapters.ledger import LOOKS
from lowrank_teach.experiments.runs import packed, unpacked
from lowrank_teach.methods import METHODS
from lowrank_teach.models.backbones import BACKBONES
from lowrank_teach.reproduction import arms as studies
from lowrank_teach.reproduction import claims, ledger, verdicts
from lowrank_teach.reproduction.arms import TEXT_STUDIES
from lowrank_teach.reproduction.results import references_folder
from lowrank_teach.reproduction.verdicts import (
    CONTRADICTED,
    EQUAL,
    EXACT,
    NO_RUNS,
    OPEN,
    SUPPORTED,
    UNSOUND,
    UNTESTABLE,
    Compared,
    Evidence,
    number,
    ours,
)

EVERY = [claim for all_ in ledger.CLAIMS.values() for claim in all_]


@pytest.fixture(scope="module")
def rows():
    return ledger.ledger()


def study(folder: Path, name: str, scores: dict[str, list[float]], **extra) -> Path:
    """A study's file with these scores, arm by arm."""
    records = [{"arm": arm, "seed": seed, "test": {"accuracy": value}, **extra}
               for arm, values in scores.items() for seed, value in enumerate(values)]
    about = {"name": name, "backbone": "minilm-l3", "task": "rt", "training": {"steps": 100}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**about, "records": records}), encoding="utf-8")
    return folder


# ---- the interval -------------------------------------------------------------------------------------------


def test_the_plain_interval_is_scipy_s():
    d = [1.0, 2.5, -0.5, 3.0, 0.2, 1.1, 0.4]
    mine = statistics.paired_bootstrap(d, stretch=False, resamples=60_000)
    theirs = stats.bootstrap((d,), np.mean, n_resamples=60_000, method="percentile", rng=np.random.default_rng(1))
    assert mine == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_the_stretch_is_the_factor_it_says():
    d = [1.0, 2.0, 4.0, 8.0, 16.0]
    plain, wide = statistics.paired_bootstrap(d, stretch=False), statistics.paired_bootstrap(d)
    factor = math.sqrt(5 / 4) * stats.t.ppf(0.975, 4) / stats.norm.ppf(0.975)
    assert [(w - 6.2) / (p - 6.2) for w, p in zip(wide, plain, strict=True)] == pytest.approx([factor, factor])
    assert factor == pytest.approx(1.58, abs=0.01)


def test_two_values_by_hand():
    """Four equally likely resamples of (0, 1), means 0, ½, ½, 1: the 2.5 % and 97.5 % points are 0 and 1."""
    assert statistics.paired_bootstrap([0.0, 1.0], stretch=False) == (0.0, 1.0)


@pytest.mark.parametrize(("draw", "mean", "plain", "stretched"), [
    ("normal", 0.0, (0.81, 0.87), (0.92, 0.96)), ("exponential", 1.0, (0.76, 0.83), (0.85, 0.91))])
def test_coverage_of_five_pairs(draw, mean, plain, stretched):
    """What the docstring says of five pairs: the plain interval is far from 95 %, the stretched one near."""
    rng = np.random.default_rng(0)
    samples = getattr(rng, draw)(size=(1500, 5))
    for stretch, (low, high) in ((False, plain), (True, stretched)):
        intervals = [statistics.paired_bootstrap(d, stretch=stretch, resamples=1000, seed=i) for i, d in
                     enumerate(samples)]
        assert low < np.mean([a <= mean <= b for a, b in intervals]) < high


def test_the_interval_is_the_same_every_time_and_refuses_what_it_cannot_do():
    assert statistics.paired_bootstrap([1, 2, 3, 4, 5]) == statistics.paired_bootstrap([1, 2, 3, 4, 5])
    assert statistics.paired_bootstrap([2.0] * 5) == (2.0, 2.0)
    for bad in ([], [1.0], [1.0, math.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="two finite differences"):
            statistics.paired_bootstrap(bad)


def test_students_interval_is_scipy_s():
    d = [0.4, -1.0, 2.2, 0.9, 1.3]
    wanted = stats.ttest_1samp(d, 0.0).confidence_interval(0.95)
    assert statistics.t_interval(d) == pytest.approx(tuple(wanted))
    with pytest.raises(ValueError, match="two differences"):
        statistics.t_interval([1.0])


def test_power_is_what_simulation_finds():
    rng = np.random.default_rng(0)
    d = rng.normal(1.0, 1.0, size=(20_000, 5))
    seen = np.mean(np.abs(stats.ttest_1samp(d, 0.0, axis=1).statistic) > stats.t.ppf(0.975, 4))
    assert statistics.power(1.0, 1.0, 5) == pytest.approx(seen, abs=0.01)
    assert statistics.power(0.0, 1.0, 5) == pytest.approx(0.05)
    assert statistics.power(-1.0, 1.0, 5) == statistics.power(1.0, 1.0, 5)
    large = [statistics.power(effect, 0.3, n) for effect in (0.5, 1, 4) for n in range(5, 60)]
    assert all(0.5 < chance <= 1 + 1e-12 for chance in large)
    n = statistics.seeds_needed(1.0, 1.0)
    assert statistics.power(1.0, 1.0, n) >= 0.8 > statistics.power(1.0, 1.0, n - 1)
    assert statistics.seeds_needed(0.001, 1.0, most=50) is None


# ---- the rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "side", "margin", "said"), [
    ((0.1, 1), ">", 0, SUPPORTED), ((-1, -0.1), ">", 0, CONTRADICTED), ((-1, 1), ">", 0, OPEN),
    ((0, 1), ">", 0, OPEN),
    ((-1, -0.1), "<", 0, SUPPORTED), ((0.1, 1), "<", 0, CONTRADICTED), ((0, 0), "<", 0, OPEN),
    ((-1, 1), ">", 1, EQUAL), ((-1, -0.1), ">", 1, EQUAL), ((0.1, 0.2), ">", 1, SUPPORTED),
    ((-1.1, -0.1), ">", 1, CONTRADICTED), ((-1.1, 1), ">", 1, OPEN),
    ((-1, 1), "≈", 1, SUPPORTED), ((-1, 1.1), "≈", 1, OPEN), ((1.1, 2), "≈", 1, CONTRADICTED),
    ((-3, -2), "≈", 1, CONTRADICTED)])
def test_the_rule(interval, side, margin, said):
    assert verdicts.judge(interval, side, margin) == said


def test_equality_is_two_one_sided_tests():
    """The 90 % interval must lie inside the margin, where the 95 % one may reach beyond it."""
    estimate = Evidence([0.0, 0.4, 0.8, 1.2, -0.2]).estimate()
    low, high = estimate.interval(0.9)
    for margin, said in ((1.001 * high, EQUAL), (0.999 * high, OPEN)):
        assert low > -margin
        assert verdicts.verdict(estimate, ">", margin) == said
    assert estimate.interval()[1] > 1.001 * high
    with pytest.raises(ValueError, match="side"):
        verdicts.judge((0, 1), ">=")


# ---- rows from records --------------------------------------------------------------------------------------


def test_a_verdict_follows_the_records(tmp_path):
    """The same claim over made-up scores: one side, the other side, between, too few, none."""
    claim, low = Compared("T1", "longer is better", verdicts.between(("chain", "2"), ("chain", "1"))), LOW

    def row(name, chain2):
        return claim.row("COLA 1", "COLA", study(tmp_path / name, "chain", {"1": low, "2": chain2}))

    up, down = row("up", [x + 0.02 for x in low]), row("down", [x - 0.02 for x in low])
    assert (up.verdict, down.verdict) == (SUPPORTED, CONTRADICTED)
    assert (up.p, up.p_equal, up.detectable) == (pytest.approx(0, abs=1e-9), 1, pytest.approx(0, abs=1e-9))
    assert up.difference == pytest.approx(2.0)
    assert up.ours.startswith("chain length = 2: 72.4 ± 1.14; chain length = 1: 70.4")
    mixed = row("mixed", [0.71, 0.70, 0.70, 0.71, 0.71])
    assert mixed.verdict == OPEN
    assert mixed.interval == pytest.approx(statistics.t_interval(mixed.differences))
    few = row("few", [0.9, 0.9, 0.9])
    assert (few.verdict, few.interval, few.p) == (NO_RUNS, None, None)
    assert few.why.startswith("3 of 5 seeds; minilm-l3 on rt, 100 steps")
    assert few.interval_words() == "20.0 points"
    nothing = claim.row("COLA 1", "COLA", tmp_path / "empty")
    assert (nothing.verdict, nothing.ours, nothing.tuned) == (NO_RUNS, "–", False)
    assert "lowrank-teach study chain" in nothing.why


# ---- rows of tuned studies ----------------------------------------------------------------------------------

LOW = [0.70, 0.71, 0.69, 0.72, 0.70]


def bits(share: float, seed: int, n: int = 400) -> np.ndarray:
    """Which of n examples were right: the same ones are hard for every seed, as they are."""
    easy = np.random.default_rng(0).random(n)
    return easy + 0.1 * np.random.default_rng(seed + 1).normal(size=n) < share


def tuned(folder: Path, shares: dict[str, float], task: str = "sst2", rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3),
          seeds: int = 5, **changes) -> Path:
    """A file of the tuned study of COLA on one task: arm -> share of right answers; changes: in the first record."""
    records, grid = [], []
    for i, (arm, share) in enumerate(shares.items()):
        for seed in range(seeds):
            right = bits(share, 100 * i + seed)
            records.append({"task": task, "arm": arm, "seed": seed, "lr": 2e-3, "hits": packed(right),
                            "test": {"accuracy": float(right.mean()), "loss": 1 - share + 0.01 * seed},
                            "identity": {"data": "d", "weights": "w"}, "machine": {"commit": "abc"},
                            "memory": {"cuda_peak_bytes": 100.0 + i}, "seconds": {"training": 10.0 * (1 + i)}})
        grid += [{"task": task, "arm": arm, "seed": 100, "lr": lr, **short,
                  "validation": {"accuracy": 0.7 - 4 * abs(lr - 2e-3)}}
                 for lr in rates for short in ({}, {"steps": 150})]
    records[0] |= changes
    about = {"name": "tuned_cola", "backbone": "minilm-l3", "training": {"steps": 625}, "rates": list(rates),
             "rate_of": {}, "grid": grid}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tuned_cola.json").write_text(json.dumps({**about, "records": records}), encoding="utf-8")
    return folder


def tuned_row(folder: Path, **how) -> verdicts.Row:
    claim = verdicts.over_tasks("tuned_cola", "T1", "longer is better", "COLA 2", "LoRA", **how)[0]
    return claim.row("COLA 1", "COLA", folder)


def test_a_row_of_a_tuned_study_is_over_seeds_and_examples(tmp_path):
    folder = tuned(tmp_path, {"COLA 2": 0.85, "LoRA": 0.70})
    row = tuned_row(folder)
    stored = json.loads((folder / "tuned_cola.json").read_text())["records"]
    one, two = (np.array([unpacked(r["hits"]) for r in stored if r["arm"] == arm], float)
                for arm in ("COLA 2", "LoRA"))
    estimate = statistics.paired_mean(100 * (one - two))
    assert row.interval == pytest.approx(estimate.interval())
    assert row.interval[1] - row.interval[0] > 1.5 * np.diff(statistics.t_interval(row.differences))[0]
    assert (row.verdict, row.task, row.tuned, row.margin) == (SUPPORTED, "sst2", True, 1.0)
    assert (row.p, row.p_equal) == (pytest.approx(estimate.p_value()), pytest.approx(estimate.p_unequal(1.0)))
    assert row.beside["time"] == "× 0.50"
    assert row.beside["memory"] == "× 0.99"
    assert row.beside["test loss"].startswith("−0.15 [−0.15, −0.15]")
    assert row.beside["rates"] == ("COLA 2: 0.002, 0.001 to 0.004 within a point; "
                                   "LoRA: 0.002, 0.001 to 0.004 within a point")


def test_equal_methods_are_equal_within_the_margin_or_open(tmp_path):
    same = tuned(tmp_path / "same", {"COLA 2": 0.70, "LoRA": 0.70}, seeds=40)
    stored = json.loads((same / "tuned_cola.json").read_text())
    for a, b in zip(stored["records"][:40], stored["records"][40:], strict=True):
        b["hits"], b["test"] = a["hits"], a["test"]
    (same / "tuned_cola.json").write_text(json.dumps(stored), encoding="utf-8")
    assert tuned_row(same).verdict == EQUAL
    assert tuned_row(same, side="≈").verdict == SUPPORTED
    wide = tuned_row(tuned(tmp_path / "wide", {"COLA 2": 0.70, "LoRA": 0.70}))
    assert wide.verdict == OPEN
    assert wide.detectable > 1
    assert f"would show {number(wide.detectable)} points" in ledger.standing(wide)


@pytest.mark.parametrize(("changes", "words"), [
    ({"identity": {"data": "other", "weights": "w"}}, "its runs are of different examples"),
    ({"identity": {"data": "d", "weights": "other"}}, "its runs are of different pretrained weights"),
    ({"rates": (2e-3, 4e-3)}, "the learning rate chosen for COLA 2 lies at the edge of its grid"),
    ({"rates": (1e-3, 2e-3)}, "the learning rate chosen for COLA 2 lies at the edge of its grid")])
def test_what_must_not_be_compared_says_so_and_has_no_verdict(tmp_path, changes, words):
    row = tuned_row(tuned(tmp_path, {"COLA 2": 0.85, "LoRA": 0.70}, **changes))
    assert (row.verdict, row.interval, row.survives) == (UNSOUND, None, None)
    assert row.why.startswith(words)


def test_a_tuned_row_without_runs_or_with_few_seeds_says_so(tmp_path):
    few = tuned_row(tuned(tmp_path / "few", {"COLA 2": 0.85, "LoRA": 0.70}, seeds=4))
    assert (few.verdict, few.why.split(";")[0]) == (NO_RUNS, "4 of 5 seeds")
    other = tuned_row(tuned(tmp_path / "other", {"COLA 2": 0.85, "LoRA": 0.70}, task="rt"))
    assert other.verdict == NO_RUNS
    assert "has no runs of both on sst2 yet" in other.why
    assert "lowrank-teach study tuned_cola" in tuned_row(tmp_path / "none").why


def test_verdicts_are_held_against_the_number_of_tests():
    """One p of 0.04 among twenty of 0.5 does not stand; tests of equality are a family of their own."""
    def row(i: int, p: float, said: str = SUPPORTED) -> verdicts.Row:
        return verdicts.Row(f"COLA {i}", "COLA", "", "", "", "", (), (0.0, 1.0), said, "", p=p,
                            p_equal=0.02 if said == EQUAL else None)

    many = ledger.corrected([row(0, 0.04), *(row(i, 0.5, OPEN) for i in range(1, 20)), row(20, 0.5, EQUAL)])
    assert [one.survives for one in many] == [False, *[None] * 19, True]
    assert [one.survives for one in ledger.corrected([row(0, 0.001), row(1, 0.001), row(2, 0.7, OPEN)])] == [
        True, True, None]


def test_pairs_are_by_seed_not_by_place(tmp_path):
    folder = study(tmp_path, "chain", {"1": [0.1, 0.2, 0.3], "2": [0.1, 0.2, 0.3]})
    stored = json.loads((folder / "chain.json").read_text())
    stored["records"] = [r for r in stored["records"] if (r["arm"], r["seed"]) != ("1", 0)][::-1]
    (folder / "chain.json").write_text(json.dumps(stored))
    found = verdicts.between(("chain", "2"), ("chain", "1"))(folder)
    assert found.differences == [0.0, 0.0]


def test_spread_compares_distances_from_the_median(tmp_path):
    folder = study(tmp_path, "chain", {"1": [0.1, 0.2, 0.3], "2": [0.2, 0.2, 0.25]})
    found = verdicts.spread(("chain", "2"), ("chain", "1"))(folder)
    assert found.differences == pytest.approx([-0.1, 0.0, -0.05])


def test_step_times_are_read_with_their_interval(tmp_path):
    bench = {"settings": {"backbone": "b", "rows": 1, "tokens": 2, "device": "cpu", "repeats": 16},
             "to_reference": {"a": {"q1": 2.0, "median": 2.2, "q3": 2.4}, "b": {"q1": 1.0, "median": 1.0, "q3": 1.0}}}
    (tmp_path / "bench_steps.json").write_text(json.dumps(bench))
    found = verdicts.step_time("a", "b", 2.0)(tmp_path / "studies")
    assert found.interval == pytest.approx((0.2 - 1.57 * 0.4 / 4, 0.2 + 1.57 * 0.4 / 4))
    with pytest.raises(FileNotFoundError, match="benchmarks"):
        verdicts.step_time("a", "b")(tmp_path / "deeper" / "studies")


def test_peak_memory_is_a_quotient_a_repeat(tmp_path):
    claim = Compared("T4", "memory", verdicts.peak_memory("a", "b"), "≈", margin=5.0, scale=1.0)
    assert "peak_memory.py" in claim.row("x", "y", tmp_path / "studies").why
    bench = {"settings": {"backbone": "b", "rows": 1, "tokens": 2, "device": "cpu", "repeats": 5},
             "peak_bytes": {"a": [102 * 2**20] * 5, "b": [100 * 2**20] * 5}}
    (tmp_path / "bench_memory.json").write_text(json.dumps(bench))
    row = claim.row("x", "y", tmp_path / "studies")
    assert (row.verdict, row.ours) == (SUPPORTED, "a, MiB: 102.0 ± 0.00; b, MiB: 100.0 ± 0.00")
    assert row.differences == pytest.approx([2.0] * 5)
    assert ledger.from_runs([row]) == []   # repeats of a measurement are no seeds


def test_a_ratio_is_taken_seed_by_seed(tmp_path):
    folder = study(tmp_path, "chain", {"2": [3.0, 8.0], "1": [2.0, 4.0]})
    found = verdicts.ratio(("chain", "2"), ("chain", "1"), verdicts.score, 1.25)(folder)
    assert found.differences == pytest.approx([0.25, 0.75])
    assert found.ours == {"chain length = 2 / chain length = 1": [1.5, 2.0]}


def test_numbers_read_from_a_record():
    record = {"series": {"lambda": [[1, 2, 3], [0.0, 0.5, 0.4]], "budget_penalty": [[1, 2], [0.5, 0.1]]},
              "ranks": {"0.q": 2, "0.v": 6, "1.q": 4, "1.v": 3, "0.k": 1}, "method": {"b": 0.25},
              "sites": {"cosine": {"0.q": 0.5, "0.v": 0.7}}, "seconds": {"training": 4.0, "search": 2.0}}
    assert claims._largest_fall(record) == pytest.approx(0.1)
    assert claims._left_of_peak(record) == pytest.approx(0.2)
    closing = {"series": {"x": [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]}, "method": {"t_end": 0.6}}
    assert claims._as_it_closes("x")(closing) == 4
    assert claims._wide_less_others(record) == pytest.approx(4.5 - 7 / 3)
    assert claims._between_blocks(record) == pytest.approx((1.0 + 1.5) / 2)
    assert claims._between_q_and_v(record) == pytest.approx((4 + 1) / 2)
    assert claims._share_of_a_grid(record) == pytest.approx(6 / 64)
    assert verdicts.site_mean("cosine")(record) == pytest.approx(0.6)
    assert verdicts.last("lambda")(record) == 0.4
    assert verdicts.mean_rank()(record) == pytest.approx(3.2)
    assert verdicts.log10(verdicts.last("budget_penalty"))(record) == pytest.approx(-1.0)


@pytest.mark.parametrize("value", [claims._between_blocks, claims._between_q_and_v])
def test_ranks_are_held_against_the_same_ranks_dealt_at_random(value):
    """The claim can fall on either side of zero: the plain spread is above it for any unequal list."""
    apart = {"0.q": 2, "1.q": 6, "2.q": 2, "0.v": 6, "1.v": 2, "2.v": 6}   # each layer, and q against v, differ
    flat = {"0.q": 4, "1.q": 4, "2.q": 4, "0.v": 4, "1.v": 4, "2.v": 4}
    chance = claims._by_chance(value)
    assert value({"ranks": apart}) > chance({"ranks": apart}) > 0
    assert value({"ranks": flat}) == chance({"ranks": flat}) == 0
    same = {"0.q": 2, "1.q": 4, "2.q": 6, "0.v": 2, "1.v": 4, "2.v": 6}    # q and v alike
    if value is claims._between_q_and_v:
        assert value({"ranks": same}) == 0 < chance({"ranks": same})
    layers = {"0.q": 2, "1.q": 2, "2.q": 2, "0.v": 6, "1.v": 6, "2.v": 6}  # blocks alike
    if value is claims._between_blocks:
        assert value({"ranks": layers}) == 0 < chance({"ranks": layers})


def test_every_arm_that_a_claim_names_is_defined_and_read(monkeypatch, tmp_path):
    """A claim over an arm that no study has would wait for ever; what it reads is what it says it reads."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(verdicts, "stored", lambda study, folder: SimpleNamespace(
        of_each=lambda arm, value, task="": asked.append((study, arm)) or pd.Series(dtype=float)))
    monkeypatch.setattr(verdicts, "setting", lambda found, tasks=(): "")
    defined = {name: one.arms for name, one in {**studies.STUDIES, **studies.TASK_STUDIES, **TEXT_STUDIES}.items()}
    seen = 0
    for claim in EVERY:
        if isinstance(claim, Compared) and isinstance(claim.measure, verdicts.FromRuns):
            asked.clear()
            with suppress(FileNotFoundError):   # the study over tasks and the texts are not read arm by arm
                claim.measure(tmp_path)
            assert set(asked) <= set(claim.measure.arms)
            assert asked or claim.measure.arms[0][0] not in studies.STUDIES
            assert not [arm for arm in claim.measure.arms if arm[1] not in defined[arm[0]]]
            seen += len(claim.measure.arms)
    assert seen > 90


def test_what_is_not_testable_names_what_is_missing():
    for claim in EVERY:
        if isinstance(claim, verdicts.Beyond) and claim.verdict == UNTESTABLE:
            for name in claim.needs.split(" and "):
                assert name.lower() not in {n.lower() for n in [*BACKBONES, *METHODS]}
                assert name.lower().replace("-", "").replace("_", "") not in METHODS


# ---- statements checked on the spot -------------------------------------------------------------------------


EXACT_CLAIMS = [claim for claim in EVERY if isinstance(claim, verdicts.Exact)]


@pytest.mark.parametrize("claim", EXACT_CLAIMS, ids=lambda claim: claim.statement[:50])
def test_what_holds_exactly(claim):
    assert claim.row("x", "y", None).verdict == EXACT


def test_a_check_on_the_spot_can_fail(monkeypatch):
    broken = {
        "merge_is_the_same_function": ("lowrank_teach.lowrank.LowRank.delta",
                                       lambda self: 1.01 * self.lora_B @ self.lora_A),
        "knot_keeps_the_function": ("lowrank_teach.methods.cola.COLARule._extend", lambda *_: None),
        "softmax_ranks_stay_inside": ("lowrank_teach.gates.Selection.rank", lambda self: 0),
        "pruned_exactly_below_one_half": ("lowrank_teach.gates.Stretch.open_probability",
                                          lambda self, theta: theta.sigmoid())}
    for name, (target, wrong) in broken.items():
        with monkeypatch.context() as patched:
            patched.setattr(target, wrong)
            assert getattr(claims, name)() > 1e-3
    assert claims.step_down_flops(2) < claims.step_down_flops(8)
    monkeypatch.setattr("lowrank_teach.analysis.toy_problems.gap_bound", lambda problem, T: 1e-3)
    assert claims.frank_wolfe_gap() > 0


# ---- the tables ---------------------------------------------------------------------------------------------


def test_every_paper_has_its_table(rows):
    for paper in ledger.CLAIMS:
        table = ledger.table(paper)
        assert list(table.columns)[:10] == ["where", "statement", "task", "paper's number", "ours",
                                            "difference [95 %]", "seeds", "verdict", "among all",
                                            "setting, or reason"]
        beside = ["test loss", "time", "memory", "rates"]
        assert list(table.columns)[10:] == [name for name in beside if any(
            row.beside.get(name) for row in rows if row.paper == paper)]
        assert table.index.is_unique
        assert table.index[0] == f"{paper} 1"
        assert set(table["verdict"]) <= set(verdicts.VERDICTS)
    assert len(rows) == len(EVERY) == ledger.counts(rows).to_numpy().sum()
    assert len({(row.paper, row.statement, row.task) for row in rows}) == len(rows)
    with pytest.raises(KeyError, match="COLA"):
        ledger.table("Cola")


def test_a_row_says_why_it_has_its_verdict(rows):
    for row in rows:
        assert row.why
        judged = row.verdict in (SUPPORTED, CONTRADICTED, EQUAL, OPEN)
        assert judged == (row.interval is not None)
        assert (row.survives is None) == (row.verdict not in verdicts.DECIDED or row.p is row.p_equal is None)
        if judged:
            equal = None if row.p_equal is None else row.p_equal < 0.05
            assert row.verdict == verdicts.judge(row.interval, row.side, row.margin, equal)
            assert len(row.differences) >= statistics.SEEDS or "repeats" in row.why
        if row.verdict == UNTESTABLE:
            assert row.why.startswith("needs ")


def test_the_tables_stand_without_any_study(tmp_path):
    table = ledger.table(folder=tmp_path)
    assert set(table["verdict"]) == {NO_RUNS, UNTESTABLE, EXACT}


def test_numbers_are_short():
    assert [number(x) for x in (-0.304, 71.84, 0.0, 1234.5, 0.00123)] == ["−0.30", "71.8", "0.00", "1,234", "0.001"]
    assert ours({"a": [0.5, 0.7], "b": []}, 100.0) == "a: 60.0 ± 14.1"
    assert ours({}, 1.0) == "–"


def test_the_papers_numbers_are_the_verified_ones():
    """Held against the list they were taken from, where that stands beside the checkout."""
    path = Path(__file__).resolve().parents[3] / "shared" / "papers" / "reported_results.csv"
    if not path.exists():
        pytest.skip("no list of reported results beside the checkout")
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    names = {"COLA": "COLA (", "SaLoRA": "SaLoRA (", "Delta-LoRA": "Delta-LoRA (", "AutoLoRA": "AutoLoRA (",
             "LoRA": "LoRA ("}
    for key, reported in claims.REPORTED.items():
        own = [x for x in lines if x["paper"].startswith(names[key.partition(":")[0]])]
        verified = {x[column] for x in own if x["verified(yes/no)"] == "yes" for column in ("value", "method")}
        assert set(reported.values) <= verified, key
    pairs = {}
    for x in lines:
        if "Beyond LoRA" in x["paper"] and x["verified(yes/no)"] == "yes":
            pairs.setdefault((x["model"], x["task"]), {})[x["method"]] = float(x["value"])
    better = [m["COLA"] > m["LoRA"] for m in pairs.values()]
    assert f"better in {sum(better)} of {len(better)} settings, worse in {better.count(False)}" in \
        ledger.CLAIMS["COLA"][0].note


def test_every_reported_number_is_used_and_has_a_source():
    used = {claim.says for claim in EVERY}
    for reported in claims.REPORTED.values():
        assert reported.text in used
        assert "arXiv" in reported.source or "Mathematics" in reported.source or "@" in reported.source


# ---- the page of the ledger ---------------------------------------------------------------------------------


def test_the_page_says_what_is_supported_and_what_is_not(tmp_path):
    tuned(tmp_path, {"COLA 2": 0.85, "LoRA": 0.70, "COLA 3": 0.55})
    study(tmp_path, "step_down", {"2": LOW})
    study(tmp_path, "chain", {"1": [x - 0.1 for x in LOW]})
    found = ledger.ledger(folder=tmp_path)
    page = ledger.summary_markdown(tmp_path)
    head, supported, short_ones, rest = re.split(r"\*\*(?=Supported|Contradicted)", page, maxsplit=3)
    one = next(row for row in found if row.key == "COLA 1")
    assert f"- COLA 1 (T1, T2, sst2): a chain of 2 beats LoRA at equal epochs: {one.interval_words()}" in supported
    assert "- COLA 4 (T1, T2, sst2)" in rest
    assert "COLA 4 " not in supported
    short = next(row for row in found if row.verdict == SUPPORTED and not row.tuned and row.paper == "COLA")
    assert f"- {short.key} " in short_ones.split("(short trainings and measurements)")[1]
    assert "minilm-l3 on rt, 100 steps" in short_ones
    ran = ledger.from_runs(found)
    sure = [row for row in ran if row.tuned and row.verdict in verdicts.DECIDED]
    assert f"{len(ran)} of {len(found)} claims have a verdict computed" in head
    assert f"(decided: {len(sure)}; standing among all that were tested" in head
    assert f"at 5 %: {sum(row.survives for row in sure)})" in head
    assert ledger.markdown(found) in page
    counted = [row for row in found if row.verdict == NO_RUNS]
    assert f"{len(counted)} wait for runs" in page


def test_a_ledger_can_be_filtered(rows):
    for filters, holds in (({"task": "rt"}, lambda row: row.task == "rt"),
                           ({"verdict": EXACT}, lambda row: row.verdict == EXACT),
                           ({"paper": "COLA", "task": "trec"}, lambda row: (row.paper, row.task) == ("COLA",
                                                                                                     "trec"))):
        assert ledger.ledger(**filters) == [row for row in rows if holds(row)] != []
    with pytest.raises(KeyError, match="there are rows of rt, sst2, trec"):
        ledger.ledger(task="mars")
    with pytest.raises(KeyError, match="no verdict 'true'; there are supported"):
        ledger.ledger(verdict="true")


def test_rows_from_runs_are_those_of_five_seeds(rows):
    for row in ledger.from_runs(rows):
        assert row.verdict in (SUPPORTED, CONTRADICTED, EQUAL, OPEN)
        assert len(row.differences) >= 5
    assert len(ledger.from_runs(rows)) >= 25


# ---- the pictures -------------------------------------------------------------------------------------------


def test_every_verdict_has_a_look_of_its_own():
    assert set(LOOKS) == set(verdicts.VERDICTS)
    assert len({color for color, _ in LOOKS.values()}) == len({marker for _, marker in LOOKS.values()}) == len(LOOKS)


def test_the_forest_has_a_row_a_claim():
    fig = drawings.forest(["a claim", "another"], [[1.0, 2.0], [-1.0, 3.0]], [(0.5, 2.5), None], [SUPPORTED, NO_RUNS],
                          [">", "<"], "points")
    ax = fig.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a claim\u00a0→", "another\u00a0←"]
    assert [list(line.get_xdata()) for line in ax.lines[:3]] == [[1.0, 2.0], [0.5, 2.5], [1.5]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [SUPPORTED, NO_RUNS]


def test_counts_are_drawn_with_their_numbers():
    fig = drawings.verdict_counts({"COLA": {SUPPORTED: 2, OPEN: 3}, "LoRA": {SUPPORTED: 1}})
    assert sorted(text.get_text() for text in fig.axes[0].texts) == ["1", "2", "3"]


def test_missed_intervals_stand_out():
    fig = drawings.repeated_intervals([(-1.0, 1.0), (0.5, 1.0)], 0.0, "difference")
    assert [line.get_linewidth() for line in fig.axes[0].lines[:2]] == [1, 3]


def test_the_steps_and_the_power_are_drawn():
    fig = drawings.verdict_in_steps([2.0, 3.0], [1.0, 1.0], [1.0, 1.5, 2.0], (1.0, 2.0), (0.5, 2.5), ("a", "b"))
    assert len(fig.axes) == 3
    assert sorted(fig.axes[1].lines[0].get_xdata()) == [1.0, 2.0]
    fig = drawings.power_curves([3, 4, 5], {"difference 1": [0.1, 0.2, 0.3]}, 5)
    assert list(fig.axes[0].lines[0].get_ydata()) == [0.1, 0.2, 0.3]


# ---- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_a_paper(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = command(monkeypatch, capsys, "claims", "--paper", "COLA")
    assert (status, err) == (0, "")
    assert "tying a knot" in out
    assert "holds exactly" in out
    assert "SaLoRA" not in out


def test_the_command_gives_json(monkeypatch, capsys):
    status, out, _ = command(monkeypatch, capsys, "claims", "--paper", "lora", "--json")
    found = json.loads(out)
    assert status == 0
    assert [row["key"] for row in found["claims"]] == [f"LoRA {i}" for i in range(1, len(ledger.CLAIMS["LoRA"]) + 1)]
    assert found["claims"][-1]["verdict"] == EXACT
    assert sum(found["counts"]["LoRA"].values()) == len(found["claims"])


def test_the_command_gives_the_page(monkeypatch, capsys, tmp_path):
    shutil.copy(references_folder() / "studies" / "chain.json", tmp_path)
    status, out, _ = command(monkeypatch, capsys, "claims", "--markdown", "--folder", str(tmp_path))
    assert (status, out.strip()) == (0, ledger.summary_markdown(tmp_path).strip())


def test_the_command_refuses_an_unknown_paper(monkeypatch, capsys):
    status, out, err = command(monkeypatch, capsys, "claims", "--paper", "QLoRA")
    assert (status, out) == (2, "")
    assert "Delta-LoRA" in err


def test_the_folder_of_another_study_is_read(monkeypatch, capsys, tmp_path):
    shutil.copy(references_folder() / "studies" / "chain.json", tmp_path)
    status, out, _ = command(monkeypatch, capsys, "claims", "--folder", str(tmp_path), "--json")
    assert status == 0
    with_runs = {row["key"].partition(" ")[0] for row in json.loads(out)["claims"]
                 if row["verdict"] not in {NO_RUNS, UNTESTABLE, EXACT}}
    assert with_runs == {"COLA"}   # of this study, and of none that the checkout holds


def test_a_folder_without_studies_is_said_to_have_none(monkeypatch, capsys, tmp_path):
    status, out, err = command(monkeypatch, capsys, "claims", "--folder", str(tmp_path))
    assert (status, out) == (2, "")
    assert "there are no studies in" in err


def test_the_command_shows_a_part(monkeypatch, capsys):
    def said(*words: str) -> tuple[int, str]:
        status, out, err = command(monkeypatch, capsys, "claims", *words)
        return status, " ".join((out + err).split())

    assert said("--paper", "cola", "--task", "rt", "--verdict", "supported") == (0, "no row is like this")
    _, out = said("--paper", "Delta-LoRA", "--task", "sst2", "--json")
    assert {row["task"] for row in json.loads(out)["claims"]} == {"sst2"}
    assert said("--task", "mars")[0] == 2
    assert "there are rows of rt, sst2, trec" in said("--task", "mars")[1]
