"""What the package refuses on purpose: a sentence for the reader, which the command line prints without a trace."""

from __future__ import annotations

import re
import reprlib

MOST_LETTERS = 300   # of a refusal
LIST = re.compile(r"(?:[^\s,;:()\[\]{}]{1,60}, ){5,}")
LONG_WORD = re.compile(r"(\S{40})\S{20,}(\S{10})")


class Refusal(Exception):
    """Something cannot be done; the message says what and what to do instead."""


def sentence(says: str) -> str:
    """A refusal of at most MOST_LETTERS: of a long list the first items, of a long word its ends."""
    says = brief(LIST.sub(_first_items, says) if len(says) > MOST_LETTERS else says)
    ends = MOST_LETTERS * 2 // 3, MOST_LETTERS // 3 - 3
    return says if len(says) <= MOST_LETTERS else f"{says[:ends[0]]} … {says[-ends[1]:]}"


def brief(says: str) -> str:
    """In one that is longer than MOST_LETTERS, long words (a path, what somebody typed) by their ends alone."""
    return LONG_WORD.sub(r"\1…\2", says) if len(says) > MOST_LETTERS else says


def _first_items(found: re.Match[str]) -> str:
    items = found[0].split(", ")[:-1]
    return f"{', '.join(items[:4])}, … ({len(items) - 4} more) … "


class _Shown(reprlib.Repr):
    """`repr` for a sentence, of any value: not long, not deep, and of a number of thousands of digits its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 60, 60, 40

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if abs(value) < 10**40 else f"a number of {value.bit_length()} bits"


shown = _Shown().repr
