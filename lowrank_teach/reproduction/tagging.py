"""Taggers: a network in hand after its training, what it says about every word, and methods compared over seeds."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..adapters import adapt
from ..analysis import measures
from ..errors import StoppedError, require
from ..experiments.fit import Rows, load_for, site_measures
from ..experiments.identity import identity
from ..experiments.runs import HISTORY, Run, Store, config_key, machine
from ..methods import COLA, METHODS, AutoLoRA, DeltaLoRA, FullFineTuning, HeadOnly, LoRA, Method, SaLoRA
from ..tasks import entities
from ..tasks.load import load_task
from ..tasks.table import TASKS
from ..tasks.task import TaskData
from ..tasks.tokenize import IGNORED, encode
from ..training import checkpoint
from ..training.callbacks import Callback, Row
from ..training.config import default_profile, fit_to_profile, train_config
from ..training.trainer import Trainer
from . import results
from .results import Scored, made_on, references_folder, write


# ---- a network in hand -------------------------------------------------------------------------------------
# A network in hand after its training, and what a tagger says about every word.
#
# `fit` keeps a record and lets the network go. Whoever wants to look at single predictions needs the network itself
# (`trained`), or, for a tagger, the probability of every tag at every word of the test sentences (`tag`), which is
# small enough to be kept beside the runs. The stages are those of `fit`. Taught in 09.
@dataclass
class Trained:
    """A network after its training, in eval mode, its tokenizer, the rows it saw, and the record."""

    model: Any
    tokenizer: Any
    data: TaskData
    rows: Rows
    run: Run


def trained(method: Method | str, task: str, backbone: str = "minilm-l6", profile: str | None = None, seed: int = 0,
            *, callbacks: Sequence[Callback] = (), score: bool = True, longest: int | None = None,
            **training: Any) -> Trained:
    """Train as `fit` does, every stage a method has, and keep the network.

    Args:
        method, task, backbone, profile, seed, training: as in `fit`.
        score: measure validation and test rows at the end (a task that writes text takes long).
        longest: leave out training rows of more tokens, where cutting them would take the prompt away.

    Raises:
        ValueError: something in the configuration is refused.  StoppedError: a callback stopped the training.
    """
    stage: Method | None = (first := _chosen(method, profile))
    c = train_config(profile, **training)
    described = _described(first, task, backbone, profile, seed, training) | ({"longest": longest} if longest else {})
    made_from = identity(task, backbone)
    data = load_task(task, n_train=c.n_train, n_validation=c.n_validation, n_test=c.n_test, seed=seed)
    history, seconds, notes, started, done = list[Row](), dict[str, float](), [data.source], time.perf_counter(), 0
    while stage is not None:
        model, tokenizer = load_for(backbone, data, seed)
        rows = Rows(data, tokenizer, c, getattr(model.config, "is_encoder_decoder", False))
        seen = [row for row in rows.train if not longest or len(row["input_ids"]) <= longest]
        adapters = adapt(model, stage, seed=seed)
        outcome = Trainer(adapters, seen, rows.collate, c, seed=seed, callbacks=callbacks).run()
        if not outcome.finished:
            raise StoppedError(f"stopped after step {outcome.step}; the same call starts anew")
        history += [(step + done, site, name, value) for step, site, name, value in outcome.history]
        notes += adapters.rule.notes()
        stage, part = outcome.following, "training" if outcome.following is None else "search"
        seconds |= {part: outcome.seconds, f"steps.{part}": outcome.step}
        done += outcome.step
    model.eval()
    metrics = {split: rows.score(model, split) for split in ("validation", "test")} if score else {}
    history += [(done, site, name, value) for site, name, value in site_measures(adapters)]
    seconds["total"] = time.perf_counter() - started
    run = Run(described, pd.DataFrame(history, columns=HISTORY), metrics, adapters.ranks(),
              measures.parameter_counts(model), seconds, notes=notes, machine=machine(),
              identity=made_from)
    return Trained(model, tokenizer, data, rows, run)


def _chosen(method: Method | str, profile: str | None) -> Method:
    return fit_to_profile(METHODS[method]() if isinstance(method, str) else method, profile)


def _described(method: Method, task: str, backbone: str, profile: str | None, seed: int, training: dict) -> dict:
    """What decides the result; "keeps" tells it from a run of `fit`, whose record has the factors, too."""
    return json.loads(json.dumps({
        "method": method.to_dict(), "task": task, "backbone": backbone, "seed": seed, "keeps": "the network",
        "profile": profile or default_profile(), "training": dataclasses.asdict(train_config(profile, **training))}))


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
    """Train a tagger and keep what it says about its test sentences, or find what was kept. As `trained`."""
    require(task in TASKS and TASKS[task].kind == "tagging", f"'{task}' is no task of tagging; there are "
            f"{', '.join(name for name, one in TASKS.items() if one.kind == 'tagging')}")
    store, c = store or Store(), train_config(profile, **training)
    key = config_key(_described(_chosen(method, profile), task, backbone, profile, seed, training),
                     identity(task, backbone))
    path = store.folder / "taggers" / f"{key}.safetensors"
    if cache and (kept := _kept(path)) is not None and (run := store.get(key)):
        data = load_task(task, n_train=c.n_train, n_validation=c.n_validation, n_test=c.n_test, seed=seed)
        words, gold = sentences(data)
        return Tagged(run, data.task.labels, words, gold, _split(kept, gold))
    store.check()
    found = trained(method, task, backbone, profile, seed, callbacks=callbacks, **training)
    probabilities = word_probabilities(found)
    if cache:
        store.put(found.run)
        checkpoint.write(path, {"probabilities": torch.from_numpy(np.concatenate(probabilities))}, {})
    words, gold = sentences(found.data)
    return Tagged(found.run, found.data.task.labels, words, gold, probabilities)


def _kept(path: Path) -> np.ndarray | None:
    """The probabilities that were kept; None where there are none, or not as they were written."""
    if not path.exists():
        return None
    try:
        tensors, _, whole = checkpoint.read(path)
    except checkpoint.UNREADABLE:
        whole = False
    if not whole:
        warnings.warn(f"what was kept of the tagger {path.name} is damaged; it is trained again", stacklevel=3)
        return None
    return tensors["probabilities"].numpy()


def sentences(data: TaskData) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of the test sentences (of the validation sentences, where no test is labelled)."""
    frame = data.validation if data.test is None else data.test
    words = [list(row) for row in frame[data.task.text[0]]]
    return words, [[data.task.labels[code] for code in row] for row in frame[data.task.label]]


