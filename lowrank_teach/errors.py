"""What the package refuses on purpose: a sentence for the reader, which the command line prints without a trace."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import numbers
import operator
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    pass


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


# ---- checks of what a configuration holds ------------------------------------------------------------------
# What a configuration may hold: every field is checked against its own type when the configuration is built.
WORDS = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "a text",
         "None": "null"}
MANY = re.compile(r"(tuple|Mapping)\[(?:str, )?(.+?)(?:, \.\.\.)?\]")
LARGEST = 1e30       # and 1 / LARGEST the smallest beside 0: what is computed from such numbers is a float32


def require(holds: bool, says: str) -> None:
    """Refuse with a sentence that says what to do.

    Raises:
        ValueError: `holds` is false.
    """
    if not holds:
        raise ValueError(sentence(says))


def among(known: Sequence[str], like: str = "") -> str:
    """Names to choose among: all, or, where a sentence has no room, those nearest to `like` and then short ones."""
    near = difflib.get_close_matches(like, known, 3)
    room, names = MOST_LETTERS // 2, [*near, *sorted(set(known) - set(near), key=lambda name: (len(name), name))]
    if sum(len(name) + 2 for name in known) <= room:
        return ", ".join(known)
    fits = [name for name, end in zip(names, itertools.accumulate(len(name) + 2 for name in names), strict=True)
            if end <= room]
    return f"{', '.join(name for name in known if name in fits)}, …"


def require_types(config: Any) -> None:
    """Refuse what is no number where a field is one: text, True, nan, a fraction of a rank.

    Fields of plain types, of tuples and of dicts of them are looked at; numbers become Python's own, of the
    field's type, and lists tuples, so that a configuration can be written to JSON and equal ones are written alike.

    Raises:
        ValueError: names the field, its value, and what it takes.
    """
    for f in dataclasses.fields(config):
        kind, value = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", ""), getattr(config, f.name)
        many = MANY.fullmatch(kind)
        kinds = {name.strip() for name in (many[2] if many else kind).split("|")}
        if not kinds <= WORDS.keys():
            continue
        if many:
            by_site = many[1] == "Mapping"
            holder = Mapping if by_site else (list, tuple)
            fits = isinstance(value, holder) and all(_is_one_of(kinds, item) for item in _items(value)) and (
                not by_site or all(isinstance(key, str) for key in value))
            shape = "a dict by site, each " if by_site else "a tuple, each "
        else:
            fits, shape = _is_one_of(kinds, value), ""
        words = " or ".join(WORDS[name] for name in WORDS if name in kinds)
        require(fits, f"{f.name} = {shown(value)} must be {shape}{words}")
        object.__setattr__(config, f.name, _plain(value, kinds))
        for number in _items(value) if many else [value]:
            if isinstance(number, numbers.Real):
                whole, size = isinstance(number, numbers.Integral), cast(Any, abs(number))
                least, most = (0.0, 2.0**31 - 1) if whole else (1 / LARGEST, LARGEST)
                require(not number or least <= size <= most, f"{f.name} = {shown(value)} must be " + (
                    "of a size below 2³¹" if whole else f"0, or of a size from {least:g} to {most:g}"))


def require_kind(name: str, value: Any, kinds: type | tuple[type, ...], takes: str) -> None:
    """Refuse an argument of another type where it is given, such as two that were swapped.

    Args: takes: what the argument is, in words.

    Raises:
        ValueError: `value` is of none of the kinds; names the argument, and the value or its type.
    """
    plain = value is None or isinstance(value, str | numbers.Number)
    given = shown(value) if plain else type(value).__name__
    require(isinstance(value, kinds), f"{name} must be {takes}, not {given}")


def require_seed(seed: Any) -> int:
    """The seed, as Python's own number; refuse what no generator can be started from.

    Raises:
        ValueError: it is no whole number from 0 to 2³¹ − 1.
    """
    require(_is_one_of({"int"}, seed) and 0 <= seed < 2**31,
            f"seed = {shown(seed)} must be a whole number from 0 to 2³¹ − 1")
    return int(seed)



def _items(values: Any) -> Sequence[Any]:
    return list(values.values()) if isinstance(values, Mapping) else values


def _plain(value: Any, kinds: set[str]) -> Any:
    """Python's own numbers, tuples and dicts; what is one already stays the same object."""
    if isinstance(value, Mapping):
        return {key: _plain(item, {"int", "float"}) for key, item in value.items()}
    if isinstance(value, list | tuple):
        made = tuple(_plain(item, {"int", "float"}) for item in value)
        return value if isinstance(value, tuple) and all(map(operator.is_, made, value)) else made
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    whole = isinstance(value, numbers.Integral) and "int" in kinds  # α = 16 is α = 16.0: one configuration
    return int(value) if whole else float(value)  # type: ignore[call-overload]


def _is_one_of(kinds: set[str], value: Any) -> bool:
    if value is None or isinstance(value, bool | str):
        return (type(value).__name__ if value is not None else "None") in kinds
    if isinstance(value, numbers.Integral) and "int" in kinds:
        return True
    return "float" in kinds and isinstance(value, numbers.Real) and _is_finite(value)


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


class LivenessError(Refusal, RuntimeError):
    """A method is not doing what it says; the message says what was found."""


class DivergedError(Refusal, RuntimeError):
    """The loss, or something that was learned, is not finite."""


class StoppedError(Refusal, RuntimeError):
    """A callback stopped the run; its checkpoint lets the same call go on."""
