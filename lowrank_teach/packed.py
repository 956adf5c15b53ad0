"""Layers whose weight is kept as integer codes (bitsandbytes' 4-bit and 8-bit ones): what can be known of it.

Such a W can be multiplied with and read, and nothing can be written into it. So a method that keeps what it learns
beside W works on it, and one that writes into W is refused (`adapters`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
