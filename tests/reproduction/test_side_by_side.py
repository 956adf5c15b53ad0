"""Studies over tasks: rates chosen on validation rows alone, pairs by task and seed, a file whole by tasks."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from tiny_models import command, data_folder, model_folder, rows

from lowrank_teach.errors import DivergedError
from lowrank_teach.experiments import fit as experiment
from lowrank_teach.experiments.runs import Run, Store
from lowrank_teach.methods import HeadOnly, LoRA
from lowrank_teach.reproduction import studies
from lowrank_teach.reproduction.arms import TASK_STUDIES, Arm, Study
from lowrank_teach.reproduction.results import SideBySide, references_folder
from lowrank_teach.tasks import load, table
from lowrank_teach.tasks.readers import validation_cut_from_train
from lowrank_teach.training.config import fit_to_profile, train_config

STORED = references_folder() / "studies" / "side_by_side.json"
SMALL = Study("Which?", "rank", {"a": Arm(LoRA(r=2)), "b": Arm(LoRA(r=4)), "like a": Arm(LoRA(r=8))},
              {"rt": {}, "trec": {"max_length": 8}}, training={"steps": 5}, seeds=3, rates=(0.1, 0.2, 0.4),
              rate_of={"like a": "a"})


def run_of(validation: float, test: float, loss: float = 0.5) -> Run:
    return Run(config={"method": {"method": "lora"}}, history=pd.DataFrame({"name": []}), ranks={"0.q": 2},
               parameters={},
               metrics={"validation": {"accuracy": validation, "loss": loss}, "test": {"accuracy": test}},
               seconds={"total": 2.0}, machine={"commit": "abc"})


@pytest.fixture
def small(monkeypatch):
    """The small study in the place of the one that is defined."""
    monkeypatch.setitem(TASK_STUDIES, "side_by_side", SMALL)


@pytest.fixture
def asked(monkeypatch, small):
    """`fit` made up: arm a validates best at 0.2 and tests best at 0.4; arm b at 0.1; what it was asked for."""
    calls: list[tuple] = []

    def fit(method, task, backbone, profile, seed, *, lr, **values):
        calls.append((task, method.r, seed, lr, values))
        best = 0.1 if method.r == 4 else 0.2
        return run_of(0.8 - abs(lr - best), 0.5 + lr + 0.01 * seed + 0.1 * (method.r == 4))

    monkeypatch.setattr(experiment, "fit", fit)
    return calls


def train(folder, **how) -> SideBySide:
    return studies.train("side_by_side", folder, **how)


# ---- training -----------------------------------------------------------------------------------------------


def test_the_rate_is_chosen_on_validation_rows(asked, tmp_path):
    found = train(tmp_path)
    assert (found.rate("a", "rt"), found.rate("b", "rt")) == (0.2, 0.1)   # test rows would take 0.4
    assert found.values("a")["rt"] == pytest.approx([0.7, 0.71, 0.72])


def test_a_control_takes_the_rate_of_its_arm(asked, tmp_path):
    found = train(tmp_path)
    assert found.rate("like a", "trec") == found.rate("a", "trec")
    assert {lr for _, r, _, lr, _ in asked if r == 8} == {0.2}
    alone = train(tmp_path / "alone", arms=["like a"])
    assert (alone.arms, alone.rate("like a", "rt")) == (["like a"], 0.2)
    assert set(alone.grid()["arm"]) == {"a"}


def test_tasks_come_one_after_the_other_with_their_own_values(asked, tmp_path):
    train(tmp_path, batch_size=4)
    order = [task for task, *_ in asked]
    assert order == sorted(order)
    assert {(task, values.get("max_length")) for task, *_, values in asked} == {("rt", None), ("trec", 8)}
    assert all(values["steps"] == 5 and values["batch_size"] == 4 for *_, values in asked)
    a_task = 2 * 3 * 2 + 3 * 3
    assert len(asked) == 2 * a_task


def test_a_grid_is_widened_until_its_best_rate_lies_inside(asked, monkeypatch, tmp_path):
    """Arm b is best at 0.1, the lowest rate there is: half of it is tried, and no run twice."""
    monkeypatch.setitem(TASK_STUDIES, "side_by_side", replace(SMALL, widen=True))
    found = train(tmp_path, arms=["a", "b"], tasks=["rt"])
    assert (found.rate("a", "rt"), found.rate("b", "rt")) == (0.2, 0.1)
    assert sorted(set(found.grid().query("arm == 'b'")["lr"])) == [0.05, 0.1, 0.2, 0.4]
    assert sorted(set(found.grid().query("arm == 'a'")["lr"])) == [0.1, 0.2, 0.4]
    tried = [one[:4] for one in asked if one[2] in (0, 1)]
    assert len(tried) == 2 * (3 + 4) + 2 * 2       # those of the grid, and the two seeds that are reported as well


def test_a_grid_without_an_end_is_refused(monkeypatch, small, tmp_path):
    monkeypatch.setattr(experiment, "fit", lambda *_, lr, **__: run_of(lr, 0.5))
    monkeypatch.setitem(TASK_STUDIES, "side_by_side", replace(SMALL, widen=True))
    with pytest.raises(DivergedError, match="lies at the edge"):
        train(tmp_path, arms=["a"], tasks=["rt"])


def test_of_a_first_round_the_best_three_are_tried_in_full(asked, monkeypatch, tmp_path):
    rates = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    monkeypatch.setitem(TASK_STUDIES, "side_by_side", replace(SMALL, rates=rates, rung=2, chosen_with=(100,)))
    found = train(tmp_path, arms=["a"], tasks=["rt"])
    assert found.rate("a", "rt") == 0.2
    assert [lr for _, _, seed, lr, values in asked if seed == 100 and values["steps"] == 2] == sorted(rates)
    assert {lr for _, _, seed, lr, values in asked if seed == 100 and values["steps"] == 5} == {0.05, 0.1, 0.2}
    assert {lr for _, _, seed, lr, _ in asked if seed < 100} == {0.2}   # tuning seeds are not reported


def test_where_scores_tie_the_loss_decides(monkeypatch, small, tmp_path):
    monkeypatch.setattr(experiment, "fit", lambda *_, lr, **__: run_of(0.5, 0.5, loss=abs(lr - 0.2)))
    assert train(tmp_path, arms=["a"]).rate("a", "rt") == 0.2


def test_a_rate_that_diverges_is_not_chosen(monkeypatch, small, tmp_path):
    def fit(*_, lr, **__):
        if lr > limit:
            raise DivergedError("the loss is nan")
        return run_of(lr, 0.5)

    monkeypatch.setattr(experiment, "fit", fit)
    limit = 0.3
    found = train(tmp_path, arms=["a"])
    assert found.rate("a", "rt") == 0.2
    assert math.isnan(found.grid().query("lr == 0.4")["validation"].iloc[0])
    limit = 0.0
    with pytest.raises(DivergedError, match="a on rt diverges at every rate"):
        train(tmp_path / "again", arms=["a"])


def test_the_file_holds_every_run_that_was_made(asked, tmp_path):
    """Stopped within the second task."""
    def stop(task, label, seed, rate, run):
        if (task, label, seed) == ("trec", "b", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_run=stop)
    kept = studies.load_across("side_by_side", tmp_path)
    whole = [(task, arm, seed) for task in ("rt", "trec") for seed in range(3) for arm in SMALL.arms]
    assert [(r["task"], r["arm"], r["seed"]) for r in kept.records] == whole[:-1]
    assert kept.about["commits"] == ["abc"]
    assert "test" not in json.dumps(kept.about["grid"])   # runs that chose a rate: validation scores alone


def test_real_runs_are_found_again(monkeypatch, tmp_path):
    """The whole way at tiny size, with a task whose test rows have no labels."""
    data = data_folder(tmp_path / "data")
    data_folder(data, "sst2", "sentence")
    (data / "sst2" / "test.parquet").unlink()
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data))
    monkeypatch.setitem(TASK_STUDIES, "side_by_side", Study(
        "?", "method", {"LoRA": Arm(LoRA(r=1)), "head": Arm(HeadOnly())}, {"rt": {}, "sst2": {"max_length": 8}},
        str(model_folder(tmp_path / "model")), "tiny",
        {"steps": 2, "batch_size": 8, "validation_from_train": True}, seeds=2, rates=(1e-3, 1e-2), chosen_with=(0,)))
    store, seen = Store(tmp_path / "runs"), []
    found = train(tmp_path, store=store, on_run=lambda *values: seen.append(values[-1]))
    assert len(seen) == 2 * 2 * (2 + 2)
    assert len(list(store)) == 2 * 2 * (2 + 1)   # the chosen rate's first run is there already
    assert "published validation rows are the test" in seen[-1].notes[0]
    before = {run.key: run.seconds["total"] for run in store}
    assert train(tmp_path, store=store).records == found.records
    assert {run.key: run.seconds["total"] for run in store} == before
    monkeypatch.setattr(experiment, "fit", lambda *_, **__: pytest.fail("it trained again"))
    again = train(tmp_path, store=Store(tmp_path / "nothing"))   # without the store: what the file has
    assert (again.records, again.grid().to_dict()) == (found.records, found.grid().to_dict())


# ---- validation rows that are cut from train ----------------------------------------------------------------


def test_validation_is_cut_from_train_and_shares_no_text_with_it():
    frame = pd.concat([rows(300), rows(300)], ignore_index=True)   # every text twice
    splits = validation_cut_from_train({"train": frame, "validation": rows(20, 9)}, ("text",))
    assert splits["test"].equals(rows(20, 9))
    assert not set(splits["train"]["text"]) & set(splits["validation"]["text"])
    assert len(splits["train"]) + len(splits["validation"]) == len(frame)
    assert 0.05 < len(splits["validation"]) / len(frame) < 0.15


def test_only_tasks_without_test_rows_are_cut(monkeypatch, tmp_path):
    data = data_folder(tmp_path / "data")
    data_folder(data, "sst2", "sentence")
    (data / "sst2" / "test.parquet").unlink()
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data))
    plain, cut = (load.load_task("sst2", validation_from_train=v) for v in (False, True))
    assert plain.test is None
    assert sorted(cut.test["sentence"]) == sorted(plain.validation["sentence"])
    assert len(cut.train) + len(cut.validation) == len(plain.train)
    assert load.load_task("sst2", validation_from_train=True, seed=3).validation.equals(cut.validation)
    assert load.load_task("rt", validation_from_train=True).source == load.load_task("rt").source


def test_a_task_that_trains_on_another_s_rows_takes_its_cut(monkeypatch, tmp_path):
    """mnli-mm has validation rows alone: they become its test, and mnli's training rows are cut."""
    (folder := tmp_path / "mnli").mkdir()
    for i, split in enumerate(("train", "validation_matched", "validation_mismatched")):
        frame = rows(200 if split == "train" else 20, i).rename(columns={"text": "premise"})
        frame.assign(hypothesis="so it is").to_parquet(folder / f"{split}.parquet")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    own, other = (load.load_task(name, validation_from_train=True) for name in ("mnli-mm", "mnli"))
    assert sorted(own.test["premise"]) == sorted(rows(20, 2)["text"])
    assert sorted(other.test["premise"]) == sorted(rows(20, 1)["text"])
    assert sorted(own.validation["premise"]) == sorted(other.validation["premise"])
    assert len(own.train) == len(other.train) == 200 - len(own.validation)
    assert len(load.load_task("mnli-mm", validation_from_train=True, n_test=5).test) == 5


