"""What a weight change looks like in numbers: spectra, ranks, angles, gates, parameters, FLOPs, memory.

No method is defined here; every function reads weights that some method left behind. A change of rank R is
always handed over as its two factors, ΔW = left @ right: for a 768 x 768 change of rank 8 the QR of the
factors is hundreds of times faster than a dense SVD. Figures of these numbers are made by `plots.py`.
Taught in 01 (spectra), 02 (parameters), 03 (FLOPs), 04 (density), 05 (cosine).
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..lowrank import numel

# d out, k in, R rank of a pair of factors, r rank of an adapter, n = min(R, d, k), T tokens, L sequence


def _exact(x: Tensor) -> Tensor:
    """Return it in float64 on the CPU: these are small, and 1 - cosine near 1e-9 would drown in float32."""
    return x.detach().to("cpu").double()


def factor_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of left @ right without forming it: QR of both factors, then the SVD of an R x R core.

    Args: left (d, R); right (R, k). Returns U (d, n), s (n,) descending, Vh (n, k), all float64.
    Raises ValueError when the two do not multiply.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"left {tuple(left.shape)} and right {tuple(right.shape)} do not multiply: "
                         "pass left (d, R) and right (R, k)")
    q_left, t_left = torch.linalg.qr(_exact(left))        # (d, min(d, R)), (min(d, R), R)
    q_right, t_right = torch.linalg.qr(_exact(right).T)   # (k, min(k, R)), (min(k, R), R)
    u, s, vh = torch.linalg.svd(t_left @ t_right.T, full_matrices=False)
    return q_left @ u, s, vh @ q_right.T


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Return the singular values of left @ right, (min(R, d, k),), descending; none for R = 0. As `factor_svd`."""
    return factor_svd(left, right)[1]


def energy(s: Tensor) -> Tensor:
    """Share of ‖ΔW‖_F² held by the first i of the singular values s (n,); zeros for an all-zero spectrum."""
    squares = _exact(s) ** 2
    return squares.cumsum(0) / squares.sum() if squares.any() else squares


