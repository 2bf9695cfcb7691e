"""What the lowerings to ONNX graphs share: replacing each ``FusedAttention`` by an engine's
operator, and rows without keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.version_converter import convert_version

from crossfuse.errors import CrossfuseError
from crossfuse.graph.metadata import SITE, attention_nodes, dim_of, site_of
from crossfuse.targets.fan_out import Emitter, Site, read_site

__all__ = [
    "ATTENTION_OPSET",
    "Lowered",
    "at_opset",
    "has_keys",
    "lower_sites",
    "repeat_heads",
    "zero_empty_rows",
]

ATTENTION_OPSET = 23
"""The first opset with an ``Attention`` operator."""


@dataclass(frozen=True)
class Lowered:
    """A target's graph, and site → kernel for every attention that became a fused operator in
    it."""

    model: ir.Model
    kernels: dict[str, str]
    reasons: dict[str, str]


def at_opset(model: ir.Model, opset: int, target: str) -> ir.Model:
    """Convert a graph in place.

    Raises:
        CrossfuseError: it can't be converted.
    """
    convert_version(model, opset)
    if model.graph.opset_imports[""] != opset:
        got = model.graph.opset_imports[""]
        raise CrossfuseError(
            f"the graph can't be converted to the opset that {target} needs",
            got=got,
            expected=opset,
        )
    return model


def lower_sites(
    model: ir.Model,
    form: Callable[[Emitter, Site], ir.Value],
    domains: Mapping[str, int] | None = None,
) -> Lowered:
    """Replace every ``FusedAttention`` in place by what ``form`` emits for it.

    Args:
        model: the graph; changed.
        form: emits a site's nodes and gives its output.
        domains: operator domains, with versions, that the emitted nodes use.
    """
    kernels = {}
    emitters: dict[ir.DataType | None, Emitter] = {}
    for node in list(attention_nodes(model.graph)):
        site = read_site(node)
        dtype = site.query.dtype
        emit = emitters.setdefault(
            dtype, Emitter(np.dtype(np.float32 if dtype is None else dtype.numpy()))
        )
        output = form(emit, site)
        site_name = site_of(node) or node.name or ""
        kernel = _kernel_of(output)
        kernel.name = site_name
        kernel.metadata_props.update(node.metadata_props)
        kernel.metadata_props[SITE] = site_name
        kernels[site_name] = kernel.op_type
        emit.flush(before=node)
        old = node.outputs[0]
        output.type, output.shape = old.type, old.shape
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        output.name = name
    model.graph.opset_imports.pop("crossfuse", None)
    model.graph.opset_imports.update(domains or {})
    RemoveUnusedNodesPass()(model)
    return Lowered(model, kernels, {})


def has_keys(emit: Emitter, mask: ir.Value, *, additive: bool) -> ir.Value:
    """Which rows of a mask have any key, ``[…, 1]`` bool; ``additive`` masks hold −inf where a key
    is not attended.

    Computed in fp32 for bool and bf16 masks: ONNX Runtime has no bf16 kernel for maxima and
    comparisons.
    """
    wide = not additive or emit.dtype == ml_dtypes.bfloat16
    if wide:
        mask = emit.op("Cast", mask, to=ir.DataType.FLOAT)
    peak = emit.op("ReduceMax", mask, emit.ints(-1), keepdims=1)
    return emit.op(
        "Greater",
        peak,
        emit.constant(-np.inf if additive else 0, np.float32 if wide else emit.dtype),
    )


def zero_empty_rows(
    emit: Emitter, site: Site, mask: ir.Value | None, output: ir.Value, *, additive: bool = True
) -> ir.Value:
    """Set the (folded) output's rows that have no key to 0, per head."""
    assert mask is not None
    zero = emit.constant(0, emit.dtype)
    found = has_keys(emit, mask, additive=additive)
    if dim_of(mask, 1) == 1 or site.rows_of_one_head:
        rows = emit.op("Reshape", found, emit.ints(0, -1, 1))
        return emit.op("Where", rows, output, zero)
    heads = emit.constant([0, 0, site.num_heads, -1], np.int64)
    split = emit.op("Reshape", output, heads)
    rows = emit.op("Transpose", found, perm=[0, 2, 1, 3])
    guarded = emit.op("Where", rows, split, zero)
    return emit.op("Reshape", guarded, emit.ints(0, 0, -1))


def repeat_heads(emit: Emitter, site: Site, tensor: ir.Value) -> ir.Value:
    """``[B, S, Hkv·D]`` → ``[B, S, Hq·D]``, each key head repeated for the query heads that share
    it."""
    if site.kv_num_heads == site.num_heads:
        return tensor
    repeat = site.num_heads // site.kv_num_heads
    split = emit.op("Reshape", tensor, emit.ints(0, 0, site.kv_num_heads, 1, -1))
    full = emit.op("Expand", split, emit.ints(1, 1, 1, repeat, 1))
    return emit.op("Reshape", full, emit.ints(0, 0, -1))


def _kernel_of(output: ir.Value) -> ir.Node:
    """The attention kernel behind the (guarded, sliced, unfolded) output."""
    node = output.producer()
    while node is not None and node.op_type not in ("MultiHeadAttention", "Attention"):
        data = node.inputs[1] if node.op_type == "Where" else node.inputs[0]
        node = None if data is None else data.producer()
    assert node is not None
    return node
