"""The parts of a method beside what one would write first: Delta-LoRA's update of W, COLA's knot, and q and v in
GPT-2's fused layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

import lowrank_teach as lt
from lowrank_teach.methods.delta_lora import step_factors

from .candidates import looped, next_step, plain, trainer_of
from .harness import Row, Settings, Step, in_turn, quartiles, ratio

TITLE = "Parts of a step"
WIDTHS = (384, 768)  # MiniLM's W_q, and that of the papers' networks


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    seconds = {**_delta(s), **_knot(s), **_fused(s)}
    rows = [ratio(seconds, f"W's update, low rank, {d}", f"W's update, dense, {d}", 1.0) for d in WIDTHS]
    rows += [ratio(seconds, f"Delta-LoRA, {form}", "Delta-LoRA, dense products") for form in ("in place", "lazy")]
    rows += [ratio(seconds, "COLA, a step with a knot", "COLA, a step without"),
             ratio(seconds, "GPT-2 qv, a branch each", "GPT-2 qv, dense B·A", 1.0),
             ratio(seconds, "GPT-2 qv, a branch each", "GPT-2 c_attn whole, peft")]
    return rows, {"milliseconds": {name: 1000 * quartiles(taken)["median"] for name, taken in seconds.items()}}


# -- Delta-LoRA: W += λ s (B' A' − B A)

def _delta(s: Settings) -> dict[str, list[float]]:
    """The update of one matrix alone, and whole steps with it."""
    updates = {f"W's update, {form}, {d}": make(d, s) for d in WIDTHS
               for form, make in (("dense", dense_update), ("low rank", low_rank_update))}
    at: dict[str, Any] = {"r": s.r, "lora_alpha": s.alpha}
    steps = {"Delta-LoRA, dense products": with_dense_products(s),
             "Delta-LoRA, in place": looped(s, lt.DeltaLoRA(K=0, **at)),
             "Delta-LoRA, lazy": looped(s, lt.DeltaLoRA(K=0, form="lazy", **at))}
    return in_turn(updates, s) | in_turn(steps, s)


def _factors(d: int, s: Settings) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    shapes = (d, d), (d, s.r), (s.r, d), (d, s.r), (s.r, d)
    return tuple(torch.randn(shape, generator=g).to(s.device) for shape in shapes)


def dense_update(d: int, s: Settings) -> Step:
    """Two products of d × d, their difference, and the sum; 20 times, as one alone is too short for a clock."""
    W, B, A, new_B, new_A = _factors(d, s)
    return _often(lambda: W.add_(new_B @ new_A - B @ A, alpha=1e-3))


def low_rank_update(d: int, s: Settings) -> Step:
    """The same as one product of rank 2r that is added as it is made."""
    W, B, A, new_B, new_A = _factors(d, s)
    return _often(lambda: W.addmm_(*step_factors(B, A, new_B, new_A), alpha=1e-3))


def _often(call: Callable[[], object], times: int = 20) -> Step:
    def step() -> None:
        for _ in range(times):
            call()

    return step


def with_dense_products(s: Settings) -> Step:
    """Delta-LoRA as its formula stands: B A of every site as a dense matrix before and after each step of LoRA."""
    trainer = trainer_of(s, lt.LoRA(r=s.r, lora_alpha=s.alpha))
    adapters, lam = trainer.adapters, 0.5

    @torch.no_grad()
    def step() -> None:
        before = {name: branch.lora_B @ branch.lora_A for name, branch in adapters.items()}
        with torch.enable_grad():
            next_step(trainer)
        for name, branch in adapters.items():
            change = branch.lora_B @ branch.lora_A - before[name]
            adapters.owner(name).slice_of(name).add_(change, alpha=lam * branch.scaling)

    return step


# -- COLA's knot

def _knot(s: Settings) -> dict[str, list[float]]:
    """A step after which a knot is tied, its check included; what was tied is untied again before the next."""
    knots = tuple(range(1, s.repeats + 10))
    tying = trainer_of(s, lt.COLA(r=s.r, lora_alpha=s.alpha, knots=knots))
    free = looped(s, lt.COLA(r=s.r, lora_alpha=s.alpha, knots=(0.5,)))

    def step() -> None:
        for branch in tying.adapters.values():  # a first knot each time, not the last of a long chain
            branch.fixed_left, branch.fixed_right = branch.fixed_left[:, :0], branch.fixed_right[:0]
        next_step(tying)

    return in_turn({"COLA, a step with a knot": step, "COLA, a step without": free}, s)


# -- q and v in a fused layer

class DenseFused(nn.Module):
    """c_attn with q and v adapted through a dense ΔW, zero for k, as loralib's MergedLinear makes it at each step."""

    def __init__(self, base: Any, r: int, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling, k = base.requires_grad_(False), scaling, base.weight.shape[0]
        self.lora_A = nn.Parameter(torch.randn(2, r, k) / k**0.5)
        self.lora_B = nn.Parameter(torch.zeros(2, k, r))

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.lora_B @ self.lora_A                                                 # (k, k) each
        return self.base(x) + self.scaling * F.linear(x, torch.cat([q, torch.zeros_like(q), v]))


def gpt2(s: Settings) -> Any:
    """GPT-2's shape with four layers, random, without dropout."""
    width = 64 if s.quick else 768
    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_embd=width, n_head=width // 32, vocab_size=1000, num_labels=2, pad_token_id=0,
                        bos_token_id=1, eos_token_id=1, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    return GPT2ForSequenceClassification(config).to(device=s.device, dtype=getattr(torch, s.dtype)).train()


def dense_fused(s: Settings) -> Any:
    model = gpt2(s).requires_grad_(False)
    model.score.requires_grad_(True)
    for block in model.transformer.h:
        block.attn.c_attn = DenseFused(block.attn.c_attn, s.r, s.alpha / s.r).to(s.device, block.ln_1.weight.dtype)
    return model


def _fused(s: Settings) -> dict[str, list[float]]:
    import peft

    each = gpt2(s)
    lt.adapt(each, lt.LoRA(r=s.r, lora_alpha=s.alpha), seed=0)
    config = peft.LoraConfig(r=s.r, lora_alpha=s.alpha, target_modules=["c_attn"], task_type="SEQ_CLS",
                             fan_in_fan_out=True)
    models = {"GPT-2 qv, a branch each": each, "GPT-2 qv, dense B·A": dense_fused(s),
              "GPT-2 c_attn whole, peft": peft.get_peft_model(gpt2(s), config)}
    return in_turn({name: plain(model.train(), s) for name, model in models.items()}, s)
