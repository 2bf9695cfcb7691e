"""What the lowerings to ONNX graphs share: replacing each ``FusedAttention`` by an engine's
operator, and rows without keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.version_converter import convert_version

from crossfuse.errors import CrossfuseError
from crossfuse.graph.attention_node import attentions
from crossfuse.graph.metadata import SITE
from crossfuse.graph.shapes import dim_of
from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.fan_out import LoweringBuilder, Site

__all__ = [
    "ATTENTION_OPSET",
    "Lowered",
    "at_opset",
    "has_keys",
    "lower_sites",
    "repeat_heads",
    "zero_empty_rows",
]

_LOG = logging.getLogger(__name__)

ATTENTION_OPSET = 23
"""The first opset with an ``Attention`` operator."""


@dataclass(frozen=True)
class Lowered:
    """A target's graph.

    Attributes:
        model: the graph.
        kernels: site → kernel, for every attention that became a fused operator in it.
        reasons: site → why it has none, for the others.
    """

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
    form: Callable[[LoweringBuilder, Site], ir.Value],
    domains: Mapping[str, int] | None = None,
) -> Lowered:
    """Replace every ``FusedAttention`` in place by what ``form`` emits for it.

    Args:
        model: the graph; changed.
        form: emits a site's nodes and gives its output.
        domains: operator domains, with versions, that the emitted nodes use.
    """
    kernels = {}
    builders: dict[ir.DataType | None, LoweringBuilder] = {}
    for attention in attentions(model.graph):
        site = Site.of(attention)
        dtype = site.query.dtype
        if dtype not in builders:
            builders[dtype] = LoweringBuilder(np.dtype("f4" if dtype is None else dtype.numpy()))
        output = form(builders[dtype], site)
        kernel = _kernel_of(output)
        kernel.name = site.name
        kernel.metadata_props.update(attention.node.metadata_props)
        kernel.metadata_props[SITE] = site.name
        kernels[site.name] = kernel.op_type
        _LOG.debug("%s becomes %s", site.name, kernel.op_type)
        builders[dtype].replace(attention.node, output)
    model.graph.opset_imports.pop(DOMAIN, None)
    model.graph.opset_imports.update(domains or {})
    RemoveUnusedNodesPass()(model)
    return Lowered(model, kernels, {})


def has_keys(build: LoweringBuilder, mask: ir.Value, *, additive: bool) -> ir.Value:
    """Which rows of a mask have any key, ``[…, 1]`` bool; ``additive`` masks hold −inf where a key
    is not attended.

    A maximum over the mask itself would not tell: ONNX Runtime's CUDA provider gives the lowest
    finite number for a row of −inf. In bf16 it has no kernels for maxima and comparisons.
    """
    if additive:
        exact = build.dtype != ml_dtypes.bfloat16
        wide = mask if exact else build.op("Cast", mask, to=ir.DataType.FLOAT)
        infinity = build.constant(-np.inf, build.dtype if exact else np.float32)
        mask = build.op("Greater", wide, infinity)
    counted = build.op("Cast", mask, to=ir.DataType.FLOAT)
    peak = build.op("ReduceMax", counted, build.ints(-1), keepdims=1)
    return build.op("Greater", peak, build.constant(0, np.float32))


def zero_empty_rows(
    build: LoweringBuilder, site: Site, mask: ir.Value, output: ir.Value, *, additive: bool = True
) -> ir.Value:
    """Set the (folded) output's rows that have no key to 0, per head."""
    zero = build.constant(0, build.dtype)
    found = has_keys(build, mask, additive=additive)
    if dim_of(mask, 1) == 1 or site.rows_of_one_head:
        rows = build.op("Reshape", found, build.ints(0, -1, 1))
        return build.op("Where", rows, output, zero)
    heads = build.constant([0, 0, site.num_heads, -1], np.int64)
    split = build.op("Reshape", output, heads)
    rows = build.op("Transpose", found, perm=[0, 2, 1, 3])
    guarded = build.op("Where", rows, split, zero)
    return build.op("Reshape", guarded, build.ints(0, 0, -1))


def repeat_heads(build: LoweringBuilder, site: Site, tensor: ir.Value) -> ir.Value:
    """``[B, S, Hkv·D]`` → ``[B, S, Hq·D]``, each key head repeated for the query heads that share
    it."""
    if site.kv_num_heads == site.num_heads:
        return tensor
    repeat = site.num_heads // site.kv_num_heads
    split = build.op("Reshape", tensor, build.ints(0, 0, site.kv_num_heads, 1, -1))
    full = build.op("Expand", split, build.ints(1, 1, 1, repeat, 1))
    return build.op("Reshape", full, build.ints(0, 0, -1))


def _kernel_of(output: ir.Value) -> ir.Node:
    """The attention kernel behind the (guarded, sliced, unfolded) output."""
    node = output.producer()
    while node is not None and node.op_type not in ("MultiHeadAttention", "Attention"):
        data = node.inputs[1] if node.op_type == "Where" else node.inputs[0]
        node = None if data is None else data.producer()
    assert node is not None
    return node