# ---- what it says -------------------------------------------------------------------------------------------


def made(scores: dict[str, dict[str, list[float]]]) -> SideBySide:
    """Task -> arm -> scores by seed."""
    records = [{"task": task, "arm": arm, "seed": seed, "lr": 0.1, "seconds": {"total": 1.0},
                "test": {"mcc" if task == "cola" else "accuracy": score, "loss": 9.0}}
               for task, arms in scores.items() for arm, values in arms.items() for seed, score in enumerate(values)]
    return SideBySide({"name": "x", "grid": []}, records)


def test_tasks_weigh_the_same_and_pairs_are_by_task_and_seed():
    found = made({"rt": {"a": [0.7, 0.8], "b": [0.6, 0.8]}, "cola": {"a": [0.1, 0.0], "b": [0.1, 0.3]}})
    assert found.metric("cola") == "mcc"
    assert found.differences("a", "b", "cola") == pytest.approx([0.0, -30.0])
    assert found.difference("a", "b") == pytest.approx([5.0, -15.0])
    assert found.average("a") == pytest.approx([40.0, 40.0])
    assert found.ahead("a", "b") == [1.5, 0.5]
    assert found.ahead("a", "b", ["rt"]) == [1.0, 0.5]
    assert found.ahead("a", "a", []) == []
    for arm in "ab":
        gone = SideBySide(found.about, [r for r in found.records[::-1] if (r["arm"], r["seed"]) != (arm, 0)])
        assert gone.difference("a", "b") == pytest.approx([-15.0])
    with pytest.raises(KeyError, match="no runs on 'mnli'"):
        found.metric("mnli")


