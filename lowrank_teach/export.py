"""`save_peft`: what was learned here, in the format of Hugging Face's `peft`, which needs nothing of this package.

    adapters = lt.adapt(model, lt.SaLoRA(r=8))
    ...                                              # train
    lt.save_peft(adapters, "out/")                   # adapter_config.json and adapter_model.safetensors

    from peft import PeftModel
    PeftModel.from_pretrained(base, "out/")          # base: the pretrained model, loaded anew; the same logits

What a site has learned is always a product of two thin factors (`LowRank.factors`), relative to the pretrained W,
wherever it is kept now. So each site becomes one plain LoRA pair of its own rank: a chain's links side by side,
Delta-LoRA's echo as a second pair, gates folded into B, sites without a direction left out. `peft` scales by
lora_alpha / r: that is s where the pair is A and B as they are, and 1 where s is folded into B.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapters import Adapters, require_adapters
from .errors import Refusal, sentence
from .lowrank import Adapted, LowRank, is_conv1d
from .measure import factor_svd, numerical_rank
from .methods.checks import require_kind
from .state import REMEDY, non_finite

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# names inside peft's own layers; a head called "out" would be found in the second, so it is written ".out"
INNER = ("base_layer", "lora_dropout", "lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector", "default")


class ExportError(Refusal, ValueError):
    """What was learned has no form in peft's format; the message says why and what to do instead."""

    def __init__(self, says: str) -> None:
        super().__init__(sentence(says))


@dataclass(frozen=True)
class Pair:
    """One LoRA of one matrix, as `peft` holds it: ΔW = (alpha / r) B A.

    A (r, k), B (d, r).
    """

    A: Tensor
    B: Tensor
    alpha: float

    @property
    def r(self) -> int:
        return self.A.shape[0]


def save_peft(adapters: Adapters, folder: str | Path, *, compress: bool = False) -> Path:
    """Write adapter_config.json and adapter_model.safetensors for stock `peft`; the model stays as it is.

    Args:
        adapters: of LoRA, COLA, SaLoRA, Delta-LoRA, AutoLoRA or a composition of them, merged or not.
        folder: made where it is not there.
        compress: replace each site's factors by the fewest directions that give the same product (a singular
            value decomposition, cut where float rounding begins). A chain whose links overlap gets smaller; A
            and B are then no longer the trained ones.

    Raises:
        ExportError: the change is not low-rank or not finite, or nothing was put on any matrix.
        ValueError: an argument is of another type.
    """
    require_adapters(adapters)
    require_kind("folder", folder, (str, Path), "the path of the folder to write")
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
    heads = _head_modules(adapters)
    tensors = {f"{PREFIX}{path}.lora_{letter}.weight": getattr(pair, letter)
               for path, pair in pairs.items() for letter in "AB"}
    for path in _wrapped_by_peft(adapters.model, heads):
        state = adapters.model.get_submodule(path).state_dict()
        tensors |= {f"{PREFIX}{path}.{key}": value for key, value in state.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_config(adapters, pairs, heads), indent=2) + "\n", encoding="utf-8")
    return folder


def why_not(adapters: Adapters) -> str:
    """Why these adapters have no form in peft's format, in a sentence; "" where they have one."""
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
    drifted = [name for name, branch in adapters.items() if branch.drift is not None]
    if drifted:
        return (f"W moved under a λ schedule at {drifted[0]}, a change with no low-rank form: call "
                "adapters.merge_and_unload() and save_pretrained(folder) for a plain model, or keep λ constant")
    return ""


@torch.no_grad()
def _of_site(branch: LowRank, compress: bool) -> Pair:
    """A branch as one pair: A and B as they are where it holds nothing else, else all its factors side by side."""
    gate = branch.settled_gate()
    is_open, m = gate != 0, branch.fixed_left.shape[1]
    r = int(is_open.sum())
    alpha = branch.scaling * r
    if not (compress or m or branch.echo) and r and alpha / r == branch.scaling:
        return Pair(branch.lora_A[is_open], (branch.lora_B * gate)[:, is_open], alpha)
    left, right = branch.factors()
    if compress:
        left, right = _fewest(left, right)
    else:
        used = torch.cat([is_open, is_open.new_ones(m)])
        left, right = left[:, used], right[used]
    return Pair(right, left, float(left.shape[1]))


