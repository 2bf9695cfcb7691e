"""What a step stage knows of its tokens' places: which rows of tables they take, where their keys
and values are written, and which keys they see.

A *table* is computed for the state's whole length and has an axis of places. Its rows at the places
of a batch of sequences get two axes in its stead, one for the sequences and one for their tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.core.dimensions import symbols_in
from crossfuse.export.split.rows import joined_along, sum_of
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dim_of, dims_of

__all__ = ["Alignment", "TokenPlaces", "behind", "in_front"]


class Alignment(NamedTuple):
    """How a table meets the tensor that its rows are used with: as broadcasting aligns them.

    Attributes:
        rank: of that tensor.
        batch, tokens: its axes of sequences and of their tokens.
        like: a value of the tensor's batch, on the axis ``batch_of``.
        batch_of: axis of ``like``.
    """

    rank: int
    batch: int
    tokens: int
    like: ir.Value
    batch_of: int


class TokenPlaces:
    """Places of a batch's new tokens.

    Args:
        position: the input, ``[batch, tokens]`` int64.
        length: rows of the state.
        batch: the dimension of the sequences.
    """

    def __init__(self, position: ir.Value, length: int, batch: int | str | None) -> None:
        self.position, self.length, self.batch = position, length, batch
        self.tokens = dim_of(position, 1)
        self.shared = GraphBuilder(share=True)
        self._indices: ir.Value | None = None
        self._seen: ir.Value | None = None

    def insert_before(self, node: ir.Node) -> None:
        """Put what all nodes share in front of the first of them."""
        self.shared.insert_before(node)

    @property
    def indices(self) -> ir.Value:
        """``[batch, tokens, 2]``: sequence and place of every new token."""
        if self._indices is None:
            build = self.shared
            numbers = build.positions(build.op("Shape", self.position, start=0, end=1))
            self._indices = self._paired(build, build.op("Unsqueeze", numbers, build.ints(1)))
        return self._indices

    @property
    def seen(self) -> ir.Value:
        """``[batch, 1, tokens, length]`` bool: keys up to each token's own."""
        if self._seen is None:
            build = self.shared
            keys = build.constant(np.arange(self.length), np.int64)
            places = build.op("Unsqueeze", self.position, build.ints(1, 3))
            self._seen = build.op("LessOrEqual", keys, places)
            self._seen.shape = ir.Shape([self.batch, 1, self.tokens, self.length])
            self._seen.type = ir.TensorType(ir.DataType.BOOL)
        return self._seen

    def seen_behind(self, build: GraphBuilder, front: Sequence[ir.Value]) -> ir.Value:
        """``seen``, with all rows that stand in front of the tokens' seen too."""
        if not front:
            return self.seen
        around, true = build.op("Shape", self.seen, start=0, end=3), build.constant([True], "bool")
        shown = [
            build.op("Expand", true, build.op("Concat", around, build.size(v, 1), axis=0))
            for v in front
        ]
        *outer, own = dims_of(self.seen) or [None] * 4
        keys = sum_of([*(dim_of(v, 1) for v in front), own])
        return build.op("Concat", *shown, self.seen, axis=3, like=self.seen, shape=[*outer, keys])

    def batch_axis(self, dims: Sequence[int | str | None], tokens: int) -> int | None:
        """The axis that counts the sequences, alone or with others merged into it."""
        ours = self.batch
        others = [axis for axis in range(len(dims)) if axis != tokens]
        alone = [axis for axis in others if dims[axis] == ours]
        merged = [a for a in others if isinstance(ours, str) and ours in symbols_in(dims[a])]
        return next(iter([*alone, *merged]), None)

    def written(self, build: GraphBuilder, state: ir.Value, rows: ir.Value) -> ir.Value:
        """A state with the new tokens' rows."""
        return build.op("ScatterND", state, self.indices, rows, like=state, shape=state.shape)

    def rows(self, build: GraphBuilder, table: ir.Value, at: Alignment) -> ir.Value:
        """A table's rows at the places, aligned with the tensor that they are used with."""
        assert table.shape is not None
        missing = at.rank - len(table.shape)
        own = at.batch >= missing and dim_of(table, at.batch - missing) != 1
        labels = list(range(missing, at.rank))
        rest = [axis for axis in labels if axis not in (at.batch, at.tokens)]
        if own:
            perm = [axis - missing for axis in (at.batch, at.tokens, *rest)]
            first = build.op("Transpose", table, perm=perm)
            taken, order = self._own_rows(build, first), [at.batch, at.tokens, *rest]
        else:
            one = build.ints(at.batch - missing)
            flat = build.op("Squeeze", table, one) if at.batch in labels else table
            before = [axis for axis in rest if axis < at.tokens]
            places = self._places_for(build, at)
            taken = build.op("Gather", flat, places, axis=len(before))
            order = [*before, at.batch, at.tokens, *(axis for axis in rest if axis > at.tokens)]
        return self._ordered(build, table, taken, order, at)

    def _ordered(
        self,
        build: GraphBuilder,
        table: ir.Value,
        taken: ir.Value,
        order: list[int],
        at: Alignment,
    ) -> ir.Value:
        """The rows with their axes in the aligned order; axes that the table lacks have size 1."""
        perm = sorted(range(len(order)), key=order.__getitem__)
        if perm != list(range(len(order))):
            taken = build.op("Transpose", taken, perm=perm)
        absent = [axis for axis in range(min(order), at.rank) if axis not in order]
        if absent:
            taken = build.op("Unsqueeze", taken, build.ints(*(a - min(order) for a in absent)))
        taken.shape, taken.type = self.shape_of(dims_of(table) or [], at), table.type
        return taken

    def shape_of(self, dims: Sequence[int | str | None], at: Alignment) -> ir.Shape:
        """Of the rows of a table with such sizes."""
        missing = at.rank - len(dims)
        sizes: dict[int, int | str | None] = {missing + n: dim for n, dim in enumerate(dims)}
        sizes |= {at.batch: dim_of(at.like, at.batch_of), at.tokens: self.tokens}
        return ir.Shape([sizes.get(axis, 1) for axis in range(min(sizes), at.rank)])

    def _own_rows(self, build: GraphBuilder, table: ir.Value) -> ir.Value:
        """Rows of ``[n, length, …]``, a table for each sequence or each group of them."""
        numbers = self._groups(build, table, 0)
        pairs = self._paired(build, build.op("Unsqueeze", numbers, build.ints(1)))
        return build.op("GatherND", table, pairs)

    def spread(self, build: GraphBuilder, table: ir.Value, axis: int) -> ir.Value:
        """What there is for each sequence, or each group of them, for each sequence."""
        dims = dims_of(table) or []
        shape = [*dims[:axis], self.batch, *dims[axis + 1 :]]
        numbers = self._groups(build, table, axis)
        return build.op("Gather", table, numbers, axis=axis, like=table, shape=shape)

    def _groups(self, build: GraphBuilder, table: ir.Value, axis: int) -> ir.Value:
        """``[batch]``: which along an axis of a table is each sequence's."""
        count = build.op("Shape", table, start=axis, end=axis + 1)
        batch = build.op("Shape", self.position, start=0, end=1)
        return build.op("Div", build.op("Mul", build.positions(batch), count), batch)

    def _places_for(self, build: GraphBuilder, at: Alignment) -> ir.Value:
        """The places for a batch that other axes are merged with: each sequence's repeated."""
        if dim_of(at.like, at.batch_of) == self.batch:
            return self.position
        count = build.op("Shape", at.like, start=at.batch_of, end=at.batch_of + 1)
        batch = build.op("Shape", self.position, start=0, end=1)
        numbers = build.op("Div", build.op("Mul", build.positions(count), batch), count)
        return build.op("Gather", self.position, numbers, axis=0)

    def _paired(self, build: GraphBuilder, firsts: ir.Value) -> ir.Value:
        """``[batch, tokens, 2]`` of ``[batch, 1]`` numbers, each beside the places."""
        full = build.op("Expand", firsts, build.op("Shape", self.position))
        last = build.ints(2)
        parts = (build.op("Unsqueeze", part, last) for part in (full, self.position))
        return build.op("Concat", *parts, axis=2)


def in_front(value: ir.Value, moving: Collection[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
    """Rows of a context that stand in front of the tokens', and those; ``moving`` depends on the
    tokens."""
    *front, own = joined_along(value, 1) or [value]
    alone = own in moving and not any(v in moving for v in front)
    return (front, own) if alone else ([], value)


def behind(build: GraphBuilder, front: Sequence[ir.Value], state: ir.Value) -> ir.Value:
    """A state's rows behind those that stand in front of them."""
    if not front:
        return state
    batch, _, *rest = dims_of(state) or [None, None]
    rows = sum_of([dim_of(v, 1) for v in (*front, state)])
    return build.op("Concat", *front, state, axis=1, like=state, shape=[batch, rows, *rest])
