"""Short name -> configuration of a method. A name may be listed before its file is imported.

Methods that stand on another library are kept out of the core: only their names and homes are listed here, and
the home is imported when its configuration is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Method


class Registry(MutableMapping[str, "type[Method]"]):
    """A dict of methods by name, in teaching order; `later` lists one that its own module will put in."""

    def __init__(self) -> None:
        self._made: dict[str, type[Method] | None] = {}
        self._homes: dict[str, str] = {}

    def later(self, name: str, module: str) -> None:
        """List a name whose configuration the module (a full dotted name) defines."""
        self._homes[name] = module
        self._made.setdefault(name, None)

    def __getitem__(self, name: str) -> type[Method]:
        if self._made[name] is None:
            import_module(self._homes[name])
        found = self._made[name]
        if found is None:
            raise KeyError(f"{self._homes[name]} was imported and has no method named {name!r}")
        return found

    def __setitem__(self, name: str, method: type[Method]) -> None:
        self._made[name] = method

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._made  # without importing anything

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
