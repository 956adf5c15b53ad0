"""Which claims held here and which did not, as a page of Markdown: nothing in it is typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .rows import Row
from .verdicts import BROKEN, EXACT, HOLDS, NO_RUNS, OPEN, OPPOSITE, SEEDS, UNTESTABLE

HEADS = {
    HOLDS: "Held here: the interval lies wholly on the claimed side",
    OPPOSITE: "Came out the other way: the interval lies wholly on the other side",
    BROKEN: "Computed on the spot, and does not hold as printed",
}


def from_runs(found: Iterable[Row]) -> list[Row]:
    """Rows whose verdict is computed from stored runs of five seeds or more."""
    return [row for row in found
            if row.interval is not None and row.over == "seeds" and len(row.differences) >= SEEDS]


def summary(found: Sequence[Row], table: str) -> str:
    """The page.

    Args: rows of the ledger; the table of their counts, as Markdown.
    """
    ran = from_runs(found)
    settings = list(dict.fromkeys(row.why.split(";")[0] for row in ran))
    parts = [f"{len(ran)} of {len(found)} claims have a verdict computed from stored runs of {SEEDS} seeds or more; "
             f"{len(_of(found, EXACT))} hold exactly, computed on the spot. Differences are means with 95 % "
             f"intervals over seeds. Settings: {'; '.join(settings) or 'no runs yet'}.", table]
    for verdict, head in HEADS.items():
        if rows := _of(found, verdict):
            parts.append(f"**{head}** ({len(rows)})\n\n" + "\n".join(map(_line, rows)))
    rows = _of(found, OPEN)
    parts.append(f"**Not told apart here** ({len(rows)}): the interval holds zero, or is too long for “as good as”. "
                 f"{_keys(rows)}")
    parts.append(f"**Without a verdict**: {len(_of(found, NO_RUNS))} wait for runs, {len(_of(found, UNTESTABLE))} "
                 "need a model, a data set or a metric that is not here. `lowrank-teach claims` prints every row "
                 "with its reason; `lowrank-teach reproduce CLAIM` makes the runs of one again.")
    return "\n\n".join(parts) + "\n"


def _of(found: Iterable[Row], verdict: str) -> list[Row]:
    return [row for row in found if row.verdict == verdict]


def _line(row: Row) -> str:
    numbers = f": {row.interval_words()}" if row.interval is not None else ""
    return f"- {row.key} ({row.where}): {row.statement}{numbers}"


def _keys(rows: Iterable[Row]) -> str:
    """ "COLA 1, 2, 6; SaLoRA 3": rows by paper."""
    papers: dict[str, list[str]] = {}
    for row in rows:
        papers.setdefault(row.paper, []).append(row.key.rpartition(" ")[2])
    return "; ".join(f"{paper} {', '.join(numbers)}" for paper, numbers in papers.items()) + "."
