"""How a dataclass looks in JSON, and which values its fields may have.

A class without a `Form` is an object with one entry per field, in order. What else it is says its
class attribute ``__json__``. Which values a field may have says its type, refined by the marks of
this module in ``Annotated``: the reader checks them (`json_reader.decode`), the schema tells them
(`json_schema.schema_of`).

A new optional field needs a default and a line in the docstring, and, where it is to be left out of
the JSON while it has that default, its name in ``Form.sparse``: then old files are read as before,
and written as before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Protocol, get_type_hints, runtime_checkable

__all__ = [
    "VERSION",
    "AtLeast",
    "Entries",
    "Form",
    "Length",
    "Mark",
    "Matches",
    "OneOf",
    "Where",
    "attributes_of",
    "form_of",
    "hints_of",
    "is_required",
]


VERSION = "schema_version"
"""The key of a document's version."""


@dataclass(frozen=True)
class Form:
    """The JSON of a dataclass.

    Args:
        keys: attributes in their order, where that is not the fields'; properties are written, and
            not read.
        names: attribute → its key, where that is another.
        whole: the one field whose JSON is that of the whole.
        array: an array of the fields' values in place of an object.
        sparse: fields that are left out where they have their default.
        keyed: a field with a mapping of objects → which of their fields is the key.
        gaps: numbers that are null where they are not finite.
        required: fields that a reader demands although they have a default or may be None.
        version: of the document, written first.
    """

    keys: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    whole: str | None = None
    array: bool = False
    sparse: frozenset[str] = frozenset()
    keyed: Mapping[str, str] = field(default_factory=dict)
    gaps: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    version: int | None = None

    def key(self, attribute: str) -> str:
        """The attribute's key."""
        return self.names.get(attribute, attribute)


_PLAIN = Form()


def form_of(kind: type) -> Form:
    """The form of a dataclass."""
    form = getattr(kind, "__json__", _PLAIN)
    assert isinstance(form, Form)
    return form


def attributes_of(kind: type) -> tuple[str, ...]:
    """What is written of a dataclass, in order."""
    return form_of(kind).keys or tuple(f.name for f in fields(kind))


@functools.cache
def hints_of(kind: type) -> Mapping[str, Any]:
    """Types of a dataclass's fields and properties, marks included."""
    hints = get_type_hints(kind, include_extras=True)
    for name in set(attributes_of(kind)) - set(hints):
        member = getattr(kind, name)
        get = member.fget if isinstance(member, property) else member.func
        hints[name] = get_type_hints(get, include_extras=True)["return"]
    return MappingProxyType(hints)


def is_required(kind: type, name: str, *, optional: bool) -> bool:
    """Whether a reader demands a field; ``optional``: it may be None."""
    spec = next(f for f in fields(kind) if f.name == name)
    if name in form_of(kind).required:
        return True
    return not optional and spec.default is MISSING and spec.default_factory is MISSING


@runtime_checkable
class Mark(Protocol):
    """A restriction of a type: what a value has to be, in words, and for the schema."""

    @property
    def expected(self) -> str:
        """What a value has to be."""

    def accepts(self, value: Any) -> bool:
        """Whether a value of the right type is one."""

    def schema(self) -> dict[str, Any]:
        """The same in a JSON schema's words; empty where it has none."""


@dataclass(frozen=True)
class AtLeast:
    """A number from ``least`` on, below ``end`` where that is given."""

    least: int
    end: int | None = None

    @property
    def expected(self) -> str:
        """What a value has to be."""
        return f"{self.least} or more" + ("" if self.end is None else f", below {self.end}")

    def accepts(self, value: Any) -> bool:
        """Whether a number is in the range."""
        return bool(value >= self.least and (self.end is None or value < self.end))

    def schema(self) -> dict[str, Any]:
        """Ends of the range."""
        end = {} if self.end is None else {"exclusiveMaximum": self.end}
        return {"minimum": self.least, **end}


@dataclass(frozen=True)
class OneOf:
    """One of these texts."""

    values: tuple[str, ...]

    @property
    def expected(self) -> str:
        """What a value has to be."""
        return ", ".join(self.values)

    def accepts(self, value: Any) -> bool:
        """Whether it is among them."""
        return value in self.values

    def schema(self) -> dict[str, Any]:
        """An enumeration."""
        return {"enum": list(self.values)}


@dataclass(frozen=True)
class Matches:
    """Text that a regular expression matches as a whole; ``do``: advice where it doesn't."""

    pattern: str
    expected: str
    do: str | None = None

    def accepts(self, value: Any) -> bool:
        """Whether it matches."""
        return re.fullmatch(self.pattern, value) is not None

    def schema(self) -> dict[str, Any]:
        """The pattern, with its ends."""
        return {"pattern": f"^{self.pattern}$"}


@dataclass(frozen=True)
class Length:
    """So many values, no more and no less."""

    count: int
    expected: str

    def accepts(self, value: Any) -> bool:
        """Whether there are so many."""
        return len(value) == self.count

    def schema(self) -> dict[str, Any]:
        """The count, twice."""
        return {"minItems": self.count, "maxItems": self.count}


@dataclass(frozen=True)
class Where:
    """Whatever a test accepts; a schema can't tell it."""

    test: Callable[[Any], bool]
    expected: str

    def accepts(self, value: Any) -> bool:
        """What the test says."""
        return self.test(value)

    def schema(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class Entries:
    """Of an open mapping: those of its entries that a dataclass has fields for are as the fields.

    The mapping stays what it is: entries that nobody knows are kept, and the order, too.
    """

    kind: type
