"""Studies: balanced by seed, kept as they go, paired by seed; and the committed ones agree with their definition."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from tiny_models import command, data_folder, model_folder

from lowrank_teach.experiments import fit as experiment
from lowrank_teach.experiments.runs import Run, Store
from lowrank_teach.methods import COLA, LoRA, SaLoRA
from lowrank_teach.models.backbones import load_backbone
from lowrank_teach.reproduction import arms, rank_cuts, results, rewriting, studies, tagging, texts
from lowrank_teach.reproduction.arms import STUDIES, Arm, Study
from lowrank_teach.reproduction.results import Results, references_folder
from lowrank_teach.training.config import PROFILES, fit_to_profile, train_config

STORED = sorted(path for path in (references_folder() / "studies").glob("*.json") if path.stem in STUDIES)


def made_up(score: float, seed: int, method: dict | None = None) -> Run:
    """A run as `fit` leaves it, of a made-up training."""
    rows = [(step, "", "loss", 1.0 / step) for step in range(1, 101)] + [(100, "0.q", "norm", 2.0 + seed)]
    return Run(config={"method": method or {"method": "lora"}, "seed": seed},
               history=pd.DataFrame(rows, columns=["step", "site", "name", "value"]),
               metrics={"test": {"accuracy": score, "loss": 0.5}, "validation": {"accuracy": score, "loss": 0.4}},
               ranks={"0.q": 8}, parameters={"adapter": 10}, seconds={"training": 1.0, "total": 2.0})


@pytest.fixture
def trained(monkeypatch):
    """`fit` replaced by a list of what it was asked for; arm b scores seed / 100 above arm a."""
    asked: list[tuple] = []

    def fit(method, task, backbone, profile, seed, **values):
        arm = "b" if method.r == 4 else "a"
        asked.append((arm, seed, values))
        return made_up(0.7 + (0.01 * seed if arm == "b" else 0), seed)

    small = Study("Does it?", "rank", {"a": Arm(LoRA(r=2)), "b": Arm(LoRA(r=4), {"lr": 0.1})}, seeds=3,
                  sites=("norm",))
    monkeypatch.setattr(experiment, "fit", fit)
    monkeypatch.setitem(STUDIES, "small", small)
    return asked


# ---- training -----------------------------------------------------------------------------------------------


def test_training_goes_seed_by_seed_over_all_arms(trained, tmp_path):
    found = studies.train("small", tmp_path)
    assert [(arm, seed) for arm, seed, _ in trained] == [(arm, seed) for seed in range(3) for arm in "ab"]
    assert found.values() == {"a": [0.7] * 3, "b": pytest.approx([0.7, 0.71, 0.72])}


def test_an_arm_s_own_training_values_win(trained, tmp_path):
    studies.train("small", tmp_path, seeds=[0], batch_size=4)
    (_, _, a), (_, _, b) = trained
    assert (a["steps"], a["batch_size"], "lr" in a) == (arms.TRAINING["steps"], 4, False)
    assert b["lr"] == 0.1


def test_some_arms_can_be_trained_alone(trained, tmp_path):
    found = studies.train("small", tmp_path, arms=["b"], seeds=[1])
    assert [(arm, seed) for arm, seed, _ in trained] == [("b", 1)]
    assert found.arms == ["b"]


def test_the_file_says_which_code_trained(monkeypatch, tmp_path):
    """A run found in the store may be older than the file."""
    def found(method, task, backbone, profile, seed, **values):
        run = made_up(0.7, seed)
        run.machine = {"commit": f"c{seed}"}
        return run

    monkeypatch.setattr(experiment, "fit", found)
    monkeypatch.setitem(STUDIES, "small", Study("?", "rank", {"a": Arm(LoRA(r=2))}, seeds=2))
    studies.train("small", tmp_path)
    assert studies.load("small", tmp_path).about["commits"] == ["c0", "c1"]


def test_the_file_holds_every_run_that_was_made(trained, tmp_path):
    def stop(task, label, seed, rate, run):
        if (label, seed) == ("a", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.train("small", tmp_path, on_run=stop)
    kept = studies.load("small", tmp_path)
    assert [(r["arm"], r["seed"]) for r in kept.records] == [*((arm, seed) for seed in (0, 1) for arm in "ab"),
                                                             ("a", 2)]


def test_what_is_loaded_is_what_was_trained(trained, tmp_path):
    found = studies.train("small", tmp_path)
    kept = studies.load("small", tmp_path)
    assert kept.values() == found.values()
    assert kept.about["question"] == "Does it?"
    assert {"machine", "task", "backbone", "training", "profile"} <= set(kept.about)
    assert kept.line().startswith("stored study 'small': 6 runs, minilm-l3 on rt, 100 steps")


def test_the_same_call_finds_its_runs(monkeypatch, tmp_path):
    """With a real model: the second call trains nothing, one over more seeds only what is missing."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    monkeypatch.setitem(STUDIES, "real", Study("?", "rank", {"1": Arm(LoRA(r=1)), "2": Arm(COLA(r=2))}, seeds=1))
    trainings: list[str] = []
    monkeypatch.setattr(experiment, "load_backbone",
                        lambda name, **values: trainings.append(name) or load_backbone(name, **values))
    setting = {"backbone": str(model_folder(tmp_path / "model")), "profile": "tiny", "steps": 4, "batch_size": 8,
               "store": Store(tmp_path / "runs")}
    first = studies.train("real", tmp_path / "out", **setting)
    assert len(trainings) == 2
    assert studies.train("real", tmp_path / "out", **setting).records == first.records
    assert len(trainings) == 2
    more = studies.train("real", tmp_path / "out", seeds=range(2), **setting)
    assert len(trainings) == 4
    assert more.records[:2] == first.records
    assert set(more.records[0]["sites"]) == {"cosine", "effective_rank", "norm"}
    assert list(more.series("1")[0]) == [1, 2, 3, 4]


