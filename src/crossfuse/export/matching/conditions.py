"""Which keys a mask hides, as a union of literals, so that two masks can be told to be one.

A mask is written once before the softmax and again behind it, or once as a condition and once as
zeros and ones: ``masked_fill(mask == 0, -inf)`` and ``* mask``. `literals_of` reads either as a set
of literals, each a value that hides where it is nonzero, or where it is zero. The literals of
``a | b`` are those of both sides. `same_value` tells whether two values were computed in the same
way from the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.softmax_chain import scalar_of

__all__ = [
    "Literal",
    "LowBias",
    "hides_as_bias",
    "is_binary",
    "literals_of",
    "low_bias",
    "same_value",
]

_DEPTH = 12
"""How many operators back two values are compared."""

_SPREADING = frozenset({"Unsqueeze", "Squeeze", "Transpose", "Reshape", "Flatten"})
_REGROUPING = frozenset({"Reshape", "Flatten"})
_ALIGNED = frozenset({"Unsqueeze", "Transpose"})
"""Layout operators that do to both sides of ``Or`` what they do to the result."""

_NARROW = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
"""Types in which a number that is not zero may become zero."""

_TABLE = 1 << 22
"""More elements than this are looked at for no mask."""

_HIDES = -1e3
"""A bias that is at least this low hides."""


@dataclass(frozen=True)
class Literal:
    """A part of a mask.

    Attributes:
        value: what the mask is made of.
        layout: operators that move its elements, the last one first.
        hides: it hides where the value is nonzero; else, where it is zero.
    """

    value: ir.Value
    layout: tuple[ir.Node, ...]
    hides: bool

    def same_as(self, other: Literal) -> bool:
        """Whether both hide the same places."""
        return (
            self.hides == other.hides
            and len(self.layout) == len(other.layout)
            and all(map(_same_operator, self.layout, other.layout, [_DEPTH] * len(self.layout)))
            and same_value(self.value, other.value)
        )


def literals_of(value: ir.Value, hides: bool) -> tuple[Literal, ...]:
    """The literals of a mask that hides where the value is nonzero (or, without ``hides``, where it
    is zero)."""
    return tuple(_literals(value, (), hides))


def _literals(value: ir.Value, layout: tuple[ir.Node, ...], hides: bool) -> list[Literal]:
    node = value.producer()
    while node is not None:
        source = node.inputs[0] if node.inputs else None
        if source is None:
            break
        # An expansion repeats; in which order matters only to what regroups behind it.
        regrouped = any(each.op_type in _REGROUPING for each in layout)
        if node.op_type in _SPREADING or (node.op_type == "Expand" and regrouped):
            layout = (*layout, node)
        elif node.op_type == "Not":
            hides = not hides
        elif not _is_transparent(node):
            break
        value, node = source, source.producer()
    opened = None if node is None else _opened(node, layout, hides)
    return [Literal(value, layout, hides)] if opened is None else opened


def _is_transparent(node: ir.Node) -> bool:
    """What it makes is nonzero where its input is."""
    if node.op_type == "Cast":
        source = node.inputs[0]
        to = ir.DataType(node.attributes["to"].as_int())
        kind = None if source is None else source.dtype
        if kind is None or to in _NARROW:
            return kind == ir.DataType.BOOL
        return to == ir.DataType.BOOL or not kind.is_floating_point()
    return node.op_type in ("Identity", "Expand")


def _opened(node: ir.Node, layout: tuple[ir.Node, ...], hides: bool) -> list[Literal] | None:
    """The literals of a node's operands, where its result is a union of them."""
    first, second, third = (*node.inputs, None, None, None)[:3]
    if first is None or second is None:
        return None
    if node.op_type == "Equal" and scalar_of(second) == 0:
        return _literals(first, layout, not hides)
    if node.op_type == "Sub" and scalar_of(first) == 1 and is_binary(second):
        return _literals(second, layout, not hides)
    if node.op_type == "Where" and (scalar_of(second), scalar_of(third)) in ((1, 0), (0, 1)):
        return _literals(first, layout, hides == (scalar_of(second) == 1))
    union = node.op_type == "Or" if hides else node.op_type == "And" or _is_product(node)
    if not union or not _alike(layout, first, second):
        return None
    return [*_literals(first, layout, hides), *_literals(second, layout, hides)]


def _is_product(node: ir.Node) -> bool:
    return node.op_type == "Mul" and all(v is not None and is_binary(v) for v in node.inputs)