def energy_rank(s: Tensor, share: float = 0.9) -> int:
    """Return the smallest rank that can hold `share` of ‖ΔW‖_F² (Eckart & Young 1936); 0 for an all-zero spectrum.

    Args: s (n,) descending; share in (0, 1]. Raises ValueError for another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not in (0, 1]")
    held = energy(s)
    # the last partial sum may miss 1 by round-off
    return int((held < share - 1e-12).sum()) + 1 if held.any() else 0


def effective_rank(s: Tensor) -> float:
    """Return exp(entropy of s / Σs), s (n,): n for n equal values, 1 for one, 0 for none (Roy & Vetterli 2007)."""
    s = _exact(s)
    return float(torch.special.entr(s / s.sum()).sum().exp()) if s.any() else 0.0


def stable_rank(s: Tensor) -> float:
    """Return ‖ΔW‖_F² / ‖ΔW‖_2² of a spectrum s (n,), at most the rank (Rudelson & Vershynin 2007); 0 for none."""
    s = _exact(s)
    return float((s / s.max()).square().sum()) if s.any() else 0.0


def numerical_rank(s: Tensor, tol: float = 1e-6) -> int:
    """Return how many singular values s (n,) exceed `tol` times the largest; 1e-6 suits factors held in float32."""
    s = _exact(s)
    return int((s > tol * s.max()).sum()) if s.any() else 0


def _cosine(dot: Tensor, square_a: Tensor, square_b: Tensor) -> float:
    if square_a <= 0 or square_b <= 0:
        raise ValueError("the cosine with an all-zero matrix is not defined")
    return float((dot / (square_a.sqrt() * square_b.sqrt())).clamp(-1, 1))


def cosine(before: Tensor, after: Tensor) -> float:
    """Return the cosine of two (d, k) matrices read as vectors (Delta-LoRA, Fig. 3). ValueError for a zero one."""
    a, b = _exact(before), _exact(after)
    return _cosine((a * b).sum(), a.square().sum(), b.square().sum())


def cosine_update(W: Tensor, left: Tensor, right: Tensor) -> float:
    """Return cosine(W, W + left @ right) without the (d, k) product.

    Args: W (d, k); left (d, R); right (R, k). Raises ValueError if W or W + ΔW is all zero.
    """
    W, left, right = _exact(W), _exact(left), _exact(right)
    square = W.square().sum()
    dot = ((left.T @ W) * right).sum()                     # <W, ΔW>, from an (R, k) product
    change = ((left.T @ left) * (right @ right.T)).sum()   # ‖ΔW‖_F², from two (R, R) Gram matrices
    return _cosine(square + dot, square, square + 2 * dot + change)


def top_subspace(W: Tensor, rank: int, side: str = "left") -> Tensor:
    """Return an orthonormal basis of W's top-`rank` singular subspace: "left" (d, rank), "right" (k, rank).

    Args: W (d, k). Raises ValueError for another side, or a rank outside 1 .. min(d, k). Dense SVD: keep it.
    """
    if side not in ("left", "right"):
        raise ValueError(f'side is "left" (column space) or "right" (row space), not {side!r}')
    if not 1 <= rank <= min(W.shape):
        raise ValueError(f"rank {rank} is not in 1 .. min(d, k) = {min(W.shape)}")
    u, _, vh = torch.linalg.svd(_exact(W), full_matrices=False)
    return u[:, :rank] if side == "left" else vh[:rank].T


def principal_angles(left: Tensor, right: Tensor, W: Tensor | None, rank: int, side: str = "left", *,
                     basis: Tensor | None = None) -> Tensor:
    """Return angles (rank,) in radians, ascending, between top-`rank` subspaces of ΔW and W (Björck & Golub 1973).

    Args: left (d, R); right (R, k); W (d, k), or None with `basis` = top_subspace(W, rank, side); side:
    "left" compares column spaces, "right" row spaces.
    Raises ValueError when ΔW has fewer than `rank` directions (the others would be arbitrary), or without W.
    """
    if basis is None and W is None:
        raise ValueError("pass W, or basis=top_subspace(W, rank, side)")
    basis = top_subspace(W, rank, side) if basis is None else _exact(basis)   # type: ignore[arg-type]
    u, s, vh = factor_svd(left, right)
    if basis.shape[1] != rank or not 1 <= rank <= numerical_rank(s, 1e-12):
        raise ValueError(f"rank {rank} needs a basis of {rank} columns (it has {basis.shape[1]}) and a ΔW of "
                         f"rank {rank} or more (it has {numerical_rank(s, 1e-12)})")
    own = {"left": u[:, :rank], "right": vh[:rank].T}[side]   # (d or k, rank)
    overlap = own.T @ basis                                   # (rank, rank)
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)
    sines = torch.linalg.svdvals(basis - own @ overlap).clamp(max=1).flip(0)
    # arccos loses half the digits near 0, arcsin near π/2: take each where it is sharp
    return torch.where(cosines**2 < 0.5, cosines.arccos(), sines.arcsin())


def gate_sparsity(gates: Mapping[str, Tensor]) -> float:
    """Share of gates, site -> (r,), that are exactly zero. Raises ValueError when there is none at all."""
    if not (total := sum(g.numel() for g in gates.values())):
        raise ValueError("no gates given: only a method with gates has a sparsity")
    return sum(int((g == 0).sum()) for g in gates.values()) / total


def density(open_probabilities: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]]) -> Tensor:
    """Return C = Σ p_ij (d_i + k_i) / Σ r_i (d_i + k_i), the share of adapter weights expected open (SaLoRA, C).

    Args: site -> probability that each gate is open (r,); site -> (d, k). Returns a 0-dim tensor that keeps
    the graph of p, so it can stand in a loss. ValueError for no site, KeyError for a site without a size.
    """
    if not open_probabilities:
        raise ValueError("no open probabilities given: a density needs a gated site")
    spent = [p.sum() * sum(sizes[site]) for site, p in open_probabilities.items()]
    return torch.stack(spent).sum() / sum(p.numel() * sum(sizes[s]) for s, p in open_probabilities.items())


# factors; SaLoRA's, AutoLoRA's gates; AdaLoRA's singular values; bottlenecks; prompts
ADAPTER_NAMES = frozenset({"lora_A", "lora_B", "log_theta", "beta", "lora_E", "bottleneck", "prompt_encoder"})


def parameter_counts(model: nn.Module, still: int = 0) -> dict[str, int]:
    """Return numbers of parameters: total = trainable + frozen, trainable = adapter + head; shared ones once.

    "adapter": a part of the name is in ADAPTER_NAMES; "head": all else that trains (W too, where it does).
    still: how many entries of those that train (W's) never move, and so count as frozen.
    """
    counts = dict.fromkeys(("total", "trainable", "frozen", "adapter", "head"), 0)
    for name, parameter in model.named_parameters():
        kinds = ["total", "trainable" if parameter.requires_grad else "frozen"]
        if parameter.requires_grad:
            kinds.append("head" if ADAPTER_NAMES.isdisjoint(name.split(".")) else "adapter")
        for kind in kinds:
            counts[kind] += numel(parameter)
    for kind, sign in (("trainable", -1), ("head", -1), ("frozen", 1)):
        counts[kind] += sign * still
    return counts


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiply-add being 2. "frozen" is W and attention, also where W trains."""

    forward_frozen: int = 0
    backward_frozen: int = 0
    forward_adapter: int = 0
    backward_adapter: int = 0

    forward = property(lambda self: self.forward_frozen + self.forward_adapter)
    backward = property(lambda self: self.backward_frozen + self.backward_adapter)
    adapter = property(lambda self: self.forward_adapter + self.backward_adapter)
    frozen = property(lambda self: self.forward_frozen + self.backward_frozen)
    total = property(lambda self: self.forward + self.backward)

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def matrix_flops(d: int, k: int, r: int, tokens: int, *, input_gradient: bool = True,
                 train_adapter: bool = True, train_weight: bool = False) -> Flops:
    """Return the FLOPs of a training step through W (d, k) with a rank-r adapter (r = 0: none) for T = `tokens`.

    Counted from y = W x + B z, z = A x. `input_gradient`: something below needs dX; `train_weight`: full
    fine-tuning's dW. Unlike 6 x tokens x parameters, this does not charge frozen matrices for a dW.
    """
    through = train_adapter or input_gradient
    adapter = (2 * tokens * d * r * (train_adapter + through)             # dB = dYᵀ z  and  dz = dY B
               + 2 * tokens * r * k * (train_adapter + input_gradient))   # dA = dzᵀ x  and  dx = dz A
    return Flops(2 * tokens * d * k, 2 * tokens * d * k * (input_gradient + train_weight),
                 2 * tokens * r * (d + k), adapter)


def _input_of(site: str) -> str:
    """Return a name for what a matrix reads: q, k, v of a layer read one input, and so do gate and up."""
    layer, dot, matrix = site.rpartition(".")
    return layer + dot + {"k": "q", "v": "q", "up": "gate"}.get(matrix, matrix)


def model_flops(linear_shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], tokens: int,
                sequence_length: int | None = None, *, train_weight: bool = False) -> Flops:
    """Return the FLOPs of a step through a stack of matrices; below the lowest trained one nothing goes backward.

    Args: site -> (d, k) of every matrix in forward order; site -> r (missing = not adapted); T tokens in
    the batch; L, to count the attention products of each layer with "….q", "….k", "….v" (dense, L tokens;
    cross-attention as if self-attention); train_weight: every W trains. KeyError for a rank without shape.
    Embeddings, norms, activations and the head are not counted. Checked against torch's FlopCounterMode.
    """
    if unknown := set(ranks) - set(linear_shapes):
        raise KeyError(f"ranks for sites that have no shape: {sorted(unknown)}")
    total, trained, live = Flops(), set[str](), set[str]()   # trained matrices' inputs; outputs with gradient
    for site, (d, k) in linear_shapes.items():
        r, source = ranks.get(site, 0), _input_of(site)
        below = bool(trained - {source})
        total += matrix_flops(d, k, r, tokens, input_gradient=below, train_weight=train_weight)
        trained |= {source} if r or train_weight else set()
        live |= {site} if below or r or train_weight else set()
    if sequence_length is not None:
        for site in [s for s in linear_shapes if s.rpartition(".")[2] == "q"]:
            q, k_, v = (site[:-1] + letter in live for letter in "qkv")
            product = 2 * tokens * sequence_length * linear_shapes[site][0]
            # forward Q Kᵀ and P V; backward dQ, dK, dV where needed, and dP if the scores depend on anything
            total += Flops(2 * product, product * (q + k_ + v + (q or k_)))
    return total


