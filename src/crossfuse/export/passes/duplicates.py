"""Compute equal things once, such as the mask that every layer prepares again.

Rules:

1. Nodes with the same operator, inputs and attributes become one (onnx_ir's common-subexpression
elimination).
2. ``FusedAttention`` nodes must not merge, equal or not: the ledger has one node per attention of
   the eager model. The number of the call, an attribute from translation on, tells them apart until
   here, also in the exporter's own elimination.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from crossfuse.graph.metadata import attention_nodes
from crossfuse.ops.onnx_schema import CALL

__all__ = ["merge_duplicates"]


def merge_duplicates(model: ir.Model) -> tuple[ir.Model, bool]:
    """Merge in place; returns the model and whether it changed."""
    result = CommonSubexpressionEliminationPass()(model)
    for node in attention_nodes(result.model.graph):
        node.attributes.pop(CALL, None)
    return result.model, result.modified
