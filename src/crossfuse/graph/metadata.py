"""Small helpers over ``onnx_ir`` that both export and build use; no knowledge of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from crossfuse.core.tensors import TensorSpec
from crossfuse.ops.contract import DOMAIN, NAME

__all__ = [
    "CAPTURED",
    "MODULE",
    "RANGE",
    "SITE",
    "attention_nodes",
    "boundary",
    "clone",
    "dim_of",
    "same_dim",
    "site_of",
]

MODULE = "crossfuse.module"
"""Metadata key of the PyTorch module path that a node came from."""

CAPTURED = "crossfuse.captured"
"""Metadata key that says, during export, which pass made an attention node; absent where tracing
gave it."""

SITE = "crossfuse.site"
"""Metadata key under which a node carries the name of the attention it computes."""


RANGE = "crossfuse.range"
"""Metadata key of an input that holds indices: ``LOW:HIGH``, the highest left out where it isn't
known."""


def attention_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The ``FusedAttention`` nodes in the graph's order."""
    return (node for node in graph if node.domain == DOMAIN and node.op_type == NAME)


def site_of(node: ir.Node) -> str | None:
    """The site that a node computes, in any stage of lowering."""
    return node.metadata_props.get(SITE)


def clone(model: ir.Model) -> ir.Model:
    """A copy whose graph can be rewritten freely; weights are shared, not copied."""
    return model.clone()


def dim_of(value: ir.Value | None, axis: int) -> int | str | None:
    """A size of a value's shape: an int, a symbolic expression, or None where unknown."""
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else size.value


def same_dim(a: int | str | None, b: int | str | None) -> bool:
    """Two sizes are known to be equal."""
    return a is not None and a == b


def boundary(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Specs of a graph's inputs or outputs."""
    specs = []
    for value in values:
        assert value.shape is not None, f"{value.name} has no shape"
        assert value.dtype is not None, f"{value.name} has no type"
        shape = tuple(s if isinstance(s, int) else str(s.value) for s in value.shape)
        specs.append(
            TensorSpec(value.name or "", value.dtype.numpy().name, shape, _range_of(value))
        )
    return tuple(specs)


def _range_of(value: ir.Value) -> tuple[int, int | None] | None:
    if RANGE not in value.metadata_props:
        return None
    low, high = value.metadata_props[RANGE].split(":")
    return int(low), int(high) if high else None
