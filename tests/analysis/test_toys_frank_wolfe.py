"""Matrix completion: corners of the ball, gaps that bound the error, the bound and its constants, chains of links."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank_teach.analysis import toy_problems as toy

PROBLEMS = {seed: toy.completion(seed=seed) for seed in range(4)}


def nuclear(W: np.ndarray) -> float:
    return float(np.linalg.svd(W, compute_uv=False).sum())


def test_the_gradient_is_that_of_the_loss():
    problem, draw = toy.completion(unit=3.0), np.random.default_rng(0)
    W, V = draw.standard_normal((2, *problem.target.shape))
    slope = (problem.loss(W + 1e-5 * V) - problem.loss(W - 1e-5 * V)) / 2e-5
    assert slope == pytest.approx((problem.gradient(W) * V).sum(), rel=1e-7)


def test_the_problem_is_of_the_rank_and_share_asked_for():
    problem = toy.completion(40, 30, rank=4, share=0.5, noise=0.0)
    assert np.linalg.matrix_rank(problem.target) == 4
    assert nuclear(problem.target) == pytest.approx(problem.radius)
    assert problem.seen.mean() == pytest.approx(0.5, abs=0.05)
    assert problem.errors(problem.target) == (0, 0)


def test_no_point_of_the_ball_beats_the_minimiser():
    draw = np.random.default_rng(0)
    G = draw.standard_normal((8, 6))
    V = toy.linear_minimiser(G, 3.0)
    assert np.linalg.matrix_rank(V) == 1
    assert nuclear(V) == pytest.approx(3.0)
    assert (G * V).sum() == pytest.approx(-3 * np.linalg.norm(G, 2))
    others = draw.standard_normal((200, 8, 6))
    assert min((G * W * 3.0 / nuclear(W)).sum() for W in others) > (G * V).sum()


def test_smoothness_and_diameter_are_what_they_say():
    problem, draw = toy.completion(unit=0.5), np.random.default_rng(1)
    W, V = draw.standard_normal((2, *problem.target.shape))
    change = np.linalg.norm(problem.gradient(V) - problem.gradient(W))
    assert change <= problem.smoothness * np.linalg.norm(V - W)
    assert change > 0.5 * problem.smoothness * np.linalg.norm(V - W)
    corner = toy.linear_minimiser(W, problem.ball)
    assert np.linalg.norm(corner - -corner) == pytest.approx(problem.diameter)


@pytest.mark.parametrize("step", ["decreasing", "constant"])
def test_frank_wolfe_stays_in_the_ball_and_its_gap_bounds_the_error(step):
    problem = PROBLEMS[0]
    path = toy.frank_wolfe(problem, 200, step)
    assert nuclear(path.W) <= problem.ball * (1 + 1e-9)
    best = toy.frank_wolfe(problem, 2000).loss.min()
    assert (path.gap >= path.loss[:-1] - best).all()
    assert path.loss[-1] < 0.1 * path.loss[0]
    assert len(path.loss) == len(path.gap) + 1 == 201


def test_rank_grows_by_one_a_step():
    for T in (1, 2, 5):
        assert np.linalg.matrix_rank(toy.frank_wolfe(PROBLEMS[1], T).W, tol=1e-8) <= T


def test_the_first_decreasing_step_goes_all_the_way():
    assert toy.decreasing_step(0) == 1
    problem = PROBLEMS[0]
    corner = toy.linear_minimiser(problem.gradient(np.zeros_like(problem.target)), problem.ball)
    np.testing.assert_allclose(toy.frank_wolfe(problem, 1).W, corner)


@pytest.mark.parametrize("seed", PROBLEMS)
def test_every_step_falls_as_the_minus_sign_says(seed):
    """f(W') ≤ f(W) − η g + β η² D² / 2; and without the last term it does not hold: the test could fail."""
    problem = PROBLEMS[seed]
    path = toy.frank_wolfe(problem, 100)
    room = problem.smoothness * path.eta**2 * problem.diameter**2 / 2
    assert (np.diff(path.loss) <= -path.eta * path.gap + room + 1e-9).all()
    assert (np.diff(path.loss) > -path.eta * path.gap).any()


@pytest.mark.parametrize("seed", PROBLEMS)
@pytest.mark.parametrize("T", [4, 32, 256])
def test_the_bound_holds_with_its_half_and_not_as_printed(seed, T):
    problem = PROBLEMS[seed]
    mean = toy.frank_wolfe(problem, T, "constant").gap.mean()
    assert toy.gap_bound(problem, T, "as printed") < mean < toy.gap_bound(problem, T, "with its ½")
    assert toy.gap_bound(problem, T) == pytest.approx(4 / 3 * toy.gap_bound(problem, T, "with its ½"))


def test_a_unit_changes_the_printed_bound_alone():
    gaps, proof, printed = [], [], []
    for unit in (0.01, 1.0, 100.0):
        problem = toy.completion(unit=unit)
        gaps.append(toy.frank_wolfe(problem, 32, "constant").gap.mean())
        proof.append(toy.gap_bound(problem, 32))
        printed.append(toy.gap_bound(problem, 32, "as printed"))
    np.testing.assert_allclose(gaps, gaps[0])
    np.testing.assert_allclose(proof, proof[0])
    np.testing.assert_allclose(printed, printed[0] / np.array([1, 10, 100]))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_an_inexact_corner_costs_its_mean_epsilon(share):
    problem = PROBLEMS[2]
    path = toy.frank_wolfe(problem, 200, "constant", share=share)
    exact = toy.frank_wolfe(problem, 200, "constant")
    assert (path.epsilon >= -1e-9).all()
    assert path.epsilon.mean() > 0
    assert exact.epsilon.max() == 0
    assert exact.gap.mean() < path.gap.mean() <= toy.gap_bound(problem, 200, "with its ½") + path.epsilon.mean()


def test_wrong_settings_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="decreasing"):
        toy.frank_wolfe(PROBLEMS[0], 10, "free")
    easy = toy.Completion(100 * PROBLEMS[0].target, PROBLEMS[0].seen, PROBLEMS[0].radius)
    with pytest.raises(ValueError, match="take more steps"):
        toy.constant_step(easy, 1)
    with pytest.raises(KeyError, match="guessed"):
        toy.gap_bound(PROBLEMS[0], 10, "guessed")
    with pytest.raises(ValueError, match="knots"):
        toy.fit_chain(PROBLEMS[0], links=5, r=1, sweeps=4)


