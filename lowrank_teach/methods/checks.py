"""What a configuration may hold: every field is checked against its own type when the configuration is built."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

WORDS = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "a text",
         "None": "null"}
MANY = re.compile(r"(tuple|Mapping)\[(?:str, )?(.+?)(?:, \.\.\.)?\]")


def require(holds: bool, says: str) -> None:
    """Refuse with a sentence that says what to do.

    Raises:
        ValueError: `holds` is false.
    """
    if not holds:
        raise ValueError(says)


def require_types(config: Any) -> None:
    """Refuse what is no number where a field is one: text, True, nan, a fraction of a rank.

    Fields of plain types, of tuples and of dicts of them are looked at; numbers become Python's own, of the
    field's type, so that a configuration can be written to JSON and equal ones are written alike.

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
            holder = Mapping if many[1] == "Mapping" else (list, tuple)
            items = value.values() if isinstance(value, Mapping) else value
            fits = isinstance(value, holder) and all(_is_one_of(kinds, item) for item in items)
            shape = "a dict by site, each " if many[1] == "Mapping" else "a tuple, each "
        else:
            fits, shape = _is_one_of(kinds, value), ""
        words = " or ".join(WORDS[name] for name in WORDS if name in kinds)
        require(fits, f"{f.name} = {value!r} must be {shape}{words}")
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            whole = isinstance(value, numbers.Integral) and "int" in kinds  # α = 16 is α = 16.0: one configuration
            plain: int | float = int(value) if whole else float(value)  # type: ignore[call-overload]
            object.__setattr__(config, f.name, plain)


def require_unused(config: Any, instead: str, fields: tuple[str, ...] = ("r", "lora_alpha", "lora_dropout", "init")
                   ) -> None:
    """Refuse a value that every method has a field for and this one does not use.

    Raises:
        ValueError: such a field is not at its default.
    """
    for f in dataclasses.fields(config):
        require(f.name not in fields or getattr(config, f.name) == f.default,
                f"{config.name} has no use for {f.name}; its size is {instead}")


def _is_one_of(kinds: set[str], value: Any) -> bool:
    if value is None or isinstance(value, bool | str):
        return (type(value).__name__ if value is not None else "None") in kinds
    wanted = numbers.Real if "float" in kinds else numbers.Integral
    return bool({"int", "float"} & kinds) and isinstance(value, wanted) and math.isfinite(value)
