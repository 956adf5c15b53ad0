"""What a training would hold in memory, by part, before a weight is downloaded.

    print(plan_memory(LoRA(r=8), "llama-7b", TrainConfig(batch_size=8, base_dtype="bfloat16")))

The model is built on torch's meta device, adapted as usual, and run forward once there: no number is computed, but
autograd keeps for the backward pass what it would keep in earnest, and that is counted. So weights, branches,
gradients and moments are exact; activations are those of this forward pass, of rows that all have `length` tokens,
within 15 % of the peak that torch's profiler sees (tests/test_memory.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters import Adapters, adapt
from ..errors import require
from ..lowrank import is_conv1d
from ..methods import Method
from ..models.backbones import meta_model
from ..sites import ARCHITECTURES, find_sites
from ..training.config import TrainConfig

GIB, MIB = 2**30, 2**20
MOST_TOKENS = 2**20   # of a row
NF4_BLOCK, NF4_GROUP, NF4_TABLES = 64, 256, 4 * (16 + 256 + 1)  # weights a scale, scales a scale, bytes a matrix

# B rows, H heads, L tokens, V words


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part. `scores` are the L × L attention weights, which a fused kernel does not keep: not in `total`."""

    setting: str
    weights: int
    kept: int
    branches: int
    head: int
    gradients: int
    moments: int
    activations: int
    logits: int
    unpacked: int = 0
    scores: int = 0
    notes: tuple[str, ...] = ()

    WHAT: ClassVar[dict[str, str]] = {
        "weights": "the frozen model", "kept": "W's own bytes, as the method writes into W",
        "branches": "what the method adds", "head": "the fresh head", "gradients": "of all that trains",
        "moments": "AdamW's two for each", "activations": "kept for the backward pass",
        "logits": "log p over B × L × V, and two gradients",
        "unpacked": "one matrix, while it is multiplied with",
    }

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.WHAT)

    def fits(self, card: float) -> bool:
        """Whether all of it goes into a card of this many GiB. What the driver takes (about 1 GiB) comes on top."""
        return self.total <= card * GIB

    def verdict(self, card: float) -> str:
        """One sentence on a card of this many GiB."""
        over = card - self.total / GIB
        said = f"fits, with {over:.1f} GiB over" if over >= 0 else f"does not fit: {-over:.1f} GiB too many"
        return f"a card of {card:g} GiB: {said}; about 1 GiB for the driver and scattered free pieces is not counted"

    def rows(self) -> list[tuple[str, int, str]]:
        """(part, bytes, what it is) of every part that is there."""
        return [(name, size, what) for name, what in self.WHAT.items() if (size := getattr(self, name))]

    def __str__(self) -> str:
        lines = [(name, in_units(size), what) for name, size, what in [*self.rows(), ("total", self.total, "")]]
        table = "\n".join(f"{name:<12}{size:>12}  {what}".rstrip() for name, size, what in lines)
        scores = (f"attention weights, L × L: {in_units(self.scores)} more where no fused kernel is used",
                  ) if self.scores else ()
        return "\n".join([self.setting, table, *scores, *self.notes])


def in_units(size: int) -> str:
    """ "1.25 GiB", or "83.1 MiB" below one."""
    scale, digits, unit = (GIB, 2, "GiB") if size >= GIB else (MIB, 1, "MiB") if size >= MIB else (1024, 1, "KiB")
    return f"{size / scale:.{digits}f} {unit}"


def plan_memory(method: Method, backbone: str, config: TrainConfig | None = None, *, length: int | None = None,
                kind: str | None = None, labels: int = 2) -> MemoryPlan:
    """What one training step would hold.

    Args:
        method: any that puts branches on matrices, or full fine-tuning.
        backbone: of `backbones.DIMENSIONS`, or anything that `load_backbone` takes; only its configuration is read.
        config: batch_size / accumulation rows at a time, base_dtype, gradient_checkpointing, max_length.
            Mixed precision is counted as if all were float32: an upper bound.
        length: tokens of every row, the longest text as well in an encoder-decoder; None is config.max_length.
        kind, labels: of the head; None is what the family is for, a classifier for an encoder.

    Raises:
        ValueError: there is no such length, or the method does not fit the model, as at `adapt`.
        CheckpointError: no such backbone.
    """
    require(length is None or 1 <= length <= MOST_TOKENS,
            f"length = {length} must lie from 1 to {MOST_TOKENS:,} tokens")
    config = config or TrainConfig()
    short = config.base_dtype != "float32"
    model = meta_model(backbone, kind, labels=labels, dtype=torch.bfloat16 if short else torch.float32)
    known = {id(p) for p in model.parameters()}
    adapters = adapt(model, method, seed=0)
    rows, length = math.ceil(config.batch_size / config.accumulation), length or config.max_length
    saved = _forward(model, rows, length)
    packed = _packed(model, known) if config.base_dtype == "4bit" else set()
    trained = [p for p in model.parameters() if id(p) not in known]
    base, head = adapters.base_parameters(), adapters.head_parameters()
    gradients = _bytes([*trained, *head, *base])
    logits = saved.logits + 2 * saved.largest_logits  # the gradients of −log p and of the scores under it
    activations = saved.checkpointed() if config.gradient_checkpointing else saved.activations
    held = [p for p in model.parameters() if id(p) in known - {id(h) for h in head}]
    return MemoryPlan(
        setting=_setting(method, backbone, config, rows, length), weights=sum(_weight(p, packed) for p in held),
        kept=_kept(adapters), branches=_bytes(trained), head=_bytes(head), gradients=gradients,
        moments=2 * gradients + 4 * len([*trained, *head, *base]), logits=logits,
        scores=saved.scores // (len(saved.inputs) if config.gradient_checkpointing else 1),
        activations=activations + 2 * _widest(model, rows * length),
        unpacked=max((2 * p.numel() for p in held if id(p) in packed), default=0), notes=_notes(method, config))


