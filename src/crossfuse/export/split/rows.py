"""What it means to cut a tensor in two along an axis: the first rows, and the rest."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.core.dimensions import size_at, symbols_in
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, same_dim

__all__ = ["CannotCutError", "Cut", "Rows", "Side", "equal_sizes", "joined_along", "sum_of"]


class Side(enum.Enum):
    """The rows that are asked for."""

    FIRST = enum.auto()
    REST = enum.auto()


class CannotCutError(Exception):
    """The first rows of a value can't be computed apart, with the reason in words."""


@dataclass(frozen=True)
class Rows:
    """Two runs of rows, one behind the other.

    Attributes:
        first, rest: a value and the axis of it that counts the rows.
    """

    first: tuple[ir.Value, int]
    rest: tuple[ir.Value, int]

    def dim(self, side: Side) -> int | str | None:
        """How many rows there are."""
        return dim_of(*self._counted(side))

    def count(self, build: GraphBuilder, side: Side) -> ir.Value:
        """How many rows there are, ``[1]`` int64."""
        return build.size(*self._counted(side))

    def like(self, other: Rows) -> bool:
        """The first rows are as many."""
        return equal_sizes([self.dim(Side.FIRST)], [other.dim(Side.FIRST)])

    def _counted(self, side: Side) -> tuple[ir.Value, int]:
        return self.first if side is Side.FIRST else self.rest


@dataclass(frozen=True)
class Cut:
    """A value in two parts along an axis."""

    axis: int
    rows: Rows
    first: ir.Value
    rest: ir.Value

    def part(self, side: Side) -> ir.Value:
        """One of them."""
        return self.first if side is Side.FIRST else self.rest


def equal_sizes(some: Sequence[int | str | None], others: Sequence[int | str | None]) -> bool:
    """The sums of sizes are known to be equal, as far as numbers tell."""
    if len(some) == len(others) == 1:
        same = same_dim(some[0], others[0])
        if same or (isinstance(some[0], int) and isinstance(others[0], int)):
            return same
    names = sorted(frozenset().union(*(symbols_in(dim) for dim in (*some, *others))))
    for seed in (2, 5, 11):
        sizes = {name: 7 * seed + (seed + 3) * at * at for at, name in enumerate(names, 1)}
        sums = [[size_at(dim, sizes) for dim in dims] for dims in (some, others)]
        if any(None in dims for dims in sums):
            return False
        if sum(size or 0 for size in sums[0]) != sum(size or 0 for size in sums[1]):
            return False
    return True


def sum_of(dims: Sequence[int | str | None]) -> int | str | None:
    """Sizes added up, as a dimension; None where one isn't known."""
    if None in dims:
        return None
    number = sum(dim for dim in dims if isinstance(dim, int))
    texts = [dim for dim in dims if isinstance(dim, str)]
    return " + ".join([*texts, *([str(number)] if number else [])]) if texts else number


def joined_along(value: ir.Value, axis: int) -> list[ir.Value]:
    """What a value was joined from along an axis; nothing where it was not."""
    node = value.producer()
    if node is None or not is_onnx(node, "Concat") or node.attributes["axis"].as_int() != axis:
        return []
    return [v for v in node.inputs if v is not None]
