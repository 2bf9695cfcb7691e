"""Sizes of a value's shape, as numbers or as texts that name dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from crossfuse.core.tensors import TensorSpec
from crossfuse.graph.metadata import id_counts, index_range

__all__ = ["boundary", "dim_of", "dims_of", "rank_of", "same_dim"]


def dim_of(value: ir.Value | None, axis: int) -> int | str | None:
    """One size: an int, a symbolic expression, or None where unknown."""
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else size.value


def dims_of(value: ir.Value | None) -> list[int | str | None] | None:
    """All sizes; None where the rank is unknown."""
    rank = rank_of(value)
    return None if rank is None else [dim_of(value, axis) for axis in range(rank)]


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes; None where unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def same_dim(a: int | str | None, b: int | str | None) -> bool:
    """Two sizes are known to be equal."""
    return a is not None and a == b


def boundary(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Specs of a graph's inputs or outputs, all of which have a shape and a type."""
    specs = []
    for value in values:
        assert value.shape is not None, f"{value.name} has no shape"
        assert value.dtype is not None, f"{value.name} has no type"
        shape = tuple(s if isinstance(s, int) else str(s.value) for s in value.shape)
        dtype = value.dtype.numpy().name
        limits = index_range(value), id_counts(value)
        specs.append(TensorSpec(value.name or "", dtype, shape, *limits))
    return tuple(specs)
