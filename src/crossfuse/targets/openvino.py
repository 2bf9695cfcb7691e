"""Lowering to what OpenVINO's front end for ONNX takes: ONNX ``Attention`` for every site.

The front end makes OpenVINO's ``ScaledDotProductAttention`` of it, with 0 for rows without keys;
its CPU plugin generates one kernel for the products, the mask and the softmax. What a compiled
model really executes is read from its own execution graph (:mod:`crossfuse.core.openvino_nodes`),
so a kernel that is named here is asked for, not proven.

Precision is decided in the graph, as for every target: OpenVINO keeps the types of a graph where it
is told to compute in fp32 otherwise, and what has to stay in fp32, such as a quantizer's choice,
does.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.targets.lowering import ATTENTION_OPSET, Lowered, at_opset, lower_sites
from crossfuse.targets.onnxruntime import onnx_attention

__all__ = ["lower_openvino"]


def lower_openvino(model: ir.Model) -> Lowered:
    """ONNX ``Attention`` for every site."""
    return lower_sites(at_opset(model.clone(), ATTENTION_OPSET, "openvino"), onnx_attention)
