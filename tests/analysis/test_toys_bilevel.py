"""The two-level toy: its closed forms, the library's hypergradients on it, and where the alternation ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowrank_teach.analysis.toy_problems import Bilevel
from lowrank_teach.methods.autolora import HYPERGRADIENTS

TOYS = [Bilevel(), Bilevel(train=(0.5, 1.5), held_out=(1.5, 0.4))]
POINTS = [(0.2, -2.0, 0.3), (1.4, 0.7, 0.05), (2.0, -0.4, 0.6)]


def held_out_after_a_step(toy: Bilevel, w: float, beta: float, eta: float) -> float:
    """L_held-out after a real step of w: in numpy, and written down a second time on purpose."""
    def parts(y):
        share = 1 / (1 + np.exp(-beta))
        alpha = np.array([share, 1 - share])
        return alpha, w * alpha - np.array(y)

    alpha, error = parts(toy.train)
    moved = w - eta * error @ alpha
    return 0.5 * float(np.square(moved * alpha - np.array(toy.held_out)).sum())


@pytest.mark.parametrize("toy", TOYS)
def test_no_training_gradient_is_left_on_the_inner_line(toy):
    for beta in np.linspace(-4, 4, 9):
        w = float(toy.inner_solution(np.array(beta)))
        assert toy.gradients("train", w, float(beta))[0] == pytest.approx(0, abs=1e-12)
        assert toy.gradients("train", w + 0.1, float(beta))[0] > 0.01


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize(("w", "beta", "eta"), POINTS)
def test_unrolled_is_the_slope_after_a_real_step(toy, w, beta, eta):
    h = 1e-5
    slope = (held_out_after_a_step(toy, w, beta + h, eta) - held_out_after_a_step(toy, w, beta - h, eta)) / (2 * h)
    assert toy.hypergradient("unrolled", w, beta, eta) == pytest.approx(slope, abs=1e-8)
    assert toy.hypergradient("finite_difference", w, beta, eta, 1e-3) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize(("w", "beta", "eta"), POINTS)
def test_first_order_is_the_slope_of_the_loss_itself(w, beta, eta):
    toy = Bilevel()
    assert toy.hypergradient("first_order", w, beta, eta) == pytest.approx(toy.gradients("held_out", w, beta)[1])
    still = toy.hypergradient("unrolled", w, beta, 0.0)
    assert toy.hypergradient("first_order", w, beta, 0.0) == pytest.approx(still)


def test_betty_weighs_the_second_order_part_by_one():
    toy, (w, beta, eta) = Bilevel(), POINTS[0]
    slope, _ = toy.gradients("train", w, beta)
    direct = toy.hypergradient("first_order", w - eta * slope, beta, eta)
    weighted = toy.hypergradient("finite_difference", w, beta, eta) - direct
    assert abs(weighted) > 1e-4
    assert toy.hypergradient("betty", w, beta, eta) - direct == pytest.approx(weighted / eta, rel=1e-6)


@pytest.mark.parametrize("kind", HYPERGRADIENTS)
def test_a_path_ends_where_its_own_gradient_vanishes(kind):
    """On the inner line, at a zero of its hypergradient; the longer way round changes nothing."""
    toy = Bilevel()
    beta, w = toy.path(kind, 0.2, -2.0, steps=400)
    assert (beta[0], w[0], len(beta)) == (-2.0, 0.2, 401)
    assert w[-1] == pytest.approx(float(toy.inner_solution(beta[-1])), abs=1e-6)
    assert toy.hypergradient(kind, w[-1], beta[-1], 0.3) == pytest.approx(0, abs=1e-6)


def test_more_weight_on_the_second_order_part_ends_nearer_to_the_best():
    toy = Bilevel()
    best, w_best = toy.best()
    ends = {kind: toy.path(kind, 0.2, -2.0)[0][-1] for kind in HYPERGRADIENTS}
    assert ends["first_order"] < ends["unrolled"] - 0.05 < ends["betty"] - 0.5 < best
    assert ends["unrolled"] == pytest.approx(ends["finite_difference"], abs=1e-6)
    assert w_best == pytest.approx(float(toy.inner_solution(np.array(best))))


@pytest.mark.parametrize("toy", TOYS)
def test_nothing_on_the_inner_line_is_better_than_the_best(toy):
    beta, w = toy.best()
    lowest = toy.loss("held_out", torch.tensor(w), torch.tensor(beta)).item()
    others = np.linspace(-4, 6, 1001)
    along = toy.loss("held_out", torch.as_tensor(toy.inner_solution(others)), torch.as_tensor(others))
    assert lowest <= along.min().item() + 1e-6
    assert lowest < along.max().item()


def test_the_surface_is_the_loss_at_every_point():
    toy, w, beta = Bilevel(), np.array([0.5, 1.0, 2.0]), np.array([-1.0, 0.0])
    table = toy.surface("held_out", w, beta)
    assert table.shape == (3, 2)
    assert table[2, 0] == pytest.approx(toy.loss("held_out", torch.tensor(2.0), torch.tensor(-1.0)).item(), rel=1e-6)
    assert not np.allclose(table, toy.surface("train", w, beta))
    assert toy.alpha(torch.tensor([0.0, 50.0])).flatten().tolist() == pytest.approx([0.5, 0.5, 1.0, 0.0])
