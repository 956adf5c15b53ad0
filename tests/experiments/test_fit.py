"""`fit` on real text and a real model: every method learns, the record is whole, a stored run is found, and a
stopped one goes on to the same end."""

from __future__ import annotations

import math
import re
import sys
from functools import cache
from pathlib import Path

import helpers
import pandas as pd
import pytest
import torch
from tiny_models import data_folder, model_folder

import lowrank_teach as lt
from lowrank_teach.errors import StoppedError
from lowrank_teach.experiments.compare import table
from lowrank_teach.experiments.runs import HISTORY, Run, Store, config_key, packed, unpacked
from lowrank_teach.methods import COLA, AutoLoRA, DeltaLoRA, FullFineTuning, HeadOnly, LoRA, Method, SaLoRA
from lowrank_teach.methods.baselines import Houlsby

asset = pytest.mark.asset
METHODS: dict[str, Method] = {"head": HeadOnly(), "lora": LoRA(), "cola": COLA(), "salora": SaLoRA(),
                              "delta_lora": DeltaLoRA(), "autolora": AutoLoRA()}
REAL = {"steps": 36, "lr": 3e-3, "n_train": 576, "n_validation": 16, "n_test": 400}
LONGER = {"salora": {"steps": 72, "n_train": 1152}}   # while gates open and close, its loss wavers


# ---- the packaged default: does it learn? ---------------------------------------------------------------

@pytest.fixture(scope="module")
def real(once):
    """label -> run on minilm-l3 and rt, trained once when first asked for, by whichever of the workers that is."""
    def fit(label: str, folder: Path) -> Run:
        return lt.fit(METHODS[label], "rt", "minilm-l3", "tiny", store=Store(folder), progress=False,
                      **{**REAL, **LONGER.get(label, {})})

    return cache(lambda label: fit(label, once(f"real-{label}", lambda folder: fit(label, folder))))


@asset
@pytest.mark.parametrize("label", METHODS)
def test_every_method_learns(real, label):
    """What it says of 400 new rows is better than chance, in accuracy and in nats.

    Over 11 seeds of head, rows and training (SaLoRA 6), in standard deviations from the mean to the limit: accuracy
    head 8.8, lora 9.1, cola 6.6, salora 7.7, delta_lora 11.5, autolora 8.1; loss 11, 8.8, 5.3, 8.9, 8.6, 8.7.
    """
    metrics = real(label).metrics["test"]
    assert metrics["accuracy"] > 0.55
    assert metrics["loss"] < math.log(2)   # of a model that always says one half


@asset
def test_branches_learn_what_a_head_alone_does_not(tmp_path):
    """The same 64 rows, their order and 60 steps; only the branches differ.

    Over six seeds the head's loss ends at 0.05 to 0.09; LoRA's at 0.010 of the head's (standard deviation 0.010) and
    Delta-LoRA's at 0.014 (0.011).
    """
    short = {"steps": 60, "lr": 3e-3, "n_train": 64, "n_validation": 16, "n_test": 16}
    ends = {}
    for label in ("head", "lora", "delta_lora"):
        run = lt.fit(METHODS[label], "rt", "minilm-l3", "tiny", store=Store(tmp_path), progress=False, **short)
        ends[label] = sum(run.series("loss")[1][-8:])
    assert ends["lora"] < 0.5 * ends["head"]
    assert ends["delta_lora"] < 0.5 * ends["head"]


# ---- the record -----------------------------------------------------------------------------------------

@asset
def test_the_record_is_whole(real):
    run = real("lora")
    assert run.config == {"method": {**LoRA().to_dict()}, "task": "rt", "backbone": "minilm-l3", "seed": 0,
                          "profile": "tiny", "training": {**run.config["training"], **REAL}}
    assert run.key == config_key(run.config, run.identity)
    assert set(run.identity) == {"data", "weights"}
    assert list(run.history.columns) == HISTORY == ["step", "site", "name", "value"]
    assert run.history["value"].notna().all()
    assert run.series("loss")[0] == list(range(1, 37))
    assert {"loss", "grad_norm", "lr", "cosine", "effective_rank", "norm", "sigma.0"} <= set(run.history["name"])
    assert set(run.history["site"]) == {"", "0.q", "0.v", "1.q", "1.v", "2.q", "2.v"}
    assert run.ranks == dict.fromkeys(["0.q", "0.v", "1.q", "1.v", "2.q", "2.v"], 8)
    for split in ("validation", "test"):
        assert list(run.metrics[split]) == ["accuracy", "macro_f1", "loss"]
    head = 384 * 384 + 384 + 2 * 384 + 2  # minilm-l3 has no pooler of its own
    assert run.parameters["trainable"] == 6 * 8 * (384 + 384) + head
    assert 0 < run.seconds["training"] < run.seconds["total"]
    assert run.seconds["steps.training"] == 36
    assert run.memory["rss_peak_bytes"] > 50 * 2**20
    assert run.flops["forward_frozen"] > 1e6
    assert run.notes[0].startswith("rows from packaged text, Rotten Tomatoes snippets: train 576 of")
    assert torch.__version__.startswith(run.machine["torch"])
    assert {"commit", "processor", "cores", "threads", "accelerator", "python", "transformers"} <= run.machine.keys()
    for site, (left, right) in run.factors.items():
        assert left.shape == (384, 8)
        assert right.shape == (8, 384)
        sigma = torch.linalg.svdvals(left @ right)[0]
        assert float(sigma) == pytest.approx(run.by_site("sigma.0")[site], rel=1e-4)


