"""Write a graph's floating types as other ones: a file of half precision in float32, any file in
float64.

Rules:

1. Weights, constants, casts and whatever else names a type (``to``, ``dtype``) change; so do the
declared inputs and outputs.
2. Values of weights are the same numbers, in the other type.
3. Declared types of what nodes make change likewise.
4. Norms keep their statistics in float32 or better: a ``stash_type`` of half precision becomes
   float32.

It must not touch integers, bools, or the types that quantizers write (int8, 4 bits, float8).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from crossfuse.export.passes.base import FusionPass, FusionResult

__all__ = ["DOUBLE", "SINGLE", "RetypePass", "has_types"]

SINGLE = {ir.DataType.FLOAT16: ir.DataType.FLOAT, ir.DataType.BFLOAT16: ir.DataType.FLOAT}
"""Half precisions in float32."""

DOUBLE = dict.fromkeys(
    (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT), ir.DataType.DOUBLE
)
"""Everything in float64."""

_NAMING = {"to", "dtype", "softmax_precision"}


def has_types(model: ir.Model, types: Mapping[ir.DataType, ir.DataType]) -> bool:
    """The graph declares a weight, an input, an output, a constant or a cast in one of the
    types."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    if any(value.dtype in types for value in values):
        return True
    return any(
        _renamed(a, types) is not a
        for graph in _graphs(model)
        for node in graph
        for a in node.attributes.values()
    )


class RetypePass(FusionPass):
    """The graph in other floating types.

    Args:
        types: old type → new type, such as `SINGLE` and `DOUBLE`.
    """

    def __init__(self, types: Mapping[ir.DataType, ir.DataType]) -> None:
        self.types = types

    def call(self, model: ir.Model) -> FusionResult:
        """Change in place."""
        modified = has_types(model, self.types)
        for graph in _graphs(model):
            if isinstance(graph, ir.Graph):
                for value in graph.initializers.values():
                    _rewrite_weight(value, self.types)
            for node in graph:
                for name, attribute in list(node.attributes.items()):
                    node.attributes[name] = _renamed(attribute, self.types)
                for value in node.outputs:
                    _declare(value, self.types)
            for value in (*graph.inputs, *graph.outputs):
                _declare(value, self.types)
        return FusionResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No weight, constant or cast has an old type any more."""
        assert not has_types(model, self.types)


def _rewrite_weight(value: ir.Value, types: Mapping[ir.DataType, ir.DataType]) -> None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype in types:
        value.const_value = ir.tensor(_in(tensor, types), name=value.name)
    if value.dtype in types or value.dtype is None:
        known = value.const_value
        value.type = None if known is None else ir.TensorType(known.dtype)


def _declare(value: ir.Value, types: Mapping[ir.DataType, ir.DataType]) -> None:
    if value.dtype is not None and value.dtype in types:
        value.type = ir.TensorType(types[value.dtype])


def _graphs(model: ir.Model) -> list[ir.Graph | ir.Function]:
    """The graph, the bodies within it, and the functions."""
    return [model.graph, *model.graph.subgraphs(), *model.functions.values()]


def _in(tensor: ir.TensorProtocol, types: Mapping[ir.DataType, ir.DataType]) -> np.ndarray:
    return tensor.numpy().astype(types[tensor.dtype].numpy())


def _renamed(attribute: ir.Attr, types: Mapping[ir.DataType, ir.DataType]) -> ir.Attr:
    """The attribute with the other type; itself where it has none of the types."""
    if attribute.is_ref():
        return attribute
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in types:
        return ir.AttrTensor(attribute.name, ir.tensor(_in(attribute.as_tensor(), types)))
    if (
        attribute.type == ir.AttributeType.INT
        and attribute.name in _NAMING
        and attribute.as_int() in types
    ):
        return ir.AttrInt64(attribute.name, int(types[ir.DataType(attribute.as_int())]))
    if attribute.name == "stash_type" and attribute.as_int() in SINGLE:
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    return attribute
