"""Describe the base model for peft's Auto classes: its class, its name, and what differs from its checkpoint.

`AutoPeftModelFor…` reads task_type, loads base_model_name_or_path with the class of that task, and puts a head of the
usual name under modules_to_save. `AutoPeftModel` needs no task_type, and takes the class from auto_mapping.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto

from ..adaptable import plain_name
from ..errors import sentence
from ..lowrank import Adapted
from ..models.backbones import quiet

# task_type -> (its class by model_type, the end of the name of peft's class, the modules that peft takes as the head)
TASKS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "SEQ_CLS": (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "SequenceClassification",
                ("classifier", "score")),
    "TOKEN_CLS": (auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "TokenClassification", ("classifier", "score")),
    "QUESTION_ANS": (auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, "QuestionAnswering", ("qa_outputs",)),
    "SEQ_2_SEQ_LM": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "Seq2SeqLM", ()),
    "CAUSAL_LM": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "CausalLM", ()),
}


def task_type(model: nn.Module, adapted: list[str]) -> str | None:
    """Return the task by which peft loads this class, or None if there is none, or an adapted matrix is in its head.

    adapted: paths of the matrices that carry a LoRA.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    task = next((task for task, (classes, *_) in TASKS.items() if classes.get(kind) == type(model).__name__), None)
    inside = task and any(f"{path}." in f"{module}." for path in head_of(model, task) for module in adapted)
    return None if inside else task


def head_of(model: nn.Module, task: str | None) -> list[str]:
    """Return the outermost modules that peft itself puts under modules_to_save for this task."""
    found: list[str] = []
    for path, _ in model.named_modules():
        path = plain_name(path)
        if task and path.endswith(TASKS[task][2]) and not f"{path}.".startswith(tuple(f"{one}." for one in found)):
            found.append(path)
    return found


def auto_mapping(model: nn.Module, task: str | None) -> dict[str, str] | None:
    """Return where `AutoPeftModel` finds the class, or None if the task gives it or the class cannot be loaded."""
    kind = type(model)
    if task or not hasattr(kind, "from_pretrained"):
        return None
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def base_name(model: nn.Module, given: str | None) -> str | None:
    """Return the base's name for the file; warn if only a folder of this machine is known."""
    known = getattr(model, "name_or_path", None)
    name = given or (known if isinstance(known, str) else None) or None
    if given is None and name and is_folder(name, model):
        warnings.warn(sentence(f"the base is known only as the folder {name}, where another machine will not find "
                               "it: give its name on the hub, or its path there, as base_name="), stacklevel=4)
    return name


def is_folder(name: str, model: Any) -> bool:
    """Return whether a base's name is a path, and not a name on the hub: "name" or "owner/name".

    A relative path can look like a hub name, but only a model from the hub knows its commit.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or Path(name).exists():
        return True
    config = getattr(model, "config", None)
    return name == getattr(model, "name_or_path", None) and getattr(config, "_commit_hash", None) is None


def differing(model: Any, name: str | None) -> tuple[list[str], tuple[int, int] | None]:
    """Return the parameters that the base's checkpoint lacks, and the numbers of rows if the vocabulary was resized.

    The parameters are those that `from_pretrained` had to initialize, except tied ones. The rows are those of the
    embedding here and in the checkpoint. The checkpoint is read from where the model was loaded, or from `name`,
    without the network. If neither can be read, a warning says so.
    """
    sources = [source for source in (getattr(model, "name_or_path", ""), name) if isinstance(source, str) and source]
    if not sources or not hasattr(type(model), "from_pretrained"):
        return [], None
    for source in sources:
        try:
            return _compared(model, source)
        except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError, ImportError):
            continue
    warnings.warn(sentence(f"the checkpoint of the base, {sources[0]}, could not be read, so weights that it lacks "
                           "and a resized vocabulary are not written: give its folder as base_name="), stacklevel=3)
    return [], None


def _compared(model: Any, source: str) -> tuple[list[str], tuple[int, int] | None]:
    before = type(model.config).from_pretrained(source, local_files_only=True).get_text_config().vocab_size
    now = model.config.get_text_config().vocab_size
    rows = None if before == now else (now, before)
    known = getattr(model, "lowrank_new_parameters", None)
    if known is not None:
        return list(known), rows
    with quiet():
        _, found = type(model).from_pretrained(
            source, config=copy.deepcopy(model.config), device_map="meta", local_files_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True)  # on the meta device, which reads headers only
    other = [] if rows else [key for key, *_ in found["mismatched_keys"]]
    missing = {*found["missing_keys"], *other}
    return [key for key in _pretrained_names(model) if key in missing], rows


def _pretrained_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters as they were before `adapt`."""
    wrapped = [plain_name(path) for path, module in model.named_modules() if isinstance(module, Adapted)]
    names = [plain_name(key) for key, _ in model.named_parameters()]
    return [f"{path}.{name.removeprefix(f'{path}.base.')}" if path else name for name in names
            for path in [next((one for one in wrapped if name.startswith(f"{one}.base.")), "")]]


def embeddings(model: Any) -> dict[str, nn.Module]:
    """Return the input and the output embedding by their paths in the file."""
    given = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        plain = module.base if isinstance(module, Adapted) else module
        if any(module is one for one in given):
            found[plain_name(path) + (".base_layer" if plain is not module else "")] = plain
    return found


def embedding_tensors(model: Any) -> dict[str, Tensor]:
    """Return what `peft` saves of a resized vocabulary: the tensors of both embeddings, tied ones once."""
    named = {f"{path}.{plain_name(key)}": value for path, module in embeddings(model).items()
             for key, value in module.state_dict(keep_vars=True).items()}
    return dict({id(value): (name, value) for name, value in reversed(named.items())}.values())


def warn_of_resized(rows: tuple[int, int], tokenizer: Any) -> None:
    """Warn that a reader must resize the base, if peft's Auto classes cannot do so by the saved tokenizer."""
    now, before = rows
    if not resizes(rows, tokenizer):
        warnings.warn(f"the vocabulary was resized from {before} to {now}, so the embeddings are saved too: call "
                      f"base.resize_token_embeddings({now}) before loading this adapter, or save a tokenizer of "
                      f"{now} tokens with it (tokenizer=)", stacklevel=4)


def resizes(rows: tuple[int, int], tokenizer: Any) -> bool:
    """Return whether peft's Auto classes will resize the base as needed, which they do for a longer tokenizer."""
    return hasattr(tokenizer, "__len__") and len(tokenizer) == rows[0] > rows[1]
