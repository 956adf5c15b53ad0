"""SaLoRA's budget at work with no network: gates whose task gradient is noise, and the library's own rule.

What presses is λ (C − b)² alone (Hu et al. 2023, eq. 12 without the task loss); the noise stands for the task. It
shows what Adam's momentum does to the density and what its memory does to λ, in a second. Taught in 04.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..gates import HardConcrete
from ..lowrank import LowRank
from ..methods import Clock, SaLoRA


def gates_alone(method: SaLoRA, noise: float, *, sites: int = 12, steps: int = 150,
                seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Density C and multiplier λ after each step, (steps,) each, of gates that the budget alone moves.

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
