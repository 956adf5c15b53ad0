"""SaLoRA's explorers and the hard-concrete density behind them: exact against Monte Carlo, autograd and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_teach.analysis import measures
from lowrank_teach.course import explorer
from lowrank_teach.course.chapters import salora
from lowrank_teach.gates import Stretch

F64 = torch.float64
STRETCHES = st.builds(Stretch, tau=st.floats(0.3, 2.0), gamma=st.floats(-0.5, -0.05), zeta=st.floats(1.05, 1.5))


def budget() -> salora.SaloraBudget:
    g = np.random.default_rng(0)
    shapes = {**dict.fromkeys("qkvo", (384, 384)), "up": (1536, 384), "down": (384, 1536)}
    sizes = {f"{layer}.{m}": shape for layer in range(6) for m, shape in shapes.items()}
    return salora.SaloraBudget({site: g.normal(-2.4, 0.6, 8).tolist() for site in sizes}, sizes)


def stored() -> salora.SaloraRuns:
    steps = list(range(100))
    curves = {b: (steps, [b + 0.9 * math.exp(-s / 20) for s in steps]) for b in (0.125, 0.25, 0.5, 0.75)}
    rising = {b: (steps, [s / 100 / b for s in steps]) for b in curves}
    return salora.SaloraRuns(curves, rising, {b: [b, b + 0.1] for b in curves}, "test accuracy")


PICTURES = {"gate": salora.HardConcreteGate(), "budget": budget(), "runs": stored()}


# ---- the density of a gate ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(STRETCHES, st.floats(-4, 4))
def test_the_density_integrates_to_what_lies_between_the_masses(stretch, log_theta):
    theta = torch.tensor(log_theta, dtype=F64)
    inside = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    between = float(stretch.pdf(theta, inside).mean())
    wanted = stretch.open_probability(theta) - stretch.full_probability(theta)
    assert between == pytest.approx(float(wanted), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(STRETCHES, st.floats(-3, 3), st.integers(0, 10**6))
def test_the_masses_and_the_density_are_frequencies_of_samples(stretch, log_theta, seed):
    n = 20_000
    theta = torch.tensor(log_theta, dtype=F64)
    g = stretch.sample(theta, torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64))
    edges = torch.linspace(0, 1, 6, dtype=F64)
    inside = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    pdf = stretch.pdf(theta, inside)
    expected = {float((g == 1).double().mean()): float(stretch.full_probability(theta))}
    assert all(abs(seen - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-3 for seen, p in expected.items())
    for low, high in itertools.pairwise(edges):
        p = float(pdf[(inside > low) & (inside < high)].sum() / 4000)
        seen = float(((g > low) & (g < high)).double().mean())
        assert abs(seen - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-3


def test_a_gate_and_its_mirror_image_swap_their_masses():
    """With γ = −0.1 and ζ = 1.1 the stretch is symmetric about 1/2: P(g = 1) at log θ is P(g = 0) at −log θ."""
    theta = torch.linspace(-5, 5, 11, dtype=F64)
    closed = 1 - Stretch().open_probability(-theta)
    torch.testing.assert_close(Stretch().full_probability(theta), closed)


@settings(max_examples=40, deadline=None)
@given(STRETCHES)
def test_the_rule_and_one_half_agree_at_any_temperature(stretch):
    """Just above the edge the deterministic gate is open and P(g > 0) > 1/2; just below neither is."""
    for side, is_open in ((1e-6, True), (-1e-6, False)):
        at = torch.tensor(side - stretch.shift, dtype=F64)
        assert (float(stretch.deterministic(at)) > 0) == is_open
        assert (float(stretch.open_probability(at)) > 0.5) == is_open
        assert float(stretch.mean(at)) > 0


# ---- the gate -----------------------------------------------------------------------------------------------


def test_the_gate_shows_what_the_library_computes():
    state = {"log_theta": -1.2, "tau": 0.6, "gamma": -0.2, "zeta": 1.3}
    a = PICTURES["gate"].arrays(**state)
    stretch, at = Stretch(0.6, -0.2, 1.3), torch.tensor(-1.2, dtype=F64)
    assert a["mass"].sum() == pytest.approx(1)
    inside = (torch.arange(5000) + 0.5) / 5000
    assert a["mass"][1] == pytest.approx(float(stretch.pdf(at, inside).mean()), abs=1e-4)
    readings = (stretch.open_probability, stretch.mean, stretch.deterministic)
    assert a["now"].tolist() == [float(reading(at)) for reading in readings]
    assert a["edge"] == pytest.approx(0.6 * math.log(0.2 / 1.3))


def test_the_gate_s_sentence_says_dropped_below_the_edge_alone():
    gate = PICTURES["gate"]
    assert "dropped" in gate.words(**{**gate.start(), "log_theta": -2.4})
    assert "kept" in gate.words(**{**gate.start(), "log_theta": -2.3})
    assert "exactly 0 in 8.3%" in gate.words(**gate.start())


# ---- the budget ---------------------------------------------------------------------------------------------


def test_the_pull_is_the_gradient_of_the_budget():
    """2 λ (C − b) p (1 − p) w, w the gate's share of all sizes; nothing at λ = 0 or at C = b; both signs."""
    picture = PICTURES["budget"]
    p = 1 / (1 + np.exp(-(picture.flat + math.log(11))))
    C = float((picture.weight * p).sum())
    assert picture.density() == pytest.approx(C, abs=1e-12)
    for lam, b in ((2.0, 0.25), (0.7, 0.9)):
        np.testing.assert_allclose(picture.pull(lam, b), 2 * lam * (C - b) * p * (1 - p) * picture.weight, atol=1e-15)
        assert ((picture.pull(lam, b) > 0) == (b < C)).all()
    assert not picture.pull(0.0, 0.25).any()
    np.testing.assert_allclose(picture.pull(3.0, C), 0, atol=1e-15)


