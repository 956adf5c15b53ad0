"""Small problems in which one thing can be watched: each method's idea on matrices that fit on a page.

Matrix completion (03), greedy writing and beams (08), the best of several runs (07), two levels (06), gates under a
budget (04), low-rank least squares (05).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from ..gates import HardConcrete
from ..lowrank import LowRank
from ..methods import COLA, Clock, SaLoRA
from ..methods.autolora import hypergradient, virtual_step

# d rows, k columns, r rank of a link, T steps; an array of steps starts with the first


# ---- matrix completion -------------------------------------------------------------------------------------
# Matrix completion, where a chain of low-rank steps can be watched: Frank-Wolfe, and links fitted one by one.
#
#     min f(W) = ½ Σ_seen (W_ij − Y_ij)²   over   K = {W : ‖W‖_* ≤ radius}      (‖·‖_*: sum of singular values)
#
# Frank and Wolfe (1956; Jaggi 2013 for this ball) move towards a corner of K, W ← W + η (V − W), and every corner has
# rank one. COLA's analysis (Xia, Qin and Hazan 2024, arXiv 2401.04151) is of this rule with a constant η. Beside it
# `fit_chain`, which does what COLA does: low-rank links, each fitted to what the links before it left. Taught in 03.
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
        """Return W / unit − Y where seen, zero elsewhere, (d, k)."""
        return (W / self.unit - self.target) * self.seen

    def loss(self, W: np.ndarray) -> float:
        """Return f(W) of W (d, k)."""
        return float((self.residual(W) ** 2).sum() / 2)

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """Return ∇f(W), (d, k)."""
        return self.residual(W) / self.unit

    def errors(self, W: np.ndarray) -> tuple[float, float]:
        """Return the root mean square error of W (d, k) on the seen entries, and on the hidden ones."""
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
    """Return a random problem: Y (d, k) of this rank, singular values falling by a third each, plus noise.

    Args: share: of the entries that are seen; noise: standard deviation on every entry. ‖Y‖_* is K's radius.
    """
    draw = np.random.default_rng(seed)
    left = np.linalg.qr(draw.standard_normal((d, rank)))[0]                   # (d, rank)
    right = np.linalg.qr(draw.standard_normal((k, rank)))[0]                  # (k, rank)
    s = np.sqrt(d * k) * 0.67 ** np.arange(rank)
    target = (left * s) @ right.T + noise * draw.standard_normal((d, k))      # (d, k)
    return Completion(target, draw.random((d, k)) < share, float(s.sum()), unit)


def linear_minimiser(G: np.ndarray, radius: float) -> np.ndarray:
    """Return V = argmin of ⟨G, V⟩ over ‖V‖_* ≤ radius: −radius u vᵀ, with G's top singular pair (Jaggi 2013, 4.3).

    Args: G (d, k), a gradient. Returns V (d, k), of rank one.
    """
    u, _, vh = np.linalg.svd(G, full_matrices=False)
    return -radius * np.outer(u[:, 0], vh[0])


def duality_gap(G: np.ndarray, W: np.ndarray, V: np.ndarray) -> float:
    """Return g = ⟨G, W − V⟩, V the minimiser: at least f(W) − min f for a convex f, zero only at the minimum."""
    return float((G * (W - V)).sum())


def decreasing_step(t: int) -> float:
    """Return η_t = 2 / (t + 2) for t = 0, 1, …: the usual step, which needs to know nothing of the problem."""
    return 2 / (t + 2)


def constant_step(problem: Completion, T: int) -> float:
    """Return η = √M / (D √(β T)): the step of COLA's analysis.

    Raises:
        ValueError: T is so small that η would be above 1, and W would leave K.
    """
    eta = np.sqrt(problem.fall / (problem.smoothness * T)) / problem.diameter
    if eta > 1:
        raise ValueError(f"T = {T} steps give η = {eta:.2f} above 1, which leaves K; take more steps")
    return float(eta)


BOUNDS = {"of the proof": 2.0, "with its ½": 1.5}   # × D √(M β / T)


def gap_bound(problem: Completion, T: int, which: str = "of the proof") -> float:
    """Return a bound on the mean duality gap of T constant steps with exact V; an inexact V adds its mean ε.

    Summing f(W_t+1) ≤ f(W_t) − η g_t + β η² D² / 2 gives mean g ≤ M / (η T) + β η D² / 2, with COLA's η
    3/2 · D √(M β / T): "with its ½". Without the ½ it is the looser 2 D √(M β / T): "of the proof". One copy of the
    statement that we have reads 2 √(M β D / T), with D under the root ("as printed"); another reads as the proof.

    Raises:
        KeyError: another name.
    """
    if which == "as printed":
        return float(2 * np.sqrt(problem.fall * problem.smoothness * problem.diameter / T))
    return float(BOUNDS[which] * problem.diameter * np.sqrt(problem.fall * problem.smoothness / T))


@dataclass(frozen=True)
class Descent:
    """What Frank-Wolfe did: W (d, k) at the end, loss (T + 1,), gap, η and ε (T,) each."""

    W: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    eta: np.ndarray
    epsilon: np.ndarray


def frank_wolfe(problem: Completion, T: int, step: str = "decreasing", share: float = 1.0, seed: int = 0) -> Descent:
    """Take T steps from W = 0; the gap is always that of the exact gradient.

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
    return Descent(W, np.array(loss), gap, etas, epsilon)


