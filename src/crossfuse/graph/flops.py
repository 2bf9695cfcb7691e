"""Floating-point operations of a graph at given sizes: products, convolutions and attentions, two
per multiply-add.

As in PyTorch's ``FlopCounterMode``: element-wise operators, norms and softmax are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from crossfuse.core.dimensions import size_at

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["count_flops", "node_flops"]


def count_flops(model: ir.Model, sizes: Mapping[str, int]) -> int | None:
    """Of the whole graph, or None where a shape that matters is unknown."""
    total = 0
    for node in model.graph:
        flops = node_flops(node, sizes)
        if flops is None:
            return None
        total += flops
    return total


def node_flops(node: ir.Node, sizes: Mapping[str, int]) -> int | None:
    """Of one node; 0 for operators that are not counted."""
    if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose", "FusedAttention"):
        return 0
    shapes = [_shape(v, sizes) for v in node.inputs[:3]]
    out = _shape(node.outputs[0], sizes)
    first, second = shapes[0], shapes[1] if len(shapes) > 1 else None
    if first is None or second is None or out is None:
        return None
    if node.op_type == "MatMul":
        return 2 * math.prod(out) * first[-1]
    if node.op_type == "Gemm":
        inner = first[0] if node.attributes.get_int("transA", 0) else first[1]
        return 2 * math.prod(out) * inner
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    batch, length, width = first
    heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    value = shapes[2]
    if value is None:
        return None
    return 2 * batch * length * second[1] * (width + heads * (value[2] // kv_heads))


def _shape(value: ir.Value | None, sizes: Mapping[str, int]) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    found = [size_at(s if isinstance(s, int) else s.value, sizes) for s in value.shape]
    known = [size for size in found if size is not None]
    return known if len(known) == len(found) else None
