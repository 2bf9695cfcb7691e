"""Masks, fills and biases of a written-out attention as one mask and one bias, and the rows in
which its scores count.

A fill of −inf is a mask of the operator. A finite one is a bias of that size where it hides. In a
row where fills hide every key the scores must not count: `zero_rows` makes its queries 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import Axes, Axis, FactoredValue, all_factors, size_of
from crossfuse.export.matching.axis_roles import AxisRoles
from crossfuse.export.matching.layout_builder import LayoutBuilder, known_dims, numpy_type
from crossfuse.export.matching.terms import Term

__all__ = ["MaskAndBias", "PlacedTerm", "join_terms", "zero_rows"]


class MaskAndBias(NamedTuple):
    """An attention's terms as the operator takes them.

    Attributes:
        mask: bool ``[1|batch, 1|heads, 1|rows, keys]``, True where a key is attended; None for all.
        bias: floats of that shape, or None.
        counted: ``[1|batch, 1|heads, 1|rows, 1]``, 1 in rows in which scores count and 0 in others;
            None where they count in all.
    """

    mask: ir.Value | None
    bias: ir.Value | None
    counted: FactoredValue | None


class PlacedTerm:
    """A term brought to the operator's four axes.

    Args:
        term: as it was written out.
        builder: emits what brings it there.
        roles: of the attention's factors.
    """

    def __init__(self, term: Term, builder: LayoutBuilder, roles: AxisRoles) -> None:
        self.term, self.builder = term, builder
        its_own = set(all_factors(term.operand.axes))

        def whole(axis: Axis) -> Axis:
            return axis if its_own & set(axis) else ()

        self.axes: Axes = (whole(roles.batch), whole(roles.heads), whole(roles.rows), roles.keys)
        self.shape = [size_of(axis).dim for axis in self.axes]
        self.value = builder.arrange(term.operand.value, term.operand.axes, self.axes)
        if term.fill is not None and self.value.dtype != ir.DataType.BOOL:
            # A mask of zeros and ones.
            self.value = builder.op("Cast", [self.value], self.value, to=ir.DataType.BOOL)
            self.value.shape = ir.Shape(self.shape)
            self.value.type = ir.TensorType(ir.DataType.BOOL)

    def extend(self, value: ir.Value) -> None:
        """Take this value, which covers further columns, in place of its own."""
        self.value = value
        self.shape = known_dims(value)

    def bias(self, like: ir.Value) -> ir.Value:
        """What a bias adds to the scores, of the type of ``like``."""
        value, op = self.value, self.builder.op
        if value.dtype != like.dtype and like.dtype is not None:
            value = op("Cast", [value], like, self.shape, to=like.dtype)
        factor = self.builder.constant(self.term.factor, numpy_type(like))
        return value if self.term.factor == 1 else op("Mul", [value, factor], like, self.shape)

    def filled(self, bias: ir.Value | None, like: ir.Value) -> ir.Value:
        """The bias so far, replaced by the fill's score where the term hides."""
        numbers = (self.term.score, 0)
        fill, zero = (self.builder.constant(x, numpy_type(like)) for x in numbers)
        before = zero if bias is None else bias
        order = [self.value, fill, before] if self.term.hidden else [self.value, before, fill]
        shape = self.shape if bias is None else _broadcast(self.value, bias)
        return self.builder.op("Where", order, like, shape)

    def attended(self) -> ir.Value:
        """Bool, True where a mask lets a key be attended."""
        return self._negated() if self.term.hidden else self.value

    def hidden(self) -> ir.Value:
        """Bool, True where a mask hides."""
        return self.value if self.term.hidden else self._negated()

    def _negated(self) -> ir.Value:
        return self.builder.op("Not", [self.value], self.value, self.shape)


