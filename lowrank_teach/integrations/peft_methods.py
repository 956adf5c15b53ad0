"""Methods that peft implements, as methods of this package: prefix tuning, prompt tuning and AdaLoRA."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import require, shown
from ..lowrank import is_conv1d
from ..methods.base import (
    Clock,
    Invariant,
    Loop,
    Method,
    Rule,
    require_rank,
    require_shares,
    require_unused,
    require_width,
)
from ..precision import wide
from ..sites import Site

# ---- peft, imported when it is needed ------------------------------------------------------------------------

def peft() -> Any:
    """Import peft and return it.

    Raises:
        ImportError: peft is not installed; says how to install it.
    """
    try:
        return import_module("peft")
    except ImportError as error:
        raise ImportError("AdaLoRA, prefix and prompt tuning run through peft, which is not installed: "
                          "pip install 'lowrank-teach[baselines]'") from error


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's default generator from `generator` for a while, and draw in float32 on the CPU by default."""
    kept = torch.get_default_dtype()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device="cpu")))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(kept)


# ---- prefix and prompt tuning --------------------------------------------------------------------------------
# Both learn vectors at virtual positions in front of the input. Neither changes a matrix, so there is no ΔW, no rank
# and nothing to merge. The output differs from the pretrained one from the start, since the positions take attention.

