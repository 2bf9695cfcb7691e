"""ONNX ``Attention`` (opset 23) → ``FusedAttention``.

Rules:

1. Queries, keys and values come as ``[B, H, L, D]``, or as ``[B, L, H·D]`` with the numbers of
   heads as attributes.
2. A bool mask becomes ``mask``, a float one ``bias``, with four axes. ``is_causal`` is
   ``upper_left``; the scale is made explicit.

It must not fire on a node with a cache (past keys, or more than one output that is used), a cap on
the scores, or heads or axes that are unknown. Such a node stays, and gives its reason.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import Axes, Size, axes_of, factors, size_of
from crossfuse.export.matching.layout_builder import LayoutBuilder
from crossfuse.export.matching.softmax_chain import Mismatch
from crossfuse.export.passes.base import FusionPass, FusionResult, Missed
from crossfuse.graph.attention_node import AttentionAttributes, AttentionInputs, AttentionNode
from crossfuse.graph.metadata import module_path
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import rank_of
from crossfuse.ops.contract import DOMAIN, VERSION

__all__ = ["FuseOnnxAttentionPass"]


class FuseOnnxAttentionPass(FusionPass):
    """ONNX's own attention nodes → the one operator."""

    captures = True

    def call(self, model: ir.Model) -> FusionResult:
        """Replace every node that matches."""
        missed: list[Missed] = []
        modified = False
        for node in list(model.graph):
            if not is_onnx(node, "Attention"):
                continue
            try:
                _replace(node)
                modified = True
            except Mismatch as mismatch:
                missed.append(Missed(module_path(node), str(mismatch)))
        if modified:
            model.opset_imports[DOMAIN] = VERSION
        return FusionResult(model, modified, tuple(missed))


class _Operand(NamedTuple):
    """A value, its axes as they are, and as ``[batch, heads, length, size]``."""

    value: ir.Value
    axes: Axes
    by_head: Axes


def _replace(node: ir.Node) -> None:
    given = [*node.inputs, *[None] * (7 - len(node.inputs))]
    _refuse_cache_and_cap(node, given[4:])
    layout = LayoutBuilder()
    query, key, value = (
        _operand(operand, node, heads)
        for operand, heads in zip(
            given[:3], ("q_num_heads", "kv_num_heads", "kv_num_heads"), strict=True
        )
    )
    flat = []
    for operand in (query, key, value):
        layout.knows(operand.value, operand.axes)
        flat.append(layout.arrange(operand.value, operand.axes, _flat(operand.by_head)))
    batch, heads, length, size = query.by_head
    count, kv_count = (size_of(factors(o.by_head[1])).static for o in (query, key))
    width = size_of(factors(size)).static
    if count is None or kv_count is None or width is None:
        raise Mismatch("the heads of its Attention node are not known")
    mask = None if given[3] is None else _four_axes(given[3], layout)
    is_bool = mask is not None and mask.dtype == ir.DataType.BOOL
    scale = node.attributes.get_float("scale", None)
    fused = AttentionNode.emit(
        layout.build,
        AttentionInputs(
            *(flat[0], flat[1], flat[2]), mask if is_bool else None, None if is_bool else mask
        ),
        AttentionAttributes(
            num_heads=count,
            kv_num_heads=kv_count,
            scale=width**-0.5 if scale is None else scale,
            causal="upper_left" if node.attributes.get_int("is_causal", 0) else "none",
        ),
    ).output
    old = node.outputs[0]
    by_head: Axes = [batch, heads, length, value.by_head[3]]
    out = _flat(by_head)
    fused.type, fused.shape = old.type, ir.Shape([size_of(factors(a)).dim for a in out])
    result = layout.arrange(fused, out, by_head) if rank_of(old) == 4 else fused
    layout.build.replace(node, result)


def _refuse_cache_and_cap(node: ir.Node, beyond: list[ir.Value | None]) -> None:
    further = any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
    if further or any(value is not None for value in beyond):
        raise Mismatch("its Attention node has a cache or further outputs")
    if node.attributes.get_float("softcap", 0.0):
        raise Mismatch("its Attention node caps the scores")


def _operand(value: ir.Value | None, node: ir.Node, attribute: str) -> _Operand:
    found = axes_of(value) if value is not None else None
    if value is None or found is None or len(found) not in (3, 4):
        raise Mismatch("the rank of an operand of its Attention node is unknown")
    if len(found) == 4:
        return _Operand(value, found, found)
    heads = node.attributes.get_int(attribute, 0)
    width = size_of(found[2])
    size = width.over(Size(heads)) if heads else None
    if not heads or size is None:
        raise Mismatch("the heads of its Attention node are not known")
    (factor,) = found[2]
    first, rest = factor.split(Size(heads), size)
    by_head: Axes = [found[0], [first] if heads > 1 else [], found[1], [rest]]
    return _Operand(value, _flat(by_head), by_head)


def _flat(by_head: Axes) -> Axes:
    """``[batch, heads, length, size]`` as ``[batch, length, heads·size]``."""
    batch, heads, length, size = by_head
    return [batch, length, [*heads, *size]]


def _four_axes(mask: ir.Value, layout: LayoutBuilder) -> ir.Value:
    missing = 4 - len(mask.shape or ())
    if mask.shape is None or missing < 0:
        raise Mismatch("the rank of the mask of its Attention node is unknown")
    if not missing:
        return mask
    axes = layout.constant(list(range(missing)), np.int64)
    shape = [1] * missing + [
        size if isinstance(size, int) else str(size.value) for size in mask.shape
    ]
    return layout.op("Unsqueeze", [mask, axes], mask, shape)
