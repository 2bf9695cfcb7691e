"""Lowering to what OpenVINO's front end for ONNX takes: ONNX ``Attention`` for every site.

The front end makes OpenVINO's ``ScaledDotProductAttention`` of it, with 0 for rows without keys;
its CPU plugin generates one kernel for the products, the mask and the softmax. What a compiled
model really executes is read from its own execution graph (:mod:`crossfuse.core.openvino_nodes`),
so a kernel that is named here is asked for, not proven.

Precision is decided in the graph, as for every target: OpenVINO keeps the types of a graph where it
is told to compute in fp32 otherwise, and what has to stay in fp32, such as a quantizer's choice,
does. Layer norms of bf16 are written in fp32 between casts: of their scale and bias OpenVINO makes
one kernel with the norm, and rounds once, where three operators in bf16 would round three times.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.targets.lowering import ATTENTION_OPSET, Lowered, at_opset, lower_sites
from crossfuse.targets.onnxruntime import onnx_attention

__all__ = ["lower_openvino"]


def lower_openvino(model: ir.Model) -> Lowered:
    """ONNX ``Attention`` for every site."""
    lowered = lower_sites(at_opset(model.clone(), ATTENTION_OPSET, "openvino"), onnx_attention)
    for node in list(lowered.model.graph.all_nodes()):
        given = node.inputs[0] if is_onnx(node, "LayerNormalization") else None
        if given is not None and given.dtype == ir.DataType.BFLOAT16 and not _unlike(node):
            _in_fp32(node)
    return lowered


def _unlike(node: ir.Node) -> bool:
    """Whether more than the norm itself is taken of a node: the mean, the deviation."""
    return any(output.uses() for output in node.outputs[1:])


def _in_fp32(node: ir.Node) -> None:
    """A layer norm of bf16 as one of fp32, its result rounded once."""
    build = GraphBuilder()
    wide = [
        None if value is None else build.op("Cast", value, to=int(ir.DataType.FLOAT))
        for value in node.inputs
    ]
    normed = build.op(
        "LayerNormalization",
        *wide,
        axis=node.attributes.get_int("axis", -1),
        epsilon=node.attributes.get_float("epsilon", 1e-5),
    )
    build.replace(node, build.op("Cast", normed, to=int(ir.DataType.BFLOAT16)))
