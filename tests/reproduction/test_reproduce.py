"""`reproduce`: the right runs for a claim, what the store lacks and no more, two verdicts side by side."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from test_side_by_side import run_of
from tiny_models import command, data_folder, model_folder

from lowrank_teach.experiments import fit as experiment
from lowrank_teach.experiments.fit import RunConfig
from lowrank_teach.experiments.runs import Store
from lowrank_teach.methods import LoRA
from lowrank_teach.models.backbones import load_backbone
from lowrank_teach.reproduction import ledger, studies, verdicts
from lowrank_teach.reproduction.arms import STUDIES, TASK_STUDIES, TEXT_STUDIES, Arm, Study
from lowrank_teach.reproduction.verdicts import (
    CONTRADICTED,
    EXACT,
    NO_RUNS,
    SUPPORTED,
    UNSOUND,
    Beyond,
    Compared,
    Exact,
)

EVERY = [(f"{paper} {i}", claim) for paper, all_ in ledger.CLAIMS.items() for i, claim in enumerate(all_, 1)]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """One claim of each kind over tiny studies with real trainings; the folder of its stored scores."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    backbone = str(model_folder(tmp_path / "model"))
    arms = {"one": Arm(LoRA(r=1)), "two": Arm(LoRA(r=2), {"lr": 0.01}), "three": Arm(LoRA(r=4))}
    small = Study("?", "rank", arms, {"rt": {}}, backbone, "tiny", {"steps": 2, "batch_size": 8}, seeds=2)
    monkeypatch.setitem(STUDIES, "small", small)
    monkeypatch.setitem(TASK_STUDIES, "side_by_side", replace(small, training={"steps": 2}, rates=(1e-3, 1e-2),
                                                              chosen_with=(0,)))
    monkeypatch.setattr(ledger, "CLAIMS", {"P": (
        Compared("T1", "two beats one", verdicts.between(("small", "two"), ("small", "one"))),
        Compared("T1", "on a task, two beats one", verdicts.on_task("side_by_side", "rt", "two", "one"), task="rt"),
        Exact("eq. 1", "one is one", lambda: 0.0, "counted"), Beyond("T2", "at scale", "a larger model"),
        Compared("T4", "memory", verdicts.peak_memory("a", "b"), "≈"))})
    stored = tmp_path / "figures" / "studies"
    stored.mkdir(parents=True)
    records = [{"arm": arm, "seed": seed, "test": {"accuracy": x}, "seconds": {"total": 30.0}}
               for arm, x in (("one", 0.5), ("two", 0.9)) for seed in range(5)]
    about = {"name": "small", "backbone": "b", "task": "rt", "training": {"steps": 2}}
    (stored / "small.json").write_text(json.dumps({**about, "records": records}), encoding="utf-8")
    return stored


# ---- finding ------------------------------------------------------------------------------------------------


def test_a_row_is_found_by_its_key():
    key, paper, claim = ledger.find(" delta-lora  3")
    assert (key, paper) == ("Delta-LoRA 3", "Delta-LoRA")
    assert claim is ledger.CLAIMS["Delta-LoRA"][2]
    for wrong in ("COLA", "COLA 0", "COLA 99", "QLoRA 1", "", "COLA x"):
        with pytest.raises(ValueError, match="LoRA 1 to"):
            ledger.find(wrong)


@pytest.mark.parametrize(("key", "claim"), EVERY, ids=[key for key, _ in EVERY])
def test_every_row_has_runs_or_says_why_not(key, claim):
    why = ledger.nothing_to_train(claim)
    if why:
        assert not isinstance(getattr(claim, "measure", None), verdicts.FromRuns)
        return
    for study, arms in ledger.behind(claim).items():
        assert arms
        assert set(arms) <= set({**STUDIES, **TASK_STUDIES, **TEXT_STUDIES}[study].arms)


# ---- the plan -----------------------------------------------------------------------------------------------


def test_the_plan_counts_what_the_store_lacks(tiny, tmp_path):
    store = Store(tmp_path / "runs")
    plan = ledger.plan("P 1", store=store, stored=tiny)
    assert (plan.runs, plan.stored, plan.minutes) == (4, 0, 2.0)   # 30 s each
    ledger.reproduce("P 1", seeds=1, store=store, stored=tiny)
    assert ledger.plan("P 1", store=store, stored=tiny) == ledger.RunPlan(4, 2, 1.0)
    ledger.reproduce("P 1", store=store, stored=tiny)
    assert ledger.plan("P 1", store=store, stored=tiny) == ledger.RunPlan(4, 4, 0.0)
    assert ledger.plan("P 1", store=store, stored=tmp_path / "empty") == ledger.RunPlan(4, 4, 0.0)
    assert ledger.plan("P 1", store=store, stored=tiny, steps=3).stored == 0