@asset
def test_autolora_searches_and_then_trains(real):
    run = real("autolora")
    search, training = run.seconds["steps.search"], run.seconds["steps.training"]
    assert (search, training) == (14, 36)  # 0.4 of 36 steps in the tiny profile
    assert run.series("loss")[0] == list(range(1, 51))  # the training's steps come after the search's
    r = run.config["method"]["r"]
    alphas = pd.DataFrame({j: run.by_site(f"alpha.{j}") for j in range(r)})
    steps, _ = run.series("alpha.0", "0.q")
    assert steps == list(range(1, 15))
    assert alphas.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert run.ranks == (alphas >= 1 / r).sum(axis=1).to_dict()
    assert any(rank < r for rank in run.ranks.values())
    assert run.by_site("rank") == run.ranks
    assert run.seconds["search"] > 0


@asset
def test_salora_keeps_no_more_than_r(real):
    run = real("salora")
    assert len(run.ranks) == 18
    assert all(0 <= rank <= 8 for rank in run.ranks.values())
    assert sum(run.ranks.values()) < 18 * 8
    assert run.by_site("kept") == run.ranks
    density = run.series("density")[1]
    assert density[-1] < density[0] - 0.1
    assert run.series("lambda")[1][-1] > 0


@asset
def test_the_table(real):
    frame = table({label: real(label) for label in METHODS})
    assert list(frame.index) == list(METHODS)
    assert frame.columns[0] == "accuracy"
    assert frame.loc["lora", "ranks"] == "8"
    assert frame.loc["head", "ranks"] == "–"
    assert frame.loc["lora", "trainable"] - frame.loc["head", "trainable"] == 48 * (384 + 384)
    assert frame.loc["autolora", "sum of ranks"] == sum(real("autolora").ranks.values())
    assert frame.loc["autolora", "search s"] > 0 == frame.loc["lora", "search s"]
    for label in METHODS:
        assert frame.loc[label, "accuracy"] == real(label).metrics["test"]["accuracy"]


# ---- a stored run, a changed one, a stopped one, on a tiny model -----------------------------------------

