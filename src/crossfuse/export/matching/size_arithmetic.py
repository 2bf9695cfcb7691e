"""Small integer tensors as sizes, and what operators make of them: numbers, products of dimensions,
or texts for the rest.

`follow_sizes` computes one operator on sizes, `folded` one on constants. Neither evaluates a text:
what can't be computed exactly becomes a symbol of its own, ``(length // 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.export.matching.axes import Size

__all__ = ["KnownSizes", "Sizes", "difference", "folded", "follow_sizes", "total"]

_ARITHMETIC: dict[str, Callable[..., NDArray[np.generic]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Sqrt": np.sqrt,
    "Neg": np.negative,
    "Pow": np.power,
    "Reciprocal": np.reciprocal,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Max": np.maximum,
    "Min": np.minimum,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
}


@dataclass(frozen=True)
class Sizes:
    """An integer tensor of rank 0 or 1, element by element; None for one that is unknown."""

    elements: tuple[Size | None, ...]
    scalar: bool = False

    @property
    def numbers(self) -> list[int] | None:
        """Where all are numbers."""
        found = [None if e is None else e.static for e in self.elements]
        return None if any(n is None for n in found) else [n for n in found if n is not None]


Operands = Sequence[Sizes | None]
"""Sizes of the inputs behind an operator's first."""


class KnownSizes(Protocol):
    """What is known about values so far."""

    def of(self, value: ir.Value | None) -> Sizes | None:
        """A value's elements, where it is a small integer tensor."""

    def dims(self, value: ir.Value | None) -> list[Size | None] | None:
        """A value's shape in sizes; None for what is unknown."""


def total(a: Size | None, b: Size | None) -> Size | None:
    """The sum."""
    if a is None or b is None:
        return None
    if a.static is not None and b.static is not None:
        return Size(a.static + b.static)
    if a.static == 0 or b.static == 0:
        return b if a.static == 0 else a
    if a.symbols == b.symbols:
        return Size(a.factor + b.factor, a.symbols)
    first, second = sorted((str(a.dim), str(b.dim)))
    return Size(1, (f"({first} + {second})",))


def difference(a: Size | None, b: Size | None) -> Size | None:
    """The first without the second."""
    if a is None or b is None:
        return None
    if a.static is not None and b.static is not None:
        return Size(a.static - b.static)
    if b.static == 0:
        return a
    if a.symbols == b.symbols:
        return Size(a.factor - b.factor, a.symbols if a.factor != b.factor else ())
    return Size(1, (f"({a.dim} - {b.dim})",))


def _quotient(a: Size | None, b: Size | None) -> Size | None:
    if a is None or b is None or b.static == 0:
        return None
    if a.static is not None and b.static is not None:
        return Size(math.trunc(a.static / b.static))
    exact = a.over(b)
    return exact if exact is not None else Size(1, (f"({a.dim} // {b.dim})",))


def _product(a: Size | None, b: Size | None) -> Size | None:
    if a is None or b is None:
        return None
    return Size(0) if 0 in (a.static, b.static) else a * b


def follow_sizes(node: ir.Node, known: KnownSizes) -> Sizes | None:
    """The sizes that an operator makes of sizes, or reads off a shape.

    Returns None where it does neither, or where what it gets is not known to be sizes.
    """
    reader = _READERS.get(node.op_type)
    if reader is not None:
        return reader(node, known)
    operands = [known.of(value) for value in node.inputs]
    first = operands[0] if operands else None
    handler = _OF_SIZES.get(node.op_type)
    if first is None or handler is None:
        return None
    return handler(node, first, operands[1:])


def _shape(node: ir.Node, known: KnownSizes) -> Sizes | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return Sizes(tuple(dims[start:end]))


def _size(node: ir.Node, known: KnownSizes) -> Sizes | None:
    dims = known.dims(node.inputs[0])
    return None if dims is None else _product_of(dims, scalar=True)


def _expanded_shape(node: ir.Node, known: KnownSizes) -> Sizes | None:
    """``Where(shape == −1, ones, shape)``, by which exporters write PyTorch's ``expand``: symbols
    are never −1."""
    test = node.inputs[0].producer() if node.inputs[0] is not None else None
    ones, sizes = (known.of(value) for value in node.inputs[1:3])
    if test is None or test.op_type != "Equal" or ones is None or sizes is None:
        return None
    if len(ones.elements) != len(sizes.elements):
        return None
    sides = [known.of(value) for value in test.inputs]
    other = next((side for side in sides if side is not None and side != sizes), None)
    if sizes not in sides or other is None or set(other.numbers or ()) != {-1}:
        return None
    chosen = [
        one if size is not None and size.static == -1 else size
        for one, size in zip(ones.elements, sizes.elements, strict=True)
    ]
    return Sizes(tuple(chosen), sizes.scalar)


