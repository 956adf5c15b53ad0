"""The probe: what it says of the four hypergradients on a tiny network is what they are."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny, trainer

from lowrank_teach.analysis.measures import in_turns, training_step
from lowrank_teach.course.chapters.autolora import Probe
from lowrank_teach.methods import AutoLoRA
from lowrank_teach.methods.autolora import HYPERGRADIENTS


@pytest.fixture
def probe() -> Probe:
    made = trainer(AutoLoRA(r=4, retrain=False, hypergradient="first_order"), tiny(dropout=0.3))
    made.run()
    return Probe(made, rows=6, pairs=2)


def test_the_two_parts_add_up_and_the_implicit_one_is_proportional_to_eta(probe):
    direct, implicit = probe.parts(1e-3)
    assert direct.shape == (4 * 4,)
    assert torch.allclose(direct + implicit, probe.gradient("unrolled", 1e-3))
    assert probe.implicit_share(1e-3) / probe.implicit_share(1e-4) == pytest.approx(10, rel=0.2)
    assert probe.implicit_share(1e-3, "betty") == pytest.approx(1000 * probe.implicit_share(1e-3), rel=0.1)


def test_dropout_is_off_and_nothing_moves(probe):
    before = {name: p.detach().clone() for name, p in probe.model.named_parameters()}
    assert torch.equal(probe.gradient("unrolled", 1e-2), probe.gradient("unrolled", 1e-2))
    assert all(torch.equal(p, before[name]) for name, p in probe.model.named_parameters())


def test_cosines_are_to_the_exact_one(probe):
    cosines = probe.cosines(1e-3)
    assert set(cosines) == set(HYPERGRADIENTS)
    assert cosines["unrolled"] == pytest.approx(1, abs=1e-6)
    assert cosines["finite_difference"] > 0.99
    assert cosines["betty"] < cosines["first_order"]


def test_costs_are_ratios_to_a_plain_gradient(probe):
    costs = probe.costs(1e-3, repeats=3)
    assert set(costs) == set(HYPERGRADIENTS)
    assert 0.2 < costs["first_order"] < costs["finite_difference"] < 30


def test_a_search_step_moves_both_levels_and_the_probe_s_rows_are_of_both_halves(probe):
    assert not torch.equal(probe.pairs[0][0]["input_ids"], probe.pairs[0][1]["input_ids"])
    before = [p.detach().clone() for p in (*probe.betas, *probe.weights.values())]
    probe.search_step("finite_difference", 1e-2, 1e-2)()
    assert all(not torch.equal(old, new) for old, new in
               zip(before[:len(probe.betas)], probe.betas, strict=True))
    assert any(not torch.equal(old, new) for old, new in
               zip(before[len(probe.betas):], probe.weights.values(), strict=True))


def test_turns_are_taken_in_turn_and_the_first_round_is_not_counted():
    called = []
    seconds = in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=3)
    assert called == ["a", "b"] * 4
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


def test_a_training_step_trains_and_counts():
    model, numbers = tiny(), []
    batch = {"input_ids": torch.randint(3, 40, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    chosen = [model.classifier.weight]
    step = training_step(model, batch, chosen, lr=0.1, after=numbers.append)
    before, other = model.classifier.weight.detach().clone(), model.classifier.bias.detach().clone()
    step()
    step()
    assert numbers == [1, 2]
    assert not torch.equal(model.classifier.weight, before)
    assert torch.equal(model.classifier.bias, other)
