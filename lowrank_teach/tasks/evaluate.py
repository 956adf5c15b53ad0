"""A model on rows it did not train on: the loss, and the metrics of the task.

Nothing is drawn at random, and the result does not depend on the batch size beyond float rounding: losses are
weighted by what they average over (rows, or tokens that count), so padding and order change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .generation import Generation, eval_mode, generate
from .metrics import METRICS, score
from .tokenize import IGNORED, Collate, Feature, prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .task import Task


def evaluate(
    model: PreTrainedModel,
    features: Sequence[Feature],
    collate: Collate,
    task: Task,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generate_rows: int | None = None,
    generation: Generation | None = None,
    hits: list[bool] | None = None,
) -> dict[str, float]:
    """The loss and the metrics of the task, in eval mode and without gradients; the mode is put back after.

    features, collate: from `encode` and `Collate` of the same task.
    batch_size: rows at a time. device: where the model is, if None.
    tokenizer, generate_rows, generation: for tasks that write text: with a number, texts are also written for the
        first so many inputs, as `generation` says (greedily, if None), and scored against all their references.
    hits: a list to which is added, for each row in order, whether its class was predicted; other tasks add nothing.
    Returns 'loss' (a row for classes and scores, a token for tags and texts), 'perplexity' for texts, and the
    task's metrics. Raises ValueError if there are no rows, or generate_rows is given without a tokenizer.
    """
    if not features:
        raise ValueError(f"{task.name}: nothing to evaluate; give at least one row")
    if generate_rows and tokenizer is None:
        raise ValueError("generate_rows needs the tokenizer, to turn tokens into text: pass tokenizer=")
    place = torch.device(device) if device is not None else next(model.parameters()).device
    with eval_mode(model), torch.no_grad():
        loss, outputs = _forward_all(model, features, collate, task, batch_size, place)
        if task.kind == "seq2seq":
            result = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # exp(710) is no float
            if generate_rows and tokenizer is not None:
                rows = _first_inputs(features, generate_rows)
                result |= _score_texts(model, rows, task, tokenizer, generation, place, batch_size)
            return result
        if task.kind == "choice":
            outputs = choose(model, features, collate, batch_size=batch_size, device=place)
            chosen = [_chosen(row) for row in features]
            _compare(outputs, chosen, hits)
            return {"loss": loss} | score(task.metrics, outputs, chosen, task, _groups(features))
    references = [_named_tags(row["labels"], row["labels"], task) for row in features]
    if task.kind == "classification":
        _compare(outputs, references, hits)
    if task.kind == "tagging":
        outputs = [_of_all_words(tags, row) for tags, row in zip(outputs, features, strict=True)]
        references = [row.get("reference", tags) for tags, row in zip(references, features, strict=True)]
    return {"loss": loss} | score(task.metrics, outputs, references, task, _groups(features))


def _compare(outputs: Sequence[Any], wanted: Sequence[Any], hits: list[bool] | None) -> None:
    if hits is not None:
        hits += [output == one for output, one in zip(outputs, wanted, strict=True)]


def _groups(features: Sequence[Feature]) -> list[str] | None:
    return [row["group"] for row in features] if "group" in features[0] else None


def _first_inputs(features: Sequence[Feature], n: int) -> list[Feature]:
    """The rows of the first n inputs: all references of each."""
    groups = [row.get("group", i) for i, row in enumerate(features)]
    first = set(list(dict.fromkeys(groups))[:n])
    return [row for row, group in zip(features, groups, strict=True) if group in first]


def _score_texts(model: Any, features: Sequence[Feature], task: Task, tokenizer: Any, generation: Generation | None,
                 place: torch.device, batch_size: int = 16) -> dict[str, float]:
    """One text a group, against all references of the group; for each part of the rows, too ("bleu.seen")."""
    groups: dict[str, list[Feature]] = {}
    for i, row in enumerate(features):
        groups.setdefault(row.get("group", str(i)), []).append(row)
    first = [rows[0] for rows in groups.values()]
    texts = generate(model, first, tokenizer, generation=generation, device=place, batch_size=batch_size)
    wanted = [[_reference(row, tokenizer) for row in rows] for rows in groups.values()]
    names = [name for name in task.metrics if METRICS[name].function is not None]
    found = score(names, texts, wanted, task)
    for part in sorted({row["part"] for row in first if "part" in row}):
        here = [i for i, row in enumerate(first) if row["part"] == part]
        scores = score(names, [texts[i] for i in here], [wanted[i] for i in here], task)
        found |= {f"{name}.{part}": value for name, value in scores.items()}
    return found


def _forward_all(
    model: Any, features: Sequence[Feature], collate: Collate, task: Task, batch_size: int, place: torch.device
) -> tuple[float, list[Any]]:
    """Mean loss, and one prediction a row in the order of the rows."""
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))  # little padding
    predictions: list[Any] = [None] * len(features)
    total, count = 0.0, 0
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {k: v.to(place) for k, v in collate([features[i] for i in chosen]).items()}
        output = model(**batch)
        weight = _weight(batch["labels"], model, task)
        total, count = total + float(output.loss) * weight, count + weight
        if task.kind not in ("seq2seq", "choice"):
            for i, prediction in zip(chosen, _predict(output.logits, task), strict=True):
                predictions[i] = _named_tags(prediction, features[i]["labels"], task)
    return total / max(count, 1), predictions


def _weight(labels: torch.Tensor, model: Any, task: Task) -> int:
    """How many terms the mean loss of this batch averages over."""
    if task.kind in ("classification", "regression"):
        return len(labels)
    if task.kind == "choice" or (task.kind == "seq2seq" and not model.config.is_encoder_decoder):
        labels = labels[:, 1:]  # a causal model predicts the next token: the first is nobody's target
    return int((labels != IGNORED).sum())


def _predict(logits: torch.Tensor, task: Task) -> list[Any]:
    if task.kind == "regression":
        return logits.float().reshape(-1).tolist()  # (B, 1) -> B numbers
    return logits.argmax(dim=-1).tolist()  # (B, C) -> B codes, or (B, T, C) -> B lists of codes


def _named_tags(codes: Any, labels: Any, task: Task) -> Any:
    """Tagging: names at the first piece of each word, where the labels count; otherwise as it is."""
    if task.kind != "tagging":
        return codes
    return [task.labels[c] for c, label in zip(codes, labels, strict=False) if label != IGNORED]


def _of_all_words(tags: list[str], row: Feature) -> list[str]:
    """A word that was cut off, or that the tokenizer made nothing of, counts as predicted to be no entity."""
    if "reference" not in row:
        return tags
    found = ["O"] * len(row["reference"])
    for word, tag in zip(row["words"], tags, strict=True):
        found[word] = tag
    return found


# ---- choosing among words --------------------------------------------------------------------------------


def choose(model: Any, features: Sequence[Feature], collate: Collate, *, batch_size: int = 32,
           device: torch.device | str | None = None) -> list[int]:
    """Of each row the class whose word a causal model finds likeliest: the mean log-probability of its tokens."""
    place = torch.device(device) if device is not None else next(model.parameters()).device
    rows, places = [], []   # one row a word; its feature and its class
    for i, feature in enumerate(features):
        prompt = prompt_of(feature)
        for code, word in enumerate(feature["choices"]):
            ids = prompt + word
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids),
                         "labels": [IGNORED] * len(prompt) + word})
            places.append((i, code))
    scores = [[0.0] * len(feature["choices"]) for feature in features]
    order = sorted(range(len(rows)), key=lambda j: len(rows[j]["input_ids"]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {k: v.to(place) for k, v in collate([rows[j] for j in chosen]).items()}
        for j, value in zip(chosen, _word_scores(model, batch), strict=True):
            i, code = places[j]
            scores[i][code] = value
    return [max(range(len(s)), key=s.__getitem__) for s in scores]


def _word_scores(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    labels = batch.pop("labels")[:, 1:]                                     # (B, T - 1)
    logits = model(**batch).logits[:, :-1].float()                          # (B, T - 1, V)
    counts = labels != IGNORED
    picked = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return ((picked * counts).sum(1) / counts.sum(1)).tolist()


def _chosen(row: Feature) -> int:
    return row["choices"].index([label for label in row["labels"] if label != IGNORED])


def _reference(row: Feature, tokenizer: Any) -> str:
    """The text as it was written; of rows without it, what their tokens say."""
    if "reference" in row:
        return row["reference"]
    return tokenizer.decode([t for t in row["labels"] if t != IGNORED], skip_special_tokens=True).strip()
