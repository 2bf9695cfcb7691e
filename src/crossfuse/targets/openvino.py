"""Lowering to what OpenVINO's front end for ONNX takes: ONNX ``Attention`` for every site.

The front end makes OpenVINO's ``ScaledDotProductAttention`` of it, with 0 for rows without keys;
its CPU plugin generates one kernel for the products, the mask and the softmax. What a compiled
model really executes is read from its own execution graph (:mod:`crossfuse.core.openvino_nodes`),
so a kernel that is named here is asked for, not proven.

Precision is decided in the graph, as for every target: OpenVINO keeps the types of a graph where it
is told to compute in fp32 otherwise, and what has to stay in fp32, such as a quantizer's choice,
does. Layer norms of bf16 are written in fp32 between casts: of their scale and bias OpenVINO makes
one kernel with the norm, and rounds once, where three operators in bf16 would round three times.

The index of the largest or smallest of many numbers is written as the first place that holds the
extreme: of ``ArgMax`` and ``ArgMin`` OpenVINO makes a sort of the best, which takes twice the time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, rank_of
from crossfuse.targets.lowering import ATTENTION_OPSET, Lowered, at_opset, lower_sites
from crossfuse.targets.onnxruntime import onnx_attention

__all__ = ["lower_openvino"]

_EXTREMES = {"ArgMax": "ReduceMax", "ArgMin": "ReduceMin"}
_MANY = 64
"""From how many numbers on reductions are faster than a sort."""


def lower_openvino(model: ir.Model) -> Lowered:
    """ONNX ``Attention`` for every site."""
    lowered = lower_sites(at_opset(model.clone(), ATTENTION_OPSET, "openvino"), onnx_attention)
    for node in list(lowered.model.graph.all_nodes()):
        given = node.inputs[0] if is_onnx(node, "LayerNormalization") else None
        if given is not None and given.dtype == ir.DataType.BFLOAT16 and not _unlike(node):
            _in_fp32(node)
        elif is_onnx(node, *_EXTREMES) and _first_of_many(node):
            _as_reductions(node)
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


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 0)


def _first_of_many(node: ir.Node) -> bool:
    """Whether a node gives the first index of an extreme among many floats, a known number."""
    given = node.inputs[0]
    if given is None or given.dtype not in (ir.DataType.FLOAT, ir.DataType.BFLOAT16):
        return False
    if rank_of(given) is None or node.attributes.get_int("select_last_index", 0) != 0:
        return False
    size = dim_of(given, _axis(node))
    return isinstance(size, int) and size >= _MANY


def _as_reductions(node: ir.Node) -> None:
    """The lowest index of those at which a number equals the extreme; the last one where none does,
    as beside NaN, so that it is an index in any case."""
    build = GraphBuilder()
    given, axis = node.inputs[0], _axis(node)
    rank, size = rank_of(given), dim_of(given, axis)
    assert given is not None
    assert rank is not None
    assert isinstance(size, int)
    along = [size if place == axis % rank else 1 for place in range(rank)]
    places = build.constant(np.arange(size).reshape(along), np.int32)
    extreme = build.op(_EXTREMES[node.op_type], given, build.ints(axis), keepdims=1)
    found = build.op(
        "Where", build.op("Equal", given, extreme), places, build.constant(size - 1, np.int32)
    )
    keepdims = node.attributes.get_int("keepdims", 1)
    first = build.op("ReduceMin", found, build.ints(axis), keepdims=keepdims)
    build.replace(node, build.op("Cast", first, to=int(ir.DataType.INT64)))
