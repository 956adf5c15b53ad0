"""Texts of a data set to read in a notebook: as HTML in which their text is escaped, and as plain text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLAIN_TEXT = "tex2jax_ignore mathjax_ignore"   # class of what is never mathematics: a $ in a tweet is a dollar


@dataclass(frozen=True)
class Page:
    """A piece of HTML, and the same as plain text; the last line of a cell shows it. Pages add up."""

    html: str
    plain: str

    def __add__(self, other: Page) -> Page:
        return Page(self.html + other.html, f"{self.plain}\n\n{other.plain}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.plain}


def table(blocks: Sequence[Mapping[str, str]]) -> str:
    """Make an HTML table, with a line above each block but the first.

    Args: one block an example of the data: name of a row -> its cell. Names are escaped here, cells are HTML.
    """
    lines = []
    for i, block in enumerate(blocks):
        for j, (name, cell) in enumerate(block.items()):
            top = ";border-top:1px solid #999" if i and not j else ""
            lines.append(f'<tr><th style="text-align:left;vertical-align:top;white-space:nowrap{top}">'
                         f'{html.escape(name)}</th>'
                         f'<td style="text-align:left;overflow-wrap:anywhere{top}">{cell}</td></tr>')
    return f'<table class="{PLAIN_TEXT}">{"".join(lines)}</table>'


def texts(blocks: Sequence[Mapping[str, str]]) -> str:
    """Make a `table` of plain texts: they are escaped here, and an empty one is said to be empty."""
    return table([{name: html.escape(text) or "<i>(nothing)</i>" for name, text in block.items()}
                  for block in blocks])


def show(page: str, plain: str) -> None:
    """Display HTML in a notebook, and the plain text for whoever shows none."""
    from IPython.display import display  # lazily, as in `style.show`

    display({"text/html": page, "text/plain": plain}, raw=True)
