"""Dataclasses from JSON: strict, every field checked, because what is read may come from anywhere.

Types, marks and forms (`json_form`) say what a field may be; an error names the field's path. NaN
and infinity are refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar, Union

from crossfuse.core.json_form import (
    VERSION,
    Entries,
    Mark,
    Matches,
    attributes_of,
    form_of,
    hints_of,
    is_required,
)
from crossfuse.core.text import brief
from crossfuse.errors import CrossfuseError, InputError

__all__ = ["Origin", "decode", "decode_text", "is_optional"]

_SCALARS: tuple[type, ...] = (bool, int, float, str)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Origin:
    """What is read, for errors.

    Args:
        what: the document: "the manifest".
        where: the file.
        error: class of the error.
        broken: what to do where it can't be read.
        newer: what to do where a newer crossfuse wrote it.
    """

    what: str
    where: object
    error: type[InputError] = InputError
    broken: str | None = None
    newer: str | None = None


def decode_text(kind: type[Made], text: str, origin: Origin) -> Made:
    """Make a dataclass of JSON text.

    Raises:
        InputError: (of the origin's class) no JSON, NaN or infinity in it, or as `decode`.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant, parse_float=_finite_float)
    except (ValueError, RecursionError) as error:
        raise origin.error(
            f"{origin.what} is not valid JSON: {error}", where=origin.where, do=origin.broken
        ) from error
    return decode(kind, data, origin)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{brief(text, 30)} is beyond the range of numbers")
    return value


def decode(kind: type[Made], data: Any, origin: Origin, *, closed: bool = False) -> Made:
    """Make a dataclass of parsed JSON.

    Args:
        kind: the dataclass.
        data: parsed JSON.
        origin: what is read, for errors.
        closed: entries without a field are refused; otherwise they are passed over.

    Raises:
        InputError: (of the origin's class) a newer version, or naming the path of the first field
            that is missing or wrong.
    """
    made: Made = _Reader(origin, closed).instance(kind, data, "")
    return made


def is_optional(hint: Any) -> bool:
    """Whether a type, marked or not, includes None."""
    return type(None) in typing.get_args(_unmarked(hint))


def _unmarked(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


class _Reader:
    """Checks types on the way in; an error names the path of the field."""

    def __init__(self, origin: Origin, closed: bool) -> None:
        self.origin = origin
        self.closed = closed

    def read(self, hint: Any, data: Any, path: str) -> Any:
        """A value of the type."""
        outer = typing.get_origin(hint)
        if hint is Any:
            return data
        if outer is Annotated:
            return self.marked(hint, data, path)
        if outer in (Union, types.UnionType):
            return self.union(hint, data, path)
        if outer is tuple:
            return self.array(typing.get_args(hint), data, path)
        if outer is not None and issubclass(outer, Mapping):
            return self.mapping(typing.get_args(hint), data, path)
        if dataclasses.is_dataclass(hint):
            return self.instance(hint, data, path)
        return self.scalar(hint, data, path)

    def marked(self, hint: Any, data: Any, path: str) -> Any:
        inner, *marks = typing.get_args(hint)
        value = self.read(inner, data, path)
        for mark in marks:
            if isinstance(mark, Entries):
                self.entries(mark.kind, data, path)
            elif isinstance(mark, Mark) and value is not None and not mark.accepts(value):
                do = mark.do if isinstance(mark, Matches) else None
                self.fail(path, data, mark.expected, do)
        return value

    def union(self, hint: Any, data: Any, path: str) -> Any:
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        if data is None and len(arms) < len(typing.get_args(hint)):
            return None
        for arm in arms[:-1]:
            if _is_plainly(data, _unmarked(arm)):
                return self.read(arm, data, path)
        if len(arms) > 1 and not _is_plainly(data, _unmarked(arms[-1])):
            self.fail(path, data, " or ".join(_unmarked(arm).__name__ for arm in arms))
        return self.read(arms[-1], data, path)

    def array(self, items: Sequence[Any], data: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(data, list):
            self.fail(path, data, "a list")
        if items[-1] is Ellipsis:
            items = [items[0]] * len(data)
        if len(data) != len(items):
            self.fail(path, data, f"{len(items)} values")
        pairs = zip(items, data, strict=True)
        return tuple(self.read(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(pairs))

    def mapping(self, items: Sequence[Any], data: Any, path: str) -> dict[str, Any]:
        name_hint, hint = items
        return {
            self.read(name_hint, name, f"{path}.{name}"): self.read(hint, item, f"{path}.{name}")
            for name, item in self.entries_of(data, path).items()
        }

    def entries_of(self, data: Any, path: str) -> Mapping[str, Any]:
        if not isinstance(data, dict):
            self.fail(path, data, "an object")
        return data

    def entries(self, kind: type, data: Any, path: str) -> None:
        """Check those entries of an open mapping that the dataclass has fields for."""
        if data is not None:
            _Reader(self.origin, closed=False).fields(kind, self.entries_of(data, path), path)

    def instance(self, kind: Any, data: Any, path: str) -> Any:
        form = form_of(kind)
        if form.whole is not None:
            value = self.read(hints_of(kind)[form.whole], data, path)
            return self.make(kind, {form.whole: value}, path)
        if form.array:
            hints = [hints_of(kind)[name] for name in attributes_of(kind)]
            values = self.array(hints, data, path)
            return self.make(kind, dict(zip(attributes_of(kind), values, strict=True)), path)
        given = self.entries_of(data, path)
        if form.version is not None:
            self.version(form.version, given)
        return self.make(kind, self.fields(kind, given, path), path)

    def version(self, known: int, data: Mapping[str, Any]) -> None:
        found = data.get(VERSION)
        if type(found) is int and found > known:
            raise self.origin.error(
                f"{self.origin.what} was written by a newer crossfuse",
                where=self.origin.where,
                got=f"schema version {found}",
                expected=f"at most {known}",
                do=self.origin.newer,
            )
        if VERSION not in data:
            self.fail(VERSION, "nothing", known)
        if type(found) is not int or found != known:
            self.fail(VERSION, found, known)

    def fields(self, kind: type, data: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Values of a dataclass's fields, without those that are left to their defaults."""
        form, hints = form_of(kind), hints_of(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        known = {form.key(name) for name in attributes_of(kind)} | {VERSION}
        if self.closed and (unknown := sorted(set(data) - known)):
            self.fail(_joined(path, unknown[0]), "an unknown entry", ", ".join(sorted(known)))
        found: dict[str, Any] = {}
        for name in names:
            key, hint = form.key(name), hints[name]
            optional = is_optional(hint)
            if key not in data:
                if is_required(kind, name, optional=optional):
                    self.fail(_joined(path, key), "nothing", _called(hint))
                if optional:
                    found[name] = None
            elif name in form.keyed:
                found[name] = self.keyed(hint, form.keyed[name], data[key], _joined(path, key))
            else:
                found[name] = self.read(hint, data[key], _joined(path, key))
        return found

    def keyed(self, hint: Any, field: str, data: Any, path: str) -> dict[str, Any]:
        """A mapping of objects, one of whose fields is the key."""
        name_hint, kind = typing.get_args(_unmarked(hint))
        found = {}
        for name, item in self.entries_of(data, path).items():
            at = f"{path}.{name}"
            self.read(name_hint, name, at)
            found[name] = self.instance(kind, {**self.entries_of(item, at), field: name}, at)
        return found

    def make(self, kind: Any, values: Mapping[str, Any], path: str) -> Any:
        try:
            return kind(**values)
        except CrossfuseError as error:
            raise self.origin.error(
                f"{self.origin.what} is invalid: {error}", where=self.at(path)
            ) from error

    def scalar(self, kind: Any, data: Any, path: str) -> Any:
        if kind is float and type(data) is int:
            return float(data)
        if not _is_plainly(data, kind) or (kind is float and not math.isfinite(data)):
            self.fail(path, data, kind.__name__)
        return data

    def at(self, path: str) -> str:
        return f"{self.origin.where}, {path}" if path else str(self.origin.where)

    def fail(self, path: str, got: object, expected: object, do: str | None = None) -> NoReturn:
        raise self.origin.error(
            f"{self.origin.what} is invalid",
            where=self.at(path or self.origin.what),
            got=_shown(got),
            expected=expected,
            do=do,
        )


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_plainly(data: Any, kind: Any) -> bool:
    """Whether parsed JSON has a scalar type: no bool is a number."""
    return isinstance(data, kind) and (kind is bool or not isinstance(data, bool))


def _called(hint: Any) -> str:
    plain = _unmarked(hint)
    if plain in _SCALARS:
        return str(plain.__name__)
    return "a list" if typing.get_origin(plain) is tuple else "an object"


def _shown(got: object) -> str:
    """A value in an error: of containers only what they are."""
    if isinstance(got, float) and not math.isfinite(got):
        return "'a number that is not finite'"
    if isinstance(got, dict):
        return "an object"
    return f"a list of {len(got)}" if isinstance(got, list) else brief(repr(got), 200)
