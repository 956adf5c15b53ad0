"""The ledger: intervals that cover, a rule that cannot be argued with, and rows that come from records alone."""

from __future__ import annotations

import csv
import json
import math
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
from lowrank_teach.methods import METHODS
from lowrank_teach.models.backbones import BACKBONES
from lowrank_teach.reproduction import arms as studies
from lowrank_teach.reproduction import claims, ledger, verdicts
from lowrank_teach.reproduction.arms import TEXT_STUDIES
from lowrank_teach.reproduction.results import references_folder
from lowrank_teach.reproduction.verdicts import (
    BROKEN,
    EXACT,
    HOLDS,
    NO_RUNS,
    OPEN,
    OPPOSITE,
    UNTESTABLE,
    Compared,
    number,
    ours,
)
from lowrank_teach.tasks.table import TASKS

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
    ((0.1, 1), ">", 0, HOLDS), ((-1, -0.1), ">", 0, OPPOSITE), ((-1, 1), ">", 0, OPEN), ((0, 1), ">", 0, OPEN),
    ((-1, -0.1), "<", 0, HOLDS), ((0.1, 1), "<", 0, OPPOSITE), ((0, 0), "<", 0, OPEN),
    ((-1, 1), "≈", 1, HOLDS), ((-1, 1.1), "≈", 1, OPEN), ((1.1, 2), "≈", 1, OPPOSITE), ((-3, -2), "≈", 1, OPPOSITE)])
def test_the_rule(interval, side, margin, said):
    assert verdicts.judge(interval, side, margin) == said


def test_fewer_than_five_seeds_give_no_verdict():
    assert verdicts.verdict([1.0] * 4, ">") == (NO_RUNS, None)
    assert verdicts.verdict([1.0] * 5, ">") == (HOLDS, (1.0, 1.0))
    with pytest.raises(ValueError, match="side"):
        verdicts.judge((0, 1), ">=")


# ---- rows from records --------------------------------------------------------------------------------------


def test_a_verdict_follows_the_records(tmp_path):
    """The same claim over made-up scores: one side, the other side, between, too few, none."""
    claim, low = ledger.CLAIMS["COLA"][0], [0.70, 0.71, 0.69, 0.72, 0.70]

    def row(name, chain2):
        return claim.row("COLA 1", "COLA", study(tmp_path / name, "chain", {"1": low, "2": chain2}))

    up, down = row("up", [x + 0.02 for x in low]), row("down", [x - 0.02 for x in low])
    assert (up.verdict, down.verdict) == (HOLDS, OPPOSITE)
    assert up.difference == pytest.approx(2.0)
    assert up.ours.startswith("chain length = 2: 72.4 ± 1.14; chain length = 1: 70.4")
    assert row("mixed", [0.71, 0.70, 0.70, 0.71, 0.71]).verdict == OPEN
    few = row("few", [0.9, 0.9, 0.9])
    assert (few.verdict, few.interval) == (NO_RUNS, None)
    assert few.why.startswith("3 of 5 seeds; minilm-l3 on rt, 100 steps")
    assert few.interval_words() == "20.0 points"
    nothing = claim.row("COLA 1", "COLA", tmp_path / "empty")
    assert (nothing.verdict, nothing.ours) == (NO_RUNS, "–")
    assert "lowrank-teach study chain" in nothing.why


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
    assert (row.verdict, row.ours) == (HOLDS, "a, MiB: 102.0 ± 0.00; b, MiB: 100.0 ± 0.00")
    assert row.differences == pytest.approx([2.0] * 5)
    assert ledger.from_runs([row]) == []   # repeats of a measurement are no seeds


def test_a_ratio_is_taken_seed_by_seed(tmp_path):
    folder = study(tmp_path, "chain", {"2": [3.0, 8.0], "1": [2.0, 4.0]})
    found = verdicts.ratio(("chain", "2"), ("chain", "1"), verdicts.score, 1.25)(folder)
    assert found.differences == pytest.approx([0.25, 0.75])
    assert found.ours == {"chain length = 2 / chain length = 1": [1.5, 2.0]}


def across_tasks(folder: Path, scores: dict[str, dict[str, list[float]]]) -> Path:
    """A file of the study over tasks: task -> arm -> scores by seed."""
    records = [{"task": task, "arm": arm, "seed": seed, "test": {"accuracy": value}}
               for task, arms in scores.items() for arm, values in arms.items() for seed, value in enumerate(values)]
    about = {"name": "side_by_side", "backbone": "minilm-l3", "training": {"steps": 100}}
    (folder / "side_by_side.json").write_text(json.dumps({**about, "records": records}), encoding="utf-8")
    return folder