def join_terms(terms: Sequence[PlacedTerm], like: ir.Value, builder: LayoutBuilder) -> MaskAndBias:
    """Join the terms, in order.

    Args:
        terms: of one attention.
        like: a value of the type that the bias is to have, the queries.
        builder: emits the nodes.
    """
    mask: ir.Value | None = None
    bias: ir.Value | None = None
    for placed in terms:
        if placed.term.fill is None:
            bias = _joined("Add", [bias, placed.bias(like)], builder)
        elif not placed.term.finite:
            mask = _joined("And", [mask, placed.attended()], builder)
        else:
            if mask is not None:
                # What an earlier mask removed is there again, with the fill as its score.
                mask = _joined("Or", [mask, placed.hidden()], builder)
            bias = placed.filled(bias, like)
    if not any(placed.term.finite for placed in terms):
        return MaskAndBias(mask, bias, None)
    fills = [placed for placed in terms if placed.term.fill is not None]
    attended = _joined("And", [fill.attended() for fill in fills], builder)
    assert attended is not None
    if any(placed.term.may_hide for placed in terms):
        assert bias is not None
        counted = _rows_with_largest_attended(attended, mask, bias, like, builder)
        return MaskAndBias(mask, bias, FactoredValue(counted, _axes_of_rows(terms)))
    counted = _rows_with_any_attended(attended, like, builder)
    return MaskAndBias(mask, bias, FactoredValue(counted, _axes_of_rows(fills)))


def zero_rows(
    query: ir.Value, counted: FactoredValue, roles: AxisRoles, size: Axis, builder: LayoutBuilder
) -> ir.Value:
    """The queries ``[batch, rows, heads·size]``, 0 in rows where scores don't count."""
    its_own = set(all_factors(counted.axes))
    batch, rows = (
        [factor for factor in axis if factor in its_own] for axis in (roles.batch, roles.rows)
    )
    width = (*roles.heads, *size) if counted.axes[1] else ()
    spread = builder.arrange(counted.value, counted.axes, (batch, rows, width))
    return builder.op(
        "Mul", [query, spread], query, None if query.shape is None else known_dims(query)
    )


def _rows_with_any_attended(attended: ir.Value, like: ir.Value, builder: LayoutBuilder) -> ir.Value:
    """1 in rows with a key that no mask hides, of the type of ``like``."""
    last = builder.constant([3], np.int64)
    count = builder.op("Cast", [attended], like, known_dims(attended), to=like.dtype)
    return builder.op("ReduceMax", [count, last], like, [*known_dims(attended)[:3], 1], keepdims=1)


def _rows_with_largest_attended(
    attended: ir.Value,
    mask: ir.Value | None,
    bias: ir.Value,
    like: ir.Value,
    builder: LayoutBuilder,
) -> ir.Value:
    """1 in rows whose largest bias is on a key that no mask hides, of the type of ``like``: biases
    may hide what masks leave."""
    last = builder.constant([3], np.int64)
    nothing = builder.constant(-np.inf, numpy_type(like))
    filled = builder.op("Not", [attended], attended, known_dims(attended))
    if mask is not None:
        filled = _joined("And", [filled, mask], builder) or filled
    peaks = []
    for where in (attended, filled):
        shape = _broadcast(where, bias)
        part = builder.op("Where", [where, bias, nothing], like, shape)
        peaks.append(builder.op("ReduceMax", [part, last], like, [*shape[:3], 1], keepdims=1))
    counted = builder.op("Greater", peaks, attended, known_dims(peaks[0]))
    return builder.op("Cast", [counted], like, known_dims(counted), to=like.dtype)


def _axes_of_rows(terms: Sequence[PlacedTerm]) -> Axes:
    """The axes that any of the terms has, the keys reduced."""
    return (*(next((t.axes[i] for t in terms if t.axes[i]), ()) for i in range(3)), ())


def _joined(
    name: str, values: Iterable[ir.Value | None], builder: LayoutBuilder
) -> ir.Value | None:
    joined: ir.Value | None = None
    for value in values:
        if value is not None and joined is not None:
            joined = builder.op(name, [joined, value], joined, _broadcast(joined, value))
        else:
            joined = joined if value is None else value
    return joined


def _broadcast(a: ir.Value, b: ir.Value) -> list[int | str]:
    return [y if x == 1 else x for x, y in zip(known_dims(a), known_dims(b), strict=True)]
