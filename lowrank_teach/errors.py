"""Errors that the package raises on purpose, printed by the command line without a traceback; checks of arguments."""

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
from typing import Any, cast

MOST_LETTERS = 300   # length of a message
LIST = re.compile(r"(?:[^\s,;:()\[\]{}]{1,60}, ){5,}")
LONG_WORD = re.compile(r"(\S{40})\S{20,}(\S{10})")


class Refusal(Exception):
    """Something cannot be done; the message names the reason and the remedy."""


class LivenessError(Refusal, RuntimeError):
    """A method does not do what it should; the message says what was found."""


class DivergedError(Refusal, RuntimeError):
    """The loss or a trained value is not finite."""


class StoppedError(Refusal, RuntimeError):
    """A callback stopped the run; the same call continues from its checkpoint."""


def sentence(message: str) -> str:
    """Shorten a message to MOST_LETTERS: keep the first items of long lists and both ends of long words."""
    message = brief(LIST.sub(_first_items, message) if len(message) > MOST_LETTERS else message)
    ends = MOST_LETTERS * 2 // 3, MOST_LETTERS // 3 - 3
    return message if len(message) <= MOST_LETTERS else f"{message[:ends[0]]} … {message[-ends[1]:]}"


def brief(message: str) -> str:
    """Cut the middle out of long words, such as paths, in a message that is longer than MOST_LETTERS."""
    return LONG_WORD.sub(r"\1…\2", message) if len(message) > MOST_LETTERS else message


def _first_items(found: re.Match[str]) -> str:
    items = found[0].split(", ")[:-1]
    return f"{', '.join(items[:4])}, … ({len(items) - 4} more) … "


class _Shown(reprlib.Repr):
    """A short `repr` of any value for a message; a very long integer is described by its number of bits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 60, 60, 40

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if abs(value) < 10**40 else f"a number of {value.bit_length()} bits"


shown = _Shown().repr


# ---- checks of configurations and arguments ------------------------------------------------------------------

TYPE_NAMES = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "a text",
              "None": "null"}
CONTAINER = re.compile(r"(tuple|Mapping)\[(?:str, )?(.+?)(?:, \.\.\.)?\]")
LARGEST = 1e30       # the largest size of a float; 1 / LARGEST is the smallest above 0. Both are safe in float32


def require(holds: bool, message: str) -> None:
    """Raise ValueError with the shortened message unless a condition holds."""
    if not holds:
        raise ValueError(sentence(message))


def among(known: Sequence[str], like: str = "") -> str:
    """Join the names to choose among; if they are too many, take those nearest to `like` and the shortest ones."""
    near = difflib.get_close_matches(like, known, 3)
    room, names = MOST_LETTERS // 2, [*near, *sorted(set(known) - set(near), key=lambda name: (len(name), name))]
    if sum(len(name) + 2 for name in known) <= room:
        return ", ".join(known)
    fits = [name for name, end in zip(names, itertools.accumulate(len(name) + 2 for name in names), strict=True)
            if end <= room]
    return f"{', '.join(name for name in known if name in fits)}, …"


def require_types(config: Any) -> None:
    """Check the fields of a dataclass against their types, as far as these are plain, or tuples or dicts of such.

    Numbers are converted to Python's own numbers of the field's type, and lists to tuples, so that a configuration
    can be written to JSON and equal configurations give equal files.

    Raises:
        ValueError: names the field, its value, and what the field takes.
    """
    for f in dataclasses.fields(config):
        kind, value = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", ""), getattr(config, f.name)
        many = CONTAINER.fullmatch(kind)
        kinds = {name.strip() for name in (many[2] if many else kind).split("|")}
        if not kinds <= TYPE_NAMES.keys():
            continue
        if many:
            by_site = many[1] == "Mapping"
            holder = Mapping if by_site else (list, tuple)
            fits = isinstance(value, holder) and all(_is_one_of(kinds, item) for item in _items(value)) and (
                not by_site or all(isinstance(key, str) for key in value))
            shape = "a dict by site, each " if by_site else "a tuple, each "
        else:
            fits, shape = _is_one_of(kinds, value), ""
        takes = " or ".join(TYPE_NAMES[name] for name in TYPE_NAMES if name in kinds)
        require(fits, f"{f.name} = {shown(value)} must be {shape}{takes}")
        object.__setattr__(config, f.name, _plain(value, kinds))
        for number in _items(value) if many else [value]:
            if isinstance(number, numbers.Real):
                whole, size = isinstance(number, numbers.Integral), cast(Any, abs(number))
                least, most = (0.0, 2.0**31 - 1) if whole else (1 / LARGEST, LARGEST)
                require(not number or least <= size <= most, f"{f.name} = {shown(value)} must be " + (
                    "of a size below 2³¹" if whole else f"0, or of a size from {least:g} to {most:g}"))


def require_kind(name: str, value: Any, kinds: type | tuple[type, ...], takes: str) -> None:
    """Refuse an argument of a wrong type, such as one of two that were swapped.

    takes: a description of what the argument must be.

    Raises:
        ValueError: `value` is not an instance of `kinds`; names the argument, and the value or its type.
    """
    plain = value is None or isinstance(value, str | numbers.Number)
    given = shown(value) if plain else type(value).__name__
    require(isinstance(value, kinds), f"{name} must be {takes}, not {given}")


def require_seed(seed: Any) -> int:
    """Return the seed as an int.

    Raises:
        ValueError: the seed is not a whole number from 0 to 2³¹ − 1.
    """
    require(_is_one_of({"int"}, seed) and 0 <= seed < 2**31,
            f"seed = {shown(seed)} must be a whole number from 0 to 2³¹ − 1")
    return int(seed)


def _items(values: Any) -> Sequence[Any]:
    return list(values.values()) if isinstance(values, Mapping) else values


def _plain(value: Any, kinds: set[str]) -> Any:
    """Convert numbers, lists and dicts to Python's int, float, tuple and dict; keep the object if nothing changes."""
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
    except OverflowError:  # an integer that is too large for a float
        return False
