"""Sizes of a trace, and the dynamic axes that it is given: dimensions, or multiples of them."""

from __future__ import annotations

from typing import Any

from crossfuse.core.dimensions import multiple_of
from crossfuse.core.tensors import Dim, axis_size
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["limited", "trace_sizes", "traced_size"]


def trace_sizes(spec: ModelSpec, beyond: int | None = None) -> dict[str, int]:
    """Sizes of a trace: the example's, or larger ones. No two axes have one size, unless their
    dimensions are the same or the ranges leave no other.

    Args:
        spec: the model's.
        beyond: sizes are larger than the example's, and at least this.
    """
    sizes: dict[str, int] = {}
    factors = _factors(spec)
    taken: set[int] = set()
    for name, dim in spec.dims.items():
        own = spec.example_sizes[name]
        size = max(2, dim.min, own if beyond is None else max(own + 1, beyond))
        while any(factor * size in taken for factor in factors[name]):
            size += 1
        sizes[name] = size if dim.max is None else max(dim.min, min(size, dim.max))
        taken |= {factor * sizes[name] for factor in factors[name]}
    return sizes


def _factors(spec: ModelSpec) -> dict[str, set[int]]:
    """Of each dimension by what its size is multiplied in the axes of the inputs."""
    found: dict[str, set[int]] = {name: {1} for name in spec.dims}
    for axes in spec.axes.values():
        for size in axes.values():
            factor, name = multiple_of(size) or (1, size)
            found[name].add(factor)
    return found


def traced_size(size: str, dims: dict[str, Any]) -> Any:
    """A dimension as the tracer has it, or a multiple of one; None where it is fixed."""
    factor, name = multiple_of(size) or (1, size)
    return dims[name] if factor == 1 or dims[name] is None else factor * dims[name]


def limited(dim: str | Dim, limits: dict[str, Dim]) -> str | Dim:
    """A dynamic axis with the new range of its dimension, where that got one."""
    found = limits.get(Dim.parse(dim).name)
    if found is None or axis_size(dim) == found.name:
        return found or dim
    return f"{axis_size(dim)}:{found.min}:{found.max}"
