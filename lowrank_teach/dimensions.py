"""The papers' backbones by their dimensions: enough to build each without its weights, on torch's meta device.

A model there has shapes and no numbers, so it costs nothing: its sites, its parameters and what a training would
hold in memory can be counted before anything is downloaded. The dimensions are those of each checkpoint's public
config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from .models import AUTO, CheckpointError, own_kind, require_config


@dataclass(frozen=True)
class Published:
    """A checkpoint of the hub: its dimensions, and how many parameters it has (without a head that a task adds)."""

    name: str
    hub: str
    family: str
    parameters: int
    stand_in: str  # the packaged model that comes nearest
    config: Mapping[str, Any]


_ENCODER = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
            "bos_token_id": 0, "eos_token_id": 2}
_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 32, "pad_token_id": 0}
_TABLE = [
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
DIMENSIONS: dict[str, Published] = {one.name: one for one in _TABLE}


def published(name: str) -> Published | None:
    """A row of the table, by its short name or its name on the hub."""
    return next((one for one in _TABLE if name in (one.name, one.hub)), None)


def config_of(name: str) -> Any:
    """The configuration of a backbone: from the table, else as its files have it.

    Raises:
        CheckpointError: neither is there.
    """
    known = published(name)
    if known is not None:
        return AutoConfig.for_model(known.family, **known.config)
    try:
        return require_config(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; by their dimensions alone there are {', '.join(DIMENSIONS)}") from error


def meta_model(name: str, kind: str | None = None, *, labels: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """A backbone on the meta device, in eval mode, with a fresh head where its kind asks for one.

    Args:
        name: of the table, or anything that `load_backbone` takes; of that only the configuration is read.
        kind: as in `load_backbone`; None is what the family is for, a classifier for an encoder.

    Raises:
        CheckpointError: its configuration cannot be had.
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
