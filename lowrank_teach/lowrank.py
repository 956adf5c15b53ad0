"""The one idea: a frozen matrix with a gated low-rank branch beside it.

    h  =  W x  +  s · B diag(g) A x          s = lora_alpha / r

(Hu et al. 2021, arXiv 2106.09685, equation 3, with a gate g that LoRA leaves at one.)
`LowRank` is the branch, `Adapted` the frozen layer that carries one branch or several.
Every method of this package is this layer plus a rule (`methods/`). Taught in 02.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import Wide, product, to_multiply, under_autocast, wide_copy

INITS = ("kaiming", "gaussian", "unit_rows")  # how A can be initialized

# Shapes: * any leading dimensions (batch, tokens); k input width; d output width; r rank; m rank of the fixed terms


class LowRank(Wide):
    """A trainable update s · B diag(g) A of one (d, k) matrix, together with the frozen updates learned before it.

    Some methods write their updates into W (COLA at a knot, Delta-LoRA at every step). The branch keeps the factors
    of all these updates, so the total change is known exactly and W can be restored:

        W* − W  =  (1 + merged_share) · s · B diag(g) A  +  fixed_left fixed_right  (+ accumulated_update)

    merged_share: share of the trained product that is also in W: λ of Delta-LoRA, else 0.
    accumulated_update: dense (d, k) sum of updates without factors (Delta-LoRA under a λ schedule), else None.
    in_base: True if W contains these terms; False if the forward pass adds them.

    Args:
        k: input width.  d: output width.  r: rank, 1 ≤ r ≤ min(d, k).
        scaling: s; LoRA's lora_alpha / r.
        dropout: dropout probability on the branch's input.
        init: initialization of A: "kaiming" (uniform ±1/√k, as in loralib), "gaussian" (std 1/r, the papers'
            "Gaussian"), or "unit_rows" (std 1/√k, so that A Aᵀ ≈ I). B starts at zero.
        gate: a module that returns g (r,), or None for g = 1.
        generator: CPU generator that draws A; None uses torch's default generator.

    Raises:
        ValueError: r is outside 1 … min(d, k), or init is unknown.
    """

    fixed_left: Tensor   # (d, m)
    fixed_right: Tensor  # (m, k)
    accumulated_update: Tensor | None  # (d, k)

    def __init__(self, k: int, d: int, r: int, scaling: float = 2.0, *, dropout: float = 0.0,
                 init: str = "kaiming", gate: nn.Module | None = None, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 1 <= r <= min(d, k):
            raise ValueError(f"rank {r} is outside 1 .. min(d, k) = {min(d, k)}; choose r ≤ {min(d, k)}")
        self.lora_A = nn.Parameter(initial_A(r, k, init, generator).to(device=device, dtype=dtype))  # (r, k)
        self.lora_B = nn.Parameter(torch.zeros(d, r, dtype=dtype, device=device))                    # (d, r)
        self.scaling, self.dropout, self.gate_module = float(scaling), float(dropout), gate
        self.register_buffer("fixed_left", torch.zeros(d, 0, dtype=dtype, device=device))
        self.register_buffer("fixed_right", torch.zeros(0, k, dtype=dtype, device=device))
        self.register_buffer("accumulated_update", None)
        self.merged_share, self.in_base = 0.0, False

    @property
    def r(self) -> int:
        """The rank: the number of directions that train."""
        return self.lora_A.shape[0]

    def gate(self) -> Tensor:
        """Return g (r,), which is all ones if the method has no gate."""
        return torch.ones_like(self.lora_A[:, 0]) if self.gate_module is None else self.gate_module()

    def settled_gate(self) -> Tensor:
        """Return g (r,) without sampling noise, as it is used in deployment and in W."""
        settled = getattr(self.gate_module, "settled", self.gate)
        return settled()

    def add_to(self, h: Tensor, x: Tensor, rows: slice | None = None) -> Tensor:
        """Add the branch's output for x (*, k) to h[..., rows] of h (*, D), in place where that is safe."""
        apart = not self.in_base and (self.merged_share or self.fixed_left.shape[1])
        h = self._add_with_base_factors(h, x, rows) if apart else self._add_live(h, x, rows)
        if self.in_base or self.accumulated_update is None:
            return h
        return _add_product(h, to_multiply(x, self.accumulated_update), self.accumulated_update, 1.0, rows)

    def _add_live(self, h: Tensor, x: Tensor, rows: slice | None) -> Tensor:
        """Add s · B diag(g) A x to h[..., rows]."""
        if not self.r:  # every direction was pruned
            return h
        if self.dropout and self.training:
            x = F.dropout(to_multiply(x, self.lora_A), self.dropout)
        z = product(x, self.lora_A)                                                                  # (*, r)
        z = z if self.gate_module is None else z * self.gate_module()
        return _add_product(h, z, self.lora_B, self.scaling, rows)

    def _add_with_base_factors(self, h: Tensor, x: Tensor, rows: slice | None) -> Tensor:
        """Add the live update and the terms that W does not contain; the latter send no gradient to A and B."""
        left, right = self.factors_in_base()                                                         # (d, R), (R, k)
        if self.dropout and self.training:
            h = self._add_live(h, x, rows)
        else:
            B = self.lora_B if self.gate_module is None else self.lora_B * self.gate_module()
            left, right = torch.cat([self.scaling * B, left], 1), torch.cat([self.lora_A, right], 0)
        return _add_product(h, product(x, right), left, 1.0, rows) if len(right) else h  # the rank may be 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch's output alone: (*, k) -> (*, d)."""
        return self.add_to(torch.zeros(*x.shape[:-1], len(self.lora_B), dtype=self.lora_B.dtype, device=x.device), x)

    @torch.no_grad()
    def live_factors(self) -> tuple[Tensor, Tensor]:
        """Return factors (d, r) and (r, k) of s · B diag(g) A."""
        return self.scaling * self.lora_B * self.settled_gate(), self.lora_A.detach().clone()

    @torch.no_grad()
    def factors_in_base(self) -> tuple[Tensor, Tensor]:
        """Return factors (d, R), (R, k) of what W contains when `in_base`: the merged share and the fixed terms."""
        left, right = self.live_factors()
        merged = (self.merged_share * left, right) if self.merged_share else (left[:, :0], right[:0])
        return torch.cat([merged[0], self.fixed_left], 1), torch.cat([merged[1], self.fixed_right], 0)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return factors (d, R) and (R, k) of the total update W* − W, whether it is in W or beside it.

        Raises:
            ValueError: the update has no factors (Delta-LoRA under a λ schedule); `delta()` returns it.
        """
        if self.accumulated_update is not None:
            raise ValueError("this update was made under a λ schedule and has no low-rank form; use delta()")
        left, right = self.live_factors()
        left = torch.cat([(1 + self.merged_share) * left, self.fixed_left], 1)                       # (d, R)
        return left, torch.cat([right, self.fixed_right], 0)                                         # (R, k)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return the total update W* − W as a dense (d, k) matrix: the deployed matrix minus the pretrained one."""
        left, right = self.live_factors()
        total = (1 + self.merged_share) * left @ right + self.fixed_left @ self.fixed_right          # (d, k)
        return total if self.accumulated_update is None else total + self.accumulated_update

    def extra_repr(self) -> str:
        return f"k={self.lora_A.shape[1]}, d={self.lora_B.shape[0]}, r={self.r}, scaling={self.scaling:g}"


