"""A call's inputs as the session's tensors have them: by flat names.

A model's argument may be a container; its tensors are inputs ``a.b`` (a key or field) and ``a.0``
(a place). A call may give them so, or in containers as the model takes them. An argument that is no
tensor is part of what was exported: it may be given with its value, or left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from crossfuse.errors import InputError

__all__ = ["GivenInputs", "given_by_name"]


def given_by_name(inputs: object, named: dict[str, Any]) -> Mapping[str, Any]:
    """A call's inputs: its one mapping, or its keywords.

    Raises:
        InputError: both, or something else than a mapping.
    """
    if inputs is None:
        return named
    if not isinstance(inputs, Mapping):
        got = type(inputs).__name__
        raise InputError(
            "inputs are given by name",
            got=got,
            expected="keywords, or one mapping from names to arrays",
        )
    if named:
        raise InputError(
            "inputs are given twice, in a mapping and as keywords",
            got=", ".join(named),
            do="Put all of them into the mapping",
        )
    # Another mapping may make its values anew at each access.
    return inputs if type(inputs) is dict else dict(inputs)


class GivenInputs:
    """Reads the inputs of calls.

    Args:
        names: of all the session's inputs.
        constants: arguments of the model that are no tensors, by flat names, with their values.
    """

    def __init__(self, names: Collection[str], constants: Mapping[str, Any]) -> None:
        self._names = frozenset(names)
        self._constants = constants

    def __call__(self, inputs: object, named: dict[str, Any]) -> Mapping[str, Any]:
        """A call's one mapping, or its keywords, by flat names; what no input is called stays, so
        that the check of names tells it.

        Raises:
            InputError: both, something else than a mapping, or a constant with another value.
        """
        given = given_by_name(inputs, named)
        if given.keys() <= self._names:
            return given
        return dict(self._flat(given.items()))

    def _flat(self, given: Collection[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for name, value in given:
            if name in self._names:
                yield name, value
                continue
            if name in self._constants:
                _require_equal(name, value, self._constants[name])
                continue
            inside = _inside(value) if self._has_inside(name) else None
            if inside is None:
                yield name, value
                continue
            items = [(f"{name}.{part}", item) for part, item in inside.items()]
            # What a container leaves open is no input.
            yield from self._flat([i for i in items if i[1] is not None or i[0] in self._constants])

    def _has_inside(self, name: Any) -> bool:
        return any(known.startswith(f"{name}.") for known in (*self._names, *self._constants))


def _inside(value: object) -> dict[str, Any] | None:
    """What a container holds, by key, field or place; None of anything else."""
    if isinstance(value, Mapping):
        return {f"{key}": item for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return {str(i): item for i, item in enumerate(value)}
    return None


def _require_equal(name: str, value: Any, constant: Any) -> None:
    if value is None or constant is None:
        same = value is constant
    else:
        array = np.asarray(value)
        own = np.asarray(constant)
        if array.dtype.kind == "f" and isinstance(constant, int | float):
            own = own.astype(array.dtype)  # as a number is rounded that comes in fewer bits
        same = array.ndim == 0 and bool(array == own or str(array) == str(own))
    if not same:
        raise InputError(
            "an argument that is no tensor has another value than the one that was exported",
            where=name,
            got=repr(value),
            expected=repr(constant),
            do="Leave it out, or export the model again with that value, or with a tensor in its "
            "place",
        )
