"""The portable graph: ``FusedAttention`` nodes stay, and the operator's body is attached as ONNX
functions."""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.graph.attention_node import AttentionNode, attentions
from crossfuse.ops.contract import DOMAIN, INPUTS, NAME
from crossfuse.ops.onnx_function import Variant, attention_function
from crossfuse.targets.lowering import Lowered

__all__ = ["lower_portable"]


def lower_portable(model: ir.Model) -> Lowered:
    """Attach one function per variant in use, and point each node at its overload."""
    model = model.clone()
    opset = model.graph.opset_imports[""]
    kernels = {}
    for attention in attentions(model.graph):
        variant = _variant_of(attention)
        attention.node.overload = variant.overload
        # A function's call lists all of its inputs; absent ones are empty names.
        attention.node.resize_inputs(len(INPUTS))
        function = attention_function(variant, opset)
        model.functions.setdefault(function.identifier(), function)
        kernels[attention.site] = f"{DOMAIN}.{NAME}"
    return Lowered(model, kernels, {})


def _variant_of(attention: AttentionNode) -> Variant:
    """The variant of the operator's body that a node needs."""
    return Variant(
        mask=attention.mask is not None,
        bias=attention.bias is not None,
        key_lengths=attention.key_lengths is not None,
        causal=attention.causal,
    )
