"""Save adapters in the format of Hugging Face's `peft`, and load adapters that `peft` saved.

    adapters = lt.adapt(model, lt.SaLoRA(r=8))
    ...                                              # train
    lt.save_peft(adapters, "out/")                   # adapter_config.json and adapter_model.safetensors

    from peft import PeftModel
    PeftModel.from_pretrained(base, "out/")          # base: the pretrained model, loaded anew; the same logits
    AutoPeftModelForSequenceClassification.from_pretrained("out/")   # or another task's class: it loads the base

The total update of a site relative to the pretrained W has two factors (`LowRank.factors`), so each site becomes one
LoRA of its own rank: the links of a chain side by side, Delta-LoRA's merged share beside the live factors, gates
multiplied into B, and sites of rank 0 left out. `peft` scales by lora_alpha / r, which is s if A and B are saved
unchanged, and 1 if s is multiplied into B.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from ..adaptable import plain_name, to_adapt, unwrapped
from ..adapters import REMEDY, Adapters, non_finite, require_adapters
from ..analysis.measures import factor_svd, numerical_rank
from ..errors import LARGEST, Refusal, require, require_kind, sentence, shown
from ..lowrank import Adapted, LowRank, is_conv1d
from ..methods.lora import LoRA
from ..sites import Site, select, shape
from .model_card import write_card
from .peft_base import (
    auto_mapping,
    base_name,
    differing,
    embedding_tensors,
    embeddings,
    head_of,
    task_type,
    warn_of_resized,
)

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Names inside peft's layers. A head "out" would match the end of "lora_dropout", so it is written as ".out".
INNER = ("base_layer", "lora_dropout", "lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector", "default")


class ExportError(Refusal, ValueError):
    """An adapter cannot be written in peft's format, or read from it; the message names the reason and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


@dataclass(frozen=True)
class Pair:
    """One LoRA of one matrix in peft's form: ΔW = (alpha / r) B A, with A (r, k) and B (d, r)."""

    A: Tensor
    B: Tensor
    alpha: float

    @property
    def r(self) -> int:
        return self.A.shape[0]


def save_peft(adapters: Adapters, folder: str | Path, *, compress: bool = False, uniform: bool = False,
              base_name: str | None = None, tokenizer: Any = None, scores: Mapping[str, float] | None = None) -> Path:
    """Write adapter_config.json, adapter_model.safetensors and README.md for `peft`; the model is not changed.

    Modules that the base's checkpoint lacks are written whole. If the vocabulary was resized, both embeddings are
    written too, as by `peft`. A warning says if the checkpoint could not be read.

    Args:
        adapters: of LoRA, COLA, SaLoRA, Delta-LoRA, AutoLoRA or a composition of them, merged or not.
        folder: made if it does not exist. A README.md in it that this function did not write is kept.
        compress: replace each site's factors by those of smallest rank with the same product (a singular value
            decomposition, cut at float rounding). Chains with overlapping links become smaller; A and B are then
            not the trained ones.
        uniform: give all matrices one rank (with rows of zeros) and one scale, for tools that read only `r` and
            `lora_alpha` of the configuration. The function is the same.
        base_name: the base's name on the hub, or its path for the readers; None takes the name that the model was
            loaded by, with a warning if that is a folder.
        tokenizer: saved in the same folder.
        scores: name -> number, for the model card.

    Raises:
        ExportError: the update is not low-rank or not finite, or no matrix is adapted.
        ValueError: an argument has a wrong type.
    """
    require_adapters(adapters)
    _require_arguments(folder, base_name, tokenizer, scores)
    reason = why_not(adapters)
    if reason:
        raise ExportError(reason)
    if bad := non_finite(adapters.state_dict()[0].items()):
        raise ExportError(f"what was learned is not finite at {bad}, so nothing was written: {REMEDY}")
    pairs = {path: pair for path, owner in adapters.owners.items()
             if (pair := _of_layer(owner, compress)) is not None}
    if not pairs:
        raise ExportError("every site has rank 0, so there is no LoRA to write; call adapters.merge_and_unload() and "
                          "save_pretrained(folder) for the model with its head")
    pairs = _uniform(pairs) if uniform else pairs
    fresh, rows = differing(unwrapped(adapters.model), base_name)
    config = _config(adapters, pairs, base_name, fresh)
    return _write(Path(folder), adapters, config, pairs, rows, tokenizer, scores or {})


