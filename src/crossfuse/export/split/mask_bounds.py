"""What a mask or a bias holds in a block of it, whatever the inputs: between which bounds.

Where a mask says by positions which keys a row sees, it is made of ranges, comparisons, triangles
and what is joined with them. Places are followed back through these (`token_axes`), and their
bounds forth. So it is known of a causal mask that no row sees a later key, also where a padding
mask that nobody knows hides further ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.export.split.spans import EVERY_PLACE, Bound, Span
from crossfuse.export.split.token_axes import index_parts, integers, operand_axes, own_axis
from crossfuse.graph.op_classes import MOVING_OPS, is_onnx
from crossfuse.graph.shapes import dim_of, dims_of, rank_of

__all__ = ["MaskBounds"]


Places = tuple[Span, ...]
"""For each axis of a value, the places that are asked for."""

_ONLY = Span.of(0, 0)
_FALSE, _TRUE, _EITHER = Span.of(0, 0), Span.of(1, 1), Span.of(0, 1)
_ANYTHING = Span.of(-math.inf, math.inf)


@dataclass
class MaskBounds:
    """Bounds of values at places, each found once."""

    found: dict[tuple[ir.Value, Places], Span] = field(default_factory=dict)

    def at(self, value: ir.Value | None, places: Places) -> Span:
        """Between which bounds a value is at some places: infinite ones, or 0 and 1 of a bool,
        where nothing is known."""
        if value is None:
            return _ANYTHING
        key = (value, places)
        if key not in self.found:
            self.found[key] = self._at(value, places)
        return self.found[key]

    def _at(self, value: ir.Value, places: Places) -> Span:
        nothing = _EITHER if value.dtype == ir.DataType.BOOL else _ANYTHING
        if rank_of(value) != len(places):
            return nothing
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return _of_numbers(tensor.numpy(), places) or nothing
        node = value.producer()
        if node is None or not is_onnx(node):
            return nothing
        rule = _RULES.get(node.op_type)
        if rule is not None:
            return rule(self, node, places) or nothing
        compute = _first if node.op_type in MOVING_OPS else _ARITHMETIC.get(node.op_type)
        operands = _operand_places(node, places)
        if compute is None or operands is None:
            return nothing
        return compute([self.at(v, at) for v, at in zip(node.inputs, operands, strict=True)])


def _operand_places(node: ir.Node, places: Places) -> list[Places] | None:
    """The places of the operands that belong to places of the result."""
    found = [[_ONLY if dim == 1 else EVERY_PLACE for dim in dims_of(v) or ()] for v in node.inputs]
    for axis, span in enumerate(places):
        if dim_of(node.outputs[0], axis) == 1:
            continue
        axes = operand_axes(node, axis)
        if axes is None:
            return None
        for own, at in zip(axes, found, strict=True):
            if own is not None:
                at[own] = span
    return [tuple(at) for at in found]


def _of_numbers(array: NDArray[Any], places: Places) -> Span | None:
    """The least and the most of a constant's numbers at places."""
    ranges = [_range(span, size) for span, size in zip(places, array.shape, strict=True)]
    chosen = array[np.ix_(*ranges)]
    if len(places) > 1:
        row, column = places[-2:]
        below = ranges[-2][:, None] - ranges[-1]
        if column.above(row):
            chosen = chosen[..., below < 0]
        elif column == row and row.low == row.high:
            chosen = chosen[..., below == 0]
    numbers = chosen.astype(np.float64)
    if not numbers.size or np.isnan(numbers).any():
        return None
    return Span.of(float(numbers.min()), float(numbers.max()))


def _range(span: Span, size: int) -> NDArray[np.int64]:
    """Places of an axis, as far as numbers tell."""
    certain = all(times > 0 for _, times in span.low.sizes)
    low = max(0.0, span.low.number) if certain else 0.0
    high = size - 1 if span.high.sizes else min(size - 1, span.high.number)
    return np.arange(int(min(low, size)), int(high) + 1)


def _first(spans: Sequence[Span]) -> Span:
    return spans[0]


def _and(spans: Sequence[Span]) -> Span:
    if any(span == _FALSE for span in spans):
        return _FALSE
    return _TRUE if all(span == _TRUE for span in spans) else _EITHER


def _not(spans: Sequence[Span]) -> Span:
    return {_FALSE: _TRUE, _TRUE: _FALSE}.get(spans[0], _EITHER)


def _or(spans: Sequence[Span]) -> Span:
    return _not([_and([_not([span]) for span in spans])])


def _less(spans: Sequence[Span]) -> Span:
    if spans[1].above(spans[0]):
        return _TRUE
    return _FALSE if spans[0].not_below(spans[1]) else _EITHER


def _equal(spans: Sequence[Span]) -> Span:
    one, other = spans
    if one == other and one.low == one.high:
        return _TRUE
    return _FALSE if one.above(other) or other.above(one) else _EITHER


def _where(spans: Sequence[Span]) -> Span:
    condition, true, false = spans
    if condition in (_TRUE, _FALSE):
        return true if condition == _TRUE else false
    return true.joined(false)


def _multiplied(spans: Sequence[Span]) -> Span:
    if not all(span.known for span in spans):
        return _ANYTHING
    ends = [(span.low.number, span.high.number) for span in spans]
    products = [a * b for a in ends[0] for b in ends[1]]
    if any(math.isnan(product) for product in products):
        return _ANYTHING
    return Span.of(min(products), max(products))