_READERS: dict[str, Callable[[ir.Node, KnownSizes], Sizes | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Where": _expanded_shape,
}
"""Operators whose first input is not sizes."""


def _same(node: ir.Node, sizes: Sizes, _: Operands) -> Sizes | None:
    """``Identity``, and ``Cast`` to integers."""
    integers = node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return sizes if node.op_type == "Identity" or integers else None


def _ranked(node: ir.Node, sizes: Sizes, _: Operands) -> Sizes | None:
    """``Squeeze``, ``Unsqueeze`` and ``Reshape``, as long as the rank is 0 or 1."""
    shape = node.outputs[0].shape
    return None if shape is None or len(shape) > 1 else Sizes(sizes.elements, len(shape) == 0)


def _gather(_: ir.Node, sizes: Sizes, others: Operands) -> Sizes | None:
    index = others[0]
    places = None if index is None else index.numbers
    if index is None or places is None or sizes.scalar:
        return None
    count = len(sizes.elements)
    if any(not -count <= place < count for place in places):
        return None
    return Sizes(tuple(sizes.elements[place] for place in places), index.scalar)


def _concat(_: ir.Node, sizes: Sizes, others: Operands) -> Sizes | None:
    parts = [part for part in (sizes, *others) if part is not None and not part.scalar]
    if len(parts) < 1 + len(others):
        return None
    return Sizes(tuple(element for part in parts for element in part.elements))


def _slice(_: ir.Node, sizes: Sizes, others: Operands) -> Sizes | None:
    bounds = [None if other is None else other.numbers for other in others]
    numbers = [bound[0] for bound in bounds if bound is not None and len(bound) == 1]
    if sizes.scalar or len(bounds) < 2 or len(numbers) < len(bounds):
        return None
    start, end, *more = numbers
    return Sizes(sizes.elements[start : end : more[1] if len(more) > 1 else 1])


def _reduce_product(node: ir.Node, sizes: Sizes, _: Operands) -> Sizes | None:
    return _product_of(sizes.elements, scalar=not node.attributes.get_int("keepdims", 1))


def _elementwise(
    operator: Callable[[Size | None, Size | None], Size | None],
) -> Callable[[ir.Node, Sizes, Operands], Sizes | None]:
    """An operator on each pair of elements; one element goes with all of the other side."""

    def follow(_: ir.Node, sizes: Sizes, others: Operands) -> Sizes | None:
        other = others[0] if len(others) == 1 else None
        if other is None:
            return None
        count = max(len(sizes.elements), len(other.elements))
        if any(len(side.elements) not in (1, count) for side in (sizes, other)):
            return None
        left, right = (side.elements * (count // len(side.elements)) for side in (sizes, other))
        pairs = zip(left, right, strict=True)
        return Sizes(tuple(operator(a, b) for a, b in pairs), sizes.scalar and other.scalar)

    return follow


_OF_SIZES: dict[str, Callable[[ir.Node, Sizes, Operands], Sizes | None]] = {
    "Identity": _same,
    "Cast": _same,
    "Squeeze": _ranked,
    "Unsqueeze": _ranked,
    "Reshape": _ranked,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "ReduceProd": _reduce_product,
    "Add": _elementwise(total),
    "Sub": _elementwise(difference),
    "Mul": _elementwise(_product),
    "Div": _elementwise(_quotient),
}
"""Operators on sizes: node, sizes of its first input, and those of its others → sizes."""


def _product_of(sizes: Sequence[Size | None], *, scalar: bool) -> Sizes | None:
    """All of them multiplied, where all are known."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return Sizes((math.prod(known, start=Size()),), scalar)


def folded(node: ir.Node, arrays: list[NDArray[np.generic]]) -> NDArray[np.generic] | None:
    """What an operator makes of small constants, of the type that ONNX gives it; None where it is
    no arithmetic."""
    name = node.op_type
    if name == "Cast":
        return arrays[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    if name == "Div":
        return _divided(*arrays)
    if name == "Mod" and np.all(arrays[1]):
        return np.asarray((np.fmod if node.attributes.get_int("fmod", 0) else np.mod)(*arrays))
    if name in ("Unsqueeze", "Squeeze") and len(arrays) == 2:
        axes = tuple(int(axis) for axis in arrays[1].reshape(-1))
        change = np.expand_dims if name == "Unsqueeze" else np.squeeze
        return change(arrays[0], axes)
    if name in _ARITHMETIC and len(arrays) <= 2 and len({a.dtype for a in arrays}) == 1:
        with np.errstate(all="ignore"):
            result = np.asarray(_ARITHMETIC[name](*arrays))
            return result if result.dtype == np.bool_ else result.astype(arrays[0].dtype)
    return None


def _divided(
    dividend: NDArray[np.generic], divisor: NDArray[np.generic]
) -> NDArray[np.generic] | None:
    """The quotient, of integers towards zero; None where one would be divided by 0."""
    integers = dividend.dtype.kind in "iu"
    if integers and not np.all(divisor):
        return None
    quotient: NDArray[np.generic] = np.divide(dividend, divisor)
    return np.trunc(quotient).astype(dividend.dtype) if integers else quotient
