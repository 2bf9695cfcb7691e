"""Outputs of a step stage: each has an element per new token, and its tokens come second, whatever
axis they have in the whole graph."""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.core.dimensions import symbols_in
from crossfuse.errors import InputError
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dims_of

__all__ = ["NoStepsError", "has_columns", "is_of_all", "tokens_second"]


class NoStepsError(InputError):
    """A model that decodes whole sequences, but not token by token."""


def has_columns(value: ir.Value, axis: str) -> bool:
    """Whether an output has an element for each pair of tokens, as probabilities of an attention
    over them have: one new token then changes its size."""
    dims = dims_of(value) or []
    return axis in dims and sum(axis in symbols_in(dim) for dim in dims) > 1


def is_of_all(value: ir.Value, axis: str) -> bool:
    """Whether an output that depends on tokens has no axis of them, as a mean over them has: it is
    nothing that a new token could be given."""
    dims = dims_of(value)
    return dims is not None and not any(axis in symbols_in(dim) for dim in dims)


def tokens_second(graph: ir.Graph, value: ir.Value, axis: str) -> ir.Value:
    """An output as ``[batch, tokens, …]``; itself where it is so, or has no axis of tokens.

    Args:
        graph: of the output.
        value: keeps its name where it stays; else what takes its place gets it.
        axis: name of the token axis.
    """
    dims = dims_of(value) or []
    if axis not in dims or dims.index(axis) < 2:
        return value
    own = dims.index(axis)
    order = [0, own, *(other for other in range(1, len(dims)) if other != own)]
    build = GraphBuilder()
    moved = build.op("Transpose", value, perm=order, like=value, shape=[dims[i] for i in order])
    graph.extend(build.nodes)
    name = value.name
    value.name, moved.name = f"{name}:tokens_at_{own}", name
    return moved