def _require_arguments(folder: Any, base_name: Any, tokenizer: Any, scores: Any) -> None:
    require_kind("folder", folder, (str, Path), "the path of the folder to write")
    require_kind("base_name", base_name, (str, type(None)), "the name of the base on the hub, or its path")
    require_kind("scores", scores, (Mapping, type(None)), "a dict of numbers by name")
    require(tokenizer is None or hasattr(tokenizer, "save_pretrained"),
            f"tokenizer must be one of transformers, not {type(tokenizer).__name__}")
    for name, score in (scores or {}).items():
        require_kind(f"scores[{shown(name)}]", score, Real, "a number")


def _write(folder: Path, adapters: Adapters, config: dict[str, Any], pairs: dict[str, Pair],
           rows: tuple[int, int] | None, tokenizer: Any, scores: Mapping[str, float]) -> Path:
    model = unwrapped(adapters.model)
    tensors = {f"{path}.lora_{letter}.weight": getattr(pair, letter)
               for path, pair in pairs.items() for letter in "AB"}
    whole = _wrapped_by_peft(model, config["modules_to_save"] or [])
    for path in whole:
        state = model.get_submodule(path).state_dict()
        tensors |= {f"{path}.{plain_name(key)}": value for key, value in state.items()}
    if rows:
        tensors |= {name: value for name, value in embedding_tensors(model).items() if name not in tensors}
        warn_of_resized(rows, tokenizer)
    tensors = {f"{PREFIX}{name}": value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"the folder {folder} cannot be made ({error.strerror}): name another one") from error
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_card(folder, adapters, config, {path: pair.r for path, pair in pairs.items()}, rows, tokenizer, scores)
    return folder


def why_not(adapters: Adapters) -> str:
    """Return why these adapters cannot be written in peft's format, or "" if they can."""
    if adapters.state not in ("adapted", "merged"):
        return f"the adapters are {adapters.state}, so there is nothing to write; save before merge_and_unload()"
    if adapters.extra_names:
        return f"{adapters.method.name} puts modules of its own on the model, which are no LoRA: " + (
            "call adapters.merge_and_unload() and save_pretrained(folder) for a plain model"
            if adapters.rule.own_updates() else
            "keep adapters.state_dict(), which load_state_dict of the same adapters on a model loaded anew reads")
    if adapters.base_names:
        return (f"{adapters.method.name} trains pretrained weights themselves, which is no low-rank change: save the "
                "whole model with model.save_pretrained(folder)")
    if not adapters.owners:
        return (f"{adapters.method.name} puts no branch on any matrix, so there is no LoRA to write: save the whole "
                "model with model.save_pretrained(folder)")
    scheduled = [name for name, branch in adapters.items() if branch.accumulated_update is not None]
    if scheduled:
        return (f"W moved under a λ schedule at {scheduled[0]}, a change with no low-rank form: call "
                "adapters.merge_and_unload() and save_pretrained(folder) for a plain model, or keep λ constant")
    return ""


@torch.no_grad()
def _of_site(branch: LowRank, compress: bool) -> Pair:
    """Return a branch as one pair: its A and B unchanged if these are the whole update, else all its factors."""
    gate = branch.settled_gate()
    is_open, m = gate != 0, branch.fixed_left.shape[1]
    r = int(is_open.sum())
    alpha = branch.scaling * r
    if not (compress or m or branch.merged_share) and r and alpha / r == branch.scaling:
        return Pair(branch.lora_A[is_open], (branch.lora_B * gate)[:, is_open], alpha)
    left, right = branch.factors()
    if compress:
        left, right = _fewest(left, right)
    else:
        used = torch.cat([is_open, is_open.new_ones(m)])
        left, right = left[:, used], right[used]
    return Pair(right, left, float(left.shape[1]))


