"""Prefix and prompt tuning: vectors that are learned, in front of what the frozen model reads, through peft.

Prompt tuning (Lester et al. 2021, EMNLP, arXiv 2104.08691) puts num_virtual_tokens word vectors in front of the
input. Prefix tuning (Li & Liang 2021, ACL, arXiv 2101.00190) puts as many keys and values in front of those of every
layer. Neither changes a matrix, so there is no ΔW, no rank and nothing to merge. The function differs from the
pretrained one from the start: the new positions take attention.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..methods.base import Clock, Invariant, Loop, Method, Rule, require
from ..methods.checks import require_unused, require_width, shown
from ..sites import Site
from ..wide import wide
from .library import peft, seeded

DETOURED = ("forward", "generate")


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
    """Keys and values in front of every layer's: 2 · layers · num_virtual_tokens · (width of keys) parameters.

    For models whose layers take keys and values from outside: BERT and RoBERTa, all decoders, and the decoder of an
    encoder-decoder that writes text. In GPT-2, OPT and BERT the words' positions begin behind the prefix.

    Args:
        num_virtual_tokens: length of the prefix.
        prefix_projection: make it by a small network from shorter vectors, as in the paper, which trains more
            steadily and has far more parameters; `encoder_hidden_size` is that network's width (0: the model's).
    """

    sites: str | tuple[str, ...] = ()
    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int = 0

    name: ClassVar[str] = "prefix"
    paper: ClassVar[str] = "Li & Liang 2021, ACL, arXiv 2101.00190"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unused(self, "num_virtual_tokens")
        require_width(self, "num_virtual_tokens", 1)
        require_width(self, "encoder_hidden_size", 0)

    def rule(self) -> PromptRule:
        return PromptRule(self)

    def settings(self) -> dict[str, Any]:
        """What peft's configuration takes."""
        return {"peft_type": "PREFIX_TUNING", "prefix_projection": self.prefix_projection,
                "encoder_hidden_size": self.encoder_hidden_size or None}


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method):
    """Word vectors in front of the input: num_virtual_tokens · (width) parameters. Wants a large rate (3e-2 or more).

    Args:
        num_virtual_tokens: how many.
        init: "vocabulary" (vectors of words drawn at random) or "random" (normal).
    """

    sites: str | tuple[str, ...] = ()
    init: str = "vocabulary"
    num_virtual_tokens: int = 20

    name: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "Lester et al. 2021, EMNLP, arXiv 2104.08691"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unused(self, "num_virtual_tokens", ("r", "lora_alpha", "lora_dropout"))
        require_width(self, "num_virtual_tokens", 1)
        require(self.init in ("vocabulary", "random"), f"init {shown(self.init)} must be 'vocabulary' or 'random'")

    def rule(self) -> PromptRule:
        return PromptRule(self)

    def settings(self) -> dict[str, Any]:
        """What peft's configuration takes."""
        return {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1,  # none for a decoder behind an encoder
                "prompt_tuning_init": {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[self.init]}


class PromptRule(Rule):
    """Sends the model's `forward` and `generate` through peft's wrapper, and back."""

    method: PrefixTuning | PromptTuning

    def check(self, sites: list[Site]) -> None:
        from ..writing import positions  # late: it brings transformers

        model = self.adapters.model
        peft()
        self.kind, prefix = task_type(model), self.method.name == "prefix"
        family = model.config.model_type  # type: ignore[union-attr]
        encoder_decoder = model.config.is_encoder_decoder  # type: ignore[union-attr]
        reads_a_word = self.kind == "SEQ_CLS" and (encoder_decoder or (not prefix and hasattr(model, "score")))
        require(not reads_a_word, f"a {family} classifier looks for the last word of the input to read its answer "
                                  "there, and finds none behind virtual ones: take an encoder, or let the model "
                                  "write the answer (a task of kind 'choice' or 'seq2seq')")
        require(not prefix or self.kind in ("CAUSAL_LM", "SEQ_2_SEQ_LM") or takes_past(model),
                f"a {family}'s layers take no keys and values from outside, so it can have no prefix: use "
                "PromptTuning, or a BERT, RoBERTa or decoder")
        room, p = positions(model), self.method.num_virtual_tokens
        require(room is None or p < room, f"num_virtual_tokens = {p} leaves no word a place among the {room} "
                                          f"positions of this model: take fewer than {room}")

    def attach(self, model: nn.Module, sites: list[Site]) -> list[str]:
        m, config, like = self.method, model.config, next(model.parameters())
        settings: dict[str, Any] = {**m.settings(), "task_type": self.kind, "inference_mode": False,
                                    "num_virtual_tokens": m.num_virtual_tokens, **widths(config, m.name == "prefix")}
        with seeded(self.generator):
            self.wrapper = peft().get_peft_model(model, peft().get_peft_config(settings))
        for path, module in list(model.named_modules()):  # peft trains a copy of the head: ours trains itself
            if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
                model.set_submodule(path, module.original_module)
        self.wrapper.word_embeddings = model.get_input_embeddings()  # type: ignore[operator]
        model.add_module("prompt_encoder", self.wrapper.prompt_encoder.to(wide(like.dtype)))
        self._detour(model)
        return [f"prompt_encoder.{name}" for name, _ in self.wrapper.prompt_encoder.named_parameters()]

    def _detour(self, model: Any) -> None:
        """Put functions in front of the model's own that go through the wrapper, which calls the model again."""
        self._attributes = {name: vars(model)[name] for name in DETOURED if name in vars(model)}
        self._own = {name: getattr(model, name) for name in DETOURED if hasattr(model, name)}
        for name, own in self._own.items():
            through = self._forward if name == "forward" else self._generate
            setattr(model, name, MethodType(with_arguments_of(own.__func__, partial(self._through, through)), model))
        if (self.method.name, self.kind) == ("prompt", "CAUSAL_LM"):
            own = self._own["forward"]
            self._own["forward"] = with_arguments_of(own, lambda *args, **kw: own(*args, **self._placed(**kw)))

    def _through(self, function: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        """Call with the model's own functions in their places, without what was wrapped around ours meanwhile."""
        if model is not self.adapters.model:   # a copy has these functions too, and they lead here
            raise RuntimeError(f"this model is a copy of one with {self.method.name} vectors, and would run the "
                               "original: adapt a fresh model and load the saved adapters there")
        ours = {name: vars(model)[name] for name in self._own}
        vars(model).update(self._own)
        try:
            return function(*args, **kwargs)
        finally:
            vars(model).update(ours)

    @staticmethod
    def _placed(**kwargs: Any) -> dict[str, Any]:
        """Words counted from the prompt on: peft leaves positions out, and then padding on the left counts too."""
        mask, given = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
        given = kwargs.get("input_ids") if given is None else given
        if mask is not None and given is not None and mask.dim() == 2:
            counted = (mask.long().cumsum(1) - 1).clamp_min(0)                                # (B, p + T)
            kwargs["position_ids"] = counted[:, -given.shape[1]:]
        return kwargs

    def _forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        kwargs["attention_mask"] = attention_mask
        p, labels = self.method.num_virtual_tokens, kwargs.get("labels")
        if self.method.name == "prefix" and self.kind == "SEQ_2_SEQ_LM":  # in front of what is written
            placed = kwargs.get("decoder_input_ids") if labels is None else labels
        else:
            placed = input_ids
        if placed is not None:
            self._refuse_long(placed.shape[1])
        if self.method.name == "prefix":
            return self.wrapper(input_ids=input_ids, **kwargs)
        if self.kind == "TOKEN_CLS" and labels is not None:  # peft lengthens the labels of words, not of tags
            kwargs["labels"] = torch.cat([labels.new_full((len(labels), p), -100), labels], 1)
        out = self.wrapper(input_ids=input_ids, **kwargs)
        if self.kind in ("TOKEN_CLS", "CAUSAL_LM"):
            out.logits = out.logits[:, p:]  # of the words alone: (B, T, C)
        return out

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        model = self.adapters.model
        before = [(module, set(vars(module))) for module in {model, getattr(model, "model", model)}]
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Position ids are not supported")  # they are put back below
                return self.wrapper.generate(*args, **kwargs)
        finally:  # peft leaves attributes of its own behind
            for module, names in before:
                for name in set(vars(module)) - names:
                    delattr(module, name)

    def _refuse_long(self, length: int) -> None:
        from ..writing import positions  # late: it brings transformers

        room, p = positions(self.adapters.model), self.method.num_virtual_tokens
        written = self.method.name == "prefix" and self.kind == "SEQ_2_SEQ_LM"
        left = "texts to write of at most" if written else "max_length ≤"
        require(room is None or length + p <= room,
                f"{length} tokens and {p} virtual ones are more than the {room} positions of this model: take "
                f"{left} {(room or 0) - p}{' tokens' if written else ''}, or fewer virtual tokens")

    def detach(self, model: nn.Module) -> None:
        for name in DETOURED:
            vars(model).pop(name, None)
        vars(model).update(self._attributes)
        del model.prompt_encoder

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        recomputes = any(getattr(m, "gradient_checkpointing", False) for m in self.adapters.model.modules())
        require(self.method.name != "prefix" or not recomputes,
                "a prefix stands in the cache of keys and values, which gradient checkpointing switches off: leave "
                "gradient_checkpointing out, or use PromptTuning")

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.adapters.extra_parameters()}]

    def merge(self) -> None:
        raise RuntimeError(f"{self.method.name} cannot be merged: it adds positions and changes no matrix; keep it "
                           "on the model, or use LoRA")

    def invariants(self, clock: Clock) -> list[Invariant]:
        if clock.step != 1:
            return []
        live = all(p.grad is not None and p.grad.any() for p in self.adapters.extra_parameters())
        return [Invariant(live, f"no gradient reaches the {self.method.name} vectors: the model does not read them")]


