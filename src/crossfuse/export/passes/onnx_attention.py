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

import itertools

import numpy as np
import onnx_ir as ir

from crossfuse.export.capture.to_onnx import module_path
from crossfuse.export.ledger_rows import Missed
from crossfuse.export.matching.axes import Axes, Size, axes_of, leaves, size_of
from crossfuse.export.matching.layout_builder import Arranger
from crossfuse.export.matching.softmax_chain import Mismatch
from crossfuse.ops.contract import DOMAIN, NAME, VERSION
from crossfuse.ops.onnx_schema import CALL

__all__ = ["fuse_onnx_attention"]

_FIRST_CALL = 1 << 24


def fuse_onnx_attention(model: ir.Model) -> tuple[ir.Model, bool, list[Missed]]:
    """Replace every node that matches; returns the model, whether it changed, and the nodes that
    did not match."""
    missed: list[Missed] = []
    calls = itertools.count(_FIRST_CALL)
    modified = False
    for node in model.graph:
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            continue
        try:
            _replace(model.graph, node, next(calls))
            modified = True
        except Mismatch as mismatch:
            missed.append(Missed(module_path(node), str(mismatch)))
    if modified:
        model.opset_imports[DOMAIN] = VERSION
    return model, modified, missed


def _replace(graph: ir.Graph, node: ir.Node, call: int) -> None:
    given = [*node.inputs, *[None] * (7 - len(node.inputs))]
    if any(v is not None for v in given[4:]) or any(
        out.uses() or out.is_graph_output() for out in node.outputs[1:]
    ):
        raise Mismatch("its Attention node has a cache or further outputs")
    if node.attributes.get_float("softcap", 0.0):
        raise Mismatch("its Attention node caps the scores")
    arranger = Arranger()
    axes = [
        _by_head(v, node, name)
        for v, name in zip(given[:3], ("q_num_heads", *["kv_num_heads"] * 2), strict=True)
    ]
    operands = []
    for value, found in zip(given[:3], axes, strict=True):
        assert value is not None
        arranger.knows(value, found if len(value.shape or ()) == 4 else _flat(found))
        batch, heads, length, size = found
        source = found if len(value.shape or ()) == 4 else _flat(found)
        operands.append(arranger.arrange(value, source, [batch, length, [*heads, *size]]))
    batch, heads, length, size = axes[0]
    count, kv_count = (size_of(leaves(a[1])).static for a in axes[:2])
    width = size_of(leaves(size)).static
    if count is None or kv_count is None or width is None:
        raise Mismatch("the heads of its Attention node are not known")
    mask = given[3]
    if mask is not None:
        mask = _four_axes(mask, arranger)
    is_bool = mask is not None and mask.dtype == ir.DataType.BOOL
    optional = [] if mask is None else [mask] if is_bool else [None, mask]
    scale = node.attributes.get_float("scale", None)
    attributes: dict[str, int | float | str] = {
        "num_heads": count,
        "kv_num_heads": kv_count,
        "scale": width**-0.5 if scale is None else scale,
        "causal": "upper_left" if node.attributes.get_int("is_causal", 0) else "none",
        CALL: call,
    }
    fused = arranger.tape.op(NAME, [*operands, *optional], attributes=attributes, domain=DOMAIN)
    old = node.outputs[0]
    value_size = axes[2][3]
    out: Axes = [batch, length, [*heads, *value_size]]
    fused.type, fused.shape = old.type, ir.Shape([size_of(leaves(a)).dim for a in out])
    four = old.shape is not None and len(old.shape) == 4
    result = arranger.arrange(fused, out, [batch, heads, length, value_size]) if four else fused
    for new in arranger.tape.nodes:
        new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, arranger.tape.nodes)
    if old.shape is not None:
        result.shape = old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _by_head(value: ir.Value | None, node: ir.Node, attribute: str) -> Axes:
    """Atoms as ``[batch, heads, length, size]``."""
    found = axes_of(value) if value is not None else None
    if found is None or len(found) not in (3, 4):
        raise Mismatch("the rank of an operand of its Attention node is unknown")
    if len(found) == 4:
        return found
    heads = node.attributes.get_int(attribute, 0)
    width = size_of(found[2])
    size = width.over(Size(heads)) if heads else None
    if not heads or size is None:
        raise Mismatch("the heads of its Attention node are not known")
    (atom,) = found[2]
    first, rest = atom.split(Size(heads), size)
    return [found[0], [first] if heads > 1 else [], found[1], [rest]]


def _flat(axes: Axes) -> Axes:
    batch, heads, length, size = axes
    return [batch, length, [*heads, *size]]


def _four_axes(mask: ir.Value, arranger: Arranger) -> ir.Value:
    missing = 4 - len(mask.shape or ())
    if mask.shape is None or missing < 0:
        raise Mismatch("the rank of the mask of its Attention node is unknown")
    if not missing:
        return mask
    axes = arranger.constant(list(range(missing)), np.int64)
    shape = [1] * missing + [
        size if isinstance(size, int) else str(size.value) for size in mask.shape
    ]
    return arranger.op("Unsqueeze", [mask, axes], mask, shape)