@dataclass(frozen=True)
class Chain:
    """A fitted chain: W (d, k); errors on seen and hidden entries (sweeps + 1,); knots; links (d, r), (r, k)."""

    W: np.ndarray
    seen: np.ndarray
    hidden: np.ndarray
    knots: list[int]
    links: list[tuple[np.ndarray, np.ndarray]]


def fit_chain(problem: Completion, links: int, r: int, sweeps: int = 24, ridge: float = 1.0, seed: int = 0,
              knots: Sequence[int] = ()) -> Chain:
    """Run COLA's three verbs on the toy: tune a link to what is left, tie it, extend by a new one with B = 0.

    A sweep solves for B with A fixed, then for A with B fixed (least squares on the seen entries, plus
    ridge · ‖·‖²: alternating least squares), so there is no step size. All chains have the same number of
    sweeps, split among the links as `COLA` splits steps, or after the sweeps `knots`, which then say how many links
    there are.

    Raises:
        ValueError: fewer sweeps than links, or a knot that is not within the sweeps.
    """
    method = COLA(knots=tuple(knots)) if knots else COLA(chain=links)
    knots = method.knot_steps(Clock(0, sweeps, sweeps))
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
    """Return B (d, r) that fits B A to rest (d, k) on the seen entries (d, k), for A (r, k)."""
    gram = (seen[:, None, :] * A) @ A.T + ridge * np.eye(len(A))              # (d, r, r)
    return np.linalg.solve(gram, (rest @ A.T)[..., None])[..., 0]



# ---- greedy writing and beams ------------------------------------------------------------------------------
# Four short texts with known probabilities, written greedily and by beam search: greedy need not find the likeliest.
#
# A model gives p(word | words before). A text's probability is the product; to take the likeliest word each time is
# to maximise the factors one by one and not their product. Taught in 08.
# words before -> word -> probability; a text that is no key has ended
Tree = Mapping[tuple[str, ...], Mapping[str, float]]
TREE: Tree = {
    (): {"The": 0.55, "A": 0.45},
    ("The",): {"pub": 0.40, "place": 0.35, "inn": 0.25},
    ("A",): {"pub": 0.90, "bar": 0.10},
}


@dataclass(frozen=True)
class Beam:
    """Words so far and the product of their probabilities."""

    words: tuple[str, ...]
    probability: float


