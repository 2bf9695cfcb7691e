"""Small integer tensors as sizes, and what operators make of them: numbers, products of dimensions,
or texts for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.export.matching.axes import Size

__all__ = ["Known", "Sizes", "difference", "folded", "follow_sizes", "total"]

_ARITHMETIC: dict[str, Callable[..., NDArray[np.generic]]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Sqrt": np.sqrt, "Neg": np.negative, "Pow": np.power,
    "Reciprocal": np.reciprocal, "Floor": np.floor, "Ceil": np.ceil, "Max": np.maximum, "Min": np.minimum,
    "Equal": np.equal, "Greater": np.greater, "Less": np.less,
}  # fmt: skip


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


class Known(Protocol):
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


_OF_SIZES = {"Add": total, "Sub": difference, "Mul": _product, "Div": _quotient}


def follow_sizes(node: ir.Node, known: Known) -> Sizes | None:
    """The sizes that an operator makes; None where it is none of those, or where it doesn't get
    sizes."""
    name = node.op_type
    if name == "Shape":
        return _shape_of(node, known)
    if name == "Size":
        dims = known.dims(node.inputs[0])
        return (
            None
            if dims is None or any(d is None for d in dims)
            else Sizes((math.prod((d for d in dims if d), start=Size()),), True)
        )
    if not node.inputs:
        return None
    given = [known.of(v) for v in node.inputs]
    first = given[0]
    if first is None:
        return None
    if name in ("Identity", "Cast"):
        integers = node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32)
        return first if name == "Identity" or integers else None
    if name in ("Squeeze", "Unsqueeze", "Reshape"):
        return _ranked(node, first)
    if name == "Gather":
        index = given[1]
        places = None if index is None else index.numbers
        if (
            places is None
            or first.scalar
            or any(not -len(first.elements) <= p < len(first.elements) for p in places)
        ):
            return None
        assert index is not None
        return Sizes(tuple(first.elements[p] for p in places), index.scalar)
    if name == "Concat":
        if any(g is None or g.scalar for g in given):
            return None
        return Sizes(tuple(e for g in given if g is not None for e in g.elements))
    if name == "Slice":
        bounds = [None if g is None else g.numbers for g in given[1:]]
        if first.scalar or len(bounds) < 2 or any(b is None or len(b) != 1 for b in bounds):
            return None
        start, end, *more = (b[0] for b in bounds if b is not None)
        return Sizes(first.elements[start : end : more[1] if len(more) > 1 else 1])
    if name == "ReduceProd":
        present = [e for e in first.elements if e is not None]
        if len(present) < len(first.elements):
            return None
        return Sizes(
            (math.prod(present, start=Size()),), not node.attributes.get_int("keepdims", 1)
        )
    if name in _OF_SIZES and len(given) == 2 and given[1] is not None:
        return _elementwise(_OF_SIZES[name], first, given[1])
    return _expanded_shape(node, known) if name == "Where" else None


def _shape_of(node: ir.Node, known: Known) -> Sizes | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return Sizes(tuple(dims[start:end]))


def _ranked(node: ir.Node, sizes: Sizes) -> Sizes | None:
    shape = node.outputs[0].shape
    return None if shape is None or len(shape) > 1 else Sizes(sizes.elements, len(shape) == 0)


def _elementwise(
    operator: Callable[[Size | None, Size | None], Size | None], a: Sizes, b: Sizes
) -> Sizes | None:
    count = max(len(a.elements), len(b.elements))
    if any(len(s.elements) not in (1, count) for s in (a, b)):
        return None
    left, right = (s.elements * (count // len(s.elements)) for s in (a, b))
    return Sizes(
        tuple(operator(x, y) for x, y in zip(left, right, strict=True)), a.scalar and b.scalar
    )


def _expanded_shape(node: ir.Node, known: Known) -> Sizes | None:
    """``Where(shape == −1, ones, shape)``, by which exporters write PyTorch's ``expand``: symbols
    are never −1."""
    test = node.inputs[0].producer() if node.inputs[0] is not None else None
    ones, sizes = (known.of(v) for v in node.inputs[1:3])
    if (
        test is None
        or test.op_type != "Equal"
        or ones is None
        or sizes is None
        or len(ones.elements) != len(sizes.elements)
    ):
        return None
    sides = [known.of(v) for v in test.inputs]
    other = next((s for s in sides if s is not None and s != sizes), None)
    if sizes not in sides or other is None or set(other.numbers or ()) != {-1}:
        return None
    chosen = [
        one if size is not None and size.static == -1 else size
        for one, size in zip(ones.elements, sizes.elements, strict=True)
    ]
    return Sizes(tuple(chosen), sizes.scalar)


def folded(node: ir.Node, arrays: list[NDArray[np.generic]]) -> NDArray[np.generic] | None:
    """Arithmetic on small constants."""
    name = node.op_type
    if name == "Cast":
        return arrays[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    if name == "Div":
        integers = arrays[0].dtype.kind in "iu"
        if integers and not np.all(arrays[1]):
            return None
        quotient: NDArray[np.generic] = np.divide(*arrays)
        return np.trunc(quotient).astype(arrays[0].dtype) if integers else quotient
    if name in ("Unsqueeze", "Squeeze") and len(arrays) == 2:
        axes = tuple(int(a) for a in arrays[1].reshape(-1))
        return (
            np.expand_dims(arrays[0], axes) if name == "Unsqueeze" else np.squeeze(arrays[0], axes)
        )
    if name in _ARITHMETIC and all(a.dtype == arrays[0].dtype for a in arrays) and len(arrays) <= 2:
        with np.errstate(all="ignore"):
            result = np.asarray(_ARITHMETIC[name](*arrays))
            return result if result.dtype == np.bool_ else result.astype(arrays[0].dtype)
    return None
