"""Numbers that multiply queries or keys join in the attention's scale.

Rules:

1. ``Mul`` or ``Div`` by a constant of one element between a projection and an attention's queries
   or keys, with nothing but layout operators in between, is removed, and the scale takes its
   factor.
2. Engines take positive scales alone: the sign of a scale goes to the queries, and so does a scale
   of 0.

It must not fire where the scaled tensor has another use, or where the factor is 0 or not finite.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from crossfuse.export.matching.softmax_chain import scalar_of
from crossfuse.export.passes.base import FusionPass, FusionResult, Missed
from crossfuse.graph.attention_node import AttentionNode, attentions
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import LAYOUT_OPS, is_onnx
from crossfuse.graph.shapes import dims_of

__all__ = ["AbsorbScalesPass"]


class AbsorbScalesPass(FusionPass):
    """Constant factors of queries and keys → the scale."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        modified = False
        missed: list[Missed] = []
        for attention in attentions(model.graph):
            for role in ("query", "key"):
                try:
                    while (factor := _take_factor(attention, role)) is not None:
                        attention.set_scale(attention.scale * factor)
                        modified = True
                except _SharedFactorError:
                    reason = f"its scaled {role} has another use"
                    missed.append(Missed(attention.module, reason))
            modified |= _make_positive(attention)
        return FusionResult(model, modified, tuple(missed))


def _make_positive(attention: AttentionNode) -> bool:
    """Engines take positive scales alone: the sign goes to the queries."""
    scale, query = attention.scale, attention.query
    if not scale <= 0:
        return False
    build = GraphBuilder()
    if scale:
        signed = build.op("Neg", query, like=query, shape=query.shape)
    else:
        assert query.dtype is not None
        zero = build.constant(0, query.dtype.numpy())
        signed = build.op("Mul", query, zero, like=query, shape=query.shape)
    build.insert_before(attention.node)
    attention.set_operand("query", signed)
    attention.set_scale(-scale or 1.0)
    return True


class _SharedFactorError(Exception):
    """A factor that others see too."""


def _take_factor(attention: AttentionNode, role: str) -> float | None:
    """Remove the nearest constant factor of an operand and return it, if there is one."""
    value = attention.operand(role)
    shared = False
    while value is not None:
        shared |= len(value.uses()) != 1 or value.is_graph_output()
        node = value.producer()
        if node is None:
            return None
        if is_onnx(node, "Mul", "Div"):
            found = _factor(node)
            if found is None:
                return None
            factor, rest = found
            if shared:
                raise _SharedFactorError
            value.replace_all_uses_with(rest)
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            graph.remove(node, safe=True)  # else it would count as a use of what it multiplied
            return factor
        if not is_onnx(node, *LAYOUT_OPS):
            return None
        value = node.inputs[0]
    return None


def _factor(node: ir.Node) -> tuple[float, ir.Value] | None:
    """The number that a node multiplies by, and what it multiplies."""
    left, right = node.inputs
    number, rest = scalar_of(right), left
    if number is None and node.op_type == "Mul":
        number, rest = scalar_of(left), right
    dims = dims_of(rest)
    if number is None or rest is None or dims is None or dims != dims_of(node.outputs[0]):
        return None
    factor = number if node.op_type == "Mul" or not number else 1 / number
    return (factor, rest) if number and math.isfinite(factor) else None
