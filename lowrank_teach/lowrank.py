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


# ---- quantised layers --------------------------------------------------------------------------------------
# Layers whose weight is kept as integer codes (bitsandbytes' 4-bit and 8-bit ones): what can be known of it.
#
# Such a W can be multiplied with and read, and nothing can be written into it. So a method that keeps what it learns
# beside W works on it, and one that writes into W is refused (`adapters`).
def is_packed(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as codes."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return not weight.is_floating_point()


@torch.no_grad()
def unpacked(layer: nn.Linear, columns: int = 1024) -> Tensor:
    """The matrix (d, k) that a packed layer multiplies with, read off as its answers to the unit vectors.

    Needs no library of the codes. `columns` vectors are asked at a time; the result is float32, on its device.
    """
    bias, layer.bias = layer.bias, None  # type: ignore[assignment]  # (W e + b) − b would round
    try:
        units = torch.arange(layer.in_features, device=layer.weight.device).split(columns)
        return torch.cat([layer(F.one_hot(i, layer.in_features).float()) for i in units]).t()
    finally:
        layer.bias = bias


def size(parameter: Tensor) -> int:
    """How many weights a parameter stands for: of 4-bit codes two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


# ---- the layer ---------------------------------------------------------------------------------------------

INITS = ("kaiming", "gaussian", "unit_rows")  # how A can start

# * any leading shape (batch, tokens), k in, d out, r rank, m directions kept frozen beside the live ones


class LowRank(Wide):
    """A trainable update s · B diag(g) A of one (d, k) matrix, and the frozen terms learned before it.

    Some methods write what they learned into W (COLA at a knot, Delta-LoRA at every step). The branch keeps
    the factors of all of it, so that the total change is always known exactly and W can always be given back:

        W* − W  =  (1 + merged_share) · s · B diag(g) A  +  fixed_left fixed_right  (+ accumulated_update)

    merged_share: how much of the live product stands in W beside the branch: λ of Delta-LoRA, else 0.
    accumulated_update: the sum of updates that no factors hold (Delta-LoRA under a λ schedule), else None.
    in_base: whether W holds these terms, or the forward pass adds them.

    Args:
        k: input width.  d: output width.  r: rank, 1 ≤ r ≤ min(d, k).
        scaling: s; LoRA's lora_alpha / r.
        dropout: probability on the branch's input.
        init: how A starts: "kaiming" (uniform ±1/√k, as loralib), "gaussian" (std 1/r, the papers'
            "Gaussian"), or "unit_rows" (std 1/√k, so that A Aᵀ ≈ I). B starts at zero.
        gate: a module that returns g (r,), or None for g = 1.
        generator: CPU generator of A's start; None takes torch's own.
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
        """Directions that can still move."""
        return self.lora_A.shape[0]

    def gate(self) -> Tensor:
        """g (r,): ones where the method has no gate."""
        return torch.ones_like(self.lora_A[:, 0]) if self.gate_module is None else self.gate_module()

    def settled_gate(self) -> Tensor:
        """g (r,) without a step's noise: what is deployed, and what is written into W."""
        settled = getattr(self.gate_module, "settled", self.gate)
        return settled()

    def add_to(self, h: Tensor, x: Tensor, rows: slice | None = None) -> Tensor:
        """h[..., rows] + branch(x), for h (*, D) and x (*, k); writes into h where that is safe."""
        held = not self.in_base and (self.merged_share or self.fixed_left.shape[1])
        h = self._add_with_held(h, x, rows) if held else self._add_live(h, x, rows)
        if self.in_base or self.accumulated_update is None:
            return h
        return _add_product(h, to_multiply(x, self.accumulated_update), self.accumulated_update, 1.0, rows)

    def _add_live(self, h: Tensor, x: Tensor, rows: slice | None) -> Tensor:
        """h[..., rows] + s · B diag(g) A x."""
        if not self.r:  # a gate may have closed every direction
            return h
        if self.dropout and self.training:
            x = F.dropout(to_multiply(x, self.lora_A), self.dropout)
        z = product(x, self.lora_A)                                                                  # (*, r)
        z = z if self.gate_module is None else z * self.gate_module()
        return _add_product(h, z, self.lora_B, self.scaling, rows)

    def _add_with_held(self, h: Tensor, x: Tensor, rows: slice | None) -> Tensor:
        """The same and what W would hold: constants for the factors, but not for x. One product where none drops."""
        left, right = self.factors_in_base()                                                         # (d, R), (R, k)
        if self.dropout and self.training:
            h = self._add_live(h, x, rows)
        else:
            B = self.lora_B if self.gate_module is None else self.lora_B * self.gate_module()
            left, right = torch.cat([self.scaling * B, left], 1), torch.cat([self.lora_A, right], 0)
        return _add_product(h, product(x, right), left, 1.0, rows) if len(right) else h  # all may be closed

    def forward(self, x: Tensor) -> Tensor:
        """The branch alone: (*, k) -> (*, d)."""
        return self.add_to(torch.zeros(*x.shape[:-1], len(self.lora_B), dtype=self.lora_B.dtype, device=x.device), x)

    @torch.no_grad()
    def live_factors(self) -> tuple[Tensor, Tensor]:
        """(d, r) and (r, k) whose product is s · B diag(g) A."""
        return self.scaling * self.lora_B * self.settled_gate(), self.lora_A.detach().clone()

    @torch.no_grad()
    def factors_in_base(self) -> tuple[Tensor, Tensor]:
        """(d, R) and (R, k) of what W holds when `in_base`: the merged share of the product, and the fixed terms."""
        left, right = self.live_factors()
        merged = (self.merged_share * left, right) if self.merged_share else (left[:, :0], right[:0])
        return torch.cat([merged[0], self.fixed_left], 1), torch.cat([merged[1], self.fixed_right], 0)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """(d, R) and (R, k) whose product is all that this site has learned, wherever it is kept.

        Raises:
            ValueError: Delta-LoRA under a λ schedule has no such form; `delta()` still answers.
        """
        if self.accumulated_update is not None:
            raise ValueError("this update was made under a λ schedule and has no low-rank form; use delta()")
        left, right = self.live_factors()
        left = torch.cat([(1 + self.merged_share) * left, self.fixed_left], 1)                       # (d, R)
        return left, torch.cat([right, self.fixed_right], 0)                                         # (R, k)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """W* − W as a dense (d, k) matrix: the deployed matrix less the pretrained one."""
        left, right = self.live_factors()
        total = (1 + self.merged_share) * left @ right + self.fixed_left @ self.fixed_right          # (d, k)
        return total if self.accumulated_update is None else total + self.accumulated_update

    def extra_repr(self) -> str:
        return f"k={self.lora_A.shape[1]}, d={self.lora_B.shape[0]}, r={self.r}, scaling={self.scaling:g}"


class Adapted(nn.Module):
    """A frozen `nn.Linear` or GPT-2 `Conv1D` with LowRank branches on slices of its output.

    A fused layer (GPT-2's `c_attn` holds q, k and v side by side) takes one branch per slice, so q and v are
    adapted apart and no dense B·A is ever formed. `W.grad` stays None.

    Args:
        base: the layer to freeze.
        branches: name -> (branch, rows of the output that it adapts; None for all of them).
    """

    base: nn.Linear  # or a Conv1D, which offers the same

    def __init__(self, base: nn.Module, branches: dict[str, tuple[LowRank, slice | None]]) -> None:
        super().__init__()
        if not (isinstance(base, nn.Linear) or is_conv1d(base)):
            raise TypeError(f"only nn.Linear and Conv1D can be adapted, not {type(base).__name__}")
        self.base = base.requires_grad_(False)  # type: ignore[assignment]
        self.rows = {name: rows for name, (_, rows) in branches.items()}
        # a module's name may hold no dot, a site's does ("3.q")
        self.lora = nn.ModuleDict({name.replace(".", "_"): branch for name, (branch, _) in branches.items()})
        self.merged = False
        self._pretrained: Tensor | None = None  # W's own bytes, kept from the first time that W is written

    @property
    def branches(self) -> dict[str, LowRank]:
        return {name: self.lora[name.replace(".", "_")] for name in self.rows}  # type: ignore[misc]

    @property
    def weight(self) -> Tensor:
        """The stored weight, in the layer's own layout (some models look at its dtype)."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def W(self) -> Tensor:
        """The weight as (d, k), whatever way round the layer stores it: a view, or of packed codes a copy."""
        if is_packed(self.base):
            return unpacked(self.base)
        weight = self.base.weight.data
        return weight.t() if is_conv1d(self.base) else weight

    @property
    def pretrained(self) -> Tensor:
        """The pretrained weight as (d, k), also after a method has written into W."""
        if self._pretrained is None:
            return self.W
        if self._pretrained.device != self.W.device:  # the model was moved since
            self._pretrained = self._pretrained.to(self.W.device)
        return self._pretrained

    def slice_of(self, name: str) -> Tensor:
        """The rows of W (d, k) that one branch adapts; a view."""
        return self.W[self.rows[name] or slice(None)]

    def pretrained_of(self, name: str) -> Tensor:
        """The same rows of the pretrained weight."""
        return self.pretrained[self.rows[name] or slice(None)]

    def forward(self, x: Tensor) -> Tensor:
        """W x + Σ branch(x): (*, k) -> (*, d)."""
        if self.merged and self.training and torch.is_grad_enabled():
            raise RuntimeError("this layer is merged: call restore() before training it again")
        h = self.base(x)                                                                             # (*, d)
        if not self.merged:
            for branch, rows in zip(self.lora.values(), self.rows.values(), strict=True):
                h = branch.add_to(h, x, rows)  # type: ignore[operator]
        return h

    def keep_pretrained(self) -> None:
        """Copy W's bytes aside, once, before anything is written into it.

        Raises:
            ValueError: W is packed codes, which cannot hold a sum.
        """
        if is_packed(self.base):
            raise ValueError("W is packed in few bits here, and nothing can be added to it: load the base in "
                             "bfloat16, adapt it in the same way, load these branches there and merge")
        if self._pretrained is None:
            self._pretrained = self.W.clone()

    @torch.no_grad()
    def write_held(self, name: str) -> None:
        """Write into W, cast once, what the branch says that W holds: COLA's knots, Delta-LoRA's share."""
        self.keep_pretrained()
        branch = self.branches[name]
        total = wide_copy(self.pretrained_of(name))                                            # (d, k)
        left, right = branch.factors_in_base()
        total.addmm_(left.to(total), right.to(total))
        self.slice_of(name).copy_(total if branch.accumulated_update is None else total + branch.accumulated_update)
        branch.in_base = True

    @torch.no_grad()
    def merge(self) -> None:
        """W ← W + all that was learned: summed in float32 (or wider) from the pretrained bytes, cast once.

        Raises:
            RuntimeError: it is merged already.
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
        """Give W its pretrained bytes back, exactly; all that was learned goes on living in the branches.

        Raises:
            RuntimeError: W was never written, so there is nothing to restore.
        """
        if self._pretrained is None:
            raise RuntimeError("nothing to restore: W holds its pretrained bytes; merge() comes first")
        self.W.copy_(self._pretrained)
        self._pretrained, self.merged = None, False
        for branch in self.branches.values():
            branch.in_base = False


def initial_A(r: int, k: int, init: str = "kaiming", generator: torch.Generator | None = None) -> Tensor:
    """A's start (r, k) in float32, drawn on the CPU so that it is the same on every device."""
    if init not in INITS:
        raise ValueError(f"init {str(init)[:60]!r} is not one of {', '.join(map(repr, INITS))}")
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    if init == "kaiming":
        return (torch.rand(r, k, **drawn) * 2 - 1) / math.sqrt(k)
    return torch.randn(r, k, **drawn) * {"gaussian": 1 / r, "unit_rows": 1 / math.sqrt(k)}[init]


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is the GPT-2 family's `Conv1D`: a linear layer that stores its weight as (k, d)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _add_product(h: Tensor, z: Tensor, left: Tensor, scale: float, rows: slice | None) -> Tensor:
    """h[..., rows] + scale · z leftᵀ for h (*, D), z (*, r), left (d, r)."""
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
