"""Matrix completion, where a chain of low-rank steps can be watched: Frank-Wolfe, and links fitted one by one.

    min f(W) = ½ Σ_seen (W_ij − Y_ij)²   over   K = {W : ‖W‖_* ≤ radius}      (‖·‖_*: sum of singular values)

Frank and Wolfe (1956; Jaggi 2013 for this ball) move towards a corner of K, W ← W + η (V − W), and every corner has
rank one. COLA's analysis (Xia, Qin and Hazan 2024, arXiv 2401.04151) is of this rule with a constant η. Beside it
`fit_chain`, which does what COLA does: low-rank links, each fitted to what the links before it left. Taught in 03.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..methods import COLA, Clock

# d rows, k columns, r rank of a link, T steps; an array of steps starts with the first


@dataclass(frozen=True)
class Completion:
    """A matrix of which some entries are seen.

    Args:
        target: Y (d, k).  seen: which entries count (d, k), bool.  radius: of K, in units of Y.
        unit: W is written in a unit of its own, W / unit is compared with Y. It changes nothing but numbers,
            so a bound that changes with it cannot be right.
    """

    target: np.ndarray
    seen: np.ndarray
    radius: float
    unit: float = 1.0

    def residual(self, W: np.ndarray) -> np.ndarray:
        """W / unit − Y where seen, zero elsewhere, (d, k)."""
        return (W / self.unit - self.target) * self.seen

    def loss(self, W: np.ndarray) -> float:
        """f(W) of W (d, k)."""
        return float((self.residual(W) ** 2).sum() / 2)

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """∇f(W), (d, k)."""
        return self.residual(W) / self.unit

    def errors(self, W: np.ndarray) -> tuple[float, float]:
        """Root mean square error of W (d, k) on the seen entries, and on the hidden ones."""
        squares = (W / self.unit - self.target) ** 2
        return float(np.sqrt(squares[self.seen].mean())), float(np.sqrt(squares[~self.seen].mean()))

    @property
    def ball(self) -> float:
        """Radius of K in W's own unit."""
        return self.radius * self.unit

    @property
    def diameter(self) -> float:
        """D: the largest ‖V − W‖_F in K, between a corner and its opposite."""
        return 2 * self.ball

    @property
    def smoothness(self) -> float:
        """β: ‖∇f(V) − ∇f(W)‖_F ≤ β ‖V − W‖_F."""
        return 1 / self.unit**2

    @property
    def fall(self) -> float:
        """M: how far f can fall from the start W = 0, at most; f is never negative."""
        return self.loss(np.zeros_like(self.target))


def completion(d: int = 24, k: int = 30, rank: int = 6, share: float = 0.6, noise: float = 0.05,
               seed: int = 0, unit: float = 1.0) -> Completion:
    """A random problem: Y (d, k) of this rank, singular values falling by a third each, plus noise.

    Args: share: of the entries that are seen; noise: standard deviation on every entry. ‖Y‖_* is K's radius.
    """
    draw = np.random.default_rng(seed)
    left = np.linalg.qr(draw.standard_normal((d, rank)))[0]                   # (d, rank)
    right = np.linalg.qr(draw.standard_normal((k, rank)))[0]                  # (k, rank)
    s = np.sqrt(d * k) * 0.67 ** np.arange(rank)
    target = (left * s) @ right.T + noise * draw.standard_normal((d, k))      # (d, k)
    return Completion(target, draw.random((d, k)) < share, float(s.sum()), unit)


def linear_minimiser(G: np.ndarray, radius: float) -> np.ndarray:
    """V = argmin of ⟨G, V⟩ over ‖V‖_* ≤ radius: −radius u vᵀ, with G's top singular pair (Jaggi 2013, 4.3).

    Args: G (d, k), a gradient. Returns V (d, k), of rank one.
    """
    u, _, vh = np.linalg.svd(G, full_matrices=False)
    return -radius * np.outer(u[:, 0], vh[0])


def duality_gap(G: np.ndarray, W: np.ndarray, V: np.ndarray) -> float:
    """g = ⟨G, W − V⟩ with V the minimiser: at least f(W) − min f for a convex f, and zero only at the minimum."""
    return float((G * (W - V)).sum())


def decreasing_step(t: int) -> float:
    """η_t = 2 / (t + 2) for t = 0, 1, …: the usual step, which needs to know nothing of the problem."""
    return 2 / (t + 2)


def constant_step(problem: Completion, T: int) -> float:
    """η = √M / (D √(β T)): the step of COLA's analysis.

    Raises:
        ValueError: T is so small that η would be above 1, and W would leave K.
    """
    eta = np.sqrt(problem.fall / (problem.smoothness * T)) / problem.diameter
    if eta > 1:
        raise ValueError(f"T = {T} steps give η = {eta:.2f} above 1, which leaves K; take more steps")
    return float(eta)


BOUNDS = {"of the proof": 2.0, "with its ½": 1.5}   # × D √(M β / T)


