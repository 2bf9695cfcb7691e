"""Rows at places, taken of the operands of a node instead of its result: a table of tokens by
tokens, or of tokens by features, is then computed for the new tokens alone.

Rules:

1. An element-wise node's rows are those of its operands. One that has a single row for all places
   is taken as it is, for each sequence.
2. Rows of what ``Gather`` and ``GatherND`` take along their data's first axes are what the rows of
   the indices take.

It must not fire where the table is the same in every run, as nothing but the number of tokens
decides it: such a table is computed once, when the graph is loaded. Nor where a sequence has but
one element for each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from crossfuse.core.dimensions import symbols_in
from crossfuse.export.split.token_axes import ELEMENTWISE, own_axis
from crossfuse.export.split.token_places import Alignment
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, dims_of, rank_of

__all__ = ["Operand", "row_operands"]


class Operand(NamedTuple):
    """An operand of a node that computes rows.

    Attributes:
        value: what it is in the node that computes the table.
        rows: how its rows are aligned; None where it is needed at full length.
        batch: its axis with an element for each sequence, or each group of them, where it is needed
            at full length.
    """

    value: ir.Value | None
    rows: Alignment | None = None
    batch: int | None = None


def row_operands(table: ir.Value, at: Alignment, axis: str) -> Sequence[Operand] | None:
    """What the rows of a table are computed from.

    Args:
        table: a value with the axis of tokens.
        at: how it meets the tensor that its rows are used with.
        axis: the dimension that counts the tokens.

    Returns:
        the operands of its node; None where rows are to be taken of the table itself.
    """
    node, dims = table.producer(), dims_of(table)
    if node is None or dims is None or not _pays(dims, at, axis):
        return None
    if any(v is not None and rank_of(v) is None for v in node.inputs):
        return None
    if is_onnx(node, *ELEMENTWISE - {"CastLike"}):
        return _broadcast(node, at, axis)
    if is_onnx(node, "Gather", "GatherND"):
        return _taken(node, len(dims), at, axis)
    return None


def _pays(dims: Sequence[int | str | None], at: Alignment, axis: str) -> bool:
    """Whether the table differs from run to run, and a sequence has more than one element for each
    place."""
    missing = at.rank - len(dims)
    counted = (at.batch - missing, at.tokens - missing)
    more = any(dim != 1 for place, dim in enumerate(dims) if place not in counted)
    return more and any(symbols_in(dim) - {axis} for dim in dims)


def _broadcast(node: ir.Node, at: Alignment, axis: str) -> Sequence[Operand] | None:
    found: list[Operand] = []
    for value in node.inputs:
        missing = at.rank - (rank_of(value) or 0)
        own, batch = at.tokens - missing, at.batch - missing
        if value is None or own < 0 or dim_of(value, own) == 1:
            apart = value is not None and batch >= 0 and dim_of(value, batch) != 1
            found.append(Operand(value, batch=batch if apart else None))
        elif dim_of(value, own) == axis:
            found.append(Operand(value, at))
        else:
            return None
    return found


def _taken(node: ir.Node, rank: int, at: Alignment, axis: str) -> Sequence[Operand] | None:
    data, indices = node.inputs
    missing, own = at.rank - rank, rank_of(indices) or 0
    # The last axis of GatherND's indices is no axis of its result.
    shared = own if node.op_type == "Gather" else own - 1
    batched = node.attributes.get_int("batch_dims", 0)
    first = node.op_type == "GatherND" or own_axis(node, 0) == 0
    places = at.tokens - missing
    if batched or not first or not 0 <= places < shared or at.batch - missing >= shared:
        return None
    if indices is None or dim_of(indices, places) != axis:
        return None
    return [Operand(data), Operand(indices, at._replace(rank=missing + own))]
