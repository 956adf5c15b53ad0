"""What peft's Auto classes must be told of the base: its class, its name, and what differs from its checkpoint.

`AutoPeftModelFor…` reads task_type, loads base_model_name_or_path with the class of that task, and puts a head of the
usual name under modules_to_save. `AutoPeftModel` wants no task_type, and takes the class from auto_mapping.
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
    if given is None and name and is_folder(name, model):
        warnings.warn(sentence(f"the base is known only as the folder {name}, where another machine will not find "
                               "it: say its name on the hub, or the path there, with base_name="),
                      stacklevel=4)
    return name


def is_folder(name: str, model: Any) -> bool:
    """Whether a base's name is a place in a file system, and not one on the hub: "name" or "owner/name".

    What came from the hub knows of which commit it is. The name of a folder may look alike, seen from elsewhere.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or Path(name).exists():
        return True
    config = getattr(model, "config", None)
    return name == getattr(model, "name_or_path", None) and getattr(config, "_commit_hash", None) is None


def differing(model: Any, name: str | None) -> tuple[list[str], tuple[int, int] | None]:
    """What the base's checkpoint does not have as it is here: parameters, and the rows of the vocabulary.

    The parameters are those that `from_pretrained` had to fill in, without those that are tied to others. The rows
    are (of the embedding here, in the checkpoint) where the vocabulary was resized, else None. The checkpoint is read
    where the model was loaded from, else where `name` says, without the network; where neither can be looked at, a
    warning says so.
    """
    sources = [source for source in (getattr(model, "name_or_path", ""), name) if isinstance(source, str) and source]
    if not sources or not hasattr(type(model), "from_pretrained"):
        return [], None
    for source in sources:
        try:
            return _compared(model, source)
        except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError, ImportError):
            continue
    warnings.warn(sentence(f"the checkpoint of the base, {sources[0]}, could not be looked at, so weights that it "
                           "lacks are not written, nor a resized vocabulary: give its folder as base_name="),
                  stacklevel=3)
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
            ignore_mismatched_sizes=True, output_loading_info=True)  # of the files, their headers are enough
    other = [] if rows else [key for key, *_ in found["mismatched_keys"]]
    missing = {*found["missing_keys"], *other}
    return [key for key in _pretrained_names(model) if key in missing], rows


def _pretrained_names(model: nn.Module) -> list[str]:
    """The names of the parameters as they were before `adapt`."""
    wrapped = [plain_name(path) for path, module in model.named_modules() if isinstance(module, Adapted)]
    names = [plain_name(key) for key, _ in model.named_parameters()]
    return [f"{path}.{name.removeprefix(f'{path}.base.')}" if path else name for name in names
            for path in [next((one for one in wrapped if name.startswith(f"{one}.base.")), "")]]


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