def test_the_tables(asked, tmp_path):
    found = train(tmp_path)
    assert found.table().loc["a"].tolist() == ["71.0 ± 1.0", "71.0 ± 1.0", "71.0"]
    assert list(found.table().index) == list(SMALL.arms)
    frame = found.frame()
    assert len(frame) == 2 * 3 * 3
    assert frame.query("task == 'rt' and arm == 'b'")["score"].mean() == pytest.approx(0.71)
    assert len(found.grid()) == 2 * 2 * 3 * 2
    assert found.line().startswith("stored study 'side_by_side': 3 arms, 2 tasks, 3 seeds, minilm-l3, 5 steps")


def test_the_command_trains_a_study_over_tasks(asked, monkeypatch, capsys, tmp_path):
    words = ("study", "side_by_side", "--folder", str(tmp_path), "--seeds", "2")
    status, out, err = command(monkeypatch, capsys, *words)
    assert status == 0
    assert "70.5 ± 0.7" in out
    assert "rt, a, seed 0, learning rate 0.1: accuracy 0.700 on validation examples" in err
    assert len(studies.load_across("side_by_side", tmp_path).by_seed("a", "rt")) == 2
    status, out, _ = command(monkeypatch, capsys, "study")
    assert "side_by_side: Which? (3 configurations, 3 seeds)" in out.replace("\n", " ")


