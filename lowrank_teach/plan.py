"""The table that `adapters.plan()` shows: what was matched, and how many parameters that is. Taught in 02."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What `adapt` matched; prints as a table, in a notebook as HTML.

    rows: (site, module, d, k, r, scaling, parameters).  head, total: parameters of the head and of the model.
    extra: parameters of modules that a method put on beside the matrices.
    """

    rows: list[tuple[str, str, int, int, int, float, int]]
    head: int
    total: int
    extra: int = 0

    TITLES = ("site", "module", "shape d × k", "r", "s", "parameters")

    def cells(self) -> list[tuple[str, ...]]:
        return [(site, path, f"{d} × {k}", str(r), f"{s:g}", f"{n:,}") for site, path, d, k, r, s, n in self.rows]

    def summary(self) -> str:
        """The last line: how many matrices, and what share of the model trains."""
        branch = sum(row[-1] for row in self.rows)
        modules = f", {self.extra:,} in modules of the method's own" if self.extra else ""
        share = (branch + self.extra + self.head) / max(self.total, 1)
        return (f"{len(self.rows)} matrices, {branch:,} parameters in branches{modules} and {self.head:,} in the "
                f"head, of {self.total:,} in all ({100 * share:.2f} %)")

    def __str__(self) -> str:
        table = [self.TITLES, *self.cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.TITLES))]
        lines = ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w)
                           for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in table]
        return "\n".join([*lines, self.summary()])

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

        body = "".join(line(row, "td") for row in self.cells())
        return f"<table>{line(self.TITLES, 'th')}{body}</table><p>{html.escape(self.summary())}</p>"
