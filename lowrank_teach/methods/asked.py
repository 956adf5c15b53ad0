"""Which values of a configuration were asked for, and which were left alone.

A value that equals its default can be asked for, too; a profile (`config.fit_to_profile`) and a composition set only
what nobody asked for. Equality, `vars` and what is written of a configuration know nothing of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from .checks import among, require, shown

M = TypeVar("M", bound="Asked")


class Asked:
    """A frozen dataclass that knows the names of the values that it was given."""

    name: ClassVar[str] = ""
    given: frozenset[str]
    __slots__ = ("__dict__", "__weakref__", "given")  # apart from the values, which stand in `__dict__`

    def __new__(cls: type[M], *args: Any, **values: Any) -> M:
        """Note which values are given: one that equals its default can be asked for, too."""
        made = super().__new__(cls)
        fields = _fields(cls)
        given = {f.name for f, _ in zip((f for f in fields if not f.kw_only), args, strict=False)} | values.keys()
        if given >= {f.name for f in fields}:  # dataclasses.replace hands over all; what is still the default's own
            given -= {f.name for f in fields if f.name in values and _is_default(f, values[f.name])}  # was left alone
        object.__setattr__(made, "given", frozenset(given))
        return made

    def changed(self: M, **values: Any) -> M:
        """The same with other values, which are asked for from here on; what was left alone stays so."""
        return self.rebuilt({**_values(self), **values}, self.given | values.keys())

    def filled(self: M, **values: Any) -> M:
        """The same with other values that nobody asked for."""
        return self.rebuilt({**_values(self), **values}, self.given)

    @classmethod
    def rebuilt(cls: type[M], values: Mapping[str, Any], given: Iterable[str]) -> M:
        """A configuration of these values, of which the ones named by `given` were asked for.

        Raises:
            ValueError: no value has such a name, or one is out of range.
        """
        fields, given = {f.name: f for f in _fields(cls)}, frozenset(given)
        for name in values.keys() - fields.keys():
            require(False, f"{cls.name} has no value {shown(name)}; it has {among(list(fields), str(name))}")
        made = cls.__new__(cls)
        object.__setattr__(made, "given", given)
        made.__init__(**{name: value for name, value in values.items()  # type: ignore[misc]
                         if name in given or value != fields[name].default})
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).rebuilt, (_values(self), self.given)


def _values(asked: Asked) -> dict[str, Any]:
    return {f.name: getattr(asked, f.name) for f in _fields(asked)}


def _fields(asked: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(asked) if f.init]


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    made = field.default_factory is not dataclasses.MISSING and value == field.default_factory()
    return made or value is field.default
