"""What is taken of a tensor that is in two parts, where all of it is of one of them: the tokens
behind the image's, the last token, the first one."""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.split.rows import Cut, Side
from crossfuse.export.split.token_axes import integers, own_axis
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, rank_of, same_dim

__all__ = ["of_one_part"]

_END = 2**31 - 1
"""Slices that end there or behind end with their axis."""


def of_one_part(build: GraphBuilder, node: ir.Node, cut: Cut) -> ir.Value | None:
    """What a node takes, from the part that has it.

    Args:
        build: takes the nodes.
        node: whose first operand is in two parts.
        cut: those.

    Returns:
        None where it takes of both, or it can't be told.
    """
    if is_onnx(node, "Slice"):
        return _sliced(build, node, cut)
    if is_onnx(node, "Gather") and own_axis(node, 0) == cut.axis:
        return _gathered(build, node, cut)
    return None


def _sliced(build: GraphBuilder, node: ir.Node, cut: Cut) -> ir.Value | None:
    operands = [*node.inputs[1:], None, None]
    starts, ends, axes, steps = (integers(operands[place]) for place in range(4))
    rank = rank_of(node.inputs[0]) or 1
    if axes is None or [a % rank for a in axes] != [cut.axis] or (steps or [1]) != [1]:
        return None
    first = cut.rows.dim(Side.FIRST)
    start = None if starts is None else starts[0]
    to_the_end = ends is not None and ends[0] >= _END
    if start == 0 and ends is not None and ends[0] == first:
        return build.op("Identity", cut.first)
    if to_the_end and same_dim(dim_of(node.outputs[0], cut.axis), cut.rows.dim(Side.REST)):
        return build.op("Identity", cut.rest)
    if start is None or ends is None or not isinstance(first, int):
        return _last(build, start, to_the_end, cut)
    if start >= first and (ends[0] < 0 or ends[0] >= first):
        end = ends[0] if ends[0] < 0 or ends[0] >= _END else ends[0] - first
        bounds = build.ints(start - first), build.ints(end)
        return build.op("Slice", cut.rest, *bounds, build.ints(cut.axis))
    return _last(build, start, to_the_end, cut)


def _last(build: GraphBuilder, start: int | None, to_the_end: bool, cut: Cut) -> ir.Value | None:
    """The last tokens, as far as the rest surely has as many."""
    surely = cut.rows.dim(Side.REST)
    enough = 1 if isinstance(surely, str) else surely or 0
    if start is None or not to_the_end or not -enough <= start < 0:
        return None
    bounds = build.ints(start), build.ints(_END)
    return build.op("Slice", cut.rest, *bounds, build.ints(cut.axis))


def _gathered(build: GraphBuilder, node: ir.Node, cut: Cut) -> ir.Value | None:
    places, first = integers(node.inputs[1]), cut.rows.dim(Side.FIRST)
    if places is None or len(places) != 1:
        return None
    (place,) = places
    shape = [1] * (rank_of(node.inputs[1]) or 0)
    if place == -1:
        source = cut.rest
    elif isinstance(first, int) and place >= 0:
        source = cut.first if place < first else cut.rest
        place -= 0 if place < first else first
    else:
        return None
    index = build.constant([place] if shape else place, "int64")
    return build.op("Gather", source, index, axis=cut.axis)