def _fewest(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose number of directions is its rank."""
    U, s, Vh = factor_svd(left, right)
    n = numerical_rank(s, 4 * torch.finfo(left.dtype).eps)
    root = s[:n].sqrt()
    return (U[:, :n] * root).to(left), (root[:, None] * Vh[:n]).to(right)


@torch.no_grad()
def _of_layer(owner: Adapted, compress: bool) -> Pair | None:
    """Return all branches of a layer as one pair; branches on slices (GPT-2's q and v) become blocks of B."""
    parts = [(owner.rows[name], pair) for name, branch in owner.branches.items()
             if (pair := _of_site(branch, compress)).r]
    if not parts:
        return None
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    r = sum(pair.r for _, pair in parts)
    common = _common_scale([pair for _, pair in parts], r)
    first, d = parts[0][1].B, owner.W.shape[0]
    B, at = torch.zeros(d, r, dtype=first.dtype, device=first.device), 0                         # (D, Σ r)
    for rows, pair in parts:
        B[rows or slice(None), at:at + pair.r] = pair.B * (pair.alpha / pair.r / common)
        at += pair.r
    return Pair(torch.cat([pair.A for _, pair in parts]), B, common * r)


def _common_scale(pairs: Iterable[Pair], r: int) -> float:
    """Return the common scale of all pairs if α / r gives it exactly at rank r; else 1, to multiply each B."""
    scales = {pair.alpha / pair.r for pair in pairs}
    common = scales.pop() if len(scales) == 1 else 1.0
    return common if common * r / r == common else 1.0


def _uniform(pairs: dict[str, Pair]) -> dict[str, Pair]:
    """Return the same products at the largest rank and one scale, with rows of zeros in A and columns in B."""
    r = max(pair.r for pair in pairs.values())
    s = _common_scale(pairs.values(), r)
    return {path: Pair(pad(pair.A, (0, 0, 0, r - pair.r)),
                       pad(pair.B * (pair.alpha / pair.r / s), (0, r - pair.r)), s * r)
            for path, pair in pairs.items()}


def _config(adapters: Adapters, pairs: dict[str, Pair], given_name: str | None, fresh: list[str]) -> dict[str, Any]:
    model = unwrapped(adapters.model)
    r = Counter(pair.r for pair in pairs.values()).most_common(1)[0][0]
    alpha = Counter(pair.alpha for pair in pairs.values()).most_common(1)[0][0]
    conv = [is_conv1d(adapters.owners[path].base) for path in pairs]
    anchored = {path: f"^{re.escape(path)}" for path in pairs}  # peft matches patterns; without ^ also at the end
    task = task_type(model, list(pairs))
    return {
        "peft_type": "LORA", "task_type": task, "auto_mapping": auto_mapping(model, task), "inference_mode": True,
        "base_model_name_or_path": base_name(model, given_name),
        "r": r, "lora_alpha": _short(alpha), "lora_dropout": adapters.method.lora_dropout,
        "rank_pattern": {anchored[path]: pair.r for path, pair in pairs.items() if pair.r != r},
        "alpha_pattern": {anchored[path]: _short(pair.alpha) for path, pair in pairs.items() if pair.alpha != alpha},
        "target_modules": _targets(model, list(pairs)),
        "modules_to_save": _head_modules(adapters, task, fresh) or None,
        "fan_in_fan_out": all(conv), "bias": "none", "use_rslora": False, "init_lora_weights": True,
    }


def _short(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _targets(model: nn.Module, paths: list[str]) -> list[str] | str:
    """Return the full paths, or one pattern if peft would match another module whose path ends in one of them."""
    ends = tuple(f".{path}" for path in paths)
    others = [path for path in _paths(model) if path not in paths and path.endswith(ends)]
    return "|".join(map(re.escape, paths)) if others else paths


def _head_modules(adapters: Adapters, task: str | None, fresh: list[str]) -> list[str]:
    """Return the modules that peft must save whole, each the outermost one whose parameters all belong to the head.

    Included are those that the base's checkpoint lacks, and those that peft takes as the head of the task, trained or
    not, since a base that is loaded again would have other values there.

    Raises:
        ExportError: peft cannot save or load one of them.
    """
    model = unwrapped(adapters.model)
    names = dict.fromkeys([*adapters.head_names, *getattr(model, "lowrank_new_parameters", ()), *fresh])
    found = [_outermost(model, name, names) for name in names]
    by_task = head_of(model, task)
    found = [path for path in dict.fromkeys(found) if not path.startswith(tuple(f"{one}." for one in by_task))]
    found += [path for path in by_task if not path.endswith(tuple(found))]
    found = [path for path in found if not any(path.startswith(f"{above}.") for above in found)]
    for path in found:
        _require_whole(adapters, path)
    return [f".{path}" if any(name.endswith(path) for name in INNER) else path for path in found]


def _require_whole(adapters: Adapters, path: str) -> None:
    """Refuse a module that shares a trained weight with another one, or contains an adapted layer."""
    model = unwrapped(adapters.model)
    trained = {id(model.get_parameter(name)) for name in adapters.head_names}
    shared = [name for name in tied_outside(model, path) if id(model.get_parameter(name)) in trained]
    if shared:
        raise ExportError(f"{path} trained whole while its weight is tied to {shared[0]}, and peft would untie "
                          "the two: use adapters.merge_and_unload() and save_pretrained(folder)")
    inside = [owner for owner in adapters.owners if f"{owner}.".startswith(f"{path}.")]
    if inside:
        raise ExportError(f"{inside[0]} carries a LoRA on a weight that the base's checkpoint lacks: leave this site "
                          "out, or save the base before adapt with save_pretrained(folder) and load it from there")


def _outermost(model: nn.Module, name: str, names: Collection[str]) -> str:
    """Return the outermost module around a parameter whose parameters are all among the names."""
    def whole(path: str) -> bool:
        below = model.get_submodule(path).named_parameters()
        return all(f"{path}.{plain_name(inside)}" in names for inside, _ in below)

    path = name.rpartition(".")[0]
    if not path:
        raise ExportError(f"the head's {name} is a parameter of the model itself, and peft saves whole modules: "
                          "use adapters.merge_and_unload() and save_pretrained(folder)")
    while (above := path.rpartition(".")[0]) and whole(above):
        path = above
    return path


def _paths(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(plain_name(path) for path, _ in model.named_modules()))


def _wrapped_by_peft(model: nn.Module, heads: list[str]) -> list[str]:
    """Return every module that peft takes as one of modules_to_save, since it compares the ends of names."""
    return [path for path in _paths(model) if heads and f".{path}".endswith(tuple(heads))]


def tied_outside(model: nn.Module, path: str) -> list[str]:
    """Return the names of parameters outside a module that are tied to one of its parameters."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    return [name for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in own and not plain_name(name).startswith(f"{path}.")]


# ---- reading an adapter --------------------------------------------------------------------------------------
# The tensors give the modules and their ranks; the configuration gives α, by the same patterns as in `peft`. Only
# JSON and safetensors are read, and everything beyond LoRA is refused by name.

FACTOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
# parts that torch.compile and DataParallel add to names
COMPILED = re.compile(r"_orig_mod\.")
PARALLEL = re.compile(rf"(?:^|(?<={re.escape(PREFIX)}))module\.")
# initializations that do not change W; for others (PiSSA, OLoRA, LoftQ, CorDA …) the file lacks a part of the update
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
READ = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save"}
# settings that the tensors imply, or that do not affect the function
IGNORED = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
          "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
          "fan_in_fan_out", "init_lora_weights", "bias", "megatron_core", "qalora_group_size", "loftq_config",
          "eva_config", "corda_config", "lora_ga_config", "runtime_config", "ensure_weight_tying"}


def load_peft(model: nn.Module, folder: str | Path, *, seed: int | None = None) -> Adapters:
    """Put a LoRA adapter in peft's format on a model, as trainable adapters of a LoRA method.

    A LoRA of a fused layer (GPT-2's c_attn) becomes branches on q, k and v if each of its directions writes to only
    one of them, else one branch on the whole layer, named by its path. A rank above min(d, k) becomes min(d, k), with
    the same product. A direction of zeros in both factors, which could never train, is left out. Embeddings of a
    resized vocabulary are loaded into the model's own.

    Args:
        model: the pretrained model with the head that was trained; changed in place unless an error is raised.
        folder: a folder with adapter_config.json and adapter_model.safetensors.
        seed: seed of the method's own noise, as in `adapt`.

    Raises:
        ExportError: the files are missing or damaged, the adapter is more than LoRA, or it does not fit the model.
        ValueError: a module is not in the model (the nearest names are given), the model is adapted already, or an
            argument has a wrong type.
    """
    model = to_adapt(model)
    require_kind("folder", folder, (str, Path), "the path of a folder that save_peft or peft wrote")
    wrappers = [COMPILED] if hasattr(model, "module") else [COMPILED, PARALLEL]
    config, tensors = _read(Path(folder), wrappers)
    pairs, rest = _pairs(config, tensors, wrappers)
    vocabulary = _vocabulary(model, config, rest)
    sites, parts = _split(model, select(model, tuple(pairs)), pairs)
    heads = _heads(model, config, rest)
    head = [f"{path}.{name}" for path, state in heads.items()
            for name, _ in model.get_submodule(path).named_parameters() if name in state]
    adapters = Adapters(model, _method(config, parts), sites, seed, head)
    with torch.no_grad():
        for name, branch in adapters.items():
            branch.lora_A.copy_(parts[name].A)
            branch.lora_B.copy_(parts[name].B)
            branch.scaling = parts[name].alpha / parts[name].r
    for path, state in heads.items():
        model.get_submodule(path).load_state_dict(state, strict=False)
    for module, state in vocabulary:
        module.load_state_dict(state, strict=False)
    return adapters


def _read(folder: Path, wrappers: list[re.Pattern[str]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if (folder / "adapter_model.bin").exists() and not (folder / WEIGHTS).exists():
        raise ExportError(f"{folder} holds adapter_model.bin, which is pickle and not read here: load it with peft "
                          "and call its save_pretrained(folder), which writes safetensors")
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]
    if missing:
        raise ExportError(f"{folder} holds no {' and no '.join(missing)}: name the folder that peft's "
                          "save_pretrained(folder) wrote")
    try:
        config, tensors = json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ExportError(f"the adapter in {folder} is damaged ({str(error)[:99]}); copy it again") from error
    _refuse_odd(config)
    _refuse_more_than_lora(config)
    config["modules_to_save"] = [_unwrapped(name, wrappers) for name in config.get("modules_to_save") or ()]
    if odd := [name for name, t in tensors.items() if not (t.is_floating_point() and t.element_size() > 1)]:
        raise ExportError(f"{odd[0].removeprefix(PREFIX)} is {tensors[odd[0]].dtype}, and a LoRA is read in floats "
                          "of 16 bits or more: save it from peft in one of these")
    if bad := non_finite((name.removeprefix(PREFIX), t) for name, t in tensors.items()):
        raise ExportError(f"the adapter in {folder} is not finite at {bad}: training diverged; take an earlier one")
    return config, tensors


def _unwrapped(name: str, wrappers: list[re.Pattern[str]]) -> str:
    for wrapper in wrappers:
        name = wrapper.sub("", name)
    return name


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 1 / LARGEST <= value <= LARGEST  # False for nan


def _is_pattern(key: Any) -> bool:
    try:
        return bool(re.compile(rf"(.*\.)?({key})$"))
    except (re.error, OverflowError, RecursionError):
        return False


def _by_module(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, dict) and all(
        _is_pattern(key) and is_value(item) for key, item in value.items()))


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) and item for item in value))


# the check of each setting that is read, and its description
FITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number above 0"),
    "lora_alpha": (_is_alpha, "a finite number above 0"),
    "lora_dropout": (lambda value: value is None or (type(value) in (int, float) and 0 <= value < 1),
                     "a number in [0, 1)"),
    "rank_pattern": (_by_module(_is_rank), "an object of regular expressions, each with a whole number above 0"),
    "alpha_pattern": (_by_module(_is_alpha), "an object of regular expressions, each with a finite number above 0"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "modules_to_save": (_are_names, "a list of module names"),
    "target_modules": (lambda value: isinstance(value, str) or _are_names(value), "a list of module names or a text"),
}


def _refuse_odd(config: Any) -> None:
    """Refuse a configuration that `peft` cannot have written."""
    if not isinstance(config, dict):
        raise ExportError(f"{CONFIG} holds {shown(config)} and no object of settings: copy the one that peft wrote")
    for name, (fits, takes) in FITS.items():
        if name in config and not fits(config[name]):
            raise ExportError(f"{CONFIG} says {name} = {shown(config[name])}, which must be {takes}: correct it, or "
                              "save the adapter from peft again")


def _refuse_more_than_lora(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ExportError(f"this adapter is of peft's type {shown(kind).strip(chr(39))}, and only LORA is read; run "
                          "it through peft")
    if config.get("bias", "none") != "none":
        raise ExportError(f"bias = {shown(config['bias'])}: biases were trained too, and a LoRA here has none; "
                          "merge it with peft instead")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_INITS:
        raise ExportError(f"init_lora_weights = {shown(start)} changes the pretrained weights too, which this file "
                          "does not hold: save it from peft as plain LoRA, with "
                          "path_initial_model_for_weight_conversion")
    more = sorted(key for key, value in config.items() if key not in READ | IGNORED and value)
    if more:
        named = ", ".join(f"{key:.25}" for key in more[:4])
        raise ExportError(f"this adapter uses {named}, which is more than LoRA; run it through peft, or "
                          "merge it with peft's merge_and_unload() and adapt the merged model")


def _pairs(config: dict[str, Any], tensors: dict[str, Tensor], wrappers: list[re.Pattern[str]]
           ) -> tuple[dict[str, Pair], dict[str, Tensor]]:
    """Return the LoRA of each module by path, and the file's other tensors, by names without wrappers."""
    rest, factors, stored = {}, {}, {}
    for name, value in tensors.items():
        plain = _unwrapped(name, wrappers)
        if match := FACTOR.fullmatch(plain):
            factors[match[1], match[2]] = value
            stored[match[1]] = name.removeprefix(PREFIX).rpartition(".lora_")[0]
        else:
            rest[plain] = value
    named = _as_in_patterns(config, factors, stored)
    pairs = {}
    for path in dict.fromkeys(path for path, _ in factors):
        if (path, "A") not in factors or (path, "B") not in factors:
            raise ExportError(f"the file holds only one factor of {path}; copy it again")
        A, B = factors[path, "A"], factors[path, "B"]
        r = _by_pattern(config.get("rank_pattern"), named[path], config.get("r", 8))
        if not A.ndim == B.ndim == 2 or not len(A) == B.shape[1] == r:
            raise ExportError(f"the factors of {path} have shapes {tuple(A.shape)} and {tuple(B.shape)}, and the "
                              f"configuration says rank {r}: no LoRA of a matrix, or not this configuration's")
        alpha = _by_pattern(config.get("alpha_pattern"), named[path], config.get("lora_alpha", 8))
        pairs[path] = _without_zeros(Pair(A, B, alpha * math.sqrt(r) if config.get("use_rslora") else alpha))
    if not pairs:
        raise ExportError("the file holds no lora_A and lora_B of any module")
    return pairs, rest


def _as_in_patterns(config: dict[str, Any], factors: dict[tuple[str, str], Tensor], stored: dict[str, str]
                    ) -> dict[str, str]:
    """Return for each path the name to match patterns with: the name in the file, as in `peft`.

    If only the plain paths give the right ranks, the model was compiled after `peft` read the patterns.
    """
    def fits(named: dict[str, str]) -> bool:
        return all(len(A) == _by_pattern(config.get("rank_pattern"), named[path], config.get("r", 8))
                   for (path, letter), A in factors.items() if letter == "A" and A.ndim)

    plain = {path: path for path in stored}
    return plain if fits(plain) and not fits(stored) else stored


def _without_zeros(pair: Pair) -> Pair:
    """Drop the directions that are zero in both factors, such as those that `uniform=True` adds."""
    used = pair.A.any(1) | pair.B.any(0)
    r = int(used.sum())
    return pair if r in (0, pair.r) else Pair(pair.A[used], pair.B[:, used], pair.alpha / pair.r * r)


def _by_pattern(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the path or its end, as in `peft`."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _heads(model: nn.Module, config: dict[str, Any], rest: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the file's tensors of each module that was trained whole, checked against the model."""
    ends = tuple(config.get("modules_to_save") or ())
    heads: dict[str, dict[str, Tensor]] = {}
    for path, module in model.named_modules():
        if not ends or not f".{path}".endswith(ends) or any(path.startswith(f"{above}.") for above in heads):
            continue
        heads[path] = {key: rest.pop(f"{PREFIX}{path}.{key}", torch.empty(0, device="cpu"))
                       for key in module.state_dict()}
        for key, own in module.state_dict().items():
            if heads[path][key].shape != own.shape:
                theirs = tuple(heads[path][key].shape)
                raise ExportError(f"{path}.{key} is {tuple(own.shape)} in the model and {theirs} in the file: load "
                                  "the model with the head that was trained (num_labels), and with its vocabulary "
                                  "(model.resize_token_embeddings)")
        _leave_tied(model, path, heads[path])
    if rest:
        name = next(iter(rest)).removeprefix(PREFIX)
        raise ExportError(f"the file holds {len(rest)} tensors that are neither LoRA of a matrix nor a saved "
                          f"module of this model ({name} …); run it through peft")
    return heads


def _leave_tied(model: nn.Module, path: str, state: dict[str, Tensor]) -> None:
    """Drop the tensors that are tied to an equal weight outside the module; refuse those that differ from it."""
    shared = {id(model.get_parameter(name)): name for name in tied_outside(model, path)}
    for key, own in model.get_submodule(path).state_dict(keep_vars=True).items():
        if id(own) in shared and not torch.equal(state.pop(key).to(own), own):
            raise ExportError(f"{path} was trained whole, and its weight is tied to {shared[id(own)]} here: untie it "
                              "first")


def _vocabulary(model: nn.Module, config: dict[str, Any], rest: dict[str, Tensor]
                ) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Return the file's embeddings of a resized vocabulary, checked against the model's."""
    ends, found = tuple(config.get("modules_to_save") or ()), []
    for path, module in embeddings(model).items():
        above = path.split(".")
        if ends and any(f".{'.'.join(above[:i])}".endswith(ends) for i in range(1, len(above) + 1)):  # written whole
            continue
        held = {key: rest.pop(name) for key in module.state_dict()
                for name in (f"{PREFIX}{path}.{key}", f"{PREFIX}{path}.base_layer.{key}") if name in rest}
        for key, own in module.state_dict().items():
            if key in held and held[key].shape != own.shape:
                raise ExportError(f"the file's {path}.{key} has {len(held[key])} rows and the model's {len(own)}: "
                                  f"call model.resize_token_embeddings({len(held[key])}) first")
        found.append((module, held))
    return found


def _split(model: nn.Module, found: list[Site], pairs: dict[str, Pair]) -> tuple[list[Site], dict[str, Pair]]:
    """Return the sites and pairs: one for each LoRA, or one for each slice of a fused layer, if that is possible."""
    sites: list[Site] = []
    parts: dict[str, Pair] = {}
    for path, pair in pairs.items():
        of_path = [site for site in found if site.path == path]
        if not of_path:  # "q" is a letter of many sites and no module
            raise ExportError(f"the model has no linear layer {path!r}, for which the file holds a LoRA: load the "
                              "model that the adapter was trained on")
        d, k = shape(model.get_submodule(path))
        if pair.A.shape[1] != k or pair.B.shape[0] != d:
            raise ExportError(f"the LoRA of {path} is for a matrix of {pair.B.shape[0]} × {pair.A.shape[1]}, and the "
                              f"model's is {d} × {k}: this is another model's adapter")
        blocks = _blocks(of_path, pair)
        chosen = [site for site in of_path if site.name in blocks] or [Site(path, path, None, d, k)]
        sites += chosen
        parts |= {site.name: _narrow(blocks.get(site.name, pair), min(site.d, site.k)) for site in chosen}
    order = {site.name: i for i, site in enumerate(found)}
    return sorted(sites, key=lambda site: order.get(site.name, len(order))), parts


def _blocks(sites: list[Site], pair: Pair) -> dict[str, Pair]:
    """Split a pair by the slices of the output that its directions write to; {} if one writes to several."""
    if sites[0].rows is None:
        return {sites[0].name: pair}
    writes = torch.stack([pair.B[site.rows].any(0) for site in sites])                               # (slices, r)
    if not writes.sum(0).eq(1).all():
        return {}
    scale = pair.alpha / pair.r
    return {site.name: Pair(pair.A[own], pair.B[site.rows][:, own], scale * int(own.sum()))
            for site, own in zip(sites, writes, strict=True) if own.any()}


def _narrow(pair: Pair, most: int) -> Pair:
    """Return the same product at a rank of at most `most`."""
    if pair.r <= most:
        return pair
    U, s, Vh = factor_svd(pair.B, pair.A)
    return Pair(Vh.to(pair.A), (U * s).to(pair.B), pair.alpha / pair.r * len(s))


def _method(config: dict[str, Any], parts: dict[str, Pair]) -> LoRA:
    """Return the LoRA configuration from which `adapt` would make the same branches."""
    r = Counter(pair.r for pair in parts.values()).most_common(1)[0][0]
    scales = {name: pair.alpha / pair.r for name, pair in parts.items()}
    s = Counter(scales.values()).most_common(1)[0][0]
    return LoRA(r=r, lora_alpha=s * r, lora_dropout=config.get("lora_dropout") or 0.0, sites=tuple(parts),
                rank_pattern={name: pair.r for name, pair in parts.items() if pair.r != r},
                alpha_pattern={name: scales[name] * pair.r for name, pair in parts.items() if scales[name] != s})
