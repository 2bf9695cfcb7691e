"""Optimization profiles: the smallest, the typical and the largest shape of every input of an
engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from crossfuse.core.dimensions import size_at
from crossfuse.core.tensors import CONTEXTS, Dim, TensorSpec
from crossfuse.errors import InputError

__all__ = ["InputShapes", "ProfileSizes", "input_shapes", "parse_profile", "profile_sizes"]

ProfileSizes = Mapping[str, tuple[int, int, int]]
"""Dimension → smallest, typical and largest size."""

InputShapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Input → smallest, typical and largest shape."""

_LEAST_MAX = 8
_GROWTH = 4


def parse_profile(text: str) -> dict[str, tuple[int, ...]]:
    """Read ``NAME=SIZE,NAME=MIN:OPT:MAX,…``.

    Raises:
        InputError: it can't be read.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, _, numbers = part.strip().partition("=")
        values = numbers.split(":")
        if not name or len(values) not in (1, 3) or not all(v.isdigit() for v in values):
            raise InputError(
                "profile shapes can't be read",
                got=repr(text),
                expected="NAME=SIZE or NAME=MIN:OPT:MAX, by commas",
            )
        sizes[name] = tuple(int(v) for v in values)
    return sizes


def profile_sizes(
    dims: Mapping[str, Dim],
    example: Mapping[str, int],
    requested: Sequence[Mapping[str, Sequence[int]]] = (),
    shared_batch: str | None = None,
) -> list[dict[str, tuple[int, int, int]]]:
    """One profile per requested one, or a single one over the whole ranges.

    A dimension that a profile leaves out takes its range, with the example's size as the typical
    one; without a maximum, it goes up to four times the example's size, 8 at least. One size given
    means just this size. Contexts that are left out follow the queries' batch, ``shared_batch``,
    which must be a multiple of them.

    Raises:
        InputError: an unknown dimension, or sizes outside its range or out of order.
    """
    profiles = []
    for given in requested or [{}]:
        unknown = sorted(set(given) - set(dims))
        if unknown:
            known = ", ".join(dims) or "none"
            raise InputError(
                "a profile names unknown dimensions", got=", ".join(unknown), expected=known
            )
        sizes = {
            name: _sizes(dim, example.get(name, max(1, dim.min)), given.get(name))
            for name, dim in dims.items()
        }
        if shared_batch is not None and CONTEXTS not in given:
            _, typical, largest = sizes[shared_batch]
            sizes[CONTEXTS] = (1, math.gcd(typical, example.get(CONTEXTS, 1)), largest)
        profiles.append(sizes)
    return profiles


def input_shapes(inputs: Iterable[TensorSpec], sizes: ProfileSizes) -> InputShapes:
    """The shapes of a stage's inputs in one profile.

    Raises:
        InputError: a shape that depends on something else than the named dimensions.
    """
    shapes: InputShapes = {}
    for spec in inputs:
        ends = []
        for i in range(3):
            at = {name: triple[i] for name, triple in sizes.items()}
            ends.append(tuple(_size(spec, size, at) for size in spec.shape))
        shapes[spec.name] = (ends[0], ends[1], ends[2])
    return shapes


def _size(spec: TensorSpec, size: int | str, at: Mapping[str, int]) -> int:
    found = size if isinstance(size, int) else size_at(size, at)
    if found is None:
        raise InputError(
            "a size is not determined by the named dimensions",
            where=spec.name,
            got=size,
            expected=", ".join(at),
        )
    return found


def _sizes(dim: Dim, typical: int, given: Sequence[int] | None) -> tuple[int, int, int]:
    if given is None:
        largest = dim.max or max(_LEAST_MAX, _GROWTH * typical)
        # Engines are never asked about what is empty.
        least = max(1, dim.min)
        found = (least, min(max(typical, least), largest), largest)
    else:
        found = (
            (given[0], given[0], given[0]) if len(given) == 1 else (given[0], given[1], given[2])
        )
    if not dim.min <= found[0] <= found[1] <= found[2] or (
        dim.max is not None and found[2] > dim.max
    ):
        raise InputError(
            "a profile's sizes are out of order or outside the dimension's range",
            where=dim.name,
            got=":".join(map(str, found)),
            expected=f"MIN ≤ OPT ≤ MAX within {dim}",
        )
    return found