# ---- the definition, and what is stored ---------------------------------------------------------------------


@pytest.mark.parametrize("name", TASK_STUDIES)
def test_the_definition_is_sound(name):
    study = TASK_STUDIES[name]
    assert set(study.tasks) <= set(table.TASKS)
    assert study.seeds >= 5
    if study.widen:   # by the protocol: a grid of its own, and seeds that are not reported
        assert len(study.rates) >= 6
        assert max(b / a for a, b in itertools.pairwise(study.rates)) <= 2
        assert not set(study.chosen_with) & set(range(100))
    assert set(study.rate_of) | set(study.rate_of.values()) <= set(study.arms)
    assert not set(study.rate_of) & set(study.rate_of.values())
    for values in study.tasks.values():
        train_config(study.profile, **{**study.training, **values})
    described = [json.dumps(fit_to_profile(arm.method, study.profile).to_dict()) for arm in study.arms.values()]
    assert len(set(described)) == len(described)


@pytest.mark.skipif(not STORED.exists(), reason="not trained yet")
def test_what_is_stored_agrees_with_the_definition():
    found, study = studies.load_across("side_by_side"), TASK_STUDIES["side_by_side"]
    assert found.about["training"] == dict(study.training)
    assert found.about["rates"] == list(study.rates)
    assert found.about["rate_of"] == dict(study.rate_of)
    assert found.arms == list(study.arms)
    assert found.tasks == [task for task in study.tasks if task in found.tasks]
    assert len(found.tasks) >= 6
    assert {(r["task"], r["arm"], r["seed"]) for r in found.records} == {
        (task, arm, seed) for task in found.tasks for arm in study.arms for seed in range(study.seeds)}
    for record in found.records:
        wanted = fit_to_profile(study.arms[record["arm"]].method, study.profile).to_dict()
        assert record["method"] == json.loads(json.dumps(wanted))


@pytest.mark.skipif(not STORED.exists(), reason="not trained yet")
def test_every_stored_rate_is_the_best_of_its_grid():
    """Chosen again from the stored validation scores."""
    found, study = studies.load_across("side_by_side"), TASK_STUDIES["side_by_side"]
    for (task, arm), runs in found.grid().groupby(["task", "arm"]):
        means = runs.groupby("lr")["validation"].mean()
        chosen = found.rate(arm, task)
        assert means[chosen] == pytest.approx(means.max())
        for control, of in study.rate_of.items():
            assert of != arm or found.rate(control, task) == chosen