class Adapted(nn.Module):
    """A frozen `nn.Linear` or GPT-2 `Conv1D` with LowRank branches on slices of its output.

    A fused layer (GPT-2's `c_attn` holds q, k and v side by side) takes one branch per slice, so q and v are
    adapted separately and no dense B·A is formed. `W.grad` stays None.

    Args:
        base: the layer to freeze.
        branches: name -> (branch, rows of the output that it adapts; None for all of them).

    Raises:
        TypeError: base is neither an nn.Linear nor a Conv1D.
    """

    base: nn.Linear  # or a Conv1D, which has the same interface

    def __init__(self, base: nn.Module, branches: dict[str, tuple[LowRank, slice | None]]) -> None:
        super().__init__()
        if not (isinstance(base, nn.Linear) or is_conv1d(base)):
            raise TypeError(f"only nn.Linear and Conv1D can be adapted, not {type(base).__name__}")
        self.base = base.requires_grad_(False)  # type: ignore[assignment]
        self.rows = {name: rows for name, (_, rows) in branches.items()}
        # a module's name must not contain a dot, and a site's name does ("3.q")
        self.lora = nn.ModuleDict({name.replace(".", "_"): branch for name, (branch, _) in branches.items()})
        self.merged = False
        self._pretrained: Tensor | None = None  # a copy of W, made before W is written for the first time

    @property
    def branches(self) -> dict[str, LowRank]:
        return {name: self.lora[name.replace(".", "_")] for name in self.rows}  # type: ignore[misc]

    @property
    def weight(self) -> Tensor:
        """The stored weight in the layer's own layout; some models read its dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def W(self) -> Tensor:
        """The weight as (d, k), in either layout of the layer: a view, or a copy of a quantized weight."""
        if is_quantized(self.base):
            return dequantized(self.base)
        weight = self.base.weight.data
        return weight.t() if is_conv1d(self.base) else weight

    @property
    def pretrained(self) -> Tensor:
        """The pretrained weight as (d, k), even after a method has written into W."""
        if self._pretrained is None:
            return self.W
        if self._pretrained.device != self.W.device:  # the model was moved to another device
            self._pretrained = self._pretrained.to(self.W.device)
        return self._pretrained

    def slice_of(self, name: str) -> Tensor:
        """Return a view of the rows of W (d, k) that one branch adapts."""
        return self.W[self.rows[name] or slice(None)]

    def pretrained_of(self, name: str) -> Tensor:
        """Return the same rows of the pretrained weight."""
        return self.pretrained[self.rows[name] or slice(None)]

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + Σ branch(x): (*, k) -> (*, d). A merged layer raises RuntimeError in training."""
        if self.merged and self.training and torch.is_grad_enabled():
            raise RuntimeError("this layer is merged: call restore() before training it again")
        h = self.base(x)                                                                             # (*, d)
        if not self.merged:
            for branch, rows in zip(self.lora.values(), self.rows.values(), strict=True):
                h = branch.add_to(h, x, rows)  # type: ignore[operator]
        return h

    def keep_pretrained(self) -> None:
        """Copy W once, before it is written for the first time.

        Raises:
            ValueError: W is quantized, so no sum can be written into it.
        """
        if is_quantized(self.base):
            raise ValueError("W is quantized here, and nothing can be added to it: load the base in bfloat16, "
                             "adapt it in the same way, load these branches there and merge")
        if self._pretrained is None:
            self._pretrained = self.W.clone()

    @torch.no_grad()
    def write_in_base(self, name: str) -> None:
        """Write a branch's `factors_in_base` into W (COLA's knots, Delta-LoRA's share), cast once."""
        self.keep_pretrained()
        branch = self.branches[name]
        total = wide_copy(self.pretrained_of(name))                                            # (d, k)
        left, right = branch.factors_in_base()
        total.addmm_(left.to(total), right.to(total))
        self.slice_of(name).copy_(total if branch.accumulated_update is None else total + branch.accumulated_update)
        branch.in_base = True

    @torch.no_grad()
    def merge(self) -> None:
        """Write W* = W + `delta()` of every branch into W: summed in float32 or float64, cast once.

        Raises:
            RuntimeError: the layer is merged already.
            ValueError: W is quantized.
        """
        if self.merged:
            raise RuntimeError("merged already; restore() first")
        self.keep_pretrained()
        for name, branch in self.branches.items():
            total = wide_copy(self.pretrained_of(name))                                        # (d, k)
            self.slice_of(name).copy_(total.add_(branch.delta()))
        self.merged = True

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the pretrained W bit for bit; the branches keep the whole update.

        Raises:
            RuntimeError: W was never written, so there is nothing to restore.
        """
        if self._pretrained is None:
            raise RuntimeError("there is nothing to restore: W is the pretrained matrix; call merge() first")
        self.W.copy_(self._pretrained)
        self._pretrained, self.merged = None, False
        for branch in self.branches.values():
            branch.in_base = False


def initial_A(r: int, k: int, init: str = "kaiming", generator: torch.Generator | None = None) -> Tensor:
    """Return the initial A (r, k) in float32, drawn on the CPU so that it is the same for every device."""
    if init not in INITS:
        raise ValueError(f"init {str(init)[:60]!r} is not one of {', '.join(map(repr, INITS))}")
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    if init == "kaiming":
        return (torch.rand(r, k, **drawn) * 2 - 1) / math.sqrt(k)
    return torch.randn(r, k, **drawn) * {"gaussian": 1 / r, "unit_rows": 1 / math.sqrt(k)}[init]


def is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is GPT-2's `Conv1D`: a linear layer that stores its weight as (k, d)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _add_product(h: Tensor, z: Tensor, left: Tensor, scale: float, rows: slice | None) -> Tensor:
    """Add scale · z leftᵀ to h[..., rows], for h (*, D), z (*, r), left (d, r)."""
    plain = h.dtype == z.dtype == left.dtype and not under_autocast(h)
    if plain and h.is_contiguous():  # one addmm and no temporary; a linear layer's backward never reads h
        flat = h.view(-1, h.shape[-1])
        part = flat if rows is None else flat[:, rows]
        part.addmm_(z.reshape(-1, z.shape[-1]), left.t(), alpha=scale)
        return h
    y = (F.linear(z, left) * scale).to(h.dtype)                                                      # (*, d)
    if rows is None:
        return h + y
    return torch.cat([h[..., :rows.start], h[..., rows] + y, h[..., rows.stop:]], -1)


# ---- quantized layers ----------------------------------------------------------------------------------------
# bitsandbytes keeps a weight as 4-bit or 8-bit integer codes, which can be multiplied with and read but not written.

def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as integer codes."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return not weight.is_floating_point()


@torch.no_grad()
def dequantized(layer: nn.Linear, columns: int = 1024) -> Tensor:
    """Return the matrix (d, k) that a quantized layer multiplies with, in float32 on the layer's device.

    The layer is applied to the unit vectors, `columns` at a time, so no quantization library is needed here.
    """
    bias, layer.bias = layer.bias, None  # type: ignore[assignment]  # (W e + b) − b would round
    try:
        units = torch.arange(layer.in_features, device=layer.weight.device).split(columns)
        return torch.cat([layer(F.one_hot(i, layer.in_features).float()) for i in units]).t()
    finally:
        layer.bias = bias


def numel(parameter: Tensor) -> int:
    """Return how many weights a parameter holds; a byte of 4-bit codes holds two."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