REDIRECTED = ("forward", "generate")


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
    """Train keys and values in front of those of every layer: 2 · layers · num_virtual_tokens · (width of keys).

    It needs layers that accept keys and values: those of BERT and RoBERTa, of all decoders, and of the decoder of an
    encoder-decoder that writes text. In GPT-2, OPT and BERT the words' positions start after the prefix.

    Args:
        num_virtual_tokens: length of the prefix.
        prefix_projection: compute the prefix with a small network from embeddings, as in the paper, which is more
            stable and has many more parameters; `encoder_hidden_size` is the network's width (0: the model's).
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
        """Return arguments of peft's configuration."""
        return {"peft_type": "PREFIX_TUNING", "prefix_projection": self.prefix_projection,
                "encoder_hidden_size": self.encoder_hidden_size or None}


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method):
    """Train word vectors in front of the input: num_virtual_tokens · (width) parameters.

    It needs a large learning rate (3e-2 or more).

    Args:
        num_virtual_tokens: number of vectors.
        init: "vocabulary" (the vectors of random words) or "random" (normal).
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
        """Return arguments of peft's configuration."""
        return {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1,  # the encoder only
                "prompt_tuning_init": {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[self.init]}


class PromptRule(Rule):
    """Redirect the model's `forward` and `generate` through peft's wrapper."""

    method: PrefixTuning | PromptTuning

    def check(self, sites: list[Site]) -> None:
        from ..tasks.generation import positions  # late: it brings transformers

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
        for path, module in list(model.named_modules()):  # peft would train a copy of the head
            if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
                model.set_submodule(path, module.original_module)
        self.wrapper.word_embeddings = model.get_input_embeddings()  # type: ignore[operator]
        model.add_module("prompt_encoder", self.wrapper.prompt_encoder.to(wide(like.dtype)))
        self._redirect(model)
        return [f"prompt_encoder.{name}" for name, _ in self.wrapper.prompt_encoder.named_parameters()]

    def _redirect(self, model: Any) -> None:
        """Replace the model's functions by functions that call the wrapper, which calls the model's own."""
        self._attributes = {name: vars(model)[name] for name in REDIRECTED if name in vars(model)}
        self._own = {name: getattr(model, name) for name in REDIRECTED if hasattr(model, name)}
        for name, own in self._own.items():
            through = self._forward if name == "forward" else self._generate
            setattr(model, name, MethodType(with_arguments_of(own.__func__, partial(self._through, through)), model))
        if (self.method.name, self.kind) == ("prompt", "CAUSAL_LM"):
            own = self._own["forward"]
            self._own["forward"] = with_arguments_of(own, lambda *args, **kw: own(*args, **self._placed(**kw)))

    def _through(self, function: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function while the model has its own `forward` and `generate`."""
        if model is not self.adapters.model:   # a copy of the model has the redirected functions too
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
        """Add positions that count from the prompt without padding; peft gives none, and padding would count."""
        mask, given = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
        given = kwargs.get("input_ids") if given is None else given
        if mask is not None and given is not None and mask.dim() == 2:
            counted = (mask.long().cumsum(1) - 1).clamp_min(0)                                # (B, p + T)
            kwargs["position_ids"] = counted[:, -given.shape[1]:]
        return kwargs

    def _forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        kwargs["attention_mask"] = attention_mask
        p, labels = self.method.num_virtual_tokens, kwargs.get("labels")
        if self.method.name == "prefix" and self.kind == "SEQ_2_SEQ_LM":  # the prefix is in the decoder
            placed = kwargs.get("decoder_input_ids") if labels is None else labels
        else:
            placed = input_ids
        if placed is not None:
            self._refuse_long(placed.shape[1])
        if self.method.name == "prefix":
            return self.wrapper(input_ids=input_ids, **kwargs)
        if self.kind == "TOKEN_CLS" and labels is not None:  # peft does not extend labels of tokens
            kwargs["labels"] = torch.cat([labels.new_full((len(labels), p), -100), labels], 1)
        out = self.wrapper(input_ids=input_ids, **kwargs)
        if self.kind in ("TOKEN_CLS", "CAUSAL_LM"):
            out.logits = out.logits[:, p:]  # (B, T, C), without the virtual tokens
        return out

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        model = self.adapters.model
        before = [(module, set(vars(module))) for module in {model, getattr(model, "model", model)}]
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Position ids are not supported")  # `_placed` adds them
                return self.wrapper.generate(*args, **kwargs)
        finally:  # peft leaves attributes on the model
            for module, names in before:
                for name in set(vars(module)) - names:
                    delattr(module, name)

    def _refuse_long(self, length: int) -> None:
        from ..tasks.generation import positions  # late: it brings transformers

        room, p = positions(self.adapters.model), self.method.num_virtual_tokens
        written = self.method.name == "prefix" and self.kind == "SEQ_2_SEQ_LM"
        left = "texts to write of at most" if written else "max_length ≤"
        require(room is None or length + p <= room,
                f"{length} tokens and {p} virtual ones are more than the {room} positions of this model: take "
                f"{left} {(room or 0) - p}{' tokens' if written else ''}, or fewer virtual tokens")

    def detach(self, model: nn.Module) -> None:
        for name in REDIRECTED:
            vars(model).pop(name, None)
        vars(model).update(self._attributes)
        del model.prompt_encoder

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        recomputes = any(getattr(m, "gradient_checkpointing", False) for m in self.adapters.model.modules())
        require(self.method.name != "prefix" or not recomputes,
                "a prefix is kept in the cache of keys and values, which gradient checkpointing switches off: leave "
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
    """Return `made` with the signature of `own`, which transformers inspects."""
    def call(*args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs)

    call.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return call


def task_type(model: Any) -> str:
    """Return peft's name of a model's task.

    Raises:
        ValueError: the model neither classifies nor writes text.
    """
    name = type(model).__name__
    for ending, kind in (("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")):
        if name.endswith(ending):
            return kind
    require(getattr(model, "can_generate", lambda: False)(), f"{name} has no head, and virtual tokens need a task: "
                                                             "load the model for classification or for writing")
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def takes_past(model: Any) -> bool:
    """Return whether the network of a classifier accepts keys and values to put in front of its own."""
    return "past_key_values" in inspect.signature(model.base_model.forward).parameters


def widths(config: Any, prefix: bool) -> dict[str, int]:
    """Return the sizes that peft does not find in every configuration; of an encoder-decoder, the decoder's."""
    layers = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", None)
    found = {"token_dim": config.hidden_size, "num_layers": layers or config.num_hidden_layers,
             "num_attention_heads": getattr(config, "decoder_attention_heads", None) or config.num_attention_heads}
    if prefix and getattr(config, "d_kv", None):  # T5's heads need not fill the width
        found["token_dim"] = config.d_kv * config.num_heads
    return found


# ---- AdaLoRA -------------------------------------------------------------------------------------------------

NAME = "default"  # peft's name of an adapter without a name
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # importance, its moving average, and its uncertainty
FACTORS = ("lora_A", "lora_E", "lora_B")


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Method):
    """Train W x + s · B diag(E) A x from rank r and drop the least important directions until the mean is target_r.

        loss = task + orth_reg_weight · R,    R = mean of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F

    The importance of a direction is the smoothed |weight · gradient| of its column of B, entry of E and row of A
    (Zhang et al. 2023, section 3). A second training keeps the ranks of the first one if that reached target_r;
    otherwise the ranks fall from r again. GPT-2's fused q, k and v are one matrix ("0.qkv") here.

    Args:
        r: rank at the start, above target_r.  lora_alpha: the scale s is always lora_alpha / r.
        target_r: mean rank at the end.
        tinit: steps before ranks start to fall.  tfinal: steps at the end, after the last rank has fallen.
        deltaT: steps between two allocations. All three are steps (int) or a share of the training (float).
        beta1, beta2: smoothing of the importance and of its uncertainty.
        orth_reg_weight: weight of R (the authors' code: 0.1 to 0.5).
    """

    r: int = 12
    sites: str | tuple[str, ...] = "all"
    target_r: int = 8
    tinit: int | float = 0.1
    tfinal: int | float = 0.4
    deltaT: int | float = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.1

    name: ClassVar[str] = "adalora"
    paper: ClassVar[str] = "Zhang et al. 2023, ICLR, arXiv 2303.10512"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.target_r < self.r, f"target_r = {self.target_r} must lie above 0 and below r = {self.r}, "
                                            "with which every matrix starts")
        require_shares(self, "tinit", "tfinal", "deltaT")
        require(self.deltaT > 0, f"deltaT = {self.deltaT} must be above 0")
        require(0 < self.beta1 < 1 and 0 < self.beta2 < 1, "beta1 and beta2 must lie between 0 and 1")
        require(self.orth_reg_weight >= 0, "orth_reg_weight must be 0 or more")
        require(self.init == "kaiming", "peft starts AdaLoRA's factors in its own way (normal, std 0.02; E = 0): "
                                        "leave init out")

    def rule(self) -> AdaLoRARule:
        return AdaLoRARule(self)