def gap_bound(problem: Completion, T: int, which: str = "of the proof") -> float:
    """A bound on the mean duality gap of T constant steps with exact V; an inexact V adds its mean ε.

    Summing f(W_t+1) ≤ f(W_t) − η g_t + β η² D² / 2 gives mean g ≤ M / (η T) + β η D² / 2, with COLA's η
    3/2 · D √(M β / T): "with its ½". The printed proof drops the ½ and so has 2 D √(M β / T): "of the proof".
    Its statement has 2 √(M β D / T): "as printed".

    Raises:
        KeyError: another name.
    """
    if which == "as printed":
        return float(2 * np.sqrt(problem.fall * problem.smoothness * problem.diameter / T))
    return float(BOUNDS[which] * problem.diameter * np.sqrt(problem.fall * problem.smoothness / T))


@dataclass(frozen=True)
class Path:
    """What Frank-Wolfe did: W (d, k) at the end, loss (T + 1,), gap, η and ε (T,) each."""

    W: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    eta: np.ndarray
    epsilon: np.ndarray


def frank_wolfe(problem: Completion, T: int, step: str = "decreasing", share: float = 1.0, seed: int = 0) -> Path:
    """T steps from W = 0; the gap is always that of the exact gradient.

    Args:
        step: "decreasing" or "constant".
        share: V is the minimiser for a gradient from this share of the seen entries, drawn anew each step: what is
            lost by it, ⟨∇f, V − V*⟩, is ε.

    Raises:
        ValueError: another step, or a constant one above 1.
    """
    if step not in ("decreasing", "constant"):
        raise ValueError(f'step is "decreasing" or "constant", not {step!r}')
    fixed = constant_step(problem, T) if step == "constant" else 0.0
    draw, W = np.random.default_rng(seed), np.zeros_like(problem.target)
    loss, rows = [problem.loss(W)], []
    for t in range(T):
        G = problem.gradient(W)                                               # (d, k)
        best = V = linear_minimiser(G, problem.ball)                          # (d, k)
        if share < 1:
            V = linear_minimiser(G * (draw.random(G.shape) < share), problem.ball)
        eta = fixed or decreasing_step(t)
        rows.append((duality_gap(G, W, best), eta, float((G * (V - best)).sum())))
        W = W + eta * (V - W)
        loss.append(problem.loss(W))
    gap, etas, epsilon = np.array(rows).T                                     # (T,) each
    return Path(W, np.array(loss), gap, etas, epsilon)


@dataclass(frozen=True)
class Chain:
    """A fitted chain: W (d, k); errors on seen and hidden entries (sweeps + 1,); knots; links (d, r), (r, k)."""

    W: np.ndarray
    seen: np.ndarray
    hidden: np.ndarray
    knots: list[int]
    links: list[tuple[np.ndarray, np.ndarray]]


def fit_chain(problem: Completion, links: int, r: int, sweeps: int = 24, ridge: float = 1.0, seed: int = 0) -> Chain:
    """COLA's three verbs on the toy: tune a link to what is left, tie it, extend by a new one with B = 0.

    A sweep solves for B with A fixed, then for A with B fixed (least squares on the seen entries, plus
    ridge · ‖·‖²: alternating least squares), so there is no step size. All chains have the same number of
    sweeps, split among the links as `COLA` splits steps.

    Raises:
        ValueError: fewer sweeps than links.
    """
    knots = COLA(chain=links).knot_steps(Clock(0, sweeps, sweeps))
    draw, held = np.random.default_rng(seed), np.zeros_like(problem.target)
    seen, (d, k) = problem.seen.astype(float), held.shape
    A, B = draw.standard_normal((r, k)) / r, np.zeros((d, r))
    errors, tied = [problem.errors(held)], []
    for sweep in range(1, sweeps + 1):
        rest = (problem.target - held) * seen                                 # (d, k)
        B = _solve(A, rest, seen, ridge)                                      # (d, r)
        A = _solve(B.T, rest.T, seen.T, ridge).T                              # (r, k)
        errors.append(problem.errors(problem.unit * (held + B @ A)))
        if sweep in knots:
            tied.append((B, A))
            held = held + B @ A
            A, B = draw.standard_normal((r, k)) / r, np.zeros((d, r))
    seen_error, hidden_error = np.array(errors).T                             # (sweeps + 1,) each
    return Chain(problem.unit * (held + B @ A), seen_error, hidden_error, knots, [*tied, (B, A)])


def _solve(A: np.ndarray, rest: np.ndarray, seen: np.ndarray, ridge: float) -> np.ndarray:
    """B (d, r) that fits B A to rest (d, k) on the seen entries (d, k), for A (r, k)."""
    gram = (seen[:, None, :] * A) @ A.T + ridge * np.eye(len(A))              # (d, r, r)
    return np.linalg.solve(gram, (rest @ A.T)[..., None])[..., 0]
