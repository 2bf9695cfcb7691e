"""Docstrings as Markdown: ``:class:`x``` becomes ```x```, in everything that the site renders."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["PlainRoles", "without_roles"]

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")


def without_roles(text: str) -> str:
    """The text with code in place of Sphinx's roles."""
    return _ROLE.sub(r"`\1`", text)


class PlainRoles(griffe.Extension):
    """Takes the roles out of each docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)
