"""Settings of generation as a client may give them: known names, and numbers and lists of a size
that a server can bear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crossfuse.errors import InputError
from crossfuse.runtime.generation.settings import GenerationSettings

__all__ = ["checked_parameters"]

_NOT_SETTINGS = ("context_id", "binary_data_output")
"""Parameters of the protocol."""
_LARGEST = 1 << 53
_DEPTH = 2
_MOST = 1024
"""Numbers in all lists together: each is looked at for every token."""


def checked_parameters(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among a request's parameters.

    Args:
        given: as the client sent them: plain data.
        defaults: the bundle's own.

    Raises:
        InputError: an unknown name, a value that is none of a setting, or a list that is too long.
    """
    settings = {name: value for name, value in given.items() if name not in _NOT_SETTINGS}
    found = 0
    for name, value in settings.items():
        numbers = list(_numbers(name, value))
        found += len(numbers) if isinstance(value, list) else 0
        if not all(-_LARGEST <= number <= _LARGEST for number in numbers):
            raise InputError("a setting of generation is out of range", where=name)
    if found > _MOST:
        raise InputError(
            "lists of settings are too long", got=f"{found} numbers", expected=f"at most {_MOST}"
        )
    GenerationSettings.of(settings, defaults)
    return settings


def _numbers(name: str, value: Any, depth: int = 0) -> Iterator[float]:
    """All numbers in a value: lists of lists are the deepest that a setting is."""
    if isinstance(value, list) and depth < _DEPTH:
        for one in value:
            yield from _numbers(name, one, depth + 1)
    elif isinstance(value, list | dict):
        raise InputError(
            "a setting of generation is wrong", where=name, got=f"a {type(value).__name__}"
        )
    elif isinstance(value, int | float):
        yield value