def test_over_tasks_a_seed_gives_one_number(tmp_path):
    folder = across_tasks(tmp_path, {"sst2": {"COLA": [0.8] * 5, "LoRA": [0.7] * 5},
                                     "rt": {"COLA": [0.70, 0.68, 0.66, 0.70, 0.66], "LoRA": [0.7] * 5}})
    row = verdicts.average_claim("T1", "better", "COLA", "LoRA").row("x", "y", folder)
    assert row.differences == pytest.approx([5.0, 4.0, 3.0, 5.0, 3.0])
    assert (row.verdict, row.unit) == (HOLDS, "points over tasks")
    assert row.ours == "COLA: 74.0 ± 0.50; LoRA: 70.0 ± 0.00".replace("0.50", number(np.std([5, 4, 3, 5, 3], ddof=1)))
    assert row.why.startswith("minilm-l3 on sst2, rt, 100 steps")


def test_tasks_ahead_are_held_against_half_of_them(tmp_path):
    """Two of three tasks at each seed, one of them tied at seed 0; cola, a tie at every seed, is not counted."""
    folder = across_tasks(tmp_path, {
        "sst2": {"COLA": [0.8] * 5, "LoRA": [0.7] * 5}, "rt": {"COLA": [0.6] * 5, "LoRA": [0.7] * 5},
        "rte": {"COLA": [0.7] + [0.8] * 4, "LoRA": [0.7] * 5}, "cola": {"COLA": [0.0] * 5, "LoRA": [0.0] * 5}})
    row = verdicts.most_claim("T1", "ahead", "COLA", "LoRA").row("x", "y", folder)
    assert row.differences == pytest.approx([0.0, 0.5, 0.5, 0.5, 0.5])
    assert row.why.startswith("minilm-l3 on sst2, rt, rte, 100 steps")


@pytest.mark.parametrize(("worst", "said"), [
    ([0.72, 0.73, 0.72, 0.73, 0.72], HOLDS), ([0.72, 0.73, 0.66, 0.73, 0.68], OPEN), ([0.6] * 5, OPPOSITE)])
def test_on_every_task_the_lowest_decides(tmp_path, worst, said):
    folder = across_tasks(tmp_path, {
        "sst2": {"COLA": [0.9, 0.8, 0.9, 0.8, 0.9], "LoRA": [0.7] * 5}, "rte": {"COLA": worst, "LoRA": [0.7] * 5},
        "cola": {"COLA": [0.0] * 5, "LoRA": [0.0] * 5}, "rt": {"COLA": [0.1] * 5, "LoRA": [0.7] * 5}})  # not GLUE
    row = verdicts.every_claim("T1", "ahead", "COLA", "LoRA").row("x", "y", folder)
    assert row.verdict == said
    assert row.differences == pytest.approx([100 * (x - 0.7) for x in worst])
    assert row.ours.startswith("lowest, on rte")
    strict = statistics.paired_bootstrap(row.differences, 0.975)   # two tasks: 1 − 0.05 / 2
    assert row.interval == pytest.approx((statistics.paired_bootstrap(row.differences)[0], strict[1]))


def test_on_every_task_needs_five_seeds_and_a_task(tmp_path):
    claim = verdicts.every_claim("T1", "ahead", "COLA", "LoRA")
    few = across_tasks(tmp_path, {"sst2": {"COLA": [0.9] * 5, "LoRA": [0.7] * 5},
                                  "rte": {"COLA": [0.9] * 4, "LoRA": [0.7] * 4}})
    assert (claim.row("x", "y", few).verdict, claim.row("x", "y", few).interval) == (NO_RUNS, None)
    none = across_tasks(tmp_path, {"cola": {"COLA": [0.0] * 5, "LoRA": [0.0] * 5}})
    assert claim.row("x", "y", none).verdict == NO_RUNS


def test_glue_is_what_is_glue():
    assert {t for t in studies.TASK_STUDIES["side_by_side"].tasks if TASKS[t].origin.startswith("GLUE")} == set(
        verdicts.GLUE)


def test_numbers_read_from_a_record():
    record = {"series": {"lambda": [[1, 2, 3], [0.0, 0.5, 0.4]], "budget_penalty": [[1, 2], [0.5, 0.1]]},
              "ranks": {"0.q": 2, "0.v": 6, "1.q": 4, "1.v": 3, "0.k": 1}, "method": {"b": 0.25},
              "sites": {"cosine": {"0.q": 0.5, "0.v": 0.7}}, "seconds": {"training": 4.0, "search": 2.0}}
    assert claims._largest_fall(record) == pytest.approx(0.1)
    assert claims._left_of_peak(record) == pytest.approx(0.2)
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
        of_each=lambda arm, value: asked.append((study, arm)) or pd.Series(dtype=float)))
    monkeypatch.setattr(verdicts, "setting", lambda found: "")
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
        if isinstance(claim, verdicts.Beyond):
            for name in claim.needs.split(" and "):
                assert name.lower() not in {n.lower() for n in [*BACKBONES, *METHODS]}
                assert name.lower().replace("-", "").replace("_", "") not in METHODS


