"""Write the model card of an exported adapter: what it is, which tools read it, and the code that loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adaptable import unwrapped
from ..adapters import Adapters
from .peft_base import TASKS, is_folder, resizes

CARD = "README.md"
MARK = "<!-- written by lowrank_teach's save_peft, which leaves a card without this line as it is -->"
EVEN = ("Every matrix has one rank and one scale, lora_alpha / r, so tools that read nothing but `r` and "
        "`lora_alpha` (llama.cpp's convert_lora_to_gguf.py) read it rightly too.")
UNEVEN = ("Ranks or scales differ from matrix to matrix (`rank_pattern`, `alpha_pattern`): peft 0.15 or newer and "
          "transformers read it. Tools that read nothing but `r` and `lora_alpha`, such as llama.cpp's "
          "convert_lora_to_gguf.py, would scale it wrongly: for them, save it with `uniform=True`.")


def write_card(folder: Path, adapters: Adapters, config: Mapping[str, Any], ranks: Mapping[str, int],
               rows: tuple[int, int] | None, tokenizer: Any, scores: Mapping[str, float]) -> None:
    """Write README.md, unless the folder has one that was not written by this function.

    Args:
        config: the content of adapter_config.json.  ranks: module -> rank in the file.
        rows: rows of the embedding here and in the base, if the vocabulary was resized.
    """
    if (folder / CARD).exists() and MARK not in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        return
    base, method = config["base_model_name_or_path"], adapters.method
    on = f" on {base}" if base else ""
    uneven = config["rank_pattern"] or config["alpha_pattern"]
    values = json.dumps(method.to_dict(), sort_keys=True)
    head = config["modules_to_save"]
    parts = [
        _front(base, unwrapped(adapters.model)), MARK, f"# A low-rank adapter{on}",
        f"Trained with {method.name} ({method.paper}) by lowrank_teach, in the format of `peft`.",
        _ranks(adapters, ranks) + (f"\n\nTrained or kept whole beside them: {', '.join(head)}." if head else ""),
        f"The method's values: `{values}`", _scores(scores), "## How to load it",
        f"```python\n{_code(folder.resolve().name, adapters.model, config, rows, tokenizer)}\n```",
        UNEVEN if uneven else EVEN,
    ]
    (folder / CARD).write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _front(base: str | None, model: Any) -> str:
    named = f"base_model: {json.dumps(base)}\n" if base and not is_folder(base, model) else ""
    return f"---\nlibrary_name: peft\n{named}tags:\n- lora\n---"


def _ranks(adapters: Adapters, ranks: Mapping[str, int]) -> str:
    """Return a table of the ranks in the file by the last part of each module's name."""
    by_kind: dict[str, list[int]] = {}
    for path, r in ranks.items():
        by_kind.setdefault(path.rpartition(".")[2], []).append(r)
    lines = [f"| {kind} | {len(held)} | {min(held)}{f'–{max(held)}' if max(held) > min(held) else ''} |"
             for kind, held in by_kind.items()]
    closed = len(adapters.owners) - len(ranks)
    left_out = f"\n\nAnother {closed} adapted layers ended with rank 0 and are left out." if closed else ""
    return "| module | layers | rank in this file |\n|---|---|---|\n" + "\n".join(lines) + left_out


def _scores(scores: Mapping[str, float]) -> str:
    cells = {" ".join(str(name).split()).replace("|", "\\|"): value for name, value in scores.items()}
    lines = "\n".join(f"| {name} | {value:.4g} |" for name, value in cells.items())
    return f"| score | value |\n|---|---|\n{lines}" if scores else ""


def _code(folder: str, model: Any, config: Mapping[str, Any], rows: tuple[int, int] | None,
          tokenizer: Any) -> str:
    """Return Python code that loads the model, to run in the folder's parent."""
    base, task, mapping = (config[name] for name in ("base_model_name_or_path", "task_type", "auto_mapping"))
    by_hand = rows is not None and not resizes(rows, tokenizer)
    labels = f", num_labels={model.config.num_labels}" if task in ("SEQ_CLS", "TOKEN_CLS") else ""
    if base and (task or mapping) and not by_hand:
        auto = f"AutoPeftModel{f'For{TASKS[task][1]}' if task else ''}"
        library = (mapping or {}).get("parent_library")
        allowed = f", import_allowlist=[{library!r}]" if library and not library.startswith("transformers.") else ""
        return f"from peft import {auto}\n\nmodel = {auto}.from_pretrained({folder!r}{labels}{allowed})"
    kind = type(model).__name__
    lines = ["from peft import PeftModel", ""]
    if base and (task or mapping):
        lines[1:] = [f"from {type(model).__module__} import {kind}", "",
                     f"base = {kind}.from_pretrained({base!r}{labels})"]
    else:
        lines += ["base = ...  # the pretrained model, as it was before the training"]
    if rows and by_hand:
        lines += [f"base.resize_token_embeddings({rows[0]})"]
    return "\n".join([*lines, f"model = PeftModel.from_pretrained(base, {folder!r})"])
