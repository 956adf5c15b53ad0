"""What peft's Auto classes must be told of the base: its class, its name, and what differs from its checkpoint.

`AutoPeftModelFor…` reads task_type, loads base_model_name_or_path with the class of that task, and puts a head of the
usual name under modules_to_save. `AutoPeftModel` wants no task_type, and takes the class from auto_mapping.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto

from .adaptable import plain_name
from .errors import sentence
from .lowrank import Adapted

# task_type -> its class by model_type, what peft's class is called, and the modules that peft takes for the head
TASKS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "SEQ_CLS": (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "SequenceClassification",
                ("classifier", "score")),
    "TOKEN_CLS": (auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "TokenClassification", ("classifier", "score")),
    "QUESTION_ANS": (auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, "QuestionAnswering", ("qa_outputs",)),
    "SEQ_2_SEQ_LM": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "Seq2SeqLM", ()),
    "CAUSAL_LM": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "CausalLM", ()),
}


def task_type(model: nn.Module, adapted: list[str]) -> str | None:
    """The task by which peft loads this class; None where it has none, or would train whole what is adapted here.

    adapted: paths of the matrices that carry a LoRA.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    task = next((task for task, (classes, *_) in TASKS.items() if classes.get(kind) == type(model).__name__), None)
    inside = task and any(f"{path}." in f"{module}." for path in head_of(model, task) for module in adapted)
    return None if inside else task


def head_of(model: nn.Module, task: str | None) -> list[str]:
    """The modules that peft puts under modules_to_save by itself for this task, the outermost of each."""
    found: list[str] = []
    for path, _ in model.named_modules():
        path = plain_name(path)
        if task and path.endswith(TASKS[task][2]) and not f"{path}.".startswith(tuple(f"{one}." for one in found)):
            found.append(path)
    return found


def auto_mapping(model: nn.Module, task: str | None) -> dict[str, str] | None:
    """Where `AutoPeftModel` finds the class, as peft says it; None where a task does, or nothing can be loaded."""
    kind = type(model)
    if task or not hasattr(kind, "from_pretrained"):
        return None
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def base_name(model: nn.Module, given: str | None) -> str | None:
    """The base's name as the file says it; warns where nothing but a folder of this machine is known."""
    known = getattr(model, "name_or_path", None)
    name = given or (known if isinstance(known, str) else None) or None
    if given is None and name and is_folder(name):
        warnings.warn(sentence(f"the base is known only as the folder {name}, where another machine will not find "
                               "it: say its name on the hub, or the path there, with base_name="),
                      stacklevel=4)
    return name


def is_folder(name: str) -> bool:
    """Whether a base's name is a place in a file system, and not one on the hub: "name" or "owner/name"."""
    return not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or Path(name).exists()


def resized(model: Any, name: str | None) -> tuple[int, int] | None:
    """(rows of the embedding, rows in the base's checkpoint) where the vocabulary was resized, else None.

    The base's configuration is read where it lies or in the hub's cache. Where it cannot be found the vocabulary
    counts as unchanged, as in peft.
    """
    source = getattr(model, "name_or_path", "") or name
    if not source or not hasattr(model, "config"):
        return None
    try:
        before = type(model.config).from_pretrained(source, local_files_only=True).get_text_config().vocab_size
        now = model.config.get_text_config().vocab_size
    except (OSError, ValueError, AttributeError):
        return None
    return None if before == now else (now, before)


def embeddings(model: Any) -> dict[str, nn.Module]:
    """The input and the output embedding, by their paths in the file."""
    given = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        plain = module.base if isinstance(module, Adapted) else module
        if any(module is one for one in given):
            found[plain_name(path) + (".base_layer" if plain is not module else "")] = plain
    return found


def embedding_tensors(model: Any) -> dict[str, Tensor]:
    """What `peft` saves of a resized vocabulary: the tensors of both embeddings, those that are tied once."""
    named = {f"{path}.{plain_name(key)}": value for path, module in embeddings(model).items()
             for key, value in module.state_dict(keep_vars=True).items()}
    return dict({id(value): (name, value) for name, value in reversed(named.items())}.values())


def warn_of_resized(rows: tuple[int, int], tokenizer: Any) -> None:
    """Say what a reader has to do where peft's Auto classes cannot resize the base by the tokenizer beside it."""
    now, before = rows
    if not resizes(rows, tokenizer):
        warnings.warn(f"the vocabulary was resized from {before} to {now}, so the embeddings are written too: who "
                      f"loads this must call base.resize_token_embeddings({now}) first, unless a tokenizer of {now} "
                      "tokens stands beside it (tokenizer=)", stacklevel=4)


def resizes(rows: tuple[int, int], tokenizer: Any) -> bool:
    """Whether peft's Auto classes will resize the base as needed: they do it for a tokenizer of more tokens."""
    return hasattr(tokenizer, "__len__") and len(tokenizer) == rows[0] > rows[1]
