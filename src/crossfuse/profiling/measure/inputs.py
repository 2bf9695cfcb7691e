"""Inputs at any sizes of the named dimensions, from those that a bundle carries: no model and no
PyTorch needed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.dimensions import size_at
from crossfuse.core.tensors import CONTEXTS, Dim, TensorSpec
from crossfuse.errors import InputError, unknown

__all__ = ["inputs_at", "parse_sweep", "sweep_points"]


def parse_sweep(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read ``NAME=SIZE,SIZE,…``, one dimension each.

    Raises:
        InputError: it can't be read.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        sizes = numbers.split(",")
        if not name or not all(size.strip().isdigit() for size in sizes):
            raise InputError("a sweep can't be read", got=repr(text), expected="NAME=SIZE,SIZE,…")
        found[name] = tuple(int(size) for size in sizes)
    return found


def sweep_points(
    sweep: Mapping[str, Sequence[int]],
    example: Mapping[str, int],
    dims: Mapping[str, Dim],
    shared_batch: str | None,
) -> list[dict[str, int]]:
    """All combinations of the swept sizes; the other dimensions have the example's.

    Contexts follow the queries' batch.

    Raises:
        InputError: an unknown dimension, or a size outside its range.
    """
    for name in sweep:
        if name not in dims:
            raise unknown("a sweep names an unknown dimension", name, dims)
    points = []
    for sizes in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, sizes, strict=True))
        for name, size in chosen.items():
            dims[name].check(size, f"sweep of {name}")
        point = {**example, **chosen}
        if shared_batch is not None and CONTEXTS not in chosen:
            point[CONTEXTS] = point[shared_batch]
        points.append(point)
    return points


def inputs_at(
    specs: Sequence[TensorSpec], known: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """The known inputs, repeated or cut along each axis to the sizes: their values stay what the
    model takes.

    Raises:
        InputError: a size that the named dimensions don't determine.
    """
    made = {}
    for spec in specs:
        array = known[spec.name]
        for axis, size in enumerate(spec.shape):
            length = size_at(size, sizes)
            if length is None:
                raise InputError(
                    "a size is not determined by the named dimensions", where=spec.name, got=size
                )
            if length != array.shape[axis]:
                array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
        made[spec.name] = np.ascontiguousarray(array.astype(spec.dtype, copy=False))
    return made