_ARITHMETIC: Mapping[str, Callable[[Sequence[Span]], Span]] = {
    "And": _and,
    "Or": _or,
    "Not": _not,
    "Less": _less,
    "Greater": lambda spans: _less([spans[1], spans[0]]),
    "LessOrEqual": lambda spans: _not([_less([spans[1], spans[0]])]),
    "GreaterOrEqual": lambda spans: _not([_less(spans)]),
    "Equal": _equal,
    "Where": _where,
    "Add": lambda spans: spans[0] + spans[1],
    "Sub": lambda spans: spans[0] + -spans[1],
    "Neg": lambda spans: -spans[0],
    "Mul": _multiplied,
}
"""What operators make of bounds of their operands."""


def _cast(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """Whole numbers stay; of a bool is asked whether it is 0."""
    source = node.inputs[0]
    span = bounds.at(source, places)
    if node.outputs[0].dtype == ir.DataType.BOOL:
        return _not([_equal([span, _FALSE])])
    whole = source is not None and source.dtype is not None and not source.dtype.is_floating_point()
    widened = node.outputs[0].dtype is not None and node.outputs[0].dtype.is_floating_point()
    return span if whole or widened else None


def _counted(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """A range: its start, and as many steps as the place says."""
    start, step = bounds.at(node.inputs[0], ()), integers(node.inputs[2])
    return start + places[0] if step == [1] else None


def _filled(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    value = node.attributes.get_tensor("value", None)
    number = 0.0 if value is None else float(value.numpy().reshape(-1)[0])
    return Span.of(number, number)


def _sliced(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    starts = integers(node.inputs[1])
    rank = len(places)
    along = integers(node.inputs[3]) if len(node.inputs) > 3 else list(range(rank))
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 else [1] * len(starts or ())
    if along is None or steps is None:
        return None
    found = list(places)
    for at, axis in enumerate(along):
        plain = starts is not None and starts[at] >= 0 and steps[at] == 1
        start = Span.of(starts[at], starts[at]) if plain and starts is not None else None
        found[axis % rank] = EVERY_PLACE if start is None else places[axis % rank] + start
    return bounds.at(node.inputs[0], tuple(found))


def _joined(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """What the operands hold that the places reach."""
    axis, before, found = own_axis(node, 0), Bound(0), None
    for operand in node.inputs:
        size = Bound.of(dim_of(operand, axis))
        own = Span(places[axis].low + -before, places[axis].high + -before)
        before = before + size
        missed = own.low.over(size) >= 0 or (-own.high).over(Bound(0)) > 0
        if not missed:
            at = bounds.at(operand, (*places[:axis], own, *places[axis + 1 :]))
            found = at if found is None else found.joined(at)
    return found


def _gathered(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """Elements of the places that the indices hold."""
    along, inner = own_axis(node, 0), rank_of(node.inputs[1]) or 0
    index = bounds.at(node.inputs[1], places[along : along + inner])
    if index.low.over(Bound(0)) < 0:
        index = EVERY_PLACE
    return bounds.at(node.inputs[0], (*places[:along], index, *places[along + inner :]))


def _gathered_nd(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """Elements of the places that the parts of the indices hold."""
    parts = index_parts(node)
    if parts is None:
        return None
    found = [bounds.at(part, (*places, _ONLY)) for part in parts]
    at = [span if span.low.over(Bound(0)) >= 0 else EVERY_PLACE for span in found]
    return bounds.at(node.inputs[0], tuple(at))


def _together(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """Two conditions at once; of numbers that are equal, each holds what the other's bounds say."""
    operands = _operand_places(node, places)
    if operands is None:
        return None
    found = _and([bounds.at(v, at) for v, at in zip(node.inputs, operands, strict=True)])
    sides = [(v, at) for v, at in zip(node.inputs, operands, strict=True) if v is not None]
    never = found == _EITHER and any(_excluded(bounds, *pair) for pair in (sides, sides[::-1]))
    return _FALSE if never else found


def _excluded(
    bounds: MaskBounds, equal: tuple[ir.Value, Places], compared: tuple[ir.Value, Places]
) -> bool:
    """A comparison fails for one of two numbers wherever they are equal, as it does for the
    other."""
    same, other = equal[0].producer(), compared[0].producer()
    if same is None or other is None or not is_onnx(same, "Equal") or not is_onnx(other):
        return False
    compute, own = _ARITHMETIC.get(other.op_type), _operand_places(same, equal[1])
    theirs = _operand_places(other, compared[1])
    if compute is None or own is None or theirs is None:
        return False
    for value, stand_in, at in zip(same.inputs, same.inputs[::-1], own[::-1], strict=True):
        spans = [
            bounds.at(stand_in, at) if v is value else bounds.at(v, there)
            for v, there in zip(other.inputs, theirs, strict=True)
        ]
        if value in other.inputs and compute(spans) == _FALSE:
            return True
    return False


def _triangle(bounds: MaskBounds, node: ir.Node, places: Places) -> Span | None:
    """The operand on one side of a diagonal, 0 on the other."""
    inside, zero = bounds.at(node.inputs[0], places), _FALSE
    offset = integers(node.inputs[1]) if len(node.inputs) > 1 else [0]
    if offset is None:
        return inside.joined(zero)
    row, column = places[-2] + Span.of(offset[0], offset[0]), places[-1]
    upper = node.attributes.get_int("upper", 1)
    kept = column.not_below(row) if upper else row.not_below(column)
    gone = row.above(column) if upper else column.above(row)
    return inside if kept else zero if gone else inside.joined(zero)


_RULES: Mapping[str, Callable[[MaskBounds, ir.Node, Places], Span | None]] = {
    "Cast": _cast,
    "Range": _counted,
    "ConstantOfShape": _filled,
    "Slice": _sliced,
    "Concat": _joined,
    "Gather": _gathered,
    "GatherND": _gathered_nd,
    "And": _together,
    "Trilu": _triangle,
}
"""Of operators whose results are not their operands' at the same places, or of another kind."""