def peak_memory() -> dict[str, int | None]:
    """Return the peak bytes: on the GPU since the last reset, resident in RAM since the process began; or None."""
    cuda = int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
    return {"cuda_peak_bytes": cuda, "rss_peak_bytes": _resident_peak()}


def _resident_peak() -> int | None:
    status = Path("/proc/self/status")
    if status.exists():   # not getrusage here: a started process inherits its parent's peak there
        kilobytes = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if kilobytes:
            return int(kilobytes[0]) * 1024
    try:
        import resource
    except ImportError:   # Windows has no getrusage
        return None
    # macOS counts in bytes, others in KB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Start the GPU's peak anew. That of RAM cannot be: compare methods in a process of their own each."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


# ---- singular values of thin products ----------------------------------------------------------------------
# A matrix as a sum of directions: its singular value decomposition, cut to a rank, and its unstructured twin.
#
#     ΔW = U diag(σ) Vᵀ = Σ σ_j u_j v_jᵀ           u_j (d,), v_j (k,) of length 1, σ_1 ≥ σ_2 ≥ … ≥ 0
#
# The first i terms are the nearest matrix of rank i (Eckart & Young 1936). `factor_svd` has the same for a matrix
# that is given by thin factors; here it is dense. Taught in 01.
# d out, k in, n = min(d, k), i directions kept