# ---- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "unknown", "known"), [
    (studies.load, "chains", "chain"), (studies.load, "side_by_side", "chain"),
    (studies.load_across, "chain", "side_by_side"), (studies.train, "chains", "chain")])
def test_an_unknown_study_is_refused(load, unknown, known):
    with pytest.raises(KeyError, match=f"no study '{unknown}'; there are {known}"):
        load(unknown)


@pytest.mark.parametrize(("load", "names", "again"), [
    (studies.load, ["chain"], "lowrank-teach study chain"),
    (studies.load_across, ["side_by_side"], "lowrank-teach study side_by_side"),
    (texts.load_texts, ["webnlg"], r"python -m lowrank_teach\.reproduction\.texts webnlg"),
    (tagging.load_tags, ["jnlpba"], r"python -m lowrank_teach\.reproduction\.tagging --task jnlpba"),
    (rewriting.load, [], r"python -m lowrank_teach\.reproduction\.rewriting"),
    (rank_cuts.load_cuts, [], r"rank_cuts\.train_cuts\(\)"),
    (rank_cuts.load_explorer_data, [], r"rank_cuts\.train_explorer_data\(\)")])
def test_what_is_not_stored_says_how_to_make_it(load, names, again, tmp_path):
    with pytest.raises(FileNotFoundError, match=again):
        load(*names, folder=tmp_path)


def test_differences_pair_by_seed(trained, tmp_path):
    found = studies.train("small", tmp_path)
    assert found.differences("b", "a") == pytest.approx([0.0, 0.01, 0.02])
    half = Results(found.about, [r for r in found.records[::-1] if (r["arm"], r["seed"]) != ("a", 0)])
    assert half.differences("b", "a") == pytest.approx([0.01, 0.02])
    assert half.differences("b", "a", "loss") == [0.0, 0.0]
    assert half.differences("b", "c") == []


def test_one_run_s_numbers(trained, tmp_path):
    found = studies.train("small", tmp_path)
    steps, loss = found.series("a", seed=1)
    assert steps[:3] == [5.5, 15.5, 25.5]                   # means of ten steps
    assert loss[0] == pytest.approx(sum(1 / i for i in range(1, 11)) / 10, abs=1e-5)
    assert found.by_site("b", "norm", seed=2) == {"0.q": 4.0}
    with pytest.raises(KeyError, match="no run of 'a' with seed 9"):
        found.record("a", 9)


def test_the_frame_has_a_row_an_arm(trained, tmp_path):
    frame = studies.train("small", tmp_path).frame()
    assert list(frame.index) == ["a", "b"]
    assert frame.loc["b", "seeds"] == 3
    assert frame.loc["b", "test accuracy"] == pytest.approx(0.71)
    assert frame.loc["b", "± (seeds)"] == pytest.approx(0.01)


# ---- the definitions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_valid_configuration_of_its_own(name):
    study = STUDIES[name]
    assert study.seeds >= 3
    assert study.question
    assert study.varies
    described = []
    for arm in study.arms.values():
        train_config(arms.PROFILE, **{**arms.TRAINING, **arm.training})
        method = fit_to_profile(arm.method, arms.PROFILE)
        assert type(method).from_dict(method.to_dict()) == method
        described.append(json.dumps([method.to_dict(), dict(arm.training)], sort_keys=True))
    assert len(set(described)) == len(described), "two arms train the same"


def test_rates_of_the_controls_are_of_the_profile():
    lr = PROFILES[arms.PROFILE].lr
    arm = STUDIES["delta"].arms["LoRA, rate × 1.5"]
    assert dict(arm.training) == {"lr": 1.5 * lr, "head_lr": lr}
    assert dict(STUDIES["delta_strong"].arms["LoRA, rate × 3"].training) == {"lr": 3 * lr, "head_lr": lr}


