"""The way to peft: imported late, with a sentence where it is missing; and its random starts, from our seeds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def peft() -> Any:
    """The library.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return import_module("peft")
    except ImportError as error:
        raise ImportError("AdaLoRA, prefix and prompt tuning run through peft, which is not installed: "
                          "pip install 'lowrank-teach[baselines]'") from error


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Let what draws from torch's own generator in here depend on ours alone, and leave torch's as it was."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        yield


def wide(like: Tensor) -> torch.dtype:
    """What new parameters are kept in: float32, or float64 beside float64 weights."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32
