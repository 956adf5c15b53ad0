"""Taggers: what a trained network says about every word, and methods compared over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..errors import require
from ..experiments.fit import Trained, fit
from ..experiments.runs import Run, Store
from ..methods import AutoLoRA, DeltaLoRA, FullFineTuning, HeadOnly, LoRA, Method
from ..tasks import entities
from ..tasks.table import TASKS
from ..tasks.task import TaskData
from ..tasks.tokenize import IGNORED, encode
from ..training.callbacks import Callback
from ..training.config import train_config
from . import results
from .arms import Arm, Study, cola, salora
from .results import Scored, made_on, references_folder
from .studies import OnRun, Records, Runner


# ---- what a tagger says ------------------------------------------------------------------------------------
# The probability of every tag at every word of the test sentences, by the network that `fit` kept. Taught in 09.
@dataclass
class Tagged:
    """What a tagger says about the test sentences of its task.

    words, gold: of every sentence, with the annotated tags.  probabilities: (W, C) each.
    """

    run: Run
    labels: tuple[str, ...]
    words: list[list[str]]
    gold: list[list[str]]
    probabilities: list[np.ndarray]

    @property
    def predicted(self) -> list[list[str]]:
        """The likeliest tag of every word."""
        return entities.predicted_tags(self.probabilities, self.labels)

    @property
    def kinds(self) -> list[str]:
        return entities.kinds_of(self.labels)


def tag(method: Method | str, task: str, backbone: str = "minilm-l6", profile: str | None = None, seed: int = 0, *,
        callbacks: Sequence[Callback] = (), store: Store | None = None, cache: bool = True,
        **training: Any) -> Tagged:
    """Train a tagger, or find the kept one, and ask it about its test sentences. As `fit`."""
    require(task in TASKS and TASKS[task].kind == "tagging", f"'{task}' is no task of tagging; there are "
            f"{', '.join(name for name, one in TASKS.items() if one.kind == 'tagging')}")
    return tagged(fit(method, task, backbone, profile, seed, callbacks=callbacks, store=store, cache=cache,
                      progress=False, keep_model=True, **training))


def tagged(run: Run) -> Tagged:
    """Return what the network of a run says, which `fit(keep_model=True)` left in it."""
    assert run.trained is not None
    words, gold = sentences(run.trained.data)
    return Tagged(run, run.trained.data.task.labels, words, gold, word_probabilities(run.trained))


def sentences(data: TaskData) -> tuple[list[list[str]], list[list[str]]]:
    """Return words and tags of the test sentences (of the validation sentences, where no test is labelled)."""
    frame = data.validation if data.test is None else data.test
    words = [list(row) for row in frame[data.task.text[0]]]
    return words, [[data.task.labels[code] for code in row] for row in frame[data.task.label]]


@torch.no_grad()
def word_probabilities(found: Trained, batch_size: int = 32) -> list[np.ndarray]:
    """Return (W, C) float32 of every test sentence: the softmax at the first piece of each word.

    A word that the network could not read, past the longest length, is O with certainty: it finds nothing there.
    """
    features = found.rows.splits.get("test", found.rows.splits["validation"])
    place, result = next(found.model.parameters()).device, []
    for start in range(0, len(features), batch_size):
        chosen = features[start:start + batch_size]
        batch = {k: v.to(place) for k, v in found.rows.collate(chosen).items()}
        soft = found.model(**batch).logits.float().softmax(-1).cpu()                              # (B, T, C)
        counts = batch["labels"].cpu() != IGNORED
        for feature, row, here in zip(chosen, soft, counts, strict=True):
            table = np.zeros((len(feature["reference"]), soft.shape[-1]), dtype=np.float32)
            table[:, 0] = 1.0
            table[feature["words"]] = row[here].numpy()
            result.append(table)
    return result


@dataclass(frozen=True)
class Cut:
    """One sentence as a tokenizer cuts it: pieces, the number of each piece's word (None for [CLS] and the like),
    and the label of each piece, "" where it does not count."""

    words: list[str]
    tags: list[str]
    pieces: list[str]
    word_of: list[int | None]
    labels: list[str]


def short_example(data: TaskData, tokenizer: Any, longest: int = 13) -> Cut:
    """Return the first training sentence of at most so many pieces with an entity and a word cut into several pieces.

    Raises:
        ValueError: no sentence is like that.
    """
    task = data.task
    for tokens, codes in zip(data.train[task.text[0]], data.train[task.label], strict=True):
        batch = tokenizer([list(tokens)], is_split_into_words=True)
        word_of = batch.word_ids(0)
        counted = [w for w in word_of if w is not None]
        if len(word_of) <= longest and any(codes) and len(set(counted)) < len(counted) > 5:
            labels = encode(pd.DataFrame({task.text[0]: [tokens], task.label: [codes]}), task, tokenizer)[0]["labels"]
            return Cut(list(tokens), [task.labels[c] for c in codes],
                       tokenizer.convert_ids_to_tokens(batch["input_ids"][0]), word_of,
                       ["" if label == IGNORED else task.labels[label] for label in labels])
    raise ValueError(f"no sentence of '{task.name}' with an entity and a cut word has at most {longest} pieces")


# ---- stored comparisons --------------------------------------------------------------------------------
# The stored comparisons of 09: methods as taggers over seeds, and a causal model asked to change a sentence's style.
#
#     python -m lowrank_teach.reproduction.tagging --task jnlpba   # again: minutes to an hour
#     load_tags("jnlpba")          # what is stored, in figures/data
#
# Tags are stored a letter a word (upper case begins an entity), so that every figure and every resample of sentences
# can be computed from the file; the words themselves stay in their data set. Style transfer stands in `rewriting.py`.
# Taught in 09.
PROFILE, BACKBONE = "laptop", "minilm-l3"
SIX: dict[str, Any] = {"r": 8, "sites": "all"}
TAGGERS: dict[str, Method] = {   # on the six matrices of every layer
    "head": HeadOnly(), "lora": LoRA(**SIX), "cola-2": cola(chain=2, **SIX), "salora": salora(**SIX),
    "delta_lora": DeltaLoRA(**SIX), "autolora": AutoLoRA(**SIX), "full": FullFineTuning(trains="no_embeddings"),
}
WHOLE_RATE = 2e-4   # every number of W moves: a tenth of LoRA's rate, as in 01
TAGGING: dict[str, Any] = {"steps": 150, "max_length": 64, "n_train": 1600, "n_validation": 100, "n_test": 340}
TAG_TASKS: dict[str, dict[str, Any]] = {   # rates at which LoRA learns both in so few steps
    "jnlpba": {**TAGGING, "batch_size": 16, "lr": 3e-3, "head_lr": 1e-2},
    "wnut16": {**TAGGING, "batch_size": 8, "lr": 2e-3, "head_lr": 1e-2},
}


# ---- taggers over seeds ------------------------------------------------------------------------------------


def letters(labels: Sequence[str]) -> dict[str, str]:
    """Return tag -> one letter: "." outside; upper case begins an entity, lower case goes on with it."""
    kinds = {kind: chr(ord("A") + i) for i, kind in enumerate(entities.kinds_of(labels))}
    return {label: "." if label == "O" else kinds[label[2:]] if label[0] == "B" else kinds[label[2:]].lower()
            for label in labels}


def written(tags: Iterable[Sequence[str]], labels: Sequence[str]) -> list[str]:
    """Return one string for each sentence of tags."""
    letter = letters(labels)
    return ["".join(letter[tag] for tag in sentence) for sentence in tags]


def read(strings: Iterable[str], labels: Sequence[str]) -> list[list[str]]:
    """Return what `written` wrote."""
    tag = {letter: label for label, letter in letters(labels).items()}
    return [[tag[letter] for letter in string] for string in strings]


class Taggers(Scored):
    """What is stored of one task: of each run test, tags, ranks, parameters, seconds beside its arm and seed."""

    @property
    def seeds(self) -> list[int]:
        return sorted({record["seed"] for record in self.records})

    @property
    def labels(self) -> list[str]:
        return list(self.about["labels"])

    @property
    def kinds(self) -> list[str]:
        return entities.kinds_of(self.labels)

    @property
    def gold(self) -> list[list[str]]:
        """Annotated tags of the test sentences."""
        return read(self.about["gold"], self.labels)

    def tags(self, arm: str, seed: int = 0) -> list[list[str]]:
        """Return the predicted tags of the test sentences."""
        return read(self.record(arm, seed)["tags"], self.labels)

    def counts(self, arm: str) -> np.ndarray:
        """Return (N, K, 3) as `entities.counts`, summed over the seeds of an arm."""
        runs = [entities.counts(self.gold, self.tags(arm, r["seed"]), self.kinds) for r in self.of(arm)]
        return np.sum(runs, axis=0)

    def by_kind(self, arm: str) -> np.ndarray:
        """Return (K + 1, 3): F1 of every type, and last over all, with the interval over sentences; seeds pooled."""
        counted = self.counts(arm)
        score = np.append(entities.f1(counted.sum(0)), entities.f1(counted.sum((0, 1))))
        return np.column_stack([score, entities.interval(counted)])

    def sizes(self) -> list[int]:
        """Return the annotated entities of every type in the test sentences."""
        return entities.counts(self.gold, self.gold, self.kinds)[..., 2].sum(0).tolist()

    def outcomes(self, arm: str) -> dict[str, float]:
        """Return outcome -> its share of all entities, seeds pooled."""
        runs = [entities.outcomes(self.gold, self.tags(arm, r["seed"])) for r in self.of(arm)]
        counted = {name: sum(run[name] for run in runs) for name in entities.OUTCOMES}
        return {name: count / sum(counted.values()) for name, count in counted.items()}

    def saying_o(self) -> float:
        """Return the token accuracy of a tagger that says O at every word."""
        return entities.token_accuracy(self.gold, [["O"] * len(tags) for tags in self.gold])

    def line(self) -> str:
        """Return one sentence on where the numbers come from."""
        a = self.about
        return (f"stored taggers: {len(self.records)} runs ({len(self.seeds)} seeds), {a['backbone']} on "
                f"{a['task']}, {a['training']['steps']} steps, {len(a['gold'])} test sentences; "
                f"{made_on(a['machine'])}")


@dataclass
class TagRunner(Runner):
    """Trains taggers, and keeps the tags that they give the test sentences."""

    keep_model: bool = True

    def records_of(self, arm: str, seed: int, run: Run) -> Records:
        found = tagged(run)
        self.about |= {"labels": list(found.labels), "gold": written(found.gold, found.labels),
                       "source": run.notes[0]}
        test = {**run.metrics["test"], "token_accuracy": entities.token_accuracy(found.gold, found.predicted)}
        return [{"method": run.config["method"], "test": test, "tags": written(found.predicted, found.labels),
                 "ranks": run.ranks, "parameters": run.parameters, "seconds": run.seconds}]

    def shown(self, run: Run, kept: Mapping[str, Any]) -> dict[str, float]:
        return kept["test"]


def train_tags(task: str = "jnlpba", seeds: Iterable[int] = range(3), folder: Path | str | None = None, *,
               backbone: str = BACKBONE, profile: str = PROFILE, arms: Mapping[str, Method] | None = None,
               store: Store | None = None, on_run: OnRun | None = None, **training: Any) -> Taggers:
    """Train every tagger, seed by seed, or find what was kept; the file is written anew after each seed."""
    whole = {"lr": WHOLE_RATE}
    chosen = {arm: Arm(method, whole if isinstance(method, FullFineTuning) else {})
              for arm, method in (arms or TAGGERS).items()}
    training = asdict(train_config(profile, **{**TAG_TASKS.get(task, TAGGING), **training}))
    study = Study("Which method tags best?", "method", chosen, {task: {}}, backbone, profile, training)
    runner = TagRunner(study, _path(task, folder), {}, store, on_run)
    runner.run(seeds=seeds)
    return Taggers(runner.described(), runner.records)


def _path(task: str, folder: Path | str | None) -> Path:
    return Path(folder or references_folder()) / f"09_more_tasks_{task}.json"


def load_tags(task: str = "jnlpba", folder: Path | str | None = None) -> Taggers:
    """Return the stored taggers of a task.

    Raises:
        FileNotFoundError: they have not been trained here.
    """
    path = _path(task, folder)
    again = f"python -m lowrank_teach.reproduction.tagging --task {task}"
    return Taggers(*results.read(path, f"{path.name} is not there; make it: {again}"))


def main() -> None:
    """Read the command line: which task, and how many seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="jnlpba", choices=tuple(TAG_TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    train_tags(chosen.task, range(chosen.seeds), on_run=lambda *done: print(*done, flush=True))


if __name__ == "__main__":
    main()
