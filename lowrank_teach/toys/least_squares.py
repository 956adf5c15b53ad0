"""Delta-LoRA on a least-squares problem, solved in milliseconds and by the letter: W is written at every step.

    loss(W*) = ½ · mean over n of ‖W* x − y‖²          W* = W + s B A,   s = α / r
    after step t > K:  W ← W + λ s (B' A' − B A)

(Zi et al. 2023, arXiv 2309.02411, Algorithm 1, in LoRA's letters: the paper's A and B are swapped.) λ = 0 is LoRA.
The optimizer is AdamW (Loshchilov & Hutter 2019) at a constant rate. Nothing here knows that the steps telescope:
what the closed form says can be held against it. A test holds every step against the library's rule. Taught in 05.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# n rows of x, k in, d out, r rank, T steps

BETA1, BETA2 = 0.9, 0.999   # AdamW's defaults


@dataclass(frozen=True)
class LeastSquares:
    """A problem: X (n, k), Y (n, d), and the matrix W (d, k) that stands for the pretrained one."""

    X: np.ndarray
    Y: np.ndarray
    W: np.ndarray

    def loss(self, W: np.ndarray) -> float:
        """½ · mean ‖W x − y‖² of a matrix (d, k)."""
        return 0.5 * float(np.square(self.X @ W.T - self.Y).sum(1).mean())


@dataclass(frozen=True)
class Path:
    """What a solution went through; index t is after t steps, 0 the start.

    loss (T+1,), W (T+1, d, k), A (T+1, r, k), B (T+1, d, r); s: scale of the branch.
    """

    loss: np.ndarray
    W: np.ndarray
    A: np.ndarray
    B: np.ndarray
    s: float

    def product(self, t: int = -1) -> np.ndarray:
        """s B A (d, k) after t steps."""
        return self.s * self.B[t] @ self.A[t]

    def total(self, t: int = -1) -> np.ndarray:
        """W* − W₀ (d, k): all that was learned in t steps, in W and beside it."""
        return self.W[t] - self.W[0] + self.product(t)

    def cosines(self) -> np.ndarray:
        """(T+1,) cosine of W* and W₀ after every step, matrices read as vectors (Delta-LoRA, Fig. 3)."""
        start, deployed = self.W[0], self.W + self.s * self.B @ self.A                  # (T+1, d, k)
        sizes = np.sqrt(np.square(deployed).sum((1, 2)) * np.square(start).sum())
        return (deployed * start).sum((1, 2)) / sizes


def problem(d: int = 12, k: int = 10, n: int = 60, *, seed: int = 0) -> LeastSquares:
    """White x; y = (W + M) x for a change M of full rank, whose singular values fall by a quarter each."""
    g = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(g.standard_normal((d, k)), full_matrices=False)
    M = (u * (2.0 * 0.75 ** np.arange(len(vt)))) @ vt                                   # (d, k)
    X, W = g.standard_normal((n, k)), g.standard_normal((d, k)) / np.sqrt(k)
    return LeastSquares(X, X @ (W + M).T, W)


def solve(on: LeastSquares, *, r: int = 2, alpha: float = 4.0, lam: float = 0.0, K: int = 0, steps: int = 120,
          lr: float = 0.01, decay: float = 0.01, eps: float = 1e-8, seed: int = 0) -> Path:
    """LoRA, or Delta-LoRA for λ > 0, from A uniform ±1/√k and B = 0.

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
    return Path(0.5 * np.square(misses).sum(2).mean(1), Ws, As, Bs, s)


def _adamw(theta: np.ndarray, gradient: np.ndarray, first: np.ndarray, second: np.ndarray, t: int, lr: float,
           decay: float, eps: float) -> None:
    """One step on theta, in place; first and second are Adam's moments."""
    first += (1 - BETA1) * (gradient - first)
    second += (1 - BETA2) * (gradient * gradient - second)
    step = first / (1 - BETA1 ** t) / (np.sqrt(second / (1 - BETA2 ** t)) + eps)
    theta -= lr * (step + decay * theta)
