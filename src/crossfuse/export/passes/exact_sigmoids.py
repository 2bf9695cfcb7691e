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

from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import MOVING_OPS, is_onnx

__all__ = ["ExactSigmoidsPass"]

_SENSITIVE = {"Log": (0,), "Div": (0, 1), "Reciprocal": (0,), "Sqrt": (0,), "Pow": (0, 1)}
"""Operators, and their operands, that tell small numbers from 0."""

_KEEPS_SMALL = (
    MOVING_OPS
    | {"Mul", "Div", "Where", "Max", "Min", "Clip", "Sum"}
    | {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd"}
)
"""Operators whose results are small where their operands are."""


class ExactSigmoidsPass(FusionPass):
    """``Sigmoid`` → 1/(1 + exp(−x)), where its small values matter."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        modified = False
        for node in list(model.graph):
            if is_onnx(node, "Sigmoid") and _matters(node.outputs[0]):
                _compute_exactly(node)
                modified = True
        return FusionResult(model, modified)


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
                if user.op_type in MOVING_OPS and user.outputs[0].is_graph_output():
                    return True
                pending.extend(user.outputs)
    return False


def _by_constant(node: ir.Node, place: int) -> bool:
    """A division by a constant, which is a scale."""
    divisor = node.inputs[1] if node.op_type == "Div" and place == 0 else None
    return divisor is not None and ir.convenience.get_const_tensor(divisor) is not None


def _compute_exactly(node: ir.Node) -> None:
    (source,), (result,) = node.inputs, node.outputs
    assert source is not None
    assert result.dtype is not None
    build = GraphBuilder()
    one = build.constant(1, result.dtype.numpy())
    negative = build.op("Neg", source, like=result, shape=result.shape)
    exponential = build.op("Exp", negative, like=result, shape=result.shape)
    total = build.op("Add", exponential, one, like=result, shape=result.shape)
    build.replace(node, build.op("Reciprocal", total, like=result, shape=result.shape))