class AdaLoRARule(Rule):
    """Hold peft's tuner, and call its allocator between the optimizer's step and the next zero_grad."""

    method: AdaLoRA

    def check(self, sites: list[Site]) -> None:
        peft()
        for site in sites:
            require_rank(site, self.method.r)
        for path, here in by_path(sites).items():
            width = sum(site.d for site in here)
            whole = self.adapters.model.get_submodule(path)
            has = getattr(whole, "nf", None) or whole.out_features
            names = ", ".join(site.name for site in here)
            require(width == has, f"{path} holds more than {names}, and peft's AdaLoRA takes a layer as one matrix: "
                                  "choose q, k and v together (sites=\"all\", \"qkv\"), or none of them")

    def branch(self, site: Site) -> None:
        return None

    def attach(self, model: nn.Module, sites: list[Site]) -> list[str]:
        m, paths = self.method, by_path(sites)
        self.paths = {one_name(here): path for path, here in paths.items()}
        fused = any(is_conv1d(model.get_submodule(path)) for path in paths)
        self.config = peft().AdaLoraConfig(
            init_r=m.r, target_r=m.target_r, lora_alpha=m.lora_alpha, lora_dropout=m.lora_dropout, beta1=m.beta1,
            beta2=m.beta2, orth_reg_weight=m.orth_reg_weight, target_modules=list(paths), fan_in_fan_out=fused,
            total_step=1)  # `start` sets the length of the training
        like = next(model.parameters())
        with seeded(self.generator):
            self.tuner = peft().AdaLoraModel(model, {NAME: self.config}, NAME)
        named = {name: p for name, p in model.named_parameters() if any(f".{x}." in name for x in FACTORS)}
        for name, parameter in model.named_parameters():
            if name in named or ".ranknum." in name:  # peft keeps the initial rank as a parameter
                parameter.data = parameter.data.to(wide(like.dtype))
                parameter.requires_grad_(name in named)
        self._kept: dict[str, Tensor] = {}
        self.found = False  # True if an earlier training reached the budget, so that the ranks stay
        return list(named)

    def detach(self, model: nn.Module) -> None:
        self.tuner.unload()

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield each site's name and peft's layer."""
        for name, path in self.paths.items():
            yield name, self.adapters.model.get_submodule(path)

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        m, c = self.method, self.config
        c.total_step, c.tinit, c.tfinal = clock.total, clock.resolve(m.tinit), clock.resolve(m.tfinal)
        c.deltaT = max(1, clock.resolve(m.deltaT))
        if clock.step:  # a resumed training was checked when it began
            return
        self.found = sum(self.site_ranks().values()) == m.target_r * len(self.paths)
        if self.found:
            self._keep_ranks()
            return
        require(c.tinit < c.total_step - c.tfinal > 1,
                f"no step is left in which importance can be measured and ranks can fall: tinit = {c.tinit} and "
                f"tfinal = {c.tfinal} of {c.total_step} steps; make them smaller, or train longer")

    def _keep_ranks(self) -> None:
        """End peft's allocation before the first step; peft then only masks the dropped directions."""
        self.config.total_step = self.config.tinit = self.config.tfinal = 0

    def again(self) -> None:
        if not self.found:
            self.config.rank_pattern = None
            self.tuner.rankallocator.reset_ipt()

    def notes(self) -> list[str]:
        note = "an earlier training met the budget of ranks: this one trained at the ranks that it found"
        return [note] if self.found else []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.adapters.extra_parameters()}]

    def penalty(self) -> Tensor | None:
        """Return orth_reg_weight · R, which peft's own forward pass adds to the loss."""
        if not self.method.orth_reg_weight:
            return None
        factors = [f for _, layer in self.layers() for f in (layer.lora_A[NAME], layer.lora_B[NAME].t())]
        off = [torch.linalg.matrix_norm(M @ M.t() - torch.eye(len(M), dtype=M.dtype, device=M.device))
               for M in factors]
        return self.method.orth_reg_weight * torch.stack(off).mean()

    def after_step(self, clock: Clock) -> None:
        self.tuner.update_and_allocate(clock.step)  # reads this step's gradients, and sets dropped E to zero

    def settled(self, clock: Clock) -> bool:
        return clock.step >= self.config.total_step - self.config.tfinal

    # -- ranks, updates and state

    def _kept_directions(self, path: str) -> Tensor:
        """Return a mask (r,) of the directions that were not dropped."""
        pattern = self.config.rank_pattern or {}
        return torch.tensor(pattern.get(f"{path}.lora_E.{NAME}", [True] * self.method.r), device="cpu")

    def site_ranks(self) -> dict[str, int]:
        return {name: int(self._kept_directions(path).sum()) for name, path in self.paths.items()}

    @torch.no_grad()
    def own_updates(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        found = {}
        for name, layer in self.layers():
            keep = self._kept_directions(self.paths[name])
            A, E, B = (getattr(layer, x)[NAME].detach() for x in FACTORS)                # (r, k), (r, 1), (d, r)
            keep = keep.to(A.device)
            scale = layer.scaling[NAME] / (layer.ranknum[NAME] + 1e-5)
            W = self._kept.get(name, layer.get_base_layer().weight.detach())
            found[name] = (W.t() if layer.fan_in_fan_out else W).float(), scale * B[:, keep] * E[keep].t(), A[keep]
        return found

    def merge(self) -> None:
        self._kept = {name: layer.get_base_layer().weight.detach().clone() for name, layer in self.layers()}
        for _, layer in self.layers():
            layer.merge()

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the kept weights back, since peft would subtract the update and round."""
        for name, layer in self.layers() if self._kept else ():
            layer.get_base_layer().weight.copy_(self._kept[name])
            layer.merged_adapters.clear()
        self._kept = {}

    def log(self) -> dict[str, float | dict[str, float]]:
        ranks = {name: float(rank) for name, rank in self.site_ranks().items()}
        return {"kept": ranks, "sum_of_ranks": sum(ranks.values())}

    def state_dict(self) -> dict[str, Any]:
        allocator = self.tuner.rankallocator
        scores = {f"{kind}.{name}": value for kind in SCORES for name, value in getattr(allocator, kind).items()}
        return {**super().state_dict(), **scores, "rank_pattern": self.config.rank_pattern,
                "found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.config.rank_pattern, self.found = state["rank_pattern"], state["found"]
        if self.found:
            self._keep_ranks()
        for kind in SCORES:
            setattr(self.tuner.rankallocator, kind, {
                name.removeprefix(f"{kind}."): value.to(self.adapters.model.get_parameter(
                    name.removeprefix(f"{kind}.")).device)
                for name, value in state.items() if name.startswith(f"{kind}.")})

    def invariants(self, clock: Clock) -> list[Invariant]:
        in_use = {name: layer.lora_E[NAME][self._kept_directions(self.paths[name])] for name, layer in self.layers()}
        still = [name for name, E in in_use.items() if len(E) and not E.any()]
        checks = [Invariant(not still, f"after the first step no singular value has moved at {', '.join(still[:4])}: "
                                       "no gradient reaches the branch; look for a learning rate of 0")
                  ] if clock.step == 1 else []
        if self.settled(clock):
            total, wanted = sum(self.site_ranks().values()), self.method.target_r * len(self.paths)
            checks.append(Invariant(total == wanted, f"the ranks sum to {total}, not to the budget of {wanted}"))
        return checks


def by_path(sites: list[Site]) -> dict[str, list[Site]]:
    """Group the sites by module; a fused layer has several."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(site.path, []).append(site)
    return found


def one_name(sites: list[Site]) -> str:
    """Return the name of a layer: that of its site, or "0.qkv" for a fused one."""
    first = sites[0].name
    return first if len(sites) == 1 else f"{first.rpartition('.')[0]}.{''.join(site.letter for site in sites)}"
