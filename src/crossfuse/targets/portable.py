"""The portable graph: ``FusedAttention`` nodes stay, and the operator's body is attached as ONNX
functions."""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.graph.metadata import attention_nodes, clone, site_of
from crossfuse.ops.contract import DOMAIN, INPUTS, NAME
from crossfuse.ops.onnx_function import attention_function, variant_of
from crossfuse.targets.lowering import Lowered

__all__ = ["lower_portable"]


def lower_portable(model: ir.Model) -> Lowered:
    """Attach one function per variant in use, and point each node at its overload."""
    model = clone(model)
    opset = model.graph.opset_imports[""]
    kernels = {}
    for node in attention_nodes(model.graph):
        variant = variant_of(node)
        node.overload = variant.overload
        # A function's call lists all of its inputs; absent ones are empty names.
        node.resize_inputs(len(INPUTS))
        function = attention_function(variant, opset)
        model.functions.setdefault(function.identifier(), function)
        kernels[site_of(node) or ""] = f"{DOMAIN}.{NAME}"
    return Lowered(model, kernels, {})