# ---- chains


@pytest.mark.parametrize(("links", "r"), [(1, 2), (2, 2), (3, 1), (3, 3)])
def test_a_chain_is_the_sum_of_its_links_and_its_knots_change_nothing(links, r):
    chain = toy.fit_chain(PROBLEMS[0], links, r)
    assert len(chain.links) == links == len(chain.knots) + 1
    np.testing.assert_allclose(chain.W, sum(B @ A for B, A in chain.links))
    assert np.linalg.matrix_rank(chain.W, tol=1e-6) == links * r
    first = chain.knots[0] if chain.knots else 24
    alone = toy.fit_chain(PROBLEMS[0], 1, r)
    np.testing.assert_allclose(chain.seen[:first + 1], alone.seen[:first + 1])
    # the first sweep of a link starts from B = 0 and can only lower the error on what is seen
    assert all(chain.seen[knot + 1] <= chain.seen[knot] for knot in chain.knots)


@pytest.mark.parametrize("seed", PROBLEMS)
def test_a_chain_reaches_more_than_one_link_of_its_rank(seed):
    one, three = (toy.fit_chain(PROBLEMS[seed], links, 2).seen[-1] for links in (1, 3))
    assert three < 0.6 * one


def test_a_link_fits_what_is_left_best_of_all_for_its_a():
    problem = PROBLEMS[3]
    A = np.random.default_rng(0).standard_normal((2, problem.target.shape[1]))
    seen = problem.seen.astype(float)
    B = toy._solve(A, problem.target * seen, seen, 0.5)

    def cost(B: np.ndarray) -> float:
        return float((((B @ A - problem.target) * seen) ** 2).sum() + 0.5 * (B**2).sum())

    moves = np.random.default_rng(1).standard_normal((50, *B.shape))
    assert min(cost(B + 0.01 * move) for move in moves) > cost(B)


def test_a_unit_changes_no_error_of_a_chain():
    a, b = (toy.fit_chain(toy.completion(unit=unit), 3, 2) for unit in (1.0, 10.0))
    np.testing.assert_allclose(a.hidden, b.hidden)
    np.testing.assert_allclose(10 * a.W, b.W)
