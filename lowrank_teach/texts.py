"""Texts that stored runs wrote: their scores, what the choice of test inputs leaves open, samples with errors marked.

    python -m lowrank_teach.texts e2e webnlg    # makes them again; LOWRANK_TEACH_DATA names the folder of the rows

    stored = texts.load("e2e")
    stored.scores("bleu")                # arm -> one number a seed
    stored.interval("LoRA", "bleu")      # over test inputs drawn anew

A corpus score is no mean of scores of texts: BLEU adds up counts over all texts, then divides. So what is kept of
each text is what the score adds up (`statistics`), and `combined` makes the score of any set of texts from the sums.
Taught in 08.
"""

# N texts, m numbers kept of each text, R draws of N inputs

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import slots
from . import text_metrics as scores
from .comparison import Comparison, made_on
from .course import references_folder

Array = np.ndarray


# -- what a score adds up

def _mean_of(score: Callable[..., float]) -> Callable[..., Array]:
    return lambda texts, many: np.array([[score([text], [references]), 1.0]
                                         for text, references in zip(texts, many, strict=True)])


def _bleu(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Matched groups of 1 to 4 words, groups written, length, length of the nearest reference: (N, 10)."""
    scorer = scores.need("sacrebleu", "BLEU").BLEU(lowercase=True)
    found = [scorer.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, many, strict=True)]
    return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], dtype=float)


def _bleu_of(sums: Array) -> float:
    whole = [int(value) for value in sums]
    of_sums = scores.need("sacrebleu", "BLEU").BLEU.compute_bleu
    return float(of_sums(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score / 100)


def _ter(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """Edits, and mean length of the references: (N, 2)."""
    scorer = scores.need("sacrebleu", "TER").TER()
    found = [scorer.corpus_score([text], [[ref] for ref in refs]) for text, refs in zip(texts, many, strict=True)]
    return np.array([[one.num_edits, one.ref_length] for one in found], dtype=float)


def _cider(texts: Sequence[str], many: Sequence[Sequence[str]]) -> Array:
    """A score a text, with the idf of all references: (N, 2)."""
    scorer = scores.need("pycocoevalcap.cider.cider", "CIDEr").Cider()
    wanted = {i: [" ".join(scores.words_of(one)) for one in refs] for i, refs in enumerate(many)}
    each = scorer.compute_score(wanted, {i: [" ".join(scores.words_of(text))] for i, text in enumerate(texts)})[1]
    return np.stack([np.asarray(each, dtype=float), np.ones(len(texts))], axis=1)


def _ratio(sums: Array) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0


STATISTICS: dict[str, tuple[Callable[..., Array], Callable[[Array], float]]] = {
    "bleu": (_bleu, _bleu_of), "ter": (_ter, _ratio), "cider": (_cider, _ratio),
    "rougeL": (_mean_of(scores.rouge("rougeL")), _ratio), "meteor": (_mean_of(scores.meteor), _ratio)}


def statistics(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
    """What a score adds up, one row a text: (N, m).

    Raises:
        KeyError: NIST and the like, whose sums are not kept.  ImportError: the score's package or data are missing.
    """
    return STATISTICS[name][0](texts, references)


def combined(name: str, rows: Array) -> float:
    """The corpus score of these rows (N, m) of `statistics`."""
    return STATISTICS[name][1](np.asarray(rows).sum(0))


def resampled(name: str, rows: Array, draws: Array) -> Array:
    """The score of each draw of inputs: rows (N, m), draws (R, N) of row numbers -> (R,)."""
    sums = np.asarray(rows)[draws].sum(1)                                     # (R, m)
    return np.array([STATISTICS[name][1](one) for one in sums])


def draws_of(n: int, resamples: int = 500, seed: int = 0, out_of: int | None = None) -> Array:
    """Row numbers (R, n), drawn with replacement: the same for all arms, so that differences are paired."""
    return np.random.default_rng(seed).integers(out_of or n, size=(resamples, n))


# -- what is stored

@dataclass(frozen=True)
class Texts(Comparison):
    """Stored runs on one task.

    about: task, licence, backbone, training, generation, machine, command.
    records: one dict an arm and seed: scores, statistics, slot errors by input, loss curve.
    samples: inputs with references, and of each arm a text and its check.  beams: an arm's texts by beam width.
    """

    samples: Sequence[Mapping[str, Any]]
    beams: Mapping[str, Any]

    @property
    def parts(self) -> list[str]:
        """Of each test input: such as "seen" or "unseen"; empty where a task has none."""
        return list(self.about["parts"])

    def seeds(self, arm: str) -> list[int]:
        return sorted(one["seed"] for one in self.records if one["arm"] == arm)

    def scores(self, name: str) -> dict[str, list[float]]:
        """Arm -> one score a seed, over all test inputs."""
        return {arm: [self.record(arm, seed)["scores"][name] for seed in self.seeds(arm)] for arm in self.arms}

    def paired(self, arm: str, other: str, name: str) -> tuple[list[float], list[float]]:
        """A score of each of two arms, for the seeds that both have."""
        a, b = ({record["seed"]: record["scores"][name] for record in self.of(one)} for one in (arm, other))
        seeds = sorted(a.keys() & b.keys())
        return [a[seed] for seed in seeds], [b[seed] for seed in seeds]

    def rows(self, arm: str, name: str, seed: int = 0, part: str | None = None) -> Array:
        """What `statistics` kept of each text (N, m), of one part of the inputs or of all."""
        rows = np.array(self.record(arm, seed)["statistics"][name], dtype=float)
        return rows if part is None else rows[np.array(self.parts) == part]

    def interval(self, arm: str, name: str, *, seed: int = 0, other: str | None = None, part: str | None = None,
                 level: float = 0.95) -> tuple[float, float, float]:
        """Score, low and high end over inputs drawn anew (percentile bootstrap); of arm − other where one is named.

        It says what another set of test inputs could give, for this one training. What another seed of the training
        would give is not in it.
        """
        mine = self.rows(arm, name, seed, part)
        draws = draws_of(len(mine))
        found, score = resampled(name, mine, draws), combined(name, mine)
        if other is not None:
            theirs = self.rows(other, name, seed, part)
            found, score = found - resampled(name, theirs, draws), score - combined(name, theirs)
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return score, float(low), float(high)

    def slot_errors(self, arm: str, seed: int = 0) -> Array:
        """Of each input: fields missing, values made up, fields there are: (N, 3)."""
        return np.array(self.record(arm, seed)["slots"], dtype=float)

    def sample(self, i: int) -> tuple[str, list[str], dict[str, tuple[str, slots.Check]]]:
        """The i-th sample: its data, its references, and of each arm the text and what the rule of `slots` says."""
        one = self.samples[i]
        checked = {arm: slots.Check(tuple(slots.Mark(**mark) for mark in said["marks"]), tuple(said["missing"]),
                                    said["slots"]) for arm, said in one["checks"].items()}
        return one["source"], one["references"], {arm: (text, checked[arm]) for arm, text in one["texts"].items()}

    def line(self) -> str:
        """One sentence on where the texts come from."""
        a = self.about
        return (f"stored texts for {a['task']}: {a['backbone']}, {a['training']['steps']} steps of "
                f"{a['training']['batch_size']} rows, {a['inputs']} test inputs; "
                f"{made_on(a['machine'])}; again: {a['command']}")


def path_of(task: str, folder: Path | str | None = None) -> Path:
    return Path(folder or references_folder()) / f"08_generation_{task}.json"


def load(task: str = "e2e", folder: Path | str | None = None) -> Texts:
    """The stored texts for a task.

    Raises:
        FileNotFoundError: none were written here.
    """
    path = path_of(task, folder)
    if not path.exists():
        raise FileNotFoundError(f"no texts for {task!r} are stored; write them: python -m lowrank_teach.texts {task}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Texts(stored["about"], stored["records"], stored["samples"], stored["beams"])


def main() -> None:
    """The command line: which tasks, and how many seeds."""
    from .studies import generation, text_studies  # which import this file

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=tuple(text_studies.TEXT_STUDIES))
    parser.add_argument("--seeds", type=int, help="how many, from 0; the task's own where left out")
    parser.add_argument("--inputs", type=int, help="test inputs written out; the task's own where left out")
    parser.add_argument("--folder", type=Path, help="where the file goes; figures/data where left out")
    chosen = parser.parse_args()
    for task in chosen.tasks:
        generation.make(task, chosen.folder, seeds=chosen.seeds, inputs=chosen.inputs,
                        on_run=lambda arm, seed, found: print(f"{arm}, seed {seed}: {found}", flush=True))


if __name__ == "__main__":
    main()