@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def quick(model, monkeypatch, tmp_path):
    """`fit` on the tiny model and its rows."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))

    def run(method: Method | str, **options) -> Run:
        settings = {"steps": 24, "batch_size": 8, "n_train": 96, "progress": False, "seed": 0, **options}
        return lt.fit(method, "rt", model, "tiny", **settings)

    return run


def test_a_stored_run_is_found_without_training(quick, monkeypatch):
    trained = quick("lora")
    real_run, calls = lt.Trainer.run, []
    monkeypatch.setattr(lt.Trainer, "run", lambda self: calls.append(1) or real_run(self))
    monkeypatch.setattr(sys.modules["lowrank_teach.experiments.fit"], "load_backbone",
                        lambda *a, **k: pytest.fail("a model was loaded for a stored run"))
    found = quick("lora")
    assert calls == []
    assert found.config == trained.config
    assert found.metrics == trained.metrics
    pd.testing.assert_frame_equal(found.history, trained.history)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        quick("lora", cache=False)


def test_a_changed_configuration_trains_again(quick, monkeypatch):
    quick(LoRA())
    real_run, calls = lt.Trainer.run, []
    monkeypatch.setattr(lt.Trainer, "run", lambda self: calls.append(1) or real_run(self))
    changes = ({"seed": 1}, {"steps": 23}, {"lr": 1e-4}, {"n_test": 31}, {"warmup": 0.1},
               {"method": LoRA(lora_alpha=8)})
    for number, change in enumerate(changes, start=1):
        quick(**{"method": LoRA(), **change})
        assert len(calls) == number, change


def test_a_profile_sets_what_was_left_alone(quick):
    adjusted, own = quick(AutoLoRA()), quick(AutoLoRA(search_steps=5))
    assert adjusted.config["method"]["search_steps"] == 0.4
    assert own.config["method"]["search_steps"] == 5
    assert own.seconds["steps.search"] == 5
    assert adjusted.notes[1] == ("the profile tiny set search_steps = 0.4, eta_beta = 0.01 of autolora; a value "
                                 "asked for is kept")
    assert "set eta_beta = 0.01 of autolora" in own.notes[1]
    assert quick(AutoLoRA(), adjust=False).seconds["steps.search"] == 24


@pytest.mark.parametrize("method", [
    LoRA(lora_dropout=0.1), COLA(knots=(6, 12)), SaLoRA(), DeltaLoRA(), DeltaLoRA(form="lazy"), AutoLoRA(),
    AutoLoRA(search_steps=24, retrain=False), FullFineTuning(trains="qv")], ids=lambda m: m.name)
def test_a_stopped_run_goes_on_to_the_same_end(quick, tmp_path, method):
    whole = quick(method, store=Store(tmp_path / "whole"))
    total = int(whole.seconds["steps.training"] + whole.seconds.get("steps.search", 0))
    for step in (3, 13, 24):
        store, seen = Store(tmp_path / str(step)), list[int]()
        with pytest.raises(StoppedError, match=r"stopped after step \d+ of \d+; the same call goes on there"):
            quick(method, store=store, callbacks=[Once(step)])
        run = quick(method, store=store, callbacks=[helpers.Watch(lambda at, values, seen=seen: seen.append(at))])
        assert len(seen) == total - step  # what was done is not done again
        pd.testing.assert_frame_equal(run.history, whole.history)  # every step, bit for bit
        assert run.metrics == whole.metrics
        assert (run.ranks, run.parameters, run.flops) == (whole.ranks, whole.parameters, whole.flops)
        assert (run.config, run.notes) == (whole.config, whole.notes)
        for site, pair in whole.factors.items():
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(run.factors[site], pair, strict=True))
        assert not list(store.folder.glob("*checkpoint*"))


@pytest.mark.parametrize("method", [
    LoRA(lora_dropout=0.1), COLA(knots=(6, 12)), COLA(knots=(6, 12), merge_knots=False), SaLoRA(),
    DeltaLoRA(), DeltaLoRA(form="lazy"), AutoLoRA(), AutoLoRA(search_steps=24, retrain=False),
    FullFineTuning(trains="no_embeddings"), HeadOnly(), Houlsby(), "cola+salora"], ids=str)
def test_a_kept_network_is_the_trained_one_and_is_loaded_again(quick, monkeypatch, method):
    run = quick(method, keep_model=True)
    assert not run.trained.model.training
    assert run.trained.rows.score(run.trained.model, "test") == run.metrics["test"]
    plain = quick(method)
    assert (plain.found, plain.trained) == (True, None)
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it was trained again"))
    again = quick(method, keep_model=True)
    assert again.found
    assert not again.trained.model.training
    batch = again.trained.rows.collate(again.trained.rows.splits["test"])
    with torch.no_grad():
        ours, theirs = (one.trained.model(**batch).logits for one in (run, again))
    assert torch.equal(ours, theirs)


def test_a_run_whose_network_was_not_kept_is_trained_again(quick):
    plain = quick("lora")
    run = quick("lora", keep_model=True)
    assert not run.found
    assert run.metrics == plain.metrics
    path = Store().network(run.key)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"{run.key}.* is damaged .* trained again"):
        assert not quick("lora", keep_model=True).found
    assert quick("lora", keep_model=True).found


def test_long_examples_can_be_left_out_of_the_training(quick):
    """All rows have six tokens: that limit changes the key and no number, one below leaves nothing."""
    plain, limited = quick("lora"), quick("lora", longest=6)
    assert limited.key != plain.key
    assert limited.metrics == plain.metrics
    with pytest.raises(ValueError, match="longest = 5 leaves no training example; the shortest has 6 tokens"):
        quick("lora", longest=5)
    with pytest.raises(ValueError, match="longest = 0 must be"):
        quick("lora", longest=0)


class Once(lt.Callback):
    """Stops after so many steps in all, a search's included."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, clock, values) -> bool:
        self.left -= 1
        return self.left == 0


def test_two_seeds_differ_and_one_seed_does_not(quick, tmp_path):
    first, again = (quick("cola", store=Store(tmp_path / name)) for name in ("a", "b"))
    assert first.metrics == again.metrics
    pd.testing.assert_frame_equal(first.history, again.history)
    assert quick("cola", seed=1).series("loss") != first.series("loss")


