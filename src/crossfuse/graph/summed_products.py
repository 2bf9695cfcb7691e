"""Products of matrices that are written as a sum over a multiplication: of values that broadcast
against each other, and share the axis that is summed.

``(q[:, :, None] * k[:, None]).sum(-1)`` is ``q @ kᵀ``, by way of every single product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dims_of, rank_of, same_dim

__all__ = ["Factor", "SummedProduct", "summed_product"]

Dim = int | str | None


@dataclass(frozen=True)
class Factor:
    """One of the values that are multiplied.

    Attributes:
        value: as it is before it is expanded.
        dims: its sizes, in the axes of the multiplication; 1 in those that it lacks.
    """

    value: ir.Value
    dims: Sequence[Dim]

    @property
    def held(self) -> list[int]:
        """Axes of the multiplication along which it varies."""
        return [axis for axis, dim in enumerate(self.dims) if dim != 1]


@dataclass(frozen=True)
class SummedProduct:
    """What is multiplied, and over which axes the products are summed.

    Attributes:
        factors: of the multiplication.
        summed: axes.
        kept: they stay, with a size of 1.
        divisors: numbers that each product is divided by.
    """

    factors: Sequence[Factor]
    summed: frozenset[int]
    kept: bool
    divisors: Sequence[ir.Value] = ()

    @property
    def rank(self) -> int:
        """Of the multiplication."""
        return len(self.factors[0].dims)

    def multiplied(self, active: set[ir.Value]) -> tuple[ir.Value, ir.Value] | None:
        """Two active factors each of which has an axis of its own, beside one that both have and
        that is summed; None where there are none: then it is no product of matrices."""
        moving = [factor for factor in self.factors if factor.value in active]
        for i, first in enumerate(moving):
            for second in moving[i + 1 :]:
                a, b = set(first.held), set(second.held)
                if a - b - self.summed and b - a - self.summed and a & b & self.summed:
                    return first.value, second.value
        return None


def summed_product(node: ir.Node) -> SummedProduct | None:
    """The product that a ``ReduceSum`` ends; None where it sums anything else, or where sizes are
    not known to agree."""
    if not is_onnx(node, "ReduceSum"):
        return None
    source, divisors = _undivided(node.inputs[0])
    dims, axes = dims_of(source), _axes(node)
    if source is None or not dims or not axes or not _is_only(source, "Mul"):
        return None
    values = list(_factors(source))
    for unexpanded in (True, False):
        factors = [_factor(value, len(dims), unexpanded) for value in values]
        found = [factor for factor in factors if factor is not None]
        if len(found) == len(values) and _cover(found, dims):
            summed = frozenset(axis % len(dims) for axis in axes)
            kept = bool(node.attributes.get_int("keepdims", 1))
            return SummedProduct(found, summed, kept, divisors)
    return None


def _undivided(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Value]]:
    """A value before it is divided by numbers, and the numbers."""
    divisors = []
    while value is not None and _is_only(value, "Div"):
        node = value.producer()
        assert node is not None
        divisor = node.inputs[1]
        if divisor is None or divisor.const_value is None or rank_of(divisor) != 0:
            break
        divisors.append(divisor)
        value = node.inputs[0]
    return value, divisors


def _is_only(value: ir.Value, op_type: str) -> bool:
    """Made by an operator of this type, and used once."""
    node = value.producer()
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return node is not None and is_onnx(node, op_type) and alone


def _factors(value: ir.Value) -> Iterator[ir.Value]:
    """Of a multiplication, and of those among its operands that nothing else uses."""
    node = value.producer()
    assert node is not None
    for operand in node.inputs:
        assert operand is not None
        if _is_only(operand, "Mul"):
            yield from _factors(operand)
        else:
            yield operand


def _factor(value: ir.Value, rank: int, unexpanded: bool) -> Factor | None:
    """A value in the axes of the multiplication; None where its shape is unknown."""
    node = value.producer()
    if unexpanded and node is not None and is_onnx(node, "Expand") and node.inputs[0] is not None:
        value = node.inputs[0]
    dims = dims_of(value)
    if dims is None or None in dims:
        return None
    return Factor(value, [1] * (rank - len(dims)) + dims)


def _cover(factors: Sequence[Factor], dims: Sequence[Dim]) -> bool:
    """Every axis has its size from a factor, and those that vary along it agree."""
    return all(
        all(same_dim(factor.dims[axis], dim) for factor in factors if axis in factor.held)
        and (dim == 1 or any(axis in factor.held for factor in factors))
        for axis, dim in enumerate(dims)
    )


def _axes(node: ir.Node) -> list[int] | None:
    """That are summed; None where they are not known."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    given = node.inputs[1] if len(node.inputs) > 1 else None
    known = given.const_value if given is not None else None
    return None if known is None else [int(axis) for axis in known.numpy().flatten()]
