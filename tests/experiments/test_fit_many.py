"""`fit_many`: the records of single runs, from shared passes; what cannot share trains alone, what fails is told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import CALM, data_folder, model_folder

import lowrank_teach as lt
from lowrank_teach.errors import DivergedError, StoppedError
from lowrank_teach.experiments import fit_many as fit_many_module
from lowrank_teach.experiments.fit import RunConfig, grid
from lowrank_teach.experiments.fit_many import fit_many
from lowrank_teach.experiments.runs import Store
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.training import replicas

QUICK = {"steps": 12, "batch_size": 8, "n_train": 96, "n_validation": 16, "n_test": 16, "lr": 1e-2}
METHODS = [lt.LoRA(r=4), lt.COLA(r=4), lt.SaLoRA(r=4, eta_c=1.0), lt.DeltaLoRA(r=4, K=3),
           lt.AutoLoRA(r=4, hypergradient="finite_difference"), lt.DyLoRA(r=4)]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Configurations on a tiny model without dropout, and its rows."""
    model = model_folder(tmp_path / "model", **CALM)
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))

    def configs(methods, **changes) -> list[RunConfig]:
        return grid(methods, "rt", str(model), profile="tiny", **{**QUICK, **changes})

    return configs


@pytest.fixture
def stores(tmp_path):
    return Store(tmp_path / "alone"), Store(tmp_path / "shared")


def same(left: lt.Run, right: lt.Run) -> None:
    """But for float32 rounding, and for what was measured: seconds, bytes."""
    assert left.config == right.config
    assert left.key == right.key
    assert left.ranks == right.ranks
    assert left.parameters == right.parameters
    assert left.flops == right.flops
    assert left.notes == right.notes
    for split, metrics in left.metrics.items():
        assert metrics == pytest.approx(right.metrics[split], abs=1e-4)
    assert left.history[["step", "site", "name"]].equals(right.history[["step", "site", "name"]])
    assert left.history["value"].tolist() == pytest.approx(right.history["value"].tolist(), rel=1e-3, abs=1e-4)
    assert left.factors.keys() == right.factors.keys()
    for site, (a, b) in left.factors.items():
        c, d = right.factors[site]
        assert (a @ b - c @ d).abs().max() < 1e-4


def like_single_runs(configs, stores, **options) -> list[lt.Run]:
    """What `fit_many` gives, once it was compared with what `fit` gives."""
    found = fit_many(configs, store=stores[1], **{"say": None, **options})
    for config, run in zip(configs, found, strict=True):
        same(config.fit(store=stores[0], progress=False), run)
    return found


@pytest.mark.parametrize(("methods", "changes", "sizes"), [
    (METHODS, {"seeds": 2}, [12]),
    ([lt.LoRA(r=4), lt.FullFineTuning(), lt.DeltaLoRA(r=4, K=3, lam_end=0.0), lt.Houlsby(m=4)], {}, [1, 1, 1, 1]),
    (["lora"], {"n_train": [48, 96], "n_test": [8, 16]}, [4])],
    ids=["every method", "what writes into W has a network of its own", "each has its own rows"])
def test_records_are_those_of_single_runs(methods, changes, sizes, made, stores):
    configs = made(methods, **changes)
    assert [len(group) for group in fit_many_module.groups(configs)] == sizes
    for config, run in zip(configs, like_single_runs(configs, stores), strict=True):
        same(stores[1].get(config.key), run)
        assert 0 < run.seconds["training"] <= run.seconds["total"]
    assert not list(stores[1].folder.glob("*checkpoint*"))


def test_what_is_stored_is_found_and_what_stands_twice_is_trained_once(made, stores, monkeypatch):
    configs, lines = made(["lora"], seeds=3), []
    fit_many(configs[:2], store=stores[1], say=None)
    done = []
    found = fit_many([*configs, configs[2]], store=stores[1], say=lines.append,
                     on_run=lambda config, run: done.append(config.seed))
    assert done == [2]
    assert [run.config["seed"] for run in found] == [0, 1, 2, 2]
    assert len(lines) == 1
    assert lines[0].startswith("1 run on ")


def test_passes_of_a_given_size(made, stores, monkeypatch):
    sizes = []
    together = replicas.train_together
    monkeypatch.setattr(fit_many_module, "train_together",
                        lambda trainers: sizes.append(len(trainers)) or together(trainers))
    lines = []
    fit_many(made(["lora"], seeds=5), store=stores[1], at_once=2, say=lines.append)
    assert sizes == [2, 2]   # the fifth is alone, and runs as it would
    assert "in 3 passes of up to 2" in lines[0]
    assert "KiB to one frozen network" in lines[0]


def test_a_pass_that_does_not_fit_is_split(made, stores, monkeypatch):
    sizes, lines, together = [], [], replicas.train_together

    def narrow(trainers):
        sizes.append(len(trainers))
        if len(trainers) > 2:
            raise torch.OutOfMemoryError("made up")
        return together(trainers)

    monkeypatch.setattr(fit_many_module, "train_together", narrow)
    like_single_runs(made(["lora"], seeds=4), stores, say=lines.append)
    assert sizes == [4, 2, 2]
    assert "from here 2 at once" in lines[1]