# ---- the committed ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_study_agrees_with_its_definition(path):
    found, study = studies.load(path.stem), STUDIES[path.stem]
    about = found.about
    assert (about["name"], about["task"], about["backbone"], about["profile"]) == (
        path.stem, arms.TASK, arms.BACKBONE, arms.PROFILE)
    assert about["training"] == arms.TRAINING
    assert about["question"] == study.question
    assert found.arms == list(study.arms)
    seeds = sorted({r["seed"] for r in found.records})
    assert seeds == list(range(len(seeds)))
    assert len(seeds) <= study.seeds
    assert [(r["seed"], r["arm"]) for r in found.records] == [(s, arm) for s in seeds for arm in study.arms]
    for record in found.records:
        wanted = fit_to_profile(study.arms[record["arm"]].method, arms.PROFILE).to_dict()
        assert record["method"] == json.loads(json.dumps(wanted)), record["arm"]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_study_holds_what_it_says(path):
    found, study = studies.load(path.stem), STUDIES[path.stem]
    for record in found.records:
        assert 0.4 < record["test"]["accuracy"] <= 1
        members = record["method"]["method"].split("+")
        gates, links = arms.GATES if "salora" in members else (), ("link",) if "cola" in members else ()
        wanted = {"loss", *gates, *links} & set(study.series)
        assert wanted <= set(record["series"])
        assert all(len(steps) == len(values) for steps, values in record["series"].values())
        assert record["seconds"]["steps.training"] == arms.TRAINING["steps"]
    keys = [r["key"] for r in found.records]
    assert len(set(keys)) == len(keys)
    assert "+changes" not in found.about["machine"]["commit"]


def test_stored_records_are_found_by_one_setting(tmp_path, monkeypatch):
    """Where the package was installed without its repository, the sentence says what to do."""
    monkeypatch.setenv("LOWRANK_TEACH_RECORDS", str(tmp_path))
    assert references_folder() == tmp_path
    with pytest.raises(FileNotFoundError, match="train it"):
        studies.load("chain")
    monkeypatch.delenv("LOWRANK_TEACH_RECORDS")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "lowrank_teach" / "reproduction" / "results.py"))
    with pytest.raises(FileNotFoundError, match="clone the repository, and set LOWRANK_TEACH_RECORDS"):
        studies.load("chain")


# ---- a rate to start from -----------------------------------------------------------------------------------

def test_a_rate_is_suggested_from_the_nearest_grid(tmp_path):
    """The nearest rank and scale of the same method; what differs is said, nothing is extrapolated."""
    arms = {"LoRA": (2e-3, 4e-3), "LoRA, r = 16": (1e-3, 1e-3)}
    records = [{"task": task, "arm": arm, "seed": 0, "lr": lr} for arm, rates in arms.items()
               for task, lr in zip(("sst2", "rt"), rates, strict=True)]
    grid = [{"task": task, "arm": arm, "seed": 100, "lr": lr, "steps": 150, "validation": {"accuracy": score}}
            for arm in arms for task in ("sst2", "rt") for lr, score in ((1e-3, 0.70), (2e-3, 0.71), (4e-3, 0.6))]
    about = {"backbone": "minilm-l3", "training": {"steps": 625, "batch_size": 16}, "grid": grid}
    (tmp_path / "tuned_cola.json").write_text(json.dumps({**about, "records": records}), encoding="utf-8")
    found = studies.suggest_rate(LoRA(), "minilm-l3", tmp_path)
    assert (found.rate, found.low, found.high, found.differs) == (pytest.approx(8e-6**0.5), 1e-3, 2e-3, ())
    assert found.source.startswith("LoRA of study 'tuned_cola': minilm-l3 on sst2, rt, 625 steps of 16; chosen 0.002")
    other = studies.suggest_rate(LoRA(r=32, lora_alpha=64), "minilm-l6", tmp_path)
    assert other.source.startswith("LoRA, r = 16 of study")
    assert other.differs == ("rank (16 there)", "the model (minilm-l3 there)")
    with pytest.raises(ValueError, match="no tuned study has a rate chosen for salora"):
        studies.suggest_rate(SaLoRA(), folder=tmp_path)


def test_the_command_suggests_a_rate_and_says_where_it_comes_from(monkeypatch, capsys):
    """From the stored study: its own configuration, and one beside it."""
    words = ("suggest-lr", "delta_lora", "--set", "lam=2", "--set", "K=0.25")
    status, out, _ = command(monkeypatch, capsys, *words, "--json")
    found = json.loads(out)
    assert (status, found["differs"]) == (0, [])
    assert found["low"] <= found["rate"] <= found["high"]
    assert found["source"].startswith("Delta-LoRA, λ = 2 of study 'tuned_delta': minilm-l3 on ")
    _, out, _ = command(monkeypatch, capsys, *words, "--set", "r=4", "--backbone", "minilm-l6")
    assert "yours differs in rank (8 there), α/r (2 there), the model (minilm-l3 there): try a factor of 2" in out
