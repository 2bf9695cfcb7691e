"""Lowering to what OpenVINO's front end for ONNX takes: ONNX ``Attention`` for every site.

The front end makes OpenVINO's ``ScaledDotProductAttention`` of it, with 0 for rows without keys;
its CPU plugin generates one kernel for the products, the mask and the softmax. What a compiled
model really executes is read from its own execution graph (:mod:`crossfuse.core.openvino_nodes`),
so a kernel that is named here is asked for, not proven.

Precision is decided in the graph, as for every target: OpenVINO keeps the types of a graph where it
is told to compute in fp32 otherwise, and what has to stay in fp32, such as a quantizer's choice,
does. Only layer norms of bf16 need a word: the front end would convert to fp32 in front of them and
back behind, although the kernel for bf16 computes in fp32 inside.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.graph.op_classes import is_onnx
from crossfuse.targets.lowering import ATTENTION_OPSET, Lowered, at_opset, lower_sites
from crossfuse.targets.onnxruntime import onnx_attention

__all__ = ["lower_openvino"]


def lower_openvino(model: ir.Model) -> Lowered:
    """ONNX ``Attention`` for every site."""
    lowered = lower_sites(at_opset(model.clone(), ATTENTION_OPSET, "openvino"), onnx_attention)
    for node in lowered.model.graph.all_nodes():
        given = node.inputs[0] if is_onnx(node, "LayerNormalization") else None
        if given is not None and given.dtype == ir.DataType.BFLOAT16:
            node.attributes["stash_type"] = ir.AttrInt64("stash_type", int(ir.DataType.BFLOAT16))
    return lowered