def test_the_plan_of_a_task_has_the_grid_and_the_seeds(tiny, tmp_path):
    store = Store(tmp_path / "runs")
    plan = ledger.plan("P 2", store=store, stored=tiny)
    assert (plan.runs, plan.stored, plan.minutes) == (2 * (2 + 1), 0, None)
    trained = ledger.reproduce("P 2", store=store, stored=tiny).runs
    assert trained == plan.runs == len(list(store))
    assert ledger.plan("P 2", store=store, stored=tiny).stored == 4


def key_of(statement: str, task: str = "") -> str:
    """The first row that says so."""
    return next(key for key, claim in EVERY if claim.statement == statement and getattr(claim, "task", "") == task)


@pytest.mark.parametrize(("statement", "runs"), [
    ("a chain of 2 beats LoRA at equal epochs", 2 * (6 * 2 + 3 * 2 + 5)),
    ("the search beats its own ranks dealt out at random", 6 * 2 + 3 * 2 + 5 + 5)])
def test_the_plan_of_a_tuned_row_by_hand(statement, runs, tmp_path):
    """Six rates in short, three in full, with two seeds each; five seeds; a control takes another arm's rate."""
    assert ledger.plan(key_of(statement, "sst2"), store=Store(tmp_path)).runs == runs


@pytest.mark.parametrize(("statement", "runs"), [
    ("on E2E, Delta-LoRA beats LoRA by BLEU, each at its best rate", 18),
    ("on E2E, Delta-LoRA beats LoRA at (1 + λ) α and the same rate by BLEU, for λ = 2", 14),
    ("on E2E, AutoLoRA beats LoRA of rank 4 by all five scores", 18)])
def test_the_plan_of_stored_texts_by_hand(statement, runs, tmp_path):
    """Two arms at five rates with seed 0 and four seeds more; a control has its five seeds and no grid."""
    assert ledger.plan(key_of(statement), store=Store(tmp_path)).runs == runs
    assert ledger.plan(key_of(statement), store=Store(tmp_path), lr=1e-3).runs == 10


def test_where_there_is_nothing_to_train(tiny):
    why = [ledger.plan(f"P {i}", stored=tiny).why for i in (3, 4, 5)]
    assert ["on the spot" in why[0], "a larger model" in why[1], "peak_memory.py" in why[2]] == [True] * 3
    assert ledger.plan("P 3", stored=tiny).runs == 0


# ---- training -----------------------------------------------------------------------------------------------


def test_only_the_arms_of_the_claim_are_trained(tiny, tmp_path):
    store = Store(tmp_path / "runs")
    before = (tiny / "small.json").read_bytes()
    again = ledger.reproduce("P 1", store=store, stored=tiny)
    trained = sorted((run.config["method"]["r"], run.config["seed"]) for run in store)
    assert trained == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert {run.config["training"]["lr"] for run in store if run.config["method"]["r"] == 2} == {0.01}
    assert again.runs == 4
    assert (tiny / "small.json").read_bytes() == before


def test_both_verdicts_stand_side_by_side(tiny, tmp_path):
    store = Store(tmp_path / "runs")
    short = ledger.reproduce("P 1", store=store, stored=tiny)
    assert (short.stored.verdict, short.new.verdict) == (SUPPORTED, NO_RUNS)      # two seeds
    assert short.new.why.startswith("2 of 5 seeds")
    full = ledger.reproduce("P 1", store=store, stored=tiny, seeds=5)
    wanted = [100 * (b - a) for a, b in zip(*(_scores(store, r) for r in (1, 2)), strict=True)]
    assert full.new.differences == pytest.approx(wanted)
    assert full.new.verdict == verdicts.verdict(verdicts.Evidence(wanted).estimate(), ">")
    assert full.gap == pytest.approx(max(abs(w - 40.0) for w in wanted))
    assert ("the same verdict" in ledger.said(full)) == (full.new.verdict == SUPPORTED)


def _scores(store: Store, r: int) -> list[float]:
    runs = sorted((run for run in store if run.config["method"]["r"] == r), key=lambda run: run.config["seed"])
    return [run.metrics["test"]["accuracy"] for run in runs]


def test_a_changed_verdict_is_said(tiny, tmp_path):
    stored = ledger.CLAIMS["P"][0].row("P 1", "P", tiny)
    other = stored.__class__(**{**stored.__dict__, "verdict": CONTRADICTED, "differences": [-1.0] * 5})
    words = ledger.said(ledger.Reproduction(stored, other))
    assert words == "'supported' becomes 'contradicted'; a seed's difference changes by 41 points at most"
    assert ledger.Reproduction(other, stored).gap == pytest.approx(41.0)
    assert ledger.said(ledger.Reproduction(stored, stored)).startswith("the same verdict; a seed's difference "
                                                                          "changes by 0")


