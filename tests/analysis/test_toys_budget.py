"""The budget with no network: it reaches b, momentum carries past it, a long memory slows λ; the rule's own steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lowrank_teach.analysis.toy_problems import gates_alone
from lowrank_teach.methods import SaLoRA

QUICK = SaLoRA(r=4, eta_c=0.05)


@pytest.mark.parametrize("b", [0.25, 0.5, 0.75])
def test_without_noise_the_density_falls_to_b_and_stays(b):
    C, lam = gates_alone(dataclasses.replace(QUICK, b=b), 0.0, sites=3)
    assert C[-1] == pytest.approx(b, abs=0.01)
    assert C.min() > b - 0.01
    assert (np.diff(lam) >= 0).all()


def test_momentum_carries_the_density_past_b():
    """Adam's usual β₁ = 0.9 on the gates."""
    C, _ = gates_alone(dataclasses.replace(QUICK, gate_betas=(0.9, 0.999)), 0.0, sites=3)
    assert C.min() < QUICK.b - 0.03
    assert C[-1] == pytest.approx(QUICK.b, abs=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_long_memory_slows_the_multiplier(seed):
    """Adam's usual β₂ = 0.999 on λ: with noise on the gates λ ends lower and the density farther from a small b."""
    small = dataclasses.replace(QUICK, b=0.125)
    (C, lam), (slow_C, slow_lam) = (gates_alone(one, 1e-3, steps=250, seed=seed) for one in
                                    (small, dataclasses.replace(small, lambda_betas=(0.9, 0.999))))
    assert slow_lam[-1] < 0.6 * lam[-1]
    assert slow_C[-1] - small.b > C[-1] - small.b


def test_the_first_steps_by_hand():
    """λ's first Adam step is η_c; the gates see no budget at λ = 0 and move η_c at the second step."""
    C, lam = gates_alone(QUICK, 0.0, sites=2, steps=60)
    start = float(QUICK.stretch.open_probability(torch.zeros(())))
    assert lam[0] == pytest.approx(QUICK.eta_c, rel=1e-6)
    assert C[0] == pytest.approx(start, abs=1e-6)
    second = 1 / np.sqrt(0.001 / (1 - 0.999**2))   # Adam's second step, its first gradient having been zero
    moved = torch.tensor(-QUICK.eta_c * second)
    assert C[1] == pytest.approx(float(QUICK.stretch.open_probability(moved)), abs=1e-5)


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="at least"):
        gates_alone(QUICK, 0.0, steps=20)