def _fewest(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product, of its own rank."""
    U, s, Vh = factor_svd(left, right)
    n = numerical_rank(s, 4 * torch.finfo(left.dtype).eps)
    root = s[:n].sqrt()
    return (U[:, :n] * root).to(left), (root[:, None] * Vh[:n]).to(right)


@torch.no_grad()
def _of_layer(owner: Adapted, compress: bool) -> Pair | None:
    """All branches of a layer as one pair: those on slices of its output (GPT-2's q and v) as blocks of B."""
    parts = [(owner.rows[name], pair) for name, branch in owner.branches.items()
             if (pair := _of_site(branch, compress)).r]
    if not parts:
        return None
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    r, scales = sum(pair.r for _, pair in parts), {pair.alpha / pair.r for _, pair in parts}
    common = scales.pop() if len(scales) == 1 else 1.0
    if common * r / r != common:
        common = 1.0
    first, d = parts[0][1].B, owner.W.shape[0]
    B, at = torch.zeros(d, r, dtype=first.dtype, device=first.device), 0                         # (D, Σ r)
    for rows, pair in parts:
        B[rows or slice(None), at:at + pair.r] = pair.B * (pair.alpha / pair.r / common)
        at += pair.r
    return Pair(torch.cat([pair.A for _, pair in parts]), B, common * r)


def _config(adapters: Adapters, pairs: dict[str, Pair], heads: list[str]) -> dict[str, Any]:
    r = Counter(pair.r for pair in pairs.values()).most_common(1)[0][0]
    alpha = Counter(pair.alpha for pair in pairs.values()).most_common(1)[0][0]
    conv = [is_conv1d(adapters.owners[path].base) for path in pairs]
    anchored = {path: f"^{re.escape(path)}" for path in pairs}  # read as a pattern; without ^ a suffix would do
    return {
        "peft_type": "LORA", "task_type": None, "inference_mode": True,
        "base_model_name_or_path": getattr(adapters.model, "name_or_path", "") or None,
        "r": r, "lora_alpha": _short(alpha), "lora_dropout": adapters.method.lora_dropout,
        "rank_pattern": {anchored[path]: pair.r for path, pair in pairs.items() if pair.r != r},
        "alpha_pattern": {anchored[path]: _short(pair.alpha) for path, pair in pairs.items() if pair.alpha != alpha},
        "target_modules": _targets(adapters, list(pairs)), "modules_to_save": heads or None,
        "fan_in_fan_out": all(conv), "bias": "none", "use_rslora": False, "init_lora_weights": True,
    }


def _short(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _targets(adapters: Adapters, paths: list[str]) -> list[str] | str:
    """Full paths; as one pattern where a path is also the end of another module's, which peft would take too."""
    ends = tuple(f".{path}" for path in paths)
    others = [path for path, _ in adapters.model.named_modules() if path not in paths and path.endswith(ends)]
    return "|".join(map(re.escape, paths)) if others else paths


def _head_modules(adapters: Adapters) -> list[str]:
    """The modules that hold the head's parameters, each as far up as all below it belongs to the head.

    Raises:
        ExportError: peft could not save or load one of them as it is here.
    """
    names, found = set(adapters.head_names), []

    def whole(path: str) -> bool:
        return all(f"{path}.{name}" in names for name, _ in adapters.model.get_submodule(path).named_parameters())

    for name in adapters.head_names:
        path = name.rpartition(".")[0]
        if not path:
            raise ExportError(f"the head's {name} is a parameter of the model itself, and peft saves whole modules: "
                              "use adapters.merge_and_unload() and save_pretrained(folder)")
        while (above := path.rpartition(".")[0]) and whole(above):
            path = above
        if shared := tied_outside(adapters.model, path):
            raise ExportError(f"{path} trained whole while its weight is tied to {shared[0]}, and peft would untie "
                              "the two: use adapters.merge_and_unload() and save_pretrained(folder)")
        found.append(path)
    return [f".{path}" if any(name.endswith(path) for name in INNER) else path for path in dict.fromkeys(found)]


def _wrapped_by_peft(model: nn.Module, heads: list[str]) -> list[str]:
    """Every module that peft takes for one of modules_to_save: it compares the ends of names."""
    return [path for path, _ in model.named_modules() if heads and f".{path}".endswith(tuple(heads))]


def tied_outside(model: nn.Module, path: str) -> list[str]:
    """Names outside a module under which one of its parameters is known too."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    return [name for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in own and not name.startswith(f"{path}.")]
