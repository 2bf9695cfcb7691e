"""Numbers of values that depend on constants alone, as weights do that a graph stores in another
form than it uses: transposed, packed with others, normed or summed of parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.defs import onnx_opset_version
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError, RuntimeImplementationError
from onnx.reference.ops import load_op

from crossfuse.graph.op_classes import RANDOM_OPS, is_onnx

__all__ = ["constant_of", "is_constant"]


def is_constant(value: ir.Value) -> bool:
    """Nothing that the value is computed from comes from outside the graph, or by chance."""
    return _made_by(value) is not None


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """What the value always is: a stored tensor, or one that ONNX's reference implementation
    computes when it is read.

    Returns:
        None where something comes from outside or by chance, or that implementation lacks an
        operator.
    """
    stored = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if stored is not None:
        return stored
    nodes = _made_by(value)
    if not nodes or not all(map(_is_implemented, nodes)):
        return None
    computed = _reader(value, nodes)
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        return computed()
    return ir.LazyTensor(computed, value.dtype, value.shape)


def _made_by(value: ir.Value) -> list[ir.Node] | None:
    """All nodes that the value is computed by, in an order to execute them; None where one of them
    is given something else than constants."""
    found: dict[ir.Node, None] = {}
    pending = [(value, False)]
    while pending:
        one, is_ready = pending.pop()
        node = one.producer()
        if node is None:
            if one.is_graph_input() or not one.is_initializer():
                return None
        elif is_ready:
            found[node] = None
        elif node not in found:
            if node.op_type in RANDOM_OPS or any(_is_graph(a) for a in node.attributes.values()):
                return None
            pending.append((one, True))
            pending += [(given, False) for given in node.inputs if given is not None]
    return list(found)


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _is_implemented(node: ir.Node) -> bool:
    if not is_onnx(node):
        return False
    try:
        load_op("", node.op_type, _version(node))
    except (NotImplementedError, RuntimeContextError, RuntimeImplementationError):
        return False
    return True


def _version(node: ir.Node) -> int:
    imports = {} if node.graph is None else node.graph.opset_imports
    return imports.get("", onnx_opset_version())


def _reader(value: ir.Value, nodes: list[ir.Node]) -> Callable[[], ir.TensorProtocol]:
    """What computes the value from the tensors that are stored now: a graph may be saved, and have
    others, before it is called."""
    stored = {
        one.name: one.const_value
        for node in nodes
        for one in node.inputs
        if one is not None and one.const_value is not None and one.producer() is None
    }
    made = [ir.to_proto(node) for node in nodes]
    result, opset = onnx.ValueInfoProto(name=value.name), _version(nodes[-1])

    def computed() -> ir.TensorProtocol:
        weights = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in stored.items()]
        graph = helper.make_graph(made, "constants", [], [result], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        (array,) = ReferenceEvaluator(model).run(None, {})
        return ir.tensor(np.ascontiguousarray(array))

    return computed
