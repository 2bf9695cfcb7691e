"""JSON schemas of dataclasses, from what reads and writes them: types, marks, forms, docstrings.

Descriptions are the texts of ``Attributes:`` and ``Args:`` in the docstrings, and a class's first
sentence.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union

from crossfuse.core.json_form import (
    VERSION,
    Entries,
    Mark,
    attributes_of,
    form_of,
    hints_of,
    is_required,
)
from crossfuse.core.json_reader import is_optional

__all__ = ["schema_of", "schema_text", "write_schema"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_SECTION = re.compile(r"^ *(?:Attributes|Args):\n((?: +.*\n?|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def schema_of(kind: type, title: str, *, closed: bool = False) -> dict[str, Any]:
    """The schema of a dataclass's JSON.

    Args:
        kind: the dataclass.
        title: of the schema.
        closed: no further entries are allowed, and all but the sparse ones are required: what is
            only written, and by this version.
    """
    writer = _Schema(closed)
    top = writer.object(kind)
    return {"$schema": _DRAFT, "title": title, **top, "$defs": dict(sorted(writer.defs.items()))}


def schema_text(kind: type, title: str, *, closed: bool = False) -> str:
    """The schema as text, as it stands in the package."""
    return json.dumps(schema_of(kind, title, closed=closed), indent=1, ensure_ascii=False) + "\n"


def write_schema(path: Path, text: str) -> None:
    """Write a schema where it changed."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


class _Schema:
    def __init__(self, closed: bool) -> None:
        self.closed = closed
        self.defs: dict[str, dict[str, Any]] = {}

    def of(self, hint: Any) -> dict[str, Any]:
        """Of a type."""
        outer = typing.get_origin(hint)
        if hint is Any:
            return {}
        if outer is Annotated:
            return self.marked(hint)
        if outer in (Union, types.UnionType):
            return self.union(typing.get_args(hint))
        if outer is tuple:
            return self.array(typing.get_args(hint))
        if outer is not None and issubclass(outer, Mapping):
            return self.mapping(typing.get_args(hint))
        if dataclasses.is_dataclass(hint):
            return self.reference(hint)
        return {"type": _TYPES[hint]}

    def marked(self, hint: Any) -> dict[str, Any]:
        inner, *marks = typing.get_args(hint)
        known = [mark.kind for mark in marks if isinstance(mark, Entries)]
        refined: dict[str, Any] = {}
        for mark in marks:
            if isinstance(mark, Mark):
                refined |= mark.schema()
        if known:
            inner_schema = self.reference(known[0], is_open=True)
            return self.nullable(inner_schema) if is_optional(inner) else inner_schema
        if is_optional(inner):
            arms = [arm for arm in typing.get_args(inner) if arm is not type(None)]
            return self.nullable(self.of(arms[0]) | refined)
        return self.of(inner) | refined

    def nullable(self, schema: dict[str, Any]) -> dict[str, Any]:
        if set(schema) - {"enum"} and isinstance(schema.get("type"), str):
            return schema | {"type": [schema["type"], "null"]}
        return {"anyOf": [schema, {"type": "null"}]}

    def union(self, arms: tuple[Any, ...]) -> dict[str, Any]:
        rest = [arm for arm in arms if arm is not type(None)]
        found = self.of(rest[0]) if len(rest) == 1 else {"anyOf": [self.of(arm) for arm in rest]}
        return found if len(rest) == len(arms) else self.nullable(found)

    def array(self, items: tuple[Any, ...]) -> dict[str, Any]:
        if items[-1] is Ellipsis:
            return {"type": "array", "items": self.of(items[0])}
        return {
            "type": "array",
            "prefixItems": [self.of(item) for item in items],
            "minItems": len(items),
            "maxItems": len(items),
        }

    def mapping(self, items: tuple[Any, ...]) -> dict[str, Any]:
        names = self.of(items[0])
        restricted = {} if names == {"type": "string"} else {"propertyNames": names}
        values = self.of(items[1])
        return {
            "type": "object",
            **restricted,
            **({"additionalProperties": values} if values else {}),
        }

    def reference(
        self, kind: Any, *, without: str | None = None, is_open: bool = False
    ) -> dict[str, Any]:
        """A reference to a dataclass's schema, which is made where it isn't there yet."""
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()
        name += "" if without is None else f"_by_{without}"
        if name not in self.defs:
            self.defs[name] = {}
            self.defs[name] = self.object(kind, without=without, is_open=is_open)
        return {"$ref": f"#/$defs/{name}"}

    def object(
        self, kind: Any, *, without: str | None = None, is_open: bool = False
    ) -> dict[str, Any]:
        form, hints, texts = form_of(kind), hints_of(kind), _texts_of(kind)
        summary = _summary(kind)
        if form.whole is not None:
            return summary | self.of(hints[form.whole])
        names = [name for name in attributes_of(kind) if name != without]
        if form.array:
            return summary | self.array(tuple(hints[name] for name in names))
        known: dict[str, Any] = {}
        required: list[str] = []
        if form.version is not None:
            known[VERSION] = {"const": form.version}
            required.append(VERSION)
        for name in names:
            if name in form.keyed:
                found = self.keyed(hints[name], form.keyed[name])
            elif name in form.gaps:
                found = self.nullable(self.of(hints[name]))
            else:
                found = self.of(hints[name])
            described = {"description": texts[name]} if name in texts else {}
            known[form.key(name)] = described | found
            if self.is_required(kind, name, hints[name], is_open=is_open):
                required.append(form.key(name))
        return {
            **summary,
            "type": "object",
            **({"required": required} if required else {}),
            "properties": known,
            **({"additionalProperties": False} if self.closed and not is_open else {}),
        }

    def is_required(self, kind: Any, name: str, hint: Any, *, is_open: bool) -> bool:
        if self.closed and not is_open:
            return name not in form_of(kind).sparse
        known = {f.name for f in dataclasses.fields(kind)}
        return name in known and is_required(kind, name, optional=is_optional(hint))

    def keyed(self, hint: Any, field: str) -> dict[str, Any]:
        """Of a mapping of objects, one of whose fields is the key."""
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        names, value = typing.get_args(inner)
        found = self.mapping((names, Any))
        return found | {"additionalProperties": self.reference(value, without=field)}


def _summary(kind: type) -> dict[str, str]:
    """A class's first sentence, where somebody wrote one."""
    text = inspect.getdoc(kind) or ""
    written = text and not text.startswith(f"{kind.__name__}(")
    return {"description": _sentence(text)} if written else {}


def _sentence(text: str) -> str:
    """The first paragraph."""
    return " ".join(text.partition("\n\n")[0].split())


def _texts_of(kind: type) -> dict[str, str]:
    """Attribute → what the docstrings say about it."""
    found = dict(_entries(inspect.getdoc(kind) or ""))
    for name in attributes_of(kind):
        member = getattr(kind, name, None)
        get = getattr(member, "fget", None) or getattr(member, "func", None)
        if get is not None and get.__doc__:
            found[name] = _sentence(inspect.getdoc(get) or "")
    return found


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Names and texts in a docstring's section of attributes."""
    section = _SECTION.search(re.sub(r"\bNone\b", "null", text) + "\n")
    if section is None:
        return
    lines = inspect.cleandoc(section[1]).splitlines()
    joined: list[str] = []
    for line in lines:
        if line.startswith(" ") and joined:
            joined[-1] += " " + line.strip()
        elif line.strip():
            joined.append(line)
    for line in joined:
        if entry := _ENTRY.match(line):
            for name in entry["names"].split(", "):
                yield name, entry["text"]