@torch.no_grad()
def word_probabilities(found: Trained, batch_size: int = 32) -> list[np.ndarray]:
    """(W, C) float32 of every test sentence: the softmax at the first piece of each word.

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


def _split(flat: np.ndarray, gold: list[list[str]]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum([len(tags) for tags in gold])[:-1])


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
    """The first training sentence of at most so many pieces that has an entity, and a word cut into several pieces.

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
TAGGERS: dict[str, Method] = {   # all on the six matrices of every layer
    "head": HeadOnly(), "lora": LoRA(**SIX), "cola-2": COLA(chain=2, **SIX), "salora": SaLoRA(eta_c=0.1, **SIX),
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
    """Tag -> one letter: "." outside; upper case begins an entity, lower case goes on with it."""
    kinds = {kind: chr(ord("A") + i) for i, kind in enumerate(entities.kinds_of(labels))}
    return {label: "." if label == "O" else kinds[label[2:]] if label[0] == "B" else kinds[label[2:]].lower()
            for label in labels}


def written(tags: Iterable[Sequence[str]], labels: Sequence[str]) -> list[str]:
    """Sentences of tags -> one string each."""
    letter = letters(labels)
    return ["".join(letter[tag] for tag in sentence) for sentence in tags]


def read(strings: Iterable[str], labels: Sequence[str]) -> list[list[str]]:
    """What `written` wrote."""
    tag = {letter: label for label, letter in letters(labels).items()}
    return [[tag[letter] for letter in string] for string in strings]


class Taggers(Scored):
    """What is stored of one task: of each run test, tags, ranks, parameters, seconds beside its arm and seed."""

    metric = "entity_f1"

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
        """Predicted tags of the test sentences."""
        return read(self.record(arm, seed)["tags"], self.labels)

    def counts(self, arm: str) -> np.ndarray:
        """(N, K, 3) as `entities.counts`, summed over the seeds of an arm."""
        runs = [entities.counts(self.gold, self.tags(arm, r["seed"]), self.kinds) for r in self.of(arm)]
        return np.sum(runs, axis=0)

    def by_kind(self, arm: str) -> np.ndarray:
        """(K + 1, 3): F1 of every type, and last over all, with the interval over sentences; seeds pooled."""
        counted = self.counts(arm)
        score = np.append(entities.f1(counted.sum(0)), entities.f1(counted.sum((0, 1))))
        return np.column_stack([score, entities.interval(counted)])

    def sizes(self) -> list[int]:
        """Annotated entities of every type in the test sentences."""
        return entities.counts(self.gold, self.gold, self.kinds)[..., 2].sum(0).tolist()

    def outcomes(self, arm: str) -> dict[str, float]:
        """Outcome -> its share of all entities, seeds pooled."""
        runs = [entities.outcomes(self.gold, self.tags(arm, r["seed"])) for r in self.of(arm)]
        counted = {name: sum(run[name] for run in runs) for name in entities.OUTCOMES}
        return {name: count / sum(counted.values()) for name, count in counted.items()}

    def saying_o(self) -> float:
        """The token accuracy of a tagger that says O at every word."""
        return entities.token_accuracy(self.gold, [["O"] * len(tags) for tags in self.gold])

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        a = self.about
        return (f"stored taggers: {len(self.records)} runs ({len(self.seeds)} seeds), {a['backbone']} on "
                f"{a['task']}, {a['training']['steps']} steps, {len(a['gold'])} test sentences; "
                f"{made_on(a['machine'])}")


def train_tags(task: str = "jnlpba", seeds: Iterable[int] = range(3), folder: Path | str | None = None, *,
               backbone: str = BACKBONE, profile: str = PROFILE, arms: Mapping[str, Method] | None = None,
               on_run: Callable[[str, int, dict[str, float]], None] | None = None, **training: Any) -> Taggers:
    """Train every tagger, seed by seed, or find what was kept; the file is written anew after each seed."""
    path = Path(folder or references_folder()) / f"09_more_tasks_{task}.json"
    training = {**TAG_TASKS.get(task, TAGGING), **training}
    about: dict[str, Any] = {"name": path.stem, "task": task, "backbone": backbone, "profile": profile,
                             "training": asdict(train_config(profile, **training)), "machine": machine()}
    records: list[dict[str, Any]] = []
    for seed in seeds:
        for arm, method in (arms or TAGGERS).items():
            whole = {"lr": WHOLE_RATE} if isinstance(method, FullFineTuning) else {}
            found = tag(method, task, backbone, profile, seed, **{**training, **whole})
            test = {**found.run.metrics["test"],
                    "token_accuracy": entities.token_accuracy(found.gold, found.predicted)}
            records.append({"arm": arm, "seed": seed, "method": found.run.config["method"], "test": test,
                            "tags": written(found.predicted, found.labels), "ranks": found.run.ranks,
                            "parameters": found.run.parameters, "seconds": found.run.seconds})
            about |= {"labels": list(found.labels), "gold": written(found.gold, found.labels),
                      "source": found.run.notes[0]}
            if on_run is not None:
                on_run(arm, seed, test)
        write(path, about, records)
    return Taggers(about, records)


def load_tags(task: str = "jnlpba", folder: Path | str | None = None) -> Taggers:
    """The stored taggers of a task.

    Raises:
        FileNotFoundError: they have not been trained here.
    """
    path = Path(folder or references_folder()) / f"09_more_tasks_{task}.json"
    again = f"python -m lowrank_teach.reproduction.tagging --task {task}"
    return Taggers(*results.read(path, f"{path.name} is not there; make it: {again}"))


def main() -> None:
    """The command line: which task, and how many seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="jnlpba", choices=tuple(TAG_TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    train_tags(chosen.task, range(chosen.seeds), on_run=lambda *done: print(*done, flush=True))


if __name__ == "__main__":
    main()
