"""Sigmoids whose small values matter are computed to the last digit.

An engine's kernel may be right to 1e-8 and no further: ONNX Runtime's on the CPU is 0 below −18.
Beside numbers of the order of 1 that is nothing, but a logarithm makes −inf of it, and a quotient
NaN.

Rules:

1. ``Sigmoid`` becomes 1/(1 + exp(−x)) where its result, or a product, sum or selection of such
   results, is an operand of a logarithm, a root, a power or a quotient of activations; and where it
   is an output of the model.

It must not fire on gates (SiLU, GLU, quick-GELU, …), whose results are added to others.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.matching.layout_builder import Arranger

__all__ = ["compute_sigmoids_exactly"]

_SENSITIVE = {"Log": (0,), "Div": (0, 1), "Reciprocal": (0,), "Sqrt": (0,), "Pow": (0, 1)}
_MOVES = {
    "Cast",
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Slice",
    "Gather",
    "Flatten",
    "Split",
    "Concat",
}
_KEEPS_SMALL = _MOVES | {
    "Mul",
    "Div",
    "Where",
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceProd",
    "Max",
    "Min",
    "Clip",
    "Sum",
}


def compute_sigmoids_exactly(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite in place; returns the model and whether it changed."""
    modified = False
    for node in [n for n in model.graph if n.op_type == "Sigmoid" and not n.domain]:
        if _matters(node.outputs[0]):
            _compute_exactly(model.graph, node)
            modified = True
    return model, modified


def _matters(result: ir.Value) -> bool:
    """The value, as it is, is an output or comes to an operator that tells small numbers from 0."""
    if result.is_graph_output():
        return True
    seen: set[ir.Node] = set()
    pending = [result]
    while pending:
        for user, place in pending.pop().uses():
            if place in _SENSITIVE.get(user.op_type, ()) and not _by_constant(user, place):
                return True
            if user.op_type in _KEEPS_SMALL and user not in seen:
                seen.add(user)
                if user.op_type in _MOVES and user.outputs[0].is_graph_output():
                    return True
                pending.extend(user.outputs)
    return False


def _by_constant(node: ir.Node, place: int) -> bool:
    """A division by a constant, which is a scale."""
    divisor = node.inputs[1] if node.op_type == "Div" and place == 0 else None
    return divisor is not None and ir.convenience.get_const_tensor(divisor) is not None


def _compute_exactly(graph: ir.Graph, node: ir.Node) -> None:
    (source,), (result,) = node.inputs, node.outputs
    assert source is not None
    assert result.dtype is not None
    arranger = Arranger()
    shape = result.shape
    exponential = arranger.op("Exp", [arranger.op("Neg", [source], result)], result)
    one = arranger.constant(1, result.dtype.numpy())
    exact = arranger.op("Reciprocal", [arranger.op("Add", [exponential, one], result)], result)
    for new in arranger.tape.nodes:
        new.metadata_props.update(node.metadata_props)
        if new.op_type != "Constant":
            new.outputs[0].shape = shape
    graph.insert_before(node, arranger.tape.nodes)
    ir.convenience.replace_all_uses_with(result, exact, replace_graph_outputs=True)
    graph.remove(node, safe=True)
