"""A value, and where it is from.

Three kinds of source are kept apart: `paper`, what its text says; `code`, what its authors' scripts say, or those of
the work whose configuration it says that it takes; `ours`, what neither gives, with the reason for our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("paper", "code", "ours")


@dataclass(frozen=True)
class Setting:
    """One value; kind is one of KINDS; source says where it stands, or why we chose it."""

    value: Any
    kind: str
    source: str


Settings = Mapping[str, Setting]


def paper(value: Any, source: str = "the paper's text") -> Setting:
    return Setting(value, "paper", source)


def code(value: Any, source: str) -> Setting:
    return Setting(value, "code", source)


def ours(value: Any, why: str) -> Setting:
    return Setting(value, "ours", why)
