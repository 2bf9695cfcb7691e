"""Rows of results that are not made place by place: ranges, repetitions, running sums, slices,
triangles, concatenations and what is taken at places, made again of as many rows as are asked
for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from crossfuse.export.split.mask_bounds import MaskBounds
from crossfuse.export.split.row_parts import Asked, RowParts, RowRule, element
from crossfuse.export.split.rows import Rows, Side, equal_sizes
from crossfuse.export.split.spans import EVERY_PLACE, Bound, Span
from crossfuse.export.split.token_axes import index_parts, integers, operand_axes, own_axis
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dim_of, dims_of, rank_of

__all__ = ["ROW_RULES"]


def _joined(parts: RowParts, asked: Asked) -> ir.Value | None:
    """A concatenation along the axis, the first operands of which are the first rows."""
    node = asked.node
    if own_axis(node, 0) != asked.axis:
        return None
    operands = [v for v in node.inputs if v is not None]
    for count in range(1, len(operands)):
        sizes = [dim_of(v, asked.axis) for v in operands[:count]]
        if equal_sizes(sizes, [asked.rows.dim(Side.FIRST)]):
            first = asked.side is Side.FIRST
            chosen = operands[:count] if first else operands[count:]
            return _first_or_rest(parts, asked, chosen)
    return None


def _first_or_rest(parts: RowParts, asked: Asked, chosen: Sequence[ir.Value]) -> ir.Value:
    if len(chosen) == 1:
        return chosen[0]
    dim = asked.rows.dim(asked.side)
    return parts.again(asked.node, chosen, asked.axis, dim)[asked.node.outputs[0]]


def _counted(parts: RowParts, asked: Asked) -> ir.Value | None:
    """A range from its start on, or from behind its first rows on."""
    start, limit, step = asked.node.inputs
    build = GraphBuilder()
    count = build.op("Squeeze", asked.rows.count(build, Side.FIRST))
    like = asked.node.outputs[0]
    length = build.op("Mul", build.op("CastLike", count, step), step)
    middle = build.op("Add", start, length)
    ends = (start, middle) if asked.side is Side.FIRST else (middle, limit)
    made = build.op("Range", *ends, step, like=like, shape=[asked.rows.dim(asked.side)])
    parts.put(build, asked.node)
    return made


def _broadcast(parts: RowParts, asked: Asked) -> ir.Value | None:
    """One place, repeated for fewer rows."""
    node = asked.node
    axes = operand_axes(node, asked.axis)
    if node.op_type == "Expand" and axes is not None and axes[0] is not None:
        return None
    build = GraphBuilder()
    target: list[ir.Value] = []
    for place, dim in enumerate(dims_of(node.outputs[0]) or ()):
        if place == asked.axis:
            target.append(asked.rows.count(build, asked.side))
        elif isinstance(dim, int):
            target.append(build.ints(dim))
        else:
            target.append(element(build, node.inputs[-1], place, parts.early_inputs))
    shape = build.concat(*target)
    parts.put(build, node)
    made = parts.again(node, [*node.inputs[:-1], shape], asked.axis, asked.rows.dim(asked.side))
    return made[node.outputs[0]]


def _summed(parts: RowParts, asked: Asked) -> ir.Value | None:
    """A sum over the rows so far, of the first rows."""
    node = asked.node
    backwards = node.attributes.get_int("reverse", 0)
    rank = rank_of(node.inputs[0]) or 1
    along = [a % rank for a in integers(node.inputs[1]) or ()]
    if asked.side is Side.REST or backwards or along != [asked.axis] or node.inputs[0] is None:
        return None
    source = parts.part(node.inputs[0], asked.axis, asked.rows, asked.side)
    made = parts.again(node, [source, node.inputs[1]], asked.axis, asked.rows.dim(asked.side))
    return made[node.outputs[0]]


def _taken(parts: RowParts, asked: Asked) -> ir.Value | None:
    """The first rows of a slice along the axis: of a table that is longer, or of rows that are
    taken from the first on."""
    node, axis = asked.node, asked.axis
    source, starts = node.inputs[0], integers(node.inputs[1])
    along = integers(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if asked.side is Side.REST or source is None or along != [axis] or steps != [1]:
        return None
    if starts is None or starts[0] < 0:
        return None
    if starts[0] == 0:
        return parts.part(source, axis, asked.rows, asked.side)
    build = GraphBuilder()
    start = build.ints(starts[0])
    end = build.op("Add", start, asked.rows.count(build, Side.FIRST))
    return parts.sliced_at(build, source, (start, end), axis, asked.rows.dim(Side.FIRST))


def _within_first(index: ir.Value, axis: int, rows: Rows, places: int) -> bool:
    """Of the first rows along an axis of some indices, all are among the first rows of the data.

    Args:
        index: the indices.
        axis: along which the rows are.
        rows: their number.
        places: how many axes of the indices count them.
    """
    behind = Bound.of(rows.dim(Side.FIRST))
    first = Span(Bound(0), behind + Bound(-1))
    at = [EVERY_PLACE] * places + [Span.of(0, 0)] * ((rank_of(index) or 0) - places)
    at[axis] = first
    span = MaskBounds().at(index, tuple(at))
    return first.high.over(span.high) >= 0 and span.low.over(Bound(0)) >= 0


def _counts_rows(source: ir.Value, axis: int, rows: Rows) -> bool:
    """An axis may have both the first rows and the rest: one of another known size has not."""
    size = dim_of(source, axis)
    both = [rows.dim(side) for side in Side]
    return not isinstance(size, int) or equal_sizes([size], both)


def _taken_at(parts: RowParts, asked: Asked) -> ir.Value | None:
    """Elements at places: the first rows of those that are taken, of the first rows of the data
    where their places say so."""
    node, axis = asked.node, asked.axis
    indexed, source = index_parts(node), node.inputs[0]
    if asked.side is Side.REST or indexed is None or source is None or node.inputs[1] is None:
        return None
    for along, part in enumerate(indexed):
        if not _counts_rows(source, along, asked.rows):
            continue
        if _within_first(part, axis, asked.rows, rank_of(node.outputs[0]) or 0):
            source = parts.part(source, along, asked.rows, Side.FIRST)
    indices = parts.part(node.inputs[1], axis, asked.rows, Side.FIRST)
    dim = asked.rows.dim(Side.FIRST)
    return parts.again(node, [source, indices], axis, dim)[node.outputs[0]]


def _looked_up(parts: RowParts, asked: Asked) -> ir.Value | None:
    """Places of an axis, as `_taken_at`."""
    node, (source, index) = asked.node, asked.node.inputs
    along = own_axis(node, 0)
    axis, rank = asked.axis - along, rank_of(index) or 0
    if asked.side is Side.REST or source is None or index is None or parts.is_early(source):
        return None
    if not 0 <= axis < rank or not _counts_rows(source, along, asked.rows):
        return None
    if not _within_first(index, axis, asked.rows, rank):
        return None
    taken = parts.part(source, along, asked.rows, Side.FIRST)
    indices = parts.part(index, axis, asked.rows, Side.FIRST)
    dim = asked.rows.dim(Side.FIRST)
    return parts.again(node, [taken, indices], asked.axis, dim)[node.outputs[0]]


def _padded(parts: RowParts, asked: Asked) -> ir.Value | None:
    """The first rows of what has padding in front of them: of the padding, and of as many rows."""
    node, axis, source = asked.node, asked.axis, asked.node.inputs[0]
    amounts, rank = integers(node.inputs[1]), rank_of(node.inputs[0]) or 0
    some_axes = len(node.inputs) > 3 and node.inputs[3] is not None
    constant = node.attributes.get_string("mode", "constant") == "constant"
    if asked.side is Side.REST or source is None or some_axes or not constant:
        return None
    if amounts is None or min(amounts) < 0 or not (amounts[axis] or amounts[axis + rank]):
        return None
    first = asked.rows.dim(Side.FIRST)
    longer = first + amounts[axis] + amounts[axis + rank] if isinstance(first, int) else None
    part = parts.part(source, axis, asked.rows, Side.FIRST)
    padded = parts.again(node, [part, *node.inputs[1:]], axis, longer)[node.outputs[0]]
    build = GraphBuilder()
    bounds = build.ints(0), asked.rows.count(build, Side.FIRST)
    return parts.sliced_at(build, padded, bounds, axis, first)


def _triangle(parts: RowParts, asked: Asked) -> ir.Value | None:
    """Rows or columns of a triangle: the first ones keep their places, the rest of the rows are
    that many further down."""
    node = asked.node
    rank = rank_of(node.inputs[0]) or 0
    if asked.axis < rank - 2 or node.inputs[0] is None:
        return None
    if asked.side is Side.REST and asked.axis == rank - 1:
        return None
    operands = [parts.part(node.inputs[0], asked.axis, asked.rows, asked.side), *node.inputs[1:2]]
    if asked.side is Side.REST:
        build = GraphBuilder()
        below = build.op("Squeeze", asked.rows.count(build, Side.FIRST))
        offset = operands[1] if len(operands) > 1 else None
        operands[1:] = [below if offset is None else build.op("Add", below, offset)]
        parts.put(build, node)
    dim = asked.rows.dim(asked.side)
    return parts.again(node, operands, asked.axis, dim)[node.outputs[0]]


ROW_RULES: Mapping[str, RowRule] = {
    "Concat": _joined,
    "Range": _counted,
    "Expand": _broadcast,
    "ConstantOfShape": _broadcast,
    "CumSum": _summed,
    "Slice": _taken,
    "Gather": _looked_up,
    "GatherND": _taken_at,
    "Pad": _padded,
    "Trilu": _triangle,
}