def test_evaluation_on_the_way_changes_no_training(quick, tmp_path):
    plain = quick("lora", store=Store(tmp_path / "a"))
    watched = quick("lora", eval_every=6, store=Store(tmp_path / "b"))
    assert watched.series("loss") == plain.series("loss")
    assert watched.series("validation.accuracy")[0] == [6, 12, 18, 24]
    best = quick("lora", eval_every=6, best=True, lr=0.05, store=Store(tmp_path / "c"))
    assert best.metrics["validation"]["accuracy"] == max(best.series("validation.accuracy")[1])


@pytest.mark.parametrize("trains", ["all", "no_embeddings", "qv"])
def test_full_fine_tuning_is_recorded(quick, model, trains):
    run = quick(FullFineTuning(trains=trains), lr=1e-2, steps=48)
    fresh, _ = lt.load_backbone(model, num_labels=2)
    sizes = {name: p.numel() for name, p in fresh.named_parameters()}
    listed = {"all": "", "no_embeddings": r"encoder|pooler|classifier", "qv": r"(query|value)\.weight|classifier"}
    assert run.parameters["trainable"] == sum(n for name, n in sizes.items() if re.search(listed[trains], name))
    assert run.parameters["total"] == sum(sizes.values())
    assert run.ranks == {}
    assert run.label == "full"
    assert run.config["method"]["trains"] == trains
    losses = run.series("loss")[1]
    assert sum(losses[-12:]) < 0.95 * sum(losses[:12])


# ---- the other kinds of task ----------------------------------------------------------------------------

@pytest.mark.shared
@asset
@pytest.mark.parametrize(("task", "metrics"), [
    ("cola", ["mcc", "accuracy", "loss"]), ("stsb", ["spearman", "pearson", "loss"]),
    ("mrpc", ["accuracy", "f1", "loss"])])
def test_glue_trains_and_reports_its_metrics(shared_data, monkeypatch, task, metrics):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    run = lt.fit("lora", task, "minilm-l3", "tiny", progress=False, steps=8, batch_size=8, n_train=64,
                 n_validation=48)
    assert list(run.metrics["validation"]) == list(run.metrics["test"]) == metrics
    assert run.metrics["test"] == run.metrics["validation"]  # GLUE's own test rows have no labels
    assert all(-1 <= run.metrics["test"][name] <= 1 for name in metrics[:-1])
    assert f"local folder {shared_data.name}/{task}" in run.notes[0]
    losses = run.series("loss")[1]
    assert len(losses) == 8
    if task == "stsb":  # a score is learned from its first steps on: the mean of 0 to 5 is far from the start's 0
        assert losses[-1] < losses[0]


@asset
def test_tagging_trains_and_reports_entities():
    run = lt.fit(SaLoRA(eta_c=0.5), "wnut16", "minilm-l3", "tiny", progress=False, steps=14, batch_size=8,
                 n_train=112, n_validation=16, n_test=16, lr=5e-3)
    assert list(run.metrics["test"]) == ["entity_f1", "loss"]
    assert 0 <= run.metrics["test"]["entity_f1"] <= 1
    losses = run.series("loss")[1]
    assert losses[-1] < 0.5 * losses[0]  # "no entity" is learned within a few steps


@asset
@pytest.mark.parametrize(("backbone", "sites"), [("flan-t5-small-titles", 48), ("smollm2-135m", 60)])
def test_writing_trains_and_reports_perplexity_and_rouge(backbone, sites):
    run = lt.fit("delta_lora", "bbc-headline", backbone, "tiny", progress=False, steps=2, batch_size=2, n_train=4,
                 n_validation=2, n_test=2, max_length=48)
    for split in ("validation", "test"):
        assert list(run.metrics[split]) == ["perplexity", "rouge1", "rouge2", "rougeL", "loss"]
        assert run.metrics[split]["perplexity"] > 1
        assert 0 <= run.metrics[split]["rougeL"] <= 1
    assert len(run.ranks) == sites
    assert len(run.series("loss")[1]) == 2


def test_a_record_says_which_examples_were_right(quick):
    """A bit for each: their mean is the accuracy, and they are still there when the record is read again."""
    run = quick("lora", n_test=20)
    assert len(run.right()) == 20
    assert len(set(run.right())) == 2   # some right and some wrong
    for split in ("validation", "test"):
        assert run.right(split).mean() == pytest.approx(run.metrics[split]["accuracy"], abs=1e-12)
    again = quick("lora", n_test=20)
    assert again.found
    assert (again.right() == run.right()).all()
    again.hits.clear()
    with pytest.raises(KeyError):
        again.right()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_bits_are_read_as_they_were_written(count):
    hits = [i % 3 == 0 for i in range(count)]
    assert unpacked(packed(hits)).tolist() == hits
