"""Floating-point operations of a graph at given sizes: products, convolutions and attentions, two
per multiply-add.

As in PyTorch's ``FlopCounterMode``: element-wise operators, norms and softmax are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from crossfuse.core.dimensions import size_at
from crossfuse.graph.attention_node import AttentionNode
from crossfuse.graph.shapes import dims_of

__all__ = ["count_flops", "node_flops"]

Sizes = Mapping[str, int]


def count_flops(model: ir.Model, sizes: Sizes) -> int | None:
    """Of the whole graph, or None where a shape that matters is unknown."""
    total = 0
    for node in model.graph:
        flops = node_flops(node, sizes)
        if flops is None:
            return None
        total += flops
    return total


def node_flops(node: ir.Node, sizes: Sizes) -> int | None:
    """Of one node: 0 for operators that are not counted, None where a shape is unknown.

    Args:
        node: of a fused graph.
        sizes: of the named dimensions.
    """
    rule = _RULES.get(node.op_type)
    return 0 if rule is None else rule(node, sizes)


def _matmul(node: ir.Node, sizes: Sizes) -> int | None:
    first, out = _shape(node.inputs[0], sizes), _shape(node.outputs[0], sizes)
    return None if first is None or out is None else 2 * math.prod(out) * first[-1]


def _gemm(node: ir.Node, sizes: Sizes) -> int | None:
    first, out = _shape(node.inputs[0], sizes), _shape(node.outputs[0], sizes)
    if first is None or out is None:
        return None
    return 2 * math.prod(out) * first[0 if node.attributes.get_int("transA", 0) else 1]


def _conv(node: ir.Node, sizes: Sizes) -> int | None:
    weight, out = _shape(node.inputs[1], sizes), _shape(node.outputs[0], sizes)
    return None if weight is None or out is None else 2 * math.prod(out) * math.prod(weight[1:])


def _conv_transpose(node: ir.Node, sizes: Sizes) -> int | None:
    first, weight = (_shape(value, sizes) for value in node.inputs[:2])
    return None if weight is None or first is None else 2 * math.prod(first) * math.prod(weight[1:])


def _attention(node: ir.Node, sizes: Sizes) -> int | None:
    attention = AttentionNode(node)
    query, key = _shape(attention.query, sizes), _shape(attention.key, sizes)
    value = _shape(attention.value, sizes)
    if query is None or key is None or value is None:
        return None
    batch, length, width = query
    value_width = attention.num_heads * (value[2] // attention.kv_num_heads)
    return 2 * batch * length * key[1] * (width + value_width)


_RULES: dict[str, Callable[[ir.Node, Sizes], int | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "FusedAttention": _attention,
}


def _shape(value: ir.Value | None, sizes: Sizes) -> list[int] | None:
    dims = dims_of(value)
    if dims is None:
        return None
    known = [size for dim in dims if (size := size_at(dim, sizes)) is not None]
    return known if len(known) == len(dims) else None
