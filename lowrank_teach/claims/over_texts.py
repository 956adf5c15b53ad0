"""Claims on texts: what stored runs wrote for E2E (`lowrank_teach.texts`), paired by seed.

All arms wrote for the same test inputs. The interval is over seeds of the training: what other inputs would change is
not in it, and is taught in 08.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import texts
from .evidence import FromRuns
from .rows import Compared, Folder
from .verdicts import Evidence, of_every

STUDY = "e2e"   # of `text_studies.TEXT_STUDIES`
FIVE = ("bleu", "nist", "meteor", "rougeL", "cider")   # of the papers' tables; high is good in all

Numbers = Callable[[texts.Texts], Evidence]


def folder_of(studies: Folder) -> Path | None:
    """Where the texts lie that belong to a folder of studies: the one above it."""
    return Path(studies).parent if studies else None


def by_bleu(first: str, second: str) -> FromRuns:
    """first − second by BLEU of all texts, of 1 at most."""
    def numbers(found: texts.Texts) -> Evidence:
        a, b = found.paired(first, second, "bleu")
        return Evidence([x - y for x, y in zip(a, b, strict=True)], {first: a, second: b}, setting(found))

    return _over(first, second, numbers)


def by_every_score(first: str, second: str) -> FromRuns:
    """The least gain over the five scores, in percent of the second's mean, as `of_every`."""
    def numbers(found: texts.Texts) -> Evidence:
        gains = {}
        for name in (name for name in FIVE if name not in found.about["left_out"]):
            a, b = (np.array(scores) for scores in found.paired(first, second, name))
            gains[name] = (100 * (a - b) / b.mean()).tolist()
        worst, interval = of_every(gains)
        return Evidence(gains[worst], {f"lowest, by {worst}": gains[worst]}, f"{setting(found)}; {', '.join(gains)}",
                        interval)

    return _over(first, second, numbers)


def bleu_claim(where: str, statement: str, first: str, second: str, says: str = "–", note: str = "") -> Compared:
    """first > second by BLEU."""
    return Compared(where, statement, by_bleu(first, second), says=says, unit="BLEU", note=note)


def every_score_claim(where: str, statement: str, first: str, second: str, says: str = "–") -> Compared:
    """first > second by every one of the five scores."""
    return Compared(where, statement, by_every_score(first, second), says=says, unit="%, lowest score", scale=1.0)


def setting(found: texts.Texts) -> str:
    """What was trained on what, in a few words."""
    about = found.about
    chosen = ", rates chosen on validation rows" if len(about["rates"]) > 1 else ""
    return (f"{about['backbone']} on {about['task']}, {about['training']['steps']} steps, "
            f"{about['inputs']} inputs{chosen}")


def _over(first: str, second: str, numbers: Numbers) -> FromRuns:
    return FromRuns(((STUDY, first), (STUDY, second)), lambda folder: numbers(texts.load(STUDY, folder_of(folder))))
