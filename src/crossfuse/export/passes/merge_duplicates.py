"""Compute equal things once, such as the mask that every layer prepares again.

Rules:

1. Nodes with the same operator, inputs and attributes become one (onnx_ir's common-subexpression
   elimination).

It must not merge ``FusedAttention`` nodes, equal or not: the ledger has one node per attention of
the eager model. A number of its own, as an attribute, tells each from the others meanwhile, as it
does during the exporter's elimination.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.attention_node import attention_nodes
from crossfuse.ops.onnx_schema import CALL

__all__ = ["MergeDuplicatesPass"]


class MergeDuplicatesPass(FusionPass):
    """Equal nodes → one, attentions excepted."""

    def call(self, model: ir.Model) -> FusionResult:
        """Merge in place."""
        for number, node in enumerate(attention_nodes(model.graph)):
            node.attributes[CALL] = ir.AttrInt64(CALL, number)
        result = CommonSubexpressionEliminationPass()(model)
        for node in attention_nodes(model.graph):
            node.attributes.pop(CALL, None)
        return FusionResult(model, result.modified)
