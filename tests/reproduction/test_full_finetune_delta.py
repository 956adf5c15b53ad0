"""A whole ΔW: subtracted, decomposed, cut, scored, put back to the bit; and the same training as `fit`."""

from __future__ import annotations

import pytest
import torch
from helpers import FAMILIES, tiny
from tiny_models import data_folder, model_folder

from lowrank_teach import fit
from lowrank_teach.analysis import measures
from lowrank_teach.errors import StoppedError
from lowrank_teach.methods import FullFineTuning
from lowrank_teach.reproduction import rank_cuts

SHORT = {"steps": 4, "n_train": 64, "n_validation": 16, "n_test": 16}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A backbone and a task of their own."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    return str(model_folder(tmp_path / "model"))


def shifted(kind: str) -> rank_cuts.FineTuned:
    model = tiny(kind)
    before = rank_cuts.weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return rank_cuts.FineTuned(model, None, before)


def test_directions_rebuild_the_matrix_and_stand_at_right_angles():
    delta = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    found = measures.directions(delta)
    torch.testing.assert_close(found.matrix().float(), delta)
    torch.testing.assert_close(found.U.T @ found.U, torch.eye(5, dtype=torch.float64))
    assert (found.s.diff() <= 0).all()
    torch.testing.assert_close(found.keep([1, 3]).matrix(),
                               sum(found.s[j] * torch.outer(found.U[:, j], found.Vh[j]) for j in (1, 3)))


@pytest.mark.parametrize("i", [0, 1, 3, 5])
def test_a_cut_is_the_nearest_of_its_rank(i):
    g = torch.Generator().manual_seed(1)
    delta = torch.randn(8, 5, generator=g)
    cut, s = measures.truncate(delta, i), torch.linalg.svdvals(delta)
    assert measures.numerical_rank(torch.linalg.svdvals(cut), 1e-5) == i
    error = float((delta - cut).square().sum())
    assert error == pytest.approx(float(s[i:].square().sum()), abs=1e-5)
    for _ in range(20 * (0 < i < 5)):
        basis = torch.linalg.qr(torch.randn(8, i, generator=g))[0]   # any other subspace of that rank is no nearer
        assert float((delta - basis @ basis.T @ delta).square().sum()) >= error - 1e-5


def test_a_twin_has_the_size_and_norm_and_is_another_matrix():
    delta = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 0.01
    twin = measures.random_twin(delta, seed=3)
    assert twin.shape == delta.shape
    assert float(twin.norm()) == pytest.approx(float(delta.norm()), rel=1e-5)
    assert abs(measures.cosine(twin, delta)) < 0.2
    assert not torch.equal(twin, measures.random_twin(delta, seed=4))


@pytest.mark.parametrize("kind", FAMILIES)
def test_cut_to_nothing_is_the_pretrained_matrix_and_all_of_it_the_trained_one(kind):
    full = shifted(kind)
    trained = {name: p.detach().clone() for name, p in full.model.named_parameters()}
    with full.cut(slice(0)) as model:
        assert all(torch.equal(W, full.before[name]) for name, W in rank_cuts.weights(model).items())
    with full.cut(slice(None)) as model:
        for name, W in rank_cuts.weights(model).items():
            torch.testing.assert_close(W, full.after[name], atol=1e-5, rtol=0)
    assert all(torch.equal(p, trained[name]) for name, p in full.model.named_parameters())


def test_each_matrix_is_cut_to_its_own_rank_and_put_back_even_where_the_block_fails():
    full = shifted("gpt2")   # q, k and v are slices of one stored matrix
    with full.cut(slice(2)) as model:
        for name, W in rank_cuts.weights(model).items():
            assert measures.numerical_rank(torch.linalg.svdvals((W - full.before[name]).double()), 1e-4) == 2
    block = full.cut(slice(2))
    block.__enter__()
    assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)   # the error goes on
    assert all(torch.equal(W, full.after[name]) for name, W in rank_cuts.weights(full.model).items())


def test_it_is_the_same_training_as_fit(small):
    run = fit(FullFineTuning(trains="no_embeddings"), "rt", small, "tiny", 3, progress=False, **SHORT)
    full = rank_cuts.fine_tune("rt", small, "tiny", 3, **SHORT)
    assert full.series("loss") == run.series("loss")
    assert full.score() == pytest.approx(run.metrics["test"], abs=1e-5)
    assert full.score(slice(0)) != full.score()
    assert full.count() == SHORT["n_test"]
    assert not any("embed" in name for name in full.trained)
    assert all(float(delta.norm()) > 0 for delta in full.changes.values())


def test_a_stopped_training_goes_on_where_it_was(small):
    class Stop:
        def on_step(self, clock, values):
            return clock.step == 2

        def on_eval(self, clock, metrics): ...

    with pytest.raises(StoppedError, match="after step 2"):
        rank_cuts.fine_tune("rt", small, "tiny", 0, callbacks=[Stop()], **SHORT)
    resumed = rank_cuts.fine_tune("rt", small, "tiny", 0, **SHORT)
    whole = rank_cuts.fine_tune("rt", small, "tiny", 0, **SHORT)
    assert resumed.series("loss") == whole.series("loss")
    assert all(torch.equal(resumed.after[name], W) for name, W in whole.after.items())


def test_cuts_are_stored_and_read_back_by_seed(small, tmp_path):
    made = rank_cuts.train_cuts((0, 1), tmp_path, backbone=small, profile="tiny", **SHORT)
    found = rank_cuts.load_cuts(tmp_path)
    assert found.values("loss") == made.values("loss")
    assert {"first 0", "first 8", "rest 8", "random 8", "all"} <= set(found.arms)
    assert len(found.values("loss")["all"]) == 2
    assert set(found.by_site("all", "energy_rank", 1)) == set(found.by_site("all", "energy_of_8", 0))
    assert rank_cuts.line(found).startswith("stored cuts: 2 networks trained whole, ")


def test_what_is_stored_says_what_01_says():
    found = rank_cuts.load_cuts()
    losses, none, first = found.values("loss"), found.values("loss")["first 0"], found.values("loss")["first 8"]
    assert len(none) >= 3
    for start, cut, rest, whole in zip(none, first, losses["rest 8"], losses["all"], strict=True):
        assert start - whole > 0.05
        assert start - cut > 0.8 * (start - whole)
        assert start - rest < 0.2 * (start - whole)


def test_directions_drawn_at_random_are_that_many_and_the_same_again():
    assert len(rank_cuts.at_random(8, 384, 1)) == 8
    assert rank_cuts.at_random(8, 384, 1) == rank_cuts.at_random(8, 384, 1) != rank_cuts.at_random(8, 384, 2)
    first, rest = rank_cuts.arms(384, 0)["first 8"], rank_cuts.arms(384, 0)["rest 8"]
    assert sorted([*range(384)[first], *range(384)[rest]]) == list(range(384))
