"""Shapes that onnxscript infers node by node, inferred once for nodes alike.

Its folding writes each node and the types of its inputs as protobuf, and asks ONNX what comes out,
in each of its rounds. A model of many layers, or of a loop, asks the same again and again.

Rules:

1. Nodes are alike that have the same operator and attributes, inputs of the same types, shapes and
   small constants, and outputs of which the same is known.
2. What is inferred for one is copied to those like it.

A node is like no other where an attribute is a tensor or a graph, or a type is no tensor's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import onnx_ir as ir
from onnxscript import optimizer

__all__ = ["remembered_inference"]

_MOST_ELEMENTS = 20
"""Constants of more elements are not shown to ONNX."""

_PLAIN = frozenset(
    {
        *(ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING),
        *(ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS),
    }
)


class _Known(NamedTuple):
    """Of a value."""

    type: ir.DataType | None
    shape: tuple[Any, ...] | None


class _UnlikeError(Exception):
    """A node is like no other."""


@contextmanager
def remembered_inference() -> Iterator[None]:
    """While this lasts, folding of constants remembers what it inferred."""
    folding: Any = getattr(getattr(optimizer, "constant_folding", None), "FoldConstantsPass", None)
    if not hasattr(folding, "_do_inference"):
        yield
        return
    infer = folding._do_inference
    known: dict[Hashable, list[_Known]] = {}
    with patch.object(folding, "_do_inference", _remembering(infer, known)):
        yield


def _remembering(
    infer: Callable[[Any, ir.Node], None], known: dict[Hashable, list[_Known]]
) -> Callable[[Any, ir.Node], None]:
    def remembered(self: Any, node: ir.Node) -> None:
        try:
            alike = _likeness(node)
            if alike not in known:
                infer(self, node)
                known[alike] = [_of(value) for value in node.outputs]
                return
        except _UnlikeError:
            infer(self, node)
            return
        for value, found in zip(node.outputs, known[alike], strict=True):
            value.type = None if found.type is None else ir.TensorType(found.type)
            value.shape = None if found.shape is None else ir.Shape(found.shape)

    return remembered


def _likeness(node: ir.Node) -> Hashable:
    attributes = []
    for name, attribute in node.attributes.items():
        if attribute.type not in _PLAIN or attribute.is_ref():
            raise _UnlikeError
        value = attribute.value
        attributes.append((name, tuple(value) if isinstance(value, list | tuple) else value))
    places: dict[str | None, int] = {}
    inputs = [
        value if value is None else (places.setdefault(value.name, len(places)), _asked(value))
        for value in node.inputs
    ]
    named = None in places, tuple(value.name is None for value in node.outputs)
    return (
        *(node.op_identifier(), tuple(sorted(attributes)), tuple(inputs), named),
        tuple(_of(value) for value in node.outputs),
    )


def _asked(value: ir.Value) -> Hashable:
    """What ONNX is told of an input."""
    tensor = value.const_value
    content = None
    if tensor is not None and tensor.size <= _MOST_ELEMENTS:
        content = tensor.dtype, tuple(tensor.shape), tensor.tobytes()
    return _of(value), content


def _of(value: ir.Value) -> _Known:
    kind = value.type
    if kind is not None and (type(kind) is not ir.TensorType or kind.denotation):
        raise _UnlikeError
    shape = value.shape
    sizes = (
        None
        if shape is None
        else tuple(size if isinstance(size, int) else size.value for size in shape)
    )
    return _Known(None if kind is None else kind.dtype, sizes)
