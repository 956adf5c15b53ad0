"""The least-squares toy: its gradient is the loss's, its steps are the library's, and the closed form holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_teach import adapt
from lowrank_teach.analysis import toy_problems as ls
from lowrank_teach.methods import Clock, DeltaLoRA, LoRA

ON = ls.problem()


def by_the_library(method, path: ls.Trajectory, steps: int, decay: float = 0.01):
    """W, A, B after each step of torch's AdamW with the library's rule around it, in float64, from the same A."""
    linear = nn.Linear(ON.W.shape[1], ON.W.shape[0], bias=False, dtype=torch.float64)
    linear.weight.data = torch.tensor(ON.W)
    adapters = adapt(nn.Sequential(linear), method, seed=0)
    branch, owner = adapters["0"], adapters.owner("0")
    branch.lora_A.data = torch.tensor(path.A[0])
    optimizer = torch.optim.AdamW([branch.lora_A, branch.lora_B], lr=0.01, weight_decay=decay)
    X, Y = torch.tensor(ON.X), torch.tensor(ON.Y)
    adapters.rule.start(Clock(0, steps, steps), None)
    states = [tuple(t.detach().clone() for t in (owner.W, branch.lora_A, branch.lora_B))]
    for step in range(1, steps + 1):
        clock = Clock(step, steps, steps)
        adapters.rule.before_step(clock)
        optimizer.zero_grad()
        (0.5 * (owner(X) - Y).square().sum(1).mean()).backward()
        optimizer.step()
        adapters.rule.after_step(clock)
        states.append(tuple(t.detach().clone() for t in (owner.W, branch.lora_A, branch.lora_B)))
    return states


@pytest.mark.parametrize(("lam", "K"), [(0.0, 0), (2.0, 0), (0.7, 9)])
def test_every_step_is_the_library_s(lam, K):
    path = ls.solve(ON, lam=lam, K=K, steps=40)
    method = DeltaLoRA(r=2, lora_alpha=4.0, lam=lam, K=K, sites=("0",))
    for t, (W, A, B) in enumerate(by_the_library(method, path, 40)):
        np.testing.assert_allclose(path.W[t], W.numpy(), atol=1e-9)
        np.testing.assert_allclose(path.A[t], A.numpy(), atol=1e-9)
        np.testing.assert_allclose(path.B[t], B.numpy(), atol=1e-9)


def test_lambda_zero_is_the_library_s_lora():
    path = ls.solve(ON, steps=40)
    last = by_the_library(LoRA(r=2, lora_alpha=4.0, sites=("0",)), path, 40)[-1]
    np.testing.assert_allclose(path.A[-1], last[1].numpy(), atol=1e-9)
    np.testing.assert_array_equal(path.W[-1], ON.W)


def test_the_loss_is_that_of_the_deployed_matrix():
    path = ls.solve(ON, lam=1.0, K=5, steps=30)
    for t in (0, 6, 30):
        assert path.loss[t] == pytest.approx(ON.loss(ON.W + path.total(t)), rel=1e-12)
        deployed = ON.W + path.total(t)
        cosine = (deployed * ON.W).sum() / np.linalg.norm(deployed) / np.linalg.norm(ON.W)
        assert path.cosines()[t] == pytest.approx(cosine, rel=1e-12)
    assert path.loss[-1] < 0.8 * path.loss[0]


@pytest.mark.parametrize(("K", "rank"), [(0, 2), (50, 4)])
def test_the_steps_telescope_and_the_rank_stays_low(K, rank):
    """W_T − W_K = λ s (B_T A_T − B_K A_K): rank 2r at most, r where the product at K is zero."""
    path = ls.solve(ON, lam=2.0, K=K, steps=200)
    closed = 2.0 * (path.product() - path.product(K))
    np.testing.assert_allclose(path.W[-1] - path.W[0], closed, atol=1e-12)
    np.testing.assert_array_equal(path.W[K], path.W[0])
    sigma = np.linalg.svd(path.total(), compute_uv=False)
    assert sigma[rank - 1] > 1e-4
    assert sigma[rank] < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_with_k_zero_it_is_lora_at_alpha_times_one_plus_lambda(seed):
    """To rounding where Adam's ε is out of the way, to 1e-6 with its usual ε; not with another α."""
    for eps, gap in ((1e-30, 1e-13), (1e-8, 1e-6)):
        delta = ls.solve(ON, lam=2.0, eps=eps, seed=seed)
        np.testing.assert_allclose(delta.total(), ls.solve(ON, alpha=12.0, eps=eps, seed=seed).total(), atol=gap)
    assert np.abs(ls.solve(ON, seed=seed).loss - delta.loss).max() > 0.1


def test_the_change_that_is_wanted_has_full_rank():
    wanted = np.linalg.lstsq(ON.X, ON.Y, rcond=None)[0].T - ON.W
    sigma = np.linalg.svd(wanted, compute_uv=False)
    np.testing.assert_allclose(sigma, 2.0 * 0.75 ** np.arange(10), rtol=1e-9)
    assert ON.loss(ON.W + wanted) < 1e-20


@pytest.mark.parametrize("values", [{"r": 0}, {"r": 11}, {"lam": -0.1}, {"K": -1}])
def test_what_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="must"):
        ls.solve(ON, **values)
