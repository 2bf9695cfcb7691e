"""Which part of a tensor's shape comes from where: axes as groups of factors, followed through
transposes and reshapes.

An *axis factor* is a part of a shape that nothing has split so far: ``[batch·heads, length, size]``
begins as three factors; a reshape to ``[batch, heads, length, size]`` splits the first into two. In
row-major order a reshape keeps the factors and their order, and a transpose keeps the factors of
each axis together. So a chain of layout operators is a regrouping and a permutation of factors, and
two chains that do the same are known to, whatever operators they are written with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.graph.op_classes import LAYOUT_OPS
from crossfuse.graph.shapes import dim_of

__all__ = [
    "LAYOUT_OPS",
    "Axes",
    "Axis",
    "AxisFactor",
    "FactoredValue",
    "Size",
    "all_factors",
    "axes_of",
    "factors",
    "follow_layout",
    "last_factors",
    "regrouped",
    "size_of",
]


@dataclass(frozen=True)
class Size:
    """A size as a product: a number and symbols.

    Symbols that are no plain names (``length//2``) are opaque: nothing is known of their factors.
    """

    factor: int = 1
    symbols: tuple[str, ...] = ()

    @classmethod
    def parse(cls, dim: int | str) -> Size:
        """From a dimension of a graph: ``6``, ``batch``, ``4*batch*length``."""
        if isinstance(dim, int):
            return cls(dim)
        parts = [part.strip() for part in _split_product(dim)]
        if not all(re.fullmatch(r"\w+|\([^()]*\)", part) for part in parts):
            return cls(1, (dim,))
        numbers = [int(part) for part in parts if part.isdigit()]
        return cls(math.prod(numbers), tuple(sorted(p for p in parts if not p.isdigit())))

    def __mul__(self, other: Size) -> Size:
        return Size(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Size) -> Size | None:
        """The quotient, or None where it is not known to be whole."""
        rest = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in rest:
                return None
            rest.remove(symbol)
        if not other.factor or self.factor % other.factor:
            return None
        return Size(self.factor // other.factor, tuple(rest))

    @property
    def static(self) -> int | None:
        """The number, where there are no symbols."""
        return None if self.symbols else self.factor

    @property
    def dim(self) -> int | str:
        """As a dimension of a graph."""
        if not self.symbols:
            return self.factor
        return "*".join(([str(self.factor)] if self.factor != 1 else []) + list(self.symbols))


ONE = Size()


@dataclass(eq=False)
class AxisFactor:
    """A factor of a shape; each is itself and no other, whatever its size.

    Attributes:
        size: how many places it has.
        parts: the two factors that a reshape has split it into, the first one varying slower; None
            as long as none has. Whoever holds the factor sees the split, as all operands that share
            it are cut in the same way.
    """

    size: Size
    parts: tuple[AxisFactor, AxisFactor] | None = None

    def undivided(self) -> Iterator[AxisFactor]:
        """The factors that it is made of by now: itself where nothing has split it."""
        if self.parts is None:
            yield self
        else:
            for part in self.parts:
                yield from part.undivided()

    def split(self, first: Size, rest: Size) -> tuple[AxisFactor, AxisFactor]:
        """Split into two, the first one varying slower."""
        self.parts = (AxisFactor(first), AxisFactor(rest))
        return self.parts


Axis = Sequence[AxisFactor]
"""The factors of one axis, slowest first; an axis of size 1 has none."""

Axes = Sequence[Axis]
"""The axes of a tensor, in order."""


@dataclass(frozen=True)
class FactoredValue:
    """A value, with the factors of its axes."""

    value: ir.Value
    axes: Axes


def factors(axis: Axis) -> tuple[AxisFactor, ...]:
    """The factors of an axis, split as far as known by now."""
    return tuple(part for factor in axis for part in factor.undivided())


def all_factors(axes: Axes) -> tuple[AxisFactor, ...]:
    """The factors of all axes in order, split as far as known by now."""
    return tuple(part for axis in axes for part in factors(axis))


def size_of(axis: Axis) -> Size:
    """The product of the factors' sizes."""
    return math.prod((factor.size for factor in axis), start=ONE)


def axes_of(value: ir.Value) -> Axes | None:
    """New factors for a value, one per axis, or None where its rank is unknown.

    An unknown size is a symbol of its own.
    """
    if value.shape is None:
        return None
    sizes = [_size(value, axis) for axis in range(len(value.shape))]
    return tuple(() if size == ONE else (AxisFactor(size),) for size in sizes)


def follow_layout(node: ir.Node, axes: Axes) -> Axes | None:
    """Axes of a layout operator's output, given those of its input.

    Returns None where they can't be told: a size is unknown, or a reshape cuts a factor at a place
    that does not divide it.
    """
    out = node.outputs[0]
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(len(axes)))[::-1]
        return tuple(axes[i] for i in order)
    if node.op_type == "Flatten":
        first = node.attributes.get_int("axis", 1) or 0
        return (all_factors(axes[:first]), all_factors(axes[first:]))
    return regrouped(axes, out)


def regrouped(axes: Axes, value: ir.Value) -> Axes | None:
    """The same factors in the same order, as the axes of a value; None where they can't be told."""
    if value.shape is None:
        return None
    return _regroup(axes, [_size(value, axis) for axis in range(len(value.shape))])


def last_factors(axis: Axis, size: int) -> Axis | None:
    """The factors of an axis that vary fastest, of this size together; None where none have it.

    Splits a factor that the size divides.
    """
    pending, found = list(factors(axis)), []
    need = Size(size)
    while need != ONE:
        if not pending:
            return None
        factor = pending.pop()
        rest = need.over(factor.size)
        if rest is None:
            before = factor.size.over(need)
            if before is None:
                return None
            factor, rest = factor.split(before, need)[1], ONE
        found.append(factor)
        need = rest
    return tuple(reversed(found))


def _regroup(axes: Axes, sizes: Sequence[Size]) -> Axes | None:
    """The same factors in the same order, cut into axes of other sizes.

    Splits factors where a cut goes through them.
    """
    pending = list(all_factors(axes)[::-1])
    found: list[Axis] = []
    for size in sizes:
        axis = _take(pending, size)
        if axis is None:
            return None
        found.append(axis)
    return None if pending else tuple(found)


def _take(pending: list[AxisFactor], size: Size) -> Axis | None:
    """Take the factors of one axis off the end of those that wait, the next one last."""
    axis: list[AxisFactor] = []
    while size != ONE:
        if not pending:
            return None
        factor = pending.pop()
        rest = size.over(factor.size)
        if rest is None:
            beyond = factor.size.over(size)
            if beyond is None:
                return None
            factor, last = factor.split(size, beyond)
            pending.append(last)
            rest = ONE
        axis.append(factor)
        size = rest
    return tuple(axis)


def _split_product(dim: str) -> list[str]:
    """Split at ``*`` outside parentheses."""
    return re.split(r"\*(?![^(]*\))", dim)


def _size(value: ir.Value, axis: int) -> Size:
    dim = dim_of(value, axis)
    return Size.parse(dim) if dim is not None else Size(1, (f"{value.name}[{axis}]?",))