def search(width: int, tree: Tree = TREE) -> list[list[Beam]]:
    """Return the beams kept after each word, the likeliest first; width 1 is greedy.

    Raises:
        ValueError: width below 1.
    """
    if width < 1:
        raise ValueError(f"width = {width} must be 1 (greedy) or more")
    kept = [[Beam((), 1.0)]]
    while any(beam.words in tree for beam in kept[-1]):
        longer = [Beam((*beam.words, word), beam.probability * p) for beam in kept[-1]
                  for word, p in tree.get(beam.words, {}).items()]
        ended = [beam for beam in kept[-1] if beam.words not in tree]
        kept.append(sorted([*longer, *ended], key=lambda beam: -beam.probability)[:width])
    return kept


def best(width: int, tree: Tree = TREE) -> Beam:
    """Return what is written at this width."""
    return search(width, tree)[-1][0]


# ---- the best of several -----------------------------------------------------------------------------------
# What choosing does to a comparison: runs of one method that differ by chance, and the best of them reported.
#
#     validation score  =  √shared · run  +  √(1 − shared) · noise of the validation rows
#     test score        =  √shared · run  +  √(1 − shared) · noise of the test rows
#
# In units of one standard deviation of a run's score. What a run has in both splits (its start, its order of rows) is
# `shared`; the rest belongs to the rows of one split. No run is better than another by its configuration. Taught in
# 07. R repetitions of a comparison, n learning rates, m seeds of each
WAYS = ("best on test", "best on validation", "by validation, then new seeds")
REACH, CELLS = 8.0, 4000   # of the integral: from −8 to 8 standard deviations


def expected_best(n: int) -> float:
    """Return the mean of the largest of n standard normal numbers: ∫ z · n φ(z) Φ(z)^(n − 1) dz.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"the best of {n} runs: there must be one at least")
    z = np.linspace(-REACH, REACH, CELLS + 1)
    return float(np.sum(z * n * norm.pdf(z) * norm.cdf(z) ** (n - 1)) * (z[1] - z[0]))


def draw(repetitions: int, rates: int, seeds: int, seed: int = 0) -> np.ndarray:
    """Draw standard normal numbers (3, R, n, m): of the run, of its validation rows, of its test rows."""
    return np.random.default_rng(seed).standard_normal((3, repetitions, rates, seeds))


def scores(drawn: np.ndarray, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the validation and test score of each rate, (R, n) each: the mean over its seeds.

    Args: drawn (3, R, n, m), as `draw` gives them; shared: the share of the variance that both splits see, 0 to 1.
    """
    run, validation, test = drawn.mean(3)                                               # (R, n) each
    own, rows = math.sqrt(shared), math.sqrt(1 - shared)
    return own * run + rows * validation, own * run + rows * test