def test_cutting_at_the_threshold_keeps_what_is_said():
    picture = PICTURES["budget"]
    for b in (0.1, 0.35, 0.8):
        cut, share = picture.threshold(b)
        kept = picture.flat >= cut
        assert picture.weight[kept].sum() == pytest.approx(share)
        assert abs(share - b) <= picture.weight.max() / 2 + 1e-12
    gates = {site: Stretch().deterministic(t) for site, t in picture.theta.items()}
    by_size = sum(float((g > 0).sum()) * sum(picture.sizes[site]) for site, g in gates.items())
    assert picture.kept_share() == pytest.approx(by_size / sum(8 * sum(size) for size in picture.sizes.values()))
    assert int(picture.masks[0].sum()) == round((1 - measures.gate_sparsity(gates)) * len(picture.flat))


def test_the_budget_s_sentence_names_the_direction():
    picture = PICTURES["budget"]
    assert "pushes every gate down" in picture.words(lam=1.0, b=0.05)
    assert "pushes every gate up" in picture.words(lam=1.0, b=0.95)
    assert "pulls at nothing" in picture.words(lam=0.0, b=0.05)
    assert picture.kind == explorer.LIVE


# ---- stored runs --------------------------------------------------------------------------------------------


def test_the_runs_snap_and_say_so():
    runs = PICTURES["runs"]
    assert (runs.snap(0.2), runs.snap(0.6), runs.snap(0.15)) == (0.25, 0.5, 0.125)
    assert "Asked b = 0.650; shown the stored run with b = 0.75" in runs.words(b=0.65)
    assert "0.800 (mean of 2 seeds)" in runs.words(b=0.75)
    assert runs.kind == explorer.SNAPPED


# ---- what the budget picture stands on ----------------------------------------------------------------------


def test_a_run_keeps_the_gates_it_closed_with():
    """log θ of all directions at T_end, once, before pruning; ranks and the deterministic gate tell one story."""
    from helpers import train

    from lowrank_teach.methods import SaLoRA

    adapters, outcome = train(SaLoRA(r=8, b=0.25, eta_c=0.3, t_end=40), steps=44)
    rows = [row for row in outcome.history if row[2].startswith("log_theta.")]
    assert {row[0] for row in rows} == {40}
    assert len(rows) == 8 * len(adapters)
    for site, branch in adapters.items():
        values = torch.tensor([row[3] for row in rows if row[1] == site])
        assert int((Stretch().deterministic(values) > 0).sum()) == branch.r
    sizes = {site: (b.lora_B.shape[0], b.lora_A.shape[1]) for site, b in adapters.items()}
    picture = salora.SaloraBudget({site: [row[3] for row in rows if row[1] == site] for site in adapters}, sizes)
    assert picture.density() == pytest.approx(adapters.rule.closed_at, abs=1e-6)
