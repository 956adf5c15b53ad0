"""The claims ledger: every checkable statement of the papers, held against runs, with a verdict nobody typed.

    claims.table("COLA")          # statement, the paper's number, ours, interval, verdict
    claims.ledger()               # the same as rows, for all papers
    claims.reproduce("COLA 1")    # its runs once more, and the new verdict beside the stored one

A verdict comes from stored studies (`lowrank_teach.studies`) by the rule in `verdicts`, from a check run on the spot,
or says what is missing. Taught in 11; `lowrank-teach claims` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ..runs import Store
from . import autolora, cola, delta_lora, lora, salora
from .reported import REPORTED
from .reproduction import OnRun, Reproduction, RunPlan, find, plan_again, said, train_again
from .rows import Beyond, Claim, Compared, Exact, Folder, Row, rows
from .summary import from_runs, summary
from .verdicts import (
    HOLDS,
    LEVEL,
    NO_RUNS,
    OPEN,
    OPPOSITE,
    SEEDS,
    UNTESTABLE,
    VERDICTS,
    judge,
    paired_bootstrap,
    percentile_interval,
    power,
    seeds_needed,
    t_interval,
    verdict,
)

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "LoRA": lora.CLAIMS, "COLA": cola.CLAIMS, "SaLoRA": salora.CLAIMS, "Delta-LoRA": delta_lora.CLAIMS,
    "AutoLoRA": autolora.CLAIMS}

__all__ = ["CLAIMS", "HOLDS", "LEVEL", "NO_RUNS", "OPEN", "OPPOSITE", "REPORTED", "SEEDS", "UNTESTABLE", "VERDICTS",
           "Beyond", "Compared", "Exact", "Reproduction", "Row", "RunPlan", "counts", "from_runs", "judge", "ledger",
           "markdown", "paired_bootstrap", "percentile_interval", "plan", "power", "reproduce", "said",
           "seeds_needed", "summary_markdown", "t_interval", "table", "verdict"]


def ledger(paper: str | Iterable[str] | None = None, folder: Folder = None) -> list[Row]:
    """Rows of one paper, of several, or of all.

    Args:
        folder: of the stored studies; None takes the checkout's own.

    Raises:
        KeyError: there are no claims of this paper.
    """
    papers = list(CLAIMS) if paper is None else [paper] if isinstance(paper, str) else list(paper)
    if unknown := [name for name in papers if name not in CLAIMS]:
        raise KeyError(f"no claims of {unknown[0]!r}; there are claims of {', '.join(CLAIMS)}")
    return [row for name in papers for row in rows(name, CLAIMS[name], folder)]


def table(paper: str | Iterable[str] | None = None, folder: Folder = None) -> pd.DataFrame:
    """The ledger to read: one row a claim, indexed by its key. As `ledger`."""
    columns = {"where": [], "statement": [], "paper's number": [], "ours": [], "difference [95 %]": [], "seeds": [],
               "verdict": [], "setting, or reason": []}  # type: dict[str, list[str]]
    found = ledger(paper, folder)
    for row in found:
        cells = (row.where, row.statement, row.says, row.ours, row.interval_words(),
                 str(len(row.differences) or "–"), row.verdict, row.why)
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return pd.DataFrame(columns, index=pd.Index([row.key for row in found], name="claim"))


def counts(found: Iterable[Row]) -> pd.DataFrame:
    """How many claims of each paper got each verdict; verdicts in their fixed order, a row a paper."""
    found = list(found)
    tally = pd.crosstab(pd.Series([row.paper for row in found]), pd.Series([row.verdict for row in found]))
    papers = [name for name in CLAIMS if name in tally.index]
    return tally.reindex(index=papers, columns=list(VERDICTS), fill_value=0).rename_axis(index="paper", columns=None)


def markdown(found: Iterable[Row]) -> str:
    """`counts` as the README shows it."""
    tally = counts(found)
    lines = [f"| paper | {' | '.join(tally.columns)} |", "|---" * (len(tally.columns) + 1) + "|"]
    lines += [f"| {paper} | {' | '.join(str(n) for n in row)} |" for paper, row in zip(tally.index, tally.to_numpy(),
                                                                                     strict=True)]
    return "\n".join(lines)


def summary_markdown(folder: Folder = None) -> str:
    """The page of the README that says which claims held here and which did not; computed from the ledger."""
    found = ledger(folder=folder)
    return summary(found, markdown(found))


def reproduce(claim: str, *, seeds: int | None = None, store: Store | None = None, on_run: OnRun | None = None,
              stored: Folder = None, **training: Any) -> Reproduction:
    """Train the runs behind one row again, as far as the store lacks them, and judge the row anew.

    Args:
        claim: a key of the ledger, such as "COLA 3".  seeds: how many from 0; None takes the study's own.
        stored: the folder of the verdict to hold it against; None takes the checkout's own. It is not written.
        on_run: called as each run is done, as `studies.train` or `studies.train_across` do.
        training: fields of `TrainConfig` that differ from the study's, such as steps for a short try.

    Raises:
        ValueError: there is no such claim, or a value is refused.
    """
    key, paper, one = find(claim, dict(CLAIMS))
    return train_again(key, paper, one, seeds=seeds, store=store, on_run=on_run, stored=stored, **training)


def plan(claim: str, *, seeds: int | None = None, store: Store | None = None, stored: Folder = None,
         **training: Any) -> RunPlan:
    """What `reproduce` would train, and how long that would take. As `reproduce`."""
    return plan_again(find(claim, dict(CLAIMS))[2], seeds=seeds, store=store, stored=stored, **training)