class Directions(NamedTuple):
    """A matrix as a sum of directions, sorted by weight: U (d, i), s (i,) descending, Vh (i, k), in float64."""

    U: Tensor
    s: Tensor
    Vh: Tensor

    def keep(self, which: slice | Sequence[int]) -> Directions:
        """Keep only these of them: slice(8) keeps the first eight, slice(8, None) leaves them out."""
        return Directions(self.U[:, which], self.s[which], self.Vh[which])

    def matrix(self) -> Tensor:
        """Return their sum Σ σ_j u_j v_jᵀ, (d, k)."""
        return (self.U * self.s) @ self.Vh


def directions(delta: Tensor) -> Directions:
    """Return the singular value decomposition of a dense matrix delta (d, k), all n = min(d, k) directions."""
    return Directions(*torch.linalg.svd(delta.detach().cpu().double(), full_matrices=False))


def truncate(delta: Tensor, i: int) -> Tensor:
    """Cut delta (d, k) to its first i directions: no matrix of rank i is nearer to it (Eckart & Young 1936)."""
    return directions(delta).keep(slice(i)).matrix().to(delta)


def random_twin(delta: Tensor, seed: int = 0) -> Tensor:
    """Draw a Gaussian matrix (d, k) with delta's shape and norm: a change without structure."""
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * (delta.detach().cpu().double().norm() / noise.norm())


# ---- times of a step ---------------------------------------------------------------------------------------
# What one training step costs: seconds and bytes, measured side by side. Taught in 02.
#
# Two candidates are stepped in turn, so that whatever else the machine does meanwhile falls on both alike.
@dataclass(frozen=True)
class StepCost:
    """seconds: of each step.  state_bytes: gradients and AdamW's moments of what trains."""

    seconds: list[float]
    state_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def step_costs(models: Mapping[str, nn.Module], batch: dict[str, Tensor], steps: int = 8) -> dict[str, StepCost]:
    """Train each model on one batch in turn, `steps` times after a first that is not counted.

    Args: name -> a model whose trainable parameters are set; batch with "labels". The models are changed.
    """
    optimizers = {name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
                  for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(steps + 1):
        for name, model in models.items():
            start = time.perf_counter()
            optimizers[name].zero_grad()
            model(**batch).loss.backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
    return {name: StepCost(seconds[name][1:], _state_bytes(optimizers[name])) for name in models}


def in_turns(steps: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, list[float]]:
    """Name -> seconds of each call; all are called in turn, `repeats` times after a first that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def training_step(model: nn.Module, batch: dict[str, Tensor], parameters: Sequence[Tensor] | None = None, *,
                  lr: float = 1e-4, after: Callable[[int], object] | None = None) -> Callable[[], None]:
    """Return a function that takes one step of AdamW on a batch with "labels"; it changes the model.

    Args: parameters: None takes all that train; after: called with the step's number, before gradients are cleared.
    """
    trained = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    optimizer, numbers = torch.optim.AdamW(trained, lr=lr), itertools.count(1)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        if after is not None:
            after(next(numbers))

    return step


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [p.grad for p in trained if p.grad is not None]
    tensors += [value for p in trained for value in optimizer.state[p].values() if value.shape == p.shape]
    return sum(t.numel() * t.element_size() for t in tensors)
