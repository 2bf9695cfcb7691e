"""Docstrings as the site renders them: Markdown, and one entry for each parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

__all__ = ["PlainDocstrings", "one_by_one", "without_roles"]

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$")


def without_roles(text: str) -> str:
    """The text with code in place of Sphinx's roles: ``:class:`x``` becomes ```x```."""
    return _ROLE.sub(r"`\1`", text)


def one_by_one(text: str) -> str:
    """The text with an entry of its own for each of ``a, b: of both``."""
    return "\n".join(line for entry in _entries(text.splitlines()) for line in _apart(entry))


def _entries(lines: list[str]) -> Iterator[list[str]]:
    """Lines that name several parameters with the deeper lines after them; every other alone."""
    rest = list(lines)
    while rest:
        entry = [rest.pop(0)]
        found = _SEVERAL.match(entry[0])
        while found and rest and rest[0].startswith(f"{found[1]}  "):
            entry.append(rest.pop(0))
        yield entry


def _apart(entry: list[str]) -> Iterator[str]:
    found = _SEVERAL.match(entry[0])
    if found is None:
        yield from entry
        return
    for name in found[2].split(", "):
        yield f"{found[1]}{name}: {found[3]}"
        yield from entry[1:]


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = one_by_one(without_roles(obj.docstring.value))
