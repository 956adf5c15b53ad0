"""`save_peft`: what was learned here, in the format of Hugging Face's `peft`, which needs nothing of this package.

    adapters = lt.adapt(model, lt.SaLoRA(r=8))
    ...                                              # train
    lt.save_peft(adapters, "out/")                   # adapter_config.json and adapter_model.safetensors

    from peft import PeftModel
    PeftModel.from_pretrained(base, "out/")          # base: the pretrained model, loaded anew; the same logits
    AutoPeftModelForSequenceClassification.from_pretrained("out/")   # or another task's class: it loads the base

What a site has learned is always a product of two thin factors (`LowRank.factors`), relative to the pretrained W,
wherever it is kept now. So each site becomes one plain LoRA pair of its own rank: a chain's links side by side,
Delta-LoRA's echo as a second pair, gates folded into B, sites without a direction left out. `peft` scales by
lora_alpha / r: that is s where the pair is A and B as they are, and 1 where s is folded into B.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from .adaptable import plain_name, unwrapped
from .adapters import Adapters, require_adapters
from .errors import Refusal, sentence, shown
from .export_base import auto_mapping, base_name, differing, embedding_tensors, head_of, task_type, warn_of_resized
from .export_card import write_card
from .lowrank import Adapted, LowRank, is_conv1d
from .measure import factor_svd, numerical_rank
from .methods.checks import require, require_kind
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


def save_peft(adapters: Adapters, folder: str | Path, *, compress: bool = False, uniform: bool = False,
              base_name: str | None = None, tokenizer: Any = None, scores: Mapping[str, float] | None = None) -> Path:
    """Write adapter_config.json, adapter_model.safetensors and README.md for stock `peft`; the model stays as it is.

    Args:
        adapters: of LoRA, COLA, SaLoRA, Delta-LoRA, AutoLoRA or a composition of them, merged or not.
        folder: made where it is not there. A README.md in it that somebody else wrote is kept.
        compress: replace each site's factors by the fewest directions that give the same product (a singular
            value decomposition, cut where float rounding begins). A chain whose links overlap gets smaller; A
            and B are then no longer the trained ones.
        uniform: bring all matrices to one rank and one scale, with rows of zeros, for tools that read only `r` and
            `lora_alpha` at the top of the configuration. The function is the same.
        base_name: what readers find the pretrained model by, a name on the hub or a path of theirs; None takes the
            name that it was loaded by, with a warning where that is a folder.
        tokenizer: written beside the adapter.
        scores: name -> number, for the model card.

    Modules that the base's checkpoint lacks are written whole. Where the vocabulary is another size than there, both
    embeddings are written too, as by `peft`. A warning says where the checkpoint could not be looked at.

    Raises:
        ExportError: the change is not low-rank or not finite, or nothing was put on any matrix.
        ValueError: an argument is of another type.
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
    r = sum(pair.r for _, pair in parts)
    common = _common_scale([pair for _, pair in parts], r)
    first, d = parts[0][1].B, owner.W.shape[0]
    B, at = torch.zeros(d, r, dtype=first.dtype, device=first.device), 0                         # (D, Σ r)
    for rows, pair in parts:
        B[rows or slice(None), at:at + pair.r] = pair.B * (pair.alpha / pair.r / common)
        at += pair.r
    return Pair(torch.cat([pair.A for _, pair in parts]), B, common * r)


def _common_scale(pairs: Iterable[Pair], r: int) -> float:
    """The scale of all pairs, where they have one and α of rank r says it exactly; else 1, the rest in each B."""
    scales = {pair.alpha / pair.r for pair in pairs}
    common = scales.pop() if len(scales) == 1 else 1.0
    return common if common * r / r == common else 1.0


def _uniform(pairs: dict[str, Pair]) -> dict[str, Pair]:
    """The same products at the largest rank and at one scale: rows of zeros below A, columns of zeros beside B."""
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
    anchored = {path: f"^{re.escape(path)}" for path in pairs}  # read as a pattern; without ^ a suffix would do
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
    """Full paths; as one pattern where a path is also the end of another module's, which peft would take too."""
    ends = tuple(f".{path}" for path in paths)
    others = [path for path in _paths(model) if path not in paths and path.endswith(ends)]
    return "|".join(map(re.escape, paths)) if others else paths


def _head_modules(adapters: Adapters, task: str | None, fresh: list[str]) -> list[str]:
    """The modules that peft must save whole: of the head, each as far up as all below it belongs to the head.

    Those that the base's checkpoint lacks are among them, and those that peft takes for the head of such a task,
    whether they trained or not: a reader who loads the base anew would have other values there.

    Raises:
        ExportError: peft could not save or load one of them as it is here.
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
    """Refuse a module that peft would save whole and could not, or that would not be all that changed."""
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
    """The module of a parameter, as far up as all the parameters below it are among the names."""
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
    """Every module that peft takes for one of modules_to_save: it compares the ends of names."""
    return [path for path in _paths(model) if heads and f".{path}".endswith(tuple(heads))]


def tied_outside(model: nn.Module, path: str) -> list[str]:
    """Names outside a module under which one of its parameters is known too."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    return [name for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in own and not plain_name(name).startswith(f"{path}.")]