def _setting(method: Method, backbone: str, config: TrainConfig, rows: int, length: int) -> str:
    how = "recomputed" if config.gradient_checkpointing else "kept"
    return (f"{method.name} on {backbone}: {rows} rows of {length} tokens at a time, base in {config.base_dtype}, "
            f"activations {how}")


def _notes(method: Method, config: TrainConfig) -> tuple[str, ...]:
    notes = []
    if config.mixed_precision != "no":
        notes.append("mixed precision is counted as float32: an upper bound")
    if method.held_out:
        notes.append("the search differentiates through a step: it holds the activations of two or three passes at "
                     "once, which is not counted")
    return tuple(notes)


def _bytes(parameters: list[Any]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _packed(model: nn.Module, known: set[int]) -> set[int]:
    """Parameters that `load_backbone(four_bit=True)` packs: the matrices inside the layers."""
    return {id(module.weight) for path, module in model.named_modules() if re.search(r"\.\d+\.", path)
            and (isinstance(module, nn.Linear) or is_conv1d(module)) and id(module.weight) in known}


def _weight(parameter: Any, packed: set[int]) -> int:
    """Bytes of one frozen parameter; NF4: half a byte, and scales that are quantised, too (Dettmers et al. 2023)."""
    n = parameter.numel()
    if id(parameter) not in packed:
        return n * parameter.element_size()
    scales = math.ceil(n / NF4_BLOCK)
    return math.ceil(n / 2) + scales + 4 * math.ceil(scales / NF4_GROUP) + NF4_TABLES


def _widest(model: Any, tokens: int) -> int:
    """The widest thing inside a layer: it and its gradient are there while the backward pass is in it."""
    width = max(max(site.d, site.k) for site in find_sites(model))
    return tokens * width * (2 if model.dtype == torch.bfloat16 else 4)


def _kept(adapters: Adapters) -> int:
    writes = adapters.method.writes_base and getattr(adapters.method, "chain", 2) > 1
    return _bytes([owner.weight for owner in adapters.owners.values()]) if writes else 0


@dataclass
class Saved:
    """What autograd kept of one forward pass, each storage once.

    blocks: layer -> bytes kept inside it.  inputs: bytes of each layer's input.  outside: kept beside the layers.
    """

    blocks: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    scores: int = 0
    logits: int = 0
    largest_logits: int = 0

    @property
    def activations(self) -> int:
        return sum(self.blocks.values()) + self.outside

    def checkpointed(self) -> int:
        """Every layer's input, and one layer whole while it is recomputed."""
        return sum(self.inputs.values()) + max(self.blocks.values(), default=0) + self.outside


def _forward(model: Any, rows: int, length: int) -> Saved:
    saved, seen, here = Saved(), {_storage(t) for t in [*model.parameters(), *model.buffers()]}, [""]
    config = model.config.get_text_config()
    heads = config.num_attention_heads

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) in seen:
            return tensor
        seen.add(_storage(tensor))
        size = tensor.untyped_storage().nbytes()
        if tensor.ndim >= 3 and tensor.numel() == rows * heads * length**2 and tensor.shape[-2:] == (length, length):
            saved.scores += size
        elif tensor.ndim and tensor.shape[-1] == config.vocab_size:
            saved.logits, saved.largest_logits = saved.logits + size, max(saved.largest_logits, size)
        elif here[0]:
            saved.blocks[here[0]] = saved.blocks.get(here[0], 0) + size
        else:
            saved.outside += size
        return tensor

    model.train()
    with _watched(model, here, saved), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**_inputs(model, rows, length))
    return saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _watched(model: nn.Module, here: list[str], saved: Saved) -> Iterator[None]:
    """Sets `here` to the layer that the forward pass is in, and notes the size of its input."""
    config: Any = model.config
    where = "|".join(re.escape(place) for _, place in ARCHITECTURES[config.model_type])
    is_layer = re.compile(rf"(?:^|\.)(?:{where})\.\d+$")
    layers = {path: module for path, module in model.named_modules() if is_layer.search(path)}

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            here[0] = path
            hidden = args[0] if args else kwargs["hidden_states"]
            saved.inputs[path] = hidden.numel() * hidden.element_size()
        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        here[0] = ""

    handles = [handle for path, layer in layers.items() for handle in (
        layer.register_forward_pre_hook(enter(path), with_kwargs=True), layer.register_forward_hook(leave))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs(model: Any, rows: int, length: int) -> dict[str, Tensor]:
    """A batch without padding. Masks are given as additive ones, as transformers would look into any other."""
    def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device="meta")

    ids = zeros(rows, length)
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "labels": ids, "attention_mask": zeros(rows, 1, 1, length, dtype=model.dtype),
                "decoder_attention_mask": zeros(rows, 1, length, length, dtype=model.dtype)}
    kind = type(model).__name__
    if "Classification" in kind and "Token" not in kind:
        return {"input_ids": ids, "labels": zeros(rows)}
    model.config.pad_token_id = None  # else GPT-2 looks for pads
    return {"input_ids": ids, "labels": ids}