def test_the_plan_follows_the_memory_that_is_free(made, monkeypatch):
    configs = made(["lora"], seeds=8)
    each = fit_many_module._added(configs)
    monkeypatch.setattr(fit_many_module, "free_memory", lambda: int(3.5 * each / fit_many_module.SHARE_OF_FREE))
    assert fit_many_module.room_for(configs) == 3
    monkeypatch.setattr(fit_many_module, "free_memory", lambda: 1)
    assert fit_many_module.room_for(configs) == 1
    monkeypatch.setattr(fit_many_module, "free_memory", lambda: 10**15)
    assert fit_many_module.room_for(configs) == 8
    wider = made([lt.LoRA(r=4), lt.LoRA(r=16)])
    assert fit_many_module._added(wider) == fit_many_module._added(wider[1:]) > fit_many_module._added(wider[:1])


@pytest.mark.parametrize(("methods", "changes", "sizes"), [
    (METHODS, {"seeds": 2, "lr": [1e-2, 1e-3], "weight_decay": [0.0, 0.1]}, [48]),
    (["lora", "full"], {"seeds": 2}, [2, 1, 1]),
    *((["lora"], {name: values}, [1, 1]) for name, values in {
        "batch_size": [8, 16], "mixed_precision": ["no", "bf16"], "accumulation": [1, 2], "max_length": [16, 32]
      }.items())])
def test_who_shares(methods, changes, sizes, made):
    assert [len(group) for group in fit_many_module.groups(made(methods, **changes))] == sizes


def test_heads_of_one_size_share(made):
    configs = grid("lora", ["cola", "sst2", "mnli", "stsb"], made(["lora"])[0].backbone, **QUICK)
    assert [len(group) for group in fit_many_module.groups(configs)] == [2, 1, 1]   # 2, 2, 3 and 1 scores


def test_a_split_that_is_drawn_by_the_seed_is_drawn_for_each(made, stores, monkeypatch):
    def by_seed(frames, seed):
        return {split: frame.sample(frac=0.5, random_state=seed) for split, frame in frames.items()}

    monkeypatch.setitem(TASKS, "rt", replace(TASKS["rt"], resplit=by_seed))
    like_single_runs(made(["lora"], seeds=2), stores)


def test_without_the_cache_all_is_trained_again(made, stores):
    configs, done = made(["lora"], seeds=2), []
    fit_many(configs, store=stores[1], say=None)
    again = fit_many(configs, store=stores[1], say=None, cache=False, on_run=lambda config, run: done.append(run))
    assert [id(run) for run in done] == [id(run) for run in again]
    assert len(done) == 2


def test_what_fails_is_told_and_the_others_are_kept(made, stores):
    alone, shared = stores
    configs = [*made(["lora"]), *made(["lora"], lr=1e30, max_grad_norm=0.0), *made([lt.COLA(r=4, knots=(99,))])]
    done = []
    found = fit_many(configs, store=shared, say=None, on_run=lambda config, run: done.append(config))
    assert done == configs[:1]
    same(configs[0].fit(store=alone, progress=False), found[0])
    assert isinstance(found[1], DivergedError)
    assert isinstance(found[2], ValueError)
    assert [shared.get(config.key) is None for config in configs] == [False, True, True]
    only, = fit_many(configs[1:2], store=shared, say=None)
    assert isinstance(only, DivergedError)


def test_a_callback_stops_one_and_the_same_call_goes_on(made, stores):
    configs = made(["lora"], seeds=2)

    class StopAt(lt.Callback):
        def on_step(self, clock, values):
            return clock.step == 5

        def on_eval(self, clock, metrics): ...

    found = fit_many(configs, store=stores[1], say=None, callbacks=lambda c: [StopAt()] if c.seed == 0 else [])
    assert isinstance(found[0], StoppedError)
    assert isinstance(found[1], lt.Run)
    like_single_runs(configs, stores)


@pytest.mark.parametrize(("autosave", "most"), [(0.0, 2), (math.inf, 0)])
def test_checkpoints_are_written_as_often_as_asked(made, stores, autosave, most):
    seen = []

    class Look(lt.Callback):
        def on_step(self, clock, values):
            seen.append(len(list(stores[1].folder.glob("*.checkpoint.safetensors"))))

        def on_eval(self, clock, metrics): ...

    fit_many(made(["lora"], seeds=2), store=stores[1], say=None, autosave=autosave, callbacks=lambda c: [Look()])
    assert max(seen) == most


def test_tasks_with_like_heads_share_a_pass(made, stores, shared_data, tmp_path, monkeypatch):
    """Different tasks of two classes, in one pass."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    configs = grid("lora", ["cola", "mrpc", "sst2"], made(["lora"])[0].backbone, profile="tiny", **QUICK)
    assert [len(group) for group in fit_many_module.groups(configs)] == [3]
    like_single_runs(configs, stores)
