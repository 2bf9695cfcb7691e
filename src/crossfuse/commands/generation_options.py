"""Settings of generation as options of commands: ``NAME=VALUE``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from crossfuse.errors import InputError

__all__ = ["named_settings"]


def named_settings(named: Iterable[str]) -> dict[str, Any]:
    """Settings by name; values are JSON, or texts.

    Raises:
        InputError: what is no ``NAME=VALUE``.
    """
    found: dict[str, Any] = {}
    for one in named:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InputError("a setting has to be NAME=VALUE", where="--set", got=one)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