# ---- statements checked on the spot -------------------------------------------------------------------------


EXACT_CLAIMS = [claim for claim in EVERY if isinstance(claim, verdicts.Exact)]


@pytest.mark.parametrize("claim", EXACT_CLAIMS, ids=lambda claim: claim.statement[:50])
def test_what_holds_exactly(claim):
    """All hold but one: the bound as it is printed."""
    wanted = BROKEN if "as printed" in claim.statement else EXACT
    assert claim.row("x", "y", None).verdict == wanted


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
    assert claims.frank_wolfe_gap("as printed") > 0


# ---- the tables ---------------------------------------------------------------------------------------------


def test_every_paper_has_its_table(rows):
    for paper in ledger.CLAIMS:
        table = ledger.table(paper)
        assert list(table.columns) == ["where", "statement", "paper's number", "ours", "difference [95 %]", "seeds",
                                       "verdict", "setting, or reason"]
        assert table.index.is_unique
        assert table.index[0] == f"{paper} 1"
        assert set(table["verdict"]) <= set(verdicts.VERDICTS)
    assert len(rows) == len(EVERY) == ledger.counts(rows).to_numpy().sum()
    assert len({(row.paper, row.statement) for row in rows}) == len(rows)
    with pytest.raises(KeyError, match="COLA"):
        ledger.table("Cola")


def test_a_row_says_why_it_has_its_verdict(rows):
    for row in rows:
        assert row.why
        decided = row.verdict in (HOLDS, OPPOSITE, OPEN)
        assert decided == (row.interval is not None)
        if decided:
            assert row.verdict == verdicts.judge(row.interval, row.side, row.margin)
            assert len(row.differences) >= statistics.SEEDS or "repeats" in row.why
        if row.verdict == UNTESTABLE:
            assert row.why.startswith("needs ")


def test_the_tables_stand_without_any_study(tmp_path):
    table = ledger.table(folder=tmp_path)
    assert set(table["verdict"]) == {NO_RUNS, UNTESTABLE, EXACT, BROKEN}


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


def test_the_page_says_what_held_and_what_did_not(tmp_path):
    low, high = [0.70, 0.71, 0.69, 0.72, 0.70], [0.80, 0.81, 0.79, 0.82, 0.80]
    study(tmp_path, "chain", {"1": low, "2": high, "3": [x - 0.1 for x in low]})
    page = ledger.summary_markdown(tmp_path)
    held, rest = page.split("**Came out the other way")
    assert "- COLA 1 (T1, T2): a chain of 2 beats LoRA at equal epochs: 10.0 [10.0, 10.0] points" in held
    assert "- COLA 2 (T1, T2)" in rest.split("**Not told apart")[0]
    assert "COLA 2" not in held
    found = ledger.ledger(folder=tmp_path)
    assert f"{len(ledger.from_runs(found))} of {len(found)} claims have a verdict computed" in page
    assert "Settings: minilm-l3 on rt, 100 steps." in page
    assert ledger.markdown(found) in page
    counted = [row for row in found if row.verdict == NO_RUNS]
    assert f"{len(counted)} wait for runs" in page


def test_rows_from_runs_are_those_of_five_seeds(rows):
    for row in ledger.from_runs(rows):
        assert row.verdict in (HOLDS, OPPOSITE, OPEN)
        assert len(row.differences) >= 5
    assert len(ledger.from_runs(rows)) >= 40


# ---- the pictures -------------------------------------------------------------------------------------------


def test_every_verdict_has_a_look_of_its_own():
    assert set(LOOKS) == set(verdicts.VERDICTS)
    assert len({color for color, _ in LOOKS.values()}) == len({marker for _, marker in LOOKS.values()}) == len(LOOKS)


def test_the_forest_has_a_row_a_claim():
    fig = drawings.forest(["a claim", "another"], [[1.0, 2.0], [-1.0, 3.0]], [(0.5, 2.5), None], [HOLDS, NO_RUNS],
                          [">", "<"], "points")
    ax = fig.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a claim\u00a0→", "another\u00a0←"]
    assert [list(line.get_xdata()) for line in ax.lines[:3]] == [[1.0, 2.0], [0.5, 2.5], [1.5]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [HOLDS, NO_RUNS]


def test_counts_are_drawn_with_their_numbers():
    fig = drawings.verdict_counts({"COLA": {HOLDS: 2, OPEN: 3}, "LoRA": {HOLDS: 1}})
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
                 if row["verdict"] not in {NO_RUNS, UNTESTABLE, EXACT, BROKEN}}
    assert with_runs == {"COLA"}   # of this study, and of none that the checkout holds


def test_a_folder_without_studies_is_said_to_have_none(monkeypatch, capsys, tmp_path):
    status, out, err = command(monkeypatch, capsys, "claims", "--folder", str(tmp_path))
    assert (status, out) == (2, "")
    assert "there are no studies in" in err
