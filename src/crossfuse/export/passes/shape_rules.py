"""The shape of an operator's result, where it follows from sizes that are known or named.

Each rule takes a node and what is known so far, and gives one size per axis, None for an axis that
is unknown; or None alone where not even the rank is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from crossfuse.export.matching.axes import Size
from crossfuse.export.matching.size_arithmetic import KnownSizes, difference, total

__all__ = ["SHAPE_RULES", "Shape"]

Shape = Sequence[Size | None]

_FAR = (1 << 31) - 1


def _reshape(node: ir.Node, known: KnownSizes) -> Shape | None:
    requested, source = known.of(node.inputs[1]), known.dims(node.inputs[0])
    if requested is None:
        length = (
            node.inputs[1].shape[0]
            if node.inputs[1] is not None and node.inputs[1].shape is not None
            else None
        )
        return [None] * length if isinstance(length, int) else None
    found: list[Size | None] = []
    for axis, size in enumerate(requested.elements):
        copied = (
            size is not None and size.static == 0 and not node.attributes.get_int("allowzero", 0)
        )
        found.append(
            source[axis]
            if copied and source is not None and axis < len(source)
            else size
            if not copied
            else None
        )
    inferred = [axis for axis, size in enumerate(found) if size is not None and size.static == -1]
    if inferred:
        others = [s for axis, s in enumerate(found) if axis not in inferred]
        whole = (
            None
            if source is None or any(s is None for s in source)
            else math.prod((s for s in source if s), start=Size())
        )
        rest = (
            None
            if any(s is None for s in others)
            else math.prod((s for s in others if s), start=Size())
        )
        found[inferred[0]] = None if whole is None or rest is None else whole.over(rest)
    return found


def _expand(node: ir.Node, known: KnownSizes) -> Shape | None:
    requested, source = known.of(node.inputs[1]), known.dims(node.inputs[0])
    if requested is None or source is None:
        return None
    rank = max(len(source), len(requested.elements))
    one = Size()
    left = [*[one] * (rank - len(source)), *source]
    right = [*[one] * (rank - len(requested.elements)), *requested.elements]
    return [
        b if a == one else a if b == one or a == b else None
        for a, b in zip(left, right, strict=True)
    ]


def _filled(node: ir.Node, known: KnownSizes) -> Shape | None:
    requested = known.of(node.inputs[0])
    return None if requested is None else requested.elements


def _range(node: ir.Node, known: KnownSizes) -> Shape | None:
    start, limit, delta = (known.of(v) for v in node.inputs[:3])
    if start is None or limit is None or delta is None or delta.numbers != [1]:
        return None
    return [difference(limit.elements[0], start.elements[0])]


def _tile(node: ir.Node, known: KnownSizes) -> Shape | None:
    repeats, source = known.of(node.inputs[1]), known.dims(node.inputs[0])
    if repeats is None or source is None or len(source) != len(repeats.elements):
        return None
    return [
        None if a is None or b is None else a * b
        for a, b in zip(source, repeats.elements, strict=True)
    ]


def _concat(node: ir.Node, known: KnownSizes) -> Shape | None:
    parts = [known.dims(v) for v in node.inputs]
    axis = node.attributes.get_int("axis", 0) or 0
    first = parts[0]
    if first is None or any(p is None or len(p) != len(first) for p in parts):
        return None
    shape = [
        next((p[i] for p in parts if p is not None and p[i] is not None), None)
        for i in range(len(first))
    ]
    length: Size | None = Size(0)
    for part in parts:
        assert part is not None
        length = total(length, part[axis])
    shape[axis % len(first)] = length
    return shape


def _slice(node: ir.Node, known: KnownSizes) -> Shape | None:
    source = known.dims(node.inputs[0])
    starts, ends = (known.of(v) for v in node.inputs[1:3])
    if source is None or starts is None or ends is None:
        return None
    axes = known.of(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    steps = (
        known.of(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    )
    places = axes.numbers if axes is not None else list(range(len(starts.elements)))
    if places is None or (steps is not None and steps.numbers != [1] * len(places)):
        return None
    table = (
        node.inputs[0] is not None
        and node.inputs[0].producer() is None
        and not node.inputs[0].is_graph_input()
    )
    shape = list(source)
    for place, start, end in zip(places, starts.elements, ends.elements, strict=True):
        shape[place] = _cut(source[place], start, end, table=table)
    return shape


def _cut(size: Size | None, start: Size | None, end: Size | None, *, table: bool) -> Size | None:
    if size is None or start is None or end is None:
        return None
    if size.static is not None and start.static is not None and end.static is not None:
        return Size(len(range(size.static)[start.static : end.static]))
    begins = start.static == 0
    if begins and (end == size or (end.static is not None and end.static >= _FAR)):
        return size
    if begins and end.static is None and size.static is not None:
        return end if table else None
    if (
        start.static is not None
        and end.static is not None
        and end.static >= _FAR
        and start.static > 0
    ):
        return difference(size, start)
    return None


SHAPE_RULES: dict[str, Callable[[ir.Node, KnownSizes], Shape | None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "Range": _range,
    "Tile": _tile,
    "Concat": _concat,
    "Slice": _slice,
}
"""Operator → its rule."""
