"""Arrow columns to arrays and back: nested lists and tensor types, a row each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError

__all__ = ["to_array", "to_column"]

_PERMUTATION = re.compile(r"permutation=(\[[\d, ]*\]?)")


def to_array(scalar: pa.Scalar, spec: TensorSpec, shape: Sequence[int | str]) -> NDArray[Any]:
    """A row's value as an array of a tensor's element type.

    Args:
        scalar: a number, nested lists of numbers, or a tensor, whose axes stand in the order of its
            permutation.
        spec: of the input.
        shape: that the row must have; one list may stand for it if a single size of it is open.

    Raises:
        InputError: nothing there, ragged lists, or numbers that the element type can't hold.
    """
    if not scalar.is_valid:
        raise InputError("a value is missing", where=spec.name)
    stored = _stored(scalar, spec)
    values, sizes = _flat(stored.values, spec)
    if values.null_count:
        raise InputError("a value is missing", where=spec.name, got=f"{values.null_count} nulls")
    array = _cast(values.to_numpy(zero_copy_only=False), spec)
    if stored.shape is not None:
        if prod(stored.shape) != array.size:
            raise InputError(
                "a tensor has another shape than its data",
                where=spec.name,
                got=f"{array.size} numbers",
                expected=list(stored.shape),
            )
        array = _in_order(array.reshape(stored.shape), stored.permutation, shape, spec)
        sizes = array.shape
    return np.asarray(array.reshape(_fitting(sizes, array.size, shape, spec)), order="C")


class _Stored(NamedTuple):
    """How a value lies in its column: a number or lists; of a tensor, the shape of what is stored,
    and the order that its axes are to be read in."""

    values: pa.Scalar
    shape: tuple[int, ...] | None = None
    permutation: tuple[int, ...] | None = None


def _stored(scalar: pa.Scalar, spec: TensorSpec) -> _Stored:
    shape: tuple[int, ...] | None = None
    permutation: tuple[int, ...] | None = None
    if isinstance(scalar, pa.ExtensionScalar):
        shape = tuple(getattr(scalar.type, "shape", None) or ()) or None
        permutation = _permutation(scalar.type, spec)
        scalar = scalar.value
    # Tensors of any shape are stored with it.
    if pa.types.is_struct(scalar.type) and {field.name for field in scalar.type} == {
        "data",
        "shape",
    }:
        shape, scalar = tuple(scalar["shape"].as_py() or ()), scalar["data"]
        if not scalar.is_valid:
            raise InputError("a value is missing", where=spec.name)
    if permutation is not None and sorted(permutation) != list(range(len(shape or ()))):
        raise InputError("a tensor's permutation is none", where=spec.name, got=permutation)
    return _Stored(scalar, shape, permutation)


def _in_order(
    stored: NDArray[Any],
    permutation: tuple[int, ...] | None,
    shape: Sequence[int | str],
    spec: TensorSpec,
) -> NDArray[Any]:
    """A tensor with its axes in the order that its permutation means.

    Arrow's specification says which stored axis each axis is; Arrow's own writer for Python says
    which axis each stored one is. Where that makes a difference, the row's shape tells.
    """
    if permutation is None:
        return stored
    first, second = stored.transpose(permutation), stored.transpose(np.argsort(permutation))
    if tuple(np.argsort(permutation)) == permutation or not _fits(second, shape):
        return first
    if _fits(first, shape):
        raise InputError(
            "a tensor's permutation can be read in two ways, and both fit",
            where=spec.name,
            got=list(permutation),
            do="Store the tensors without a permutation",
        )
    return second


def _fits(array: NDArray[Any], shape: Sequence[int | str]) -> bool:
    return len(array.shape) == len(shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(shape, array.shape, strict=True)
    )


def _permutation(kind: pa.DataType, spec: TensorSpec) -> tuple[int, ...] | None:
    """Which stored axis each axis is; types without a class of their own say it in their text
    alone."""
    known = getattr(kind, "permutation", None)
    if known is not None:
        return tuple(known)
    found = _PERMUTATION.search(str(kind))
    if found is None:
        return None
    if not found[1].endswith("]"):
        raise InputError("a tensor's permutation can't be read", where=spec.name, got=kind)
    return tuple(map(int, re.findall(r"\d+", found[1]))) or None


def _flat(scalar: pa.Scalar, spec: TensorSpec) -> tuple[pa.Array, tuple[int, ...]]:
    """A value's numbers, and the sizes of its lists."""
    if not _is_list(scalar.type):
        return pa.array([scalar.as_py()], scalar.type), ()
    values, sizes = scalar.values, [len(scalar.values)]
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) > 1 or None in lengths:
            raise InputError("a row's lists are ragged", where=spec.name, got=lengths)
        sizes.append(lengths[0] if lengths else 0)
        values = values.flatten()
    return values, tuple(sizes)


def to_column(arrays: Sequence[NDArray[Any]]) -> pa.Array:
    """Rows of one rank as nested lists."""
    rank = arrays[0].ndim
    flat = np.concatenate([np.ascontiguousarray(array).reshape(-1) for array in arrays])
    column = pa.array(flat)
    for level in range(rank - 1, -1, -1):
        lengths = [
            size for array in arrays for size in [array.shape[level]] * prod(array.shape[:level])
        ]
        column = pa.LargeListArray.from_arrays(
            pa.array([0, *accumulate(lengths)], pa.int64()), column
        )
    return column


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _cast(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if values.dtype == dtype:
        return values
    # Wider floats may be narrowed, numbers may become floats; a fraction may not become an integer.
    allowed = values.dtype.kind in {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]
    if not allowed:
        raise InputError(
            "a column's type doesn't fit the input",
            where=spec.name,
            got=values.dtype,
            expected=dtype,
        )
    cast = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, values):
        raise InputError(
            "a number is out of the element type's range", where=spec.name, expected=dtype
        )
    return cast


def _fitting(
    given: tuple[int, ...], size: int, shape: Sequence[int | str], spec: TensorSpec
) -> tuple[int, ...]:
    """The row's shape: as given, or a flat list arranged where only one size is open."""
    if len(given) == len(shape):
        return given
    known = prod(axis for axis in shape if isinstance(axis, int))
    unknown = [axis for axis in shape if isinstance(axis, str)]
    if (
        len(given) <= 1
        and len(unknown) <= 1
        and known
        and size % known == 0
        and (unknown or size == known)
    ):
        return tuple(size // known if isinstance(axis, str) else axis for axis in shape)
    raise InputError(
        "a row has the wrong shape",
        where=spec.name,
        got=given,
        expected=f"[{', '.join(map(str, shape))}]",
    )