def _alike(layout: Sequence[ir.Node], first: ir.Value, second: ir.Value) -> bool:
    """Whether the layout does to both operands what it does to what is made of them."""
    if not layout:
        return True
    ranks = {None if v.shape is None else len(v.shape) for v in (first, second)}
    return len(ranks) == 1 and all(node.op_type in _ALIGNED for node in layout)


def is_binary(value: ir.Value, depth: int = _DEPTH) -> bool:
    """Whether a value holds zeros and ones alone."""
    if value.dtype == ir.DataType.BOOL:
        return True
    node = value.producer()
    if node is None or node.op_type == "Constant":
        return _is_table_of_zeros_and_ones(value)
    if depth == 0:
        return False
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type in _SPREADING | {"Cast", "Identity", "Expand", "Slice"}:
        return is_binary(inputs[0], depth - 1)
    if node.op_type == "Where":
        return all(scalar_of(v) in (0, 1) or is_binary(v, depth - 1) for v in inputs[1:])
    if node.op_type == "Sub":
        return scalar_of(inputs[0]) == 1 and is_binary(inputs[1], depth - 1)
    return node.op_type == "Mul" and all(is_binary(v, depth - 1) for v in inputs)


def _is_table_of_zeros_and_ones(value: ir.Value) -> bool:
    """A mask kept as a weight, as a causal one is that is cut to the lengths at hand."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _TABLE or tensor.dtype.is_string():
        return False
    array = tensor.numpy()
    return bool(((array == 0) | (array == 1)).all())


def hides_as_bias(value: ir.Value, factor: float) -> tuple[Literal, ...]:
    """The literals of a bias that is 0 where a key is attended, and low where it is not; none of
    any other bias."""
    low = low_bias(value, factor)
    return () if low is None else low.literals


class LowBias(NamedTuple):
    """A bias that is 0 where a key is attended, and a low number where it is not."""

    number: float
    literals: tuple[Literal, ...]


def low_bias(value: ir.Value, factor: float) -> LowBias | None:
    """A bias times a factor, where it is one that hides; None of any other bias."""
    node = value.producer()
    while node is not None and node.op_type in ("Identity", "Expand", "Cast"):
        value = node.inputs[0] or value
        node = value.producer()
    if node is None or node.op_type not in ("Mul", "Where"):
        return None
    numbers = [scalar_of(v) for v in node.inputs]
    if node.op_type == "Mul":
        for number, other in zip(numbers, reversed(node.inputs), strict=True):
            if number is not None and number * factor <= _HIDES and other and is_binary(other):
                return LowBias(number * factor, literals_of(other, True))
        return None
    (_, then, otherwise), condition = numbers, node.inputs[0]
    if condition is None or then is None or otherwise is None or 0 not in (then, otherwise):
        return None
    low = min(then * factor, otherwise * factor)
    if low > _HIDES or max(then, otherwise) * factor > 0:
        return None
    return LowBias(low, literals_of(condition, otherwise == 0))


def same_value(one: ir.Value | None, other: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Whether two values are equal because they are computed alike."""
    if one is other:
        return True
    if one is None or other is None or depth == 0:
        return False
    constants = [ir.convenience.get_const_tensor(v) for v in (one, other)]
    if constants[0] is not None and constants[1] is not None:
        first, second = (tensor.numpy() for tensor in constants if tensor is not None)
        return first.dtype == second.dtype and bool(np.array_equal(first, second))
    first_node, second_node = one.producer(), other.producer()
    return (
        first_node is not None
        and second_node is not None
        and one.index() == other.index()
        and _same_operator(first_node, second_node, depth)
        and same_value(first_node.inputs[0], second_node.inputs[0], depth - 1)
    )


def _same_operator(one: ir.Node, other: ir.Node, depth: int) -> bool:
    """Equal nodes but for their first inputs."""
    return (
        (one.op_type, one.domain) == (other.op_type, other.domain)
        and not one.op_type.startswith("Random")
        and len(one.inputs) == len(other.inputs) > 0
        and _attributes(one) == _attributes(other)
        and all(
            same_value(a, b, depth - 1)
            for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True)
        )
    )


def _attributes(node: ir.Node) -> dict[str, object]:
    return {name: _content(attribute) for name, attribute in node.attributes.items()}


def _content(attribute: ir.Attr) -> object:
    """Something that equals that of an equal attribute; a graph equals nothing."""
    if attribute.type == ir.AttributeType.TENSOR:
        array = attribute.as_tensor().numpy()
        return (str(array.dtype), array.shape, array.tobytes())
    is_graph = attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return object() if is_graph else str(attribute.value)
