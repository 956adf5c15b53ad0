"""A classifier of styles, trained here and kept: the judge of style transfer, with its own accuracy beside it."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import checkpoint
from .adapters import Adapters, adapt
from .config import TrainConfig, train_config
from .experiment import Rows, load_for
from .features import Collate, encode
from .identity import identity
from .methods import LoRA, Method
from .runs import Store, config_key
from .tasks import Task, TaskData, load_task
from .train import Trainer


@dataclass
class StyleClassifier:
    """accuracy: on `rows` held-out sentences (the task's test rows, else its validation rows).

    described: task, backbone, method, training and seed, and where the sentences are from.
    """

    model: Any
    tokenizer: Any
    task: Task
    accuracy: float
    rows: int
    described: dict[str, Any]

    @torch.no_grad()
    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[int]:
        """The class code of each text, read as a row of the training is."""
        place, found = next(self.model.parameters()).device, []
        frame = pd.DataFrame({self.task.text[0]: list(texts), self.task.label: 0})
        rows, collate = encode(frame, self.task, self.tokenizer), Collate(self.tokenizer, self.task)
        for start in range(0, len(rows), batch_size):
            batch = {k: v.to(place) for k, v in collate(rows[start:start + batch_size]).items() if k != "labels"}
            found += self.model(**batch).logits.argmax(dim=-1).tolist()
        return found


def train_classifier(task: str, backbone: str = "minilm-l6", profile: str | None = None, *,
                     method: Method | None = None, seed: int = 0, cache: bool = True, store: Store | None = None,
                     **training: Any) -> StyleClassifier:
    """Train a classifier of the classes of a task, or take the one that was kept.

    task, backbone, profile, seed, training: as in `fit`.  method: LoRA of rank 8 where None.
    cache: keep what was trained (factors and head, beside the runs) and take it up the next time.

    Raises:
        ValueError: something in the configuration is refused, or the task has no classes.
    """
    data_config = train_config(profile, **training)
    method = method or LoRA(r=8)
    made_from = identity(task, str(backbone))
    data = load_task(task, n_train=data_config.n_train, n_validation=data_config.n_validation,
                     n_test=data_config.n_test, seed=seed)
    if data.task.kind != "classification":
        raise ValueError(f"'{task}' is a {data.task.kind} task; a judge of styles needs one whose rows have a class")
    described = {"task": task, "backbone": str(backbone), "method": method.to_dict(), "seed": seed,
                 "training": dataclasses.asdict(data_config), "source": data.source}
    model, tokenizer = load_for(str(backbone), data, seed)
    adapters = adapt(model, method, seed=seed)
    key = config_key(described, made_from)
    path = (store or Store()).folder / "classifiers" / f"{key}.safetensors"
    kept = _read(path, adapters) if cache else None
    if kept is None:
        kept = _train(adapters, data, tokenizer, data_config, seed)
        if cache:
            _write(path, adapters, kept)
    model.eval()
    return StyleClassifier(model, tokenizer, data.task, kept["accuracy"], int(kept["rows"]), described)


def _train(adapters: Adapters, data: TaskData, tokenizer: Any, config: TrainConfig, seed: int) -> dict[str, float]:
    rows = Rows(data, tokenizer, config, encoder_decoder=False)
    Trainer(adapters, rows.train, rows.collate, config, seed=seed).run()
    held_out = data.validation if data.test is None else data.test
    return {"accuracy": rows.score(adapters.model, "test")["accuracy"], "rows": len(held_out)}


def _write(path: Path, adapters: Adapters, kept: dict[str, float]) -> None:
    tensors, values = adapters.state_dict()
    checkpoint.write(path, tensors, {"kept": json.dumps(kept), "values": json.dumps(values)})


def _read(path: Path, adapters: Adapters) -> dict[str, float] | None:
    """The kept classifier put into the adapters, and its accuracy; None where there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        tensors, header, whole = checkpoint.read(path)
        if not whole:
            raise ValueError("its content is not what was written")
        adapters.load_state_dict(tensors, json.loads(header["values"]))
        return json.loads(header["kept"])
    except checkpoint.UNREADABLE as error:
        warnings.warn(f"the kept classifier {path.name} is damaged ({error}); it is trained again", stacklevel=3)
        return None
