"""What is stepped: our methods in the package's own loop and in five plain lines, `peft`'s, and the floor."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import lowrank_teach as lt

from .harness import Settings, Step

PEFT_SITES = {
    "qv": r".*attention\.self\.(query|value)",
    "all": r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense"
           r"|intermediate\.dense|output\.dense)"}


def make_rows(n: int, tokens: int) -> list[dict[str, Any]]:
    """Rows of random tokens, the same at every call, with labels 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 13, (n, tokens), generator=generator)
    return [{"input_ids": row, "labels": i % 2} for i, row in enumerate(ids)]


def collate(picked: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row["input_ids"] for row in picked])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor([row["labels"] for row in picked])}


def batch_of(s: Settings) -> dict[str, torch.Tensor]:
    return {key: value.to(s.device) for key, value in collate(make_rows(s.rows, s.tokens)).items()}


def backbone(s: Settings, layers: int | None = None) -> Any:
    """A fresh copy with a new head of two classes, in training mode; or so many layers of its shape, random."""
    if layers is None:
        return copy.deepcopy(_loaded(s.backbone, s.dtype)).to(s.device).train()
    like = _loaded(s.backbone, s.dtype)
    config = copy.deepcopy(like.config)
    config.num_hidden_layers = layers
    return type(like)(config).to(device=s.device, dtype=getattr(torch, s.dtype)).train()


@cache
def _loaded(name: str, dtype: str) -> Any:
    return lt.load_backbone(name, num_labels=2, dtype=dtype)[0]


def plain(model: torch.nn.Module, s: Settings, after: Callable[[int], object] | None = None) -> Step:
    """One step of AdamW on what trains, with clipping, on one batch."""
    batch = batch_of(s)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    steps = iter(range(1, 10**9))

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after is not None:
            after(next(steps))

    return step


def floor(s: Settings) -> Step:
    """Forward, and backward to the inputs: nothing trains. No low-rank method can cost less."""
    model = backbone(s).requires_grad_(False)
    batch = batch_of(s)
    embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()

    def step() -> None:
        embedded.grad = None
        model(inputs_embeds=embedded, **batch).loss.backward()

    return step


def peft_model(model: Any, s: Settings, sites: str, kind: str = "LoRA", **settings: Any) -> Any:
    import peft

    settings = {"r": s.r, **settings} if kind == "LoRA" else settings
    config = getattr(peft, {"LoRA": "LoraConfig", "AdaLoRA": "AdaLoraConfig"}[kind])(
        lora_alpha=s.alpha, target_modules=PEFT_SITES[sites], task_type="SEQ_CLS", **settings)
    return peft.get_peft_model(model, config).train()


def with_peft(s: Settings, sites: str) -> Step:
    return plain(peft_model(backbone(s), s, sites), s)


def with_adalora(s: Settings, sites: str) -> Step:
    """From 1.5 times the rank down to it, with an allocation at every step, as its authors."""
    settings = {"init_r": 3 * s.r // 2, "target_r": s.r, "tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": 100_000}
    model = peft_model(backbone(s), s, sites, "AdaLoRA", **settings)
    return plain(model, s, model.base_model.update_and_allocate)


def ours(s: Settings, sites: str) -> Step:
    model = backbone(s)
    lt.adapt(model, lt.LoRA(r=s.r, lora_alpha=s.alpha, sites=sites), seed=0)
    return plain(model.train(), s)


def trainer_of(s: Settings, method: Any, **config: Any) -> lt.Trainer:
    """The package's loop around one method, ready for its first step."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    settings = lt.train_config("gpu", **{"steps": 100_000, "batch_size": s.rows, "lr": 1e-4, **config})
    adapters = lt.adapt(backbone(s), method, seed=0)
    trainer = lt.Trainer(adapters, make_rows(4 * s.rows, s.tokens), collate, settings, cpu=s.device == "cpu")
    trainer.prepare()
    return trainer


def looped(s: Settings, method: Any) -> Step:
    """A step of the package's loop, with its checks, its log, and all that the method does around it."""
    trainer = trainer_of(s, method)

    def step() -> None:
        next_step(trainer)

    return step


def next_step(trainer: lt.Trainer) -> None:
    trainer.outcome.step += 1
    trainer.step(trainer.outcome.step)
    trainer.outcome.history.clear()
