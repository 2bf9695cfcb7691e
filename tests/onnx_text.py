"""Graphs written as ONNX text, for tests of one module at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import NameFixPass

HEADER = '<ir_version: 10, opset_import: ["" : 20, "crossfuse" : 1]> graph '


def parse(text: str, **weights: object) -> ir.Model:
    """``(float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }``, shapes inferred; weights by
    name, their dtype NumPy's."""
    proto = onnx.parser.parse_model(HEADER + text)
    for name, value in weights.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    model = ir.from_proto(proto)
    for i, node in enumerate(model.graph):
        node.name = node.name or f"n{i}"
    return model


def node_of(model: ir.Model, op_type: str, which: int = 0) -> ir.Node:
    """The ``which``-th node of this type."""
    return [node for node in model.graph if node.op_type == op_type][which]


def value_of(model: ir.Model, name: str) -> ir.Value:
    """A value by its name."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [out for node in model.graph for out in node.outputs]
    return next(value for value in values if value.name == name)


def with_tape(model: ir.Model, nodes: list[ir.Node], result: ir.Value) -> ir.Model:
    """The graph with these nodes at its end and this result as its only output."""
    model.graph.extend(nodes)
    result.name = result.name or "result"
    model.graph.outputs[:] = [result]
    NameFixPass()(model)
    return model


def run_reference(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """By ONNX's own reference implementation."""
    for value in model.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    return ReferenceEvaluator(ir.to_proto(model)).run(None, dict(inputs))