def reported(by: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the test score (R,) that is reported: of the rate that is best by `by` (R, n), maybe `test` itself."""
    return np.take_along_axis(test, by.argmax(1, keepdims=True), 1)[:, 0]


def ways(validation: np.ndarray, test: np.ndarray, fresh: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return way of choosing -> what is reported (R,).

    Args: scores of the rates (R, n); fresh: of other seeds at the chosen rate (R,); here every rate has the same.
    """
    return dict(zip(WAYS, (reported(test, test), reported(validation, test), fresh), strict=True))


def expected(rates: int, seeds: int, shared: float) -> dict[str, float]:
    """Return way of choosing -> how much it adds on average to what a method without a grid reports."""
    gain = expected_best(rates) / math.sqrt(seeds)
    return dict(zip(WAYS, (gain, shared * gain, 0.0), strict=True))


# ---- two levels --------------------------------------------------------------------------------------------
# Two-level optimisation with one inner number w and one outer number β, so that it can be drawn as a surface.
#
# The model has two outputs and shares w out between them by selection weights, as AutoLoRA shares an update out
# between its rank-one terms:
#
#     f(w, β) = w · α,  α = softmax(β, 0) = (σ(β), 1 − σ(β));   L(w, β) = ½ ‖f(w, β) − y‖²
#
# The rows that w learns on ask for y = `train`, the held-out rows for y = `held_out`. The hypergradients are the
# library's own (`methods.autolora.hypergradient`; Zhang et al. 2024). Taught in 06.
# S steps of a path; w and β may have any common shape where no gradient is taken


@dataclass(frozen=True)
class Bilevel:
    """train, held_out: what the two halves of the rows ask of the two outputs."""

    train: tuple[float, float] = (1.0, 2.0)
    held_out: tuple[float, float] = (1.0, 0.5)

    def alpha(self, beta: Tensor) -> Tensor:
        """Return the selection weights (*, 2) of β (*), the softmax of (β, 0)."""
        return torch.softmax(torch.stack([beta, torch.zeros_like(beta)], -1), -1)

    def loss(self, part: str, w: Tensor, beta: Tensor) -> Tensor:
        """Return ½ ‖w α(β) − y‖² (*) for the rows `part`, "train" or "held_out"."""
        y = torch.tensor({"train": self.train, "held_out": self.held_out}[part], dtype=w.dtype)
        return 0.5 * (w.unsqueeze(-1) * self.alpha(beta) - y).square().sum(-1)

    def inner_solution(self, beta: np.ndarray) -> np.ndarray:
        """Return the w that the training rows ask for at β, of β's shape: y·α / α·α."""
        alpha = self.alpha(torch.as_tensor(beta, dtype=torch.float64)).numpy()
        return alpha @ np.asarray(self.train) / (alpha ** 2).sum(-1)

    def surface(self, part: str, w: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return the loss over the grid of w (n,) and β (m,), as (n, m)."""
        grid = torch.meshgrid(torch.as_tensor(w), torch.as_tensor(beta), indexing="ij")
        return self.loss(part, *grid).numpy()

    def best(self, low: float = -4.0, high: float = 6.0) -> tuple[float, float]:
        """Return the inner solution (β, w) with the lowest held-out loss, which is what both levels ask for."""
        beta = np.linspace(low, high, 10001)
        w = self.inner_solution(beta)
        i = int(self.loss("held_out", torch.as_tensor(w), torch.as_tensor(beta)).argmin())
        return float(beta[i]), float(w[i])

    def gradients(self, part: str, w: float, beta: float) -> tuple[float, float]:
        """Return (∂L/∂w, ∂L/∂β) at one point."""
        at = [_leaf(w), _leaf(beta)]
        slope_w, slope_beta = torch.autograd.grad(self.loss(part, *at), at)
        return slope_w.item(), slope_beta.item()

    def hypergradient(self, kind: str, w: float, beta: float, eta: float, radius: float = 0.01) -> float:
        """Return the library's hypergradient of one kind (`methods.autolora.HYPERGRADIENTS`) at one point."""
        outer = _leaf(beta)
        found = hypergradient(kind, lambda weights: self.loss("train", weights["w"], outer),
                              lambda weights: self.loss("held_out", weights["w"], outer),
                              {"w": _leaf(w)}, [outer], eta, radius)
        return found[0].item()

    def path(self, kind: str, w: float, beta: float, *, eta: float = 0.3, eta_beta: float = 0.5,
             steps: int = 150) -> tuple[np.ndarray, np.ndarray]:
        """Return β (S + 1,) and w (S + 1,) of the alternation: a step of β by its hypergradient, then a step of w."""
        points = [(beta, w)]
        for _ in range(steps):
            beta -= eta_beta * self.hypergradient(kind, w, beta, eta)
            slope = torch.tensor(self.gradients("train", w, beta)[0], dtype=torch.float64)
            w = virtual_step({"w": _leaf(w)}, [slope], eta)["w"].item()
            points.append((beta, w))
        betas, ws = np.array(points).T
        return betas, ws


def _leaf(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


# ---- gates under a budget ----------------------------------------------------------------------------------
# SaLoRA's budget at work with no network: gates whose task gradient is noise, and the library's own rule.
#
# What presses is λ (C − b)² alone (Hu et al. 2023, eq. 12 without the task loss); the noise stands for the task. It
# shows what Adam's momentum does to the density and what its memory does to λ, in a second. Taught in 04.
def gates_alone(method: SaLoRA, noise: float, *, sites: int = 12, steps: int = 150,
                seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the density C and multiplier λ after each step, (steps,) each, of gates that the budget alone moves.

    Args: method: its rates and betas count, its β and its window do not; noise: standard deviation of the
    gradient that stands for the task; sites: matrices, all of one size, with method.r gates each.
    Raises ValueError where the steps cannot reach b at all.
    """
    method = dataclasses.replace(method, beta=0.0, t_start=0, t_end=1.0)
    rule, generator = method.rule(), torch.Generator().manual_seed(seed)
    rule.adapters = {str(i): LowRank(method.r, method.r, method.r, gate=HardConcrete(method.stretch, method.r))
                     for i in range(sites)}  # type: ignore[assignment]
    rule.start(Clock(0, steps + 1, steps + 1), None)  # type: ignore[arg-type]
    gates = rule.parameter_groups()[-1]   # the window stays open one step longer: nothing is pruned here
    optimizer = torch.optim.AdamW([{key: value for key, value in gates.items() if key != "schedule"}])
    C, lam = np.empty(steps), np.empty(steps)
    for step in range(steps):
        clock = Clock(step + 1, steps + 1, steps + 1)
        rule.before_step(clock)
        optimizer.zero_grad()
        rule.penalty().backward()  # type: ignore[union-attr]
        for log_theta in gates["params"]:
            log_theta.grad += noise * torch.randn(method.r, generator=generator)
        optimizer.step()
        rule.after_step(clock)
        C[step], lam[step] = rule.density().item(), rule.lam.item()
    return C, lam


# ---- low-rank least squares --------------------------------------------------------------------------------
# Delta-LoRA on a least-squares problem, solved in milliseconds and by the letter: W is written at every step.
#
#     loss(W*) = ½ · mean over n of ‖W* x − y‖²          W* = W + s B A,   s = α / r
#     after step t > K:  W ← W + λ s (B' A' − B A)
#
# (Zi et al. 2023, arXiv 2309.02411, Algorithm 1, in LoRA's letters: the paper's A and B are swapped.) λ = 0 is LoRA.
# The optimizer is AdamW (Loshchilov & Hutter 2019) at a constant rate. Nothing here knows that the steps telescope:
# what the closed form says can be held against it. A test holds every step against the library's rule. Taught in 05.
# n rows of x, k in, d out, r rank, T steps

BETA1, BETA2 = 0.9, 0.999   # AdamW's defaults


@dataclass(frozen=True)
class LeastSquares:
    """A problem: X (n, k), Y (n, d), and the matrix W (d, k) that stands for the pretrained one."""

    X: np.ndarray
    Y: np.ndarray
    W: np.ndarray

    def loss(self, W: np.ndarray) -> float:
        """Return ½ · mean ‖W x − y‖² of a matrix (d, k)."""
        return 0.5 * float(np.square(self.X @ W.T - self.Y).sum(1).mean())


@dataclass(frozen=True)
class Trajectory:
    """What a solution went through; index t is after t steps, 0 the start.

    loss (T+1,), W (T+1, d, k), A (T+1, r, k), B (T+1, d, r); s: scale of the branch.
    """

    loss: np.ndarray
    W: np.ndarray
    A: np.ndarray
    B: np.ndarray
    s: float

    def product(self, t: int = -1) -> np.ndarray:
        """Return s B A (d, k) after t steps."""
        return self.s * self.B[t] @ self.A[t]

    def total(self, t: int = -1) -> np.ndarray:
        """Return W* − W₀ (d, k): all that was learned in t steps, in W and beside it."""
        return self.W[t] - self.W[0] + self.product(t)

    def cosines(self) -> np.ndarray:
        """Return (T+1,) cosine of W* and W₀ after every step, matrices read as vectors (Delta-LoRA, Fig. 3)."""
        start, deployed = self.W[0], self.W + self.s * self.B @ self.A                  # (T+1, d, k)
        sizes = np.sqrt(np.square(deployed).sum((1, 2)) * np.square(start).sum())
        return (deployed * start).sum((1, 2)) / sizes


def problem(d: int = 12, k: int = 10, n: int = 60, *, seed: int = 0) -> LeastSquares:
    """Return white x and y = (W + M) x for a change M of full rank, whose singular values fall by a quarter each."""
    g = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(g.standard_normal((d, k)), full_matrices=False)
    M = (u * (2.0 * 0.75 ** np.arange(len(vt)))) @ vt                                   # (d, k)
    X, W = g.standard_normal((n, k)), g.standard_normal((d, k)) / np.sqrt(k)
    return LeastSquares(X, X @ (W + M).T, W)


def solve(on: LeastSquares, *, r: int = 2, alpha: float = 4.0, lam: float = 0.0, K: int = 0, steps: int = 120,
          lr: float = 0.01, decay: float = 0.01, eps: float = 1e-8, seed: int = 0) -> Trajectory:
    """Train by LoRA, or Delta-LoRA for λ > 0, from A uniform ±1/√k and B = 0.

    Args:
        K: the first K steps leave W alone.  decay: AdamW's, on A and B.  eps: Adam's ε.  seed: of A.

    Raises:
        ValueError: r is outside 1 .. min(d, k), or λ or K is negative.
    """
    d, k = on.W.shape
    if not 1 <= r <= min(d, k) or lam < 0 or K < 0:
        raise ValueError(f"r = {r} must lie in 1 .. {min(d, k)}; λ = {lam} and K = {K} must be 0 or more")
    C, D = on.X.T @ on.X / len(on.X), on.Y.T @ on.X / len(on.X)                         # (k, k), (d, k)
    s, W = alpha / r, on.W.copy()
    theta = np.concatenate([np.zeros(d * r), np.random.default_rng(seed).uniform(-1, 1, r * k) / np.sqrt(k)])
    B, A = theta[:d * r].reshape(d, r), theta[d * r:].reshape(r, k)   # views: a step on theta moves both
    first, second, product = np.zeros_like(theta), np.zeros_like(theta), s * B @ A
    states = [(W.copy(), A.copy(), B.copy())]
    for t in range(1, steps + 1):
        gradient = (W + product) @ C - D                                                # ∂loss/∂W*, (d, k)
        pair = np.concatenate([(s * gradient @ A.T).ravel(), (s * B.T @ gradient).ravel()])
        _adamw(theta, pair, first, second, t, lr, decay, eps)
        before, product = product, s * B @ A
        if t > K:
            W += lam * (product - before)
        states.append((W.copy(), A.copy(), B.copy()))
    Ws, As, Bs = (np.array(values) for values in zip(*states, strict=True))
    misses = on.X @ (Ws + s * Bs @ As).transpose(0, 2, 1) - on.Y                        # (T+1, n, d)
    return Trajectory(0.5 * np.square(misses).sum(2).mean(1), Ws, As, Bs, s)


def _adamw(theta: np.ndarray, gradient: np.ndarray, first: np.ndarray, second: np.ndarray, t: int, lr: float,
           decay: float, eps: float) -> None:
    """Take one step on theta, in place; first and second are Adam's moments."""
    first += (1 - BETA1) * (gradient - first)
    second += (1 - BETA2) * (gradient * gradient - second)
    step = first / (1 - BETA1 ** t) / (np.sqrt(second / (1 - BETA2 ** t)) + eps)
    theta -= lr * (step + decay * theta)
