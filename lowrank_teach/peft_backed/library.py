"""The way to peft: imported late, with a sentence where it is missing; and its random starts, from our seeds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch


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
    """Let what draws from torch's own generator in here depend on ours alone, and leave torch's as it was.

    Whatever the default type and device are, it is drawn in float32 on the CPU.
    """
    kept = torch.get_default_dtype()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device="cpu")))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(kept)
