"""The stored comparisons of 09: methods as taggers over seeds, and a causal model asked to change a sentence's style.

    python -m lowrank_teach.more_tasks tags --task jnlpba     # trains them again: minutes to an hour on a CPU
    python -m lowrank_teach.more_tasks style
    more_tasks.load_tags("jnlpba")          # what is stored, in figures/data

Tags are stored a letter a word (upper case begins an entity), so that every figure and every resample of sentences
can be computed from the file; the words themselves stay in their data set. Style transfer stands in `rewrites.py`.
Taught in 09.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import comparison, entities, rewrites
from .comparison import Scored, made_on, write
from .config import train_config
from .course import references_folder
from .methods import COLA, AutoLoRA, DeltaLoRA, FullFineTuning, HeadOnly, LoRA, Method, SaLoRA
from .rewrites import Rewrites
from .runs import machine

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


# ---- taggers -----------------------------------------------------------------------------------------------------


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
    from .tagger import tag

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
    again = f"python -m lowrank_teach.more_tasks tags --task {task}"
    return Taggers(*comparison.read(path, f"{path.name} is not there; make it: {again}"))


def seen_here(stored: Taggers, asked: Rewrites) -> pd.DataFrame:
    """What the stored runs say, one statement a row, with the verdict computed from them: "holds" or "not seen"."""
    means = {arm: float(np.mean(values)) for arm, values in stored.values().items()}
    rival = max((arm for arm in means if arm != "autolora"), key=means.__getitem__)
    lead = np.array(stored.differences("autolora", rival))
    ranges = [float(np.ptp([np.mean(v) for v in stored.values(name).values()]))
              for name in ("entity_f1", "token_accuracy")]
    rows = [("methods differ more in entity F1 than in token accuracy", ranges[0] > ranges[1],
             f"range {ranges[0]:.3f} against {ranges[1]:.3f}"),
            ("AutoLoRA tags best, with every seed", bool((lead > 0).all()),
             f"{lead.mean():+.3f} beside {rival}, better in {(lead > 0).sum()} of {len(lead)} seeds")]
    rows += [_copying(asked), *(_tuning(asked, arm, *score) for arm in asked.arms if arm in rewrites.TUNED
                                for score in (("accuracy", "transfer accuracy rises"),
                                              ("self_bleu", "more of the source stays")))]
    told = [(statement, "holds" if holds else "not seen", how) for statement, holds, how in rows]
    return pd.DataFrame(told, columns=["statement", "verdict", "measured"]).set_index("statement")


def _copying(asked: Rewrites) -> tuple[str, bool, str]:
    models = [arm for arm in asked.arms if arm not in (rewrites.COPY, rewrites.HUMAN)]
    pairs = [(asked.mean("bleu", way, rewrites.COPY), max(asked.mean("bleu", way, arm) for arm in models))
             for way in asked.directions]
    return ("copying is nearer to the human rewrite (BLEU) than any model, in both directions",
            all(copied > best for copied, best in pairs),
            ", ".join(f"{copied:.2f} against {best:.2f}" for copied, best in pairs))


def _tuning(asked: Rewrites, arm: str, name: str, words: str) -> tuple[str, bool, str]:
    change = [asked.mean(name, way, arm) - asked.mean(name, way, rewrites.PLAIN) for way in asked.directions]
    seeds = len(asked.values(name, asked.directions[0])[arm])
    return (f"{arm} on Alpaca, {words} in both directions", min(change) > 0,
            f"{', '.join(f'{x:+.2f}' for x in change)} ({seeds} seed{'s' * (seeds > 1)})")


def main() -> None:
    """The command line: which comparison, and how long."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("tags", "style"))
    parser.add_argument("--task", default="jnlpba", choices=tuple(TAG_TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.what == "tags":
        train_tags(chosen.task, range(chosen.seeds), on_run=lambda *done: print(*done, flush=True))
    else:
        rewrites.train(range(chosen.seeds), on_arm=lambda *done: print(*done, flush=True))


if __name__ == "__main__":
    main()
