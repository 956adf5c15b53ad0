"""Rows a second in evaluation and tokens a second in writing: adapted, merged, and with `peft`, by the same code.

Every model is a copy of the one that was read: weights that lie in the mapped file run a little faster.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import peft
import torch

import lowrank_teach as lt
from lowrank_teach.tasks import evaluate as evaluation

from .candidates import backbone, collate, make_rows, peft_model
from .harness import Row, Settings, Step, in_turn, of_many

TITLE = "Evaluation and writing"
KINDS = ("peft LoRA", "LoRA", "LoRA, merged")


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    s = dataclasses.replace(s, repeats=max(3, s.repeats // 3))
    return _rows("evaluation", "rows/s", *_evaluation(s), s) + _rows("writing", "tokens/s", *_writing(s), s), {
        "settings": {"repeats": s.repeats, "decoder": s.decoder}}


def _rows(what: str, unit: str, steps: dict[str, Step], amount: int, s: Settings) -> list[Row]:
    """Amounts a second, then ours over `peft`'s within each repeat."""
    seconds = in_turn(steps, s)
    rows = [of_many(f"{what}: {kind}", [amount / t for t in seconds[kind]], unit) for kind in KINDS]
    for kind in KINDS[1:]:
        each = [theirs / t for t, theirs in zip(seconds[kind], seconds["peft LoRA"], strict=True)]
        rows.append(of_many(f"{what}: {kind} / peft LoRA", each, aim=1.0, least=True))
    return rows


def _evaluation(s: Settings) -> tuple[dict[str, Step], int]:
    """The package's `evaluate` on rows of one length."""
    n = 4 * s.rows
    rows, task = make_rows(n, s.tokens), lt.TASKS["rt"]
    models = {"peft LoRA": peft_model(backbone(s), s, "qv"), **{kind: backbone(s) for kind in KINDS[1:]}}
    for kind in KINDS[1:]:
        _settle(lt.adapt(models[kind], lt.LoRA(r=s.r, lora_alpha=s.alpha), seed=0), kind)
    return {kind: lambda model=model: evaluation.evaluate(model, rows, collate, task, batch_size=2 * s.rows)
            for kind, model in models.items()}, n


def _writing(s: Settings) -> tuple[dict[str, Step], int]:
    """Greedy, so many tokens for every text, with the keys and values kept."""
    length = 4 if s.quick else 16
    rows = collate(make_rows(4, s.tokens))
    inputs = {name: rows[name].to(s.device) for name in ("input_ids", "attention_mask")}
    read = lt.load_backbone(s.decoder, dtype=s.dtype)[0].to(s.device)
    models: dict[str, Any] = {kind: copy.deepcopy(read) for kind in KINDS}
    for kind in KINDS[1:]:
        _settle(lt.adapt(models[kind], lt.LoRA(r=s.r, lora_alpha=s.alpha), seed=0), kind)
    config = peft.LoraConfig(r=s.r, lora_alpha=s.alpha, target_modules=["q_proj", "v_proj"])
    models["peft LoRA"] = peft.get_peft_model(models["peft LoRA"], config).eval()
    how = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    steps = {kind: lambda model=model: model.generate(**inputs, **how) for kind, model in models.items()}
    return steps, length * len(rows["labels"])


def _settle(adapters: lt.Adapters, kind: str) -> None:
    """Branches as if trained, merged where the kind says so."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for branch in adapters.values():
            branch.lora_B.copy_(0.01 * torch.randn(branch.lora_B.shape, generator=g))
    if kind == "LoRA, merged":
        adapters.merge()