def with_arguments_of(own: Callable[..., Any], made: Callable[..., Any]) -> Callable[..., Any]:
    """A function for another's place, with the arguments that transformers looks for there."""
    def call(*args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs)

    call.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return call


def task_type(model: Any) -> str:
    """peft's name for what a model does.

    Raises:
        ValueError: it neither classifies nor writes.
    """
    name = type(model).__name__
    for ending, kind in (("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")):
        if name.endswith(ending):
            return kind
    require(getattr(model, "can_generate", lambda: False)(), f"{name} has no head, and virtual tokens need a task: "
                                                             "load the model for classification or for writing")
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def takes_past(model: Any) -> bool:
    """Whether the network under a classifier lets keys and values be put in front of its own."""
    return "past_key_values" in inspect.signature(model.base_model.forward).parameters


def widths(config: Any, prefix: bool) -> dict[str, int]:
    """The sizes that peft does not find in every configuration; the decoder's where there are two stacks."""
    layers = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", None)
    found = {"token_dim": config.hidden_size, "num_layers": layers or config.num_hidden_layers,
             "num_attention_heads": getattr(config, "decoder_attention_heads", None) or config.num_attention_heads}
    if prefix and getattr(config, "d_kv", None):  # T5's heads need not fill the width
        found["token_dim"] = config.d_kv * config.num_heads
    return found
