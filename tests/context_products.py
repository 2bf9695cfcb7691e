"""Products of matrices that depend on a context alone, counted in a graph."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from crossfuse.export.split.dependence import Content, Dependence

__all__ = ["context_products"]


def context_products(model: ir.Model, context: Set[str]) -> int:
    """How many products are computed of the values of these names, and of weights, alone."""
    dependence = Dependence(model.graph, set(context))
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]
    return sum(dependence.of(node.outputs[0]) == Content.CONTEXT for node in products)