def test_on_a_task_the_rate_is_chosen_again(tiny, tmp_path):
    """Of two rates either lies at the edge of the grid, and the new row says so."""
    store = Store(tmp_path / "runs")
    again = ledger.reproduce("P 2", store=store, stored=tiny)
    assert again.stored.verdict == NO_RUNS
    assert len(again.new.differences) == 2
    assert len(ledger.reproduce("P 2", store=store, stored=tiny, seeds=1).new.differences) == 1
    assert {run.config["method"]["r"] for run in store} == {1, 2}
    assert again.gap is None
    assert again.new.why.startswith("the learning rate chosen for two lies at the edge")
    assert ledger.said(again) == f"no stored verdict; new: {UNSOUND}"


def test_what_rests_on_no_runs_is_said(tiny):
    spot, beyond, measured = (ledger.reproduce(f"P {i}", stored=tiny) for i in (3, 4, 5))
    assert (spot.new.verdict, beyond.new, measured.new) == (EXACT, None, None)
    assert "on the spot" in ledger.said(spot)
    assert "a larger model" in ledger.said(beyond)
    assert "python tests/benchmarks/peak_memory.py" in ledger.said(measured)


@pytest.mark.parametrize(("study", "arms", "training"), [
    (STUDIES["delta"], ["LoRA, rate × 1.5", "LoRA"], {}), (STUDIES["delta"], ["LoRA"], {"steps": 3}),
    (TASK_STUDIES["side_by_side"], ["LoRA, r = 4", "COLA"], {}),
    (TEXT_STUDIES["e2e"], ["LoRA, α × 3"], {"steps": 2}), (TEXT_STUDIES["e2e"], ["LoRA"], {"lr": 1e-3})])
def test_the_plan_names_the_runs_that_the_study_trains(study, arms, training, tmp_path, monkeypatch):
    """Those whose learning rate is not chosen yet are counted, and there are no others."""
    asked = []

    def fit(method, task, backbone, profile, seed, *, store, progress, keep_model, **values):
        asked.append(RunConfig(method, task, backbone, profile, seed, {
            name: value for name, value in values.items() if name not in ("adjust", "longest")}).key)
        return run_of(0.5, 0.5)

    monkeypatch.setattr(experiment, "fit", fit)
    changed = study.changed(training=training, seeds=3)
    studies.Runner(changed, tmp_path / "study.json", {}).run(arms)
    planned = [config and config.key for configs in changed.plan(arms, 3).values() for config in configs]
    assert {key for key in planned if key} <= set(asked)
    assert len(set(asked)) == len(planned)


def test_the_plan_of_a_control_has_the_grid_of_its_arm():
    planned = TEXT_STUDIES["e2e"].plan(["LoRA, α × 3"], 2)
    assert [len(planned["Delta-LoRA"]), planned["LoRA, α × 3"]] == [5, [None, None]]


def test_minutes_are_unknown_without_stored_runs(tmp_path):
    assert math.isnan(ledger._seconds(("chain", "1"), tmp_path))


# ---- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_both(tiny, monkeypatch, capsys):
    def said(*words: str) -> tuple[int, str, str]:
        """Without the line breaks of a terminal of some width."""
        status, *texts = command(monkeypatch, capsys, "reproduce", *words, "--folder", str(tiny))
        return status, *(" ".join(text.split()) for text in texts)

    status, out, err = said("p", "1", "--quick")
    assert status == 0
    assert "two beats one" in out
    assert "supported" in out
    assert "2 of 5 seeds" in out
    assert "one, seed 0: accuracy 0." in err
    assert "too few seeds for a new verdict: 2 of 5 seeds; a seed's difference changes by" in out
    status, out, _ = said("P", "1", "--plan")
    assert (status, out) == (0, "4 runs, 0 of them in the store; the others take about 2 min, by the seconds "
                                "of the stored runs")
    _, out, err = said("P", "2", "--seeds", "1")
    assert "rt, one, seed 0, learning rate 0.001: accuracy 0." in err


def test_the_command_trains_anew_when_asked(tiny, monkeypatch, capsys):
    trained: list[str] = []
    monkeypatch.setattr(experiment, "load_backbone",
                        lambda name, **values: trained.append(name) or load_backbone(name, **values))
    words = ("reproduce", "P 1", "--seeds", "1", "--steps", "2", "--folder", str(tiny), "--json")
    first = json.loads(command(monkeypatch, capsys, *words)[1])
    assert len(trained) == len(list(Store())) == first["runs"] == 2
    command(monkeypatch, capsys, *words)
    assert len(trained) == 2
    again = json.loads(command(monkeypatch, capsys, *words, "--again")[1])
    assert len(trained) == 4
    assert again["new"]["differences"] == first["new"]["differences"]
    assert len(list(Store())) == 2


def test_the_command_refuses_what_is_no_claim(tiny, monkeypatch, capsys):
    status, out, err = command(monkeypatch, capsys, "reproduce", "P", "9")
    assert (status, out) == (2, "")
    assert "P 1 to 5" in err
