"""Lowering to ONNX Runtime's fused operators for the CPU.

As `benchmarks/attention_forms.py` measured, an attention becomes ONNX ``Attention``: up to some
hundred queries it is faster than ``com.microsoft.MultiHeadAttention`` and than primitives, several
times for few queries, and with a mask it yields 0 for rows without keys by itself. Without a mask,
from some 800 queries on, MultiHeadAttention's flash path is faster, and it needs no memory for the
scores; so it is taken there, and for self-attention over a length that isn't known and may be long.

GELU with its bias, quick-GELU and layer norms behind one addition are fused by ONNX Runtime itself
when it loads a graph. Additions whose sum is used again (pre-norm residuals) it leaves: joining
those changed nothing within the noise (CLIP and ViLT at published sizes).

A step stage's self-attention has as many keys as a sequence may ever have, and a mask over those
that nobody has written yet. Keys behind the last that any row attends are left out at run time: a
step then costs what its sequences' lengths ask for, and not their limit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from crossfuse.core.tensors import NEXT
from crossfuse.graph.magnitudes import magnitudes_behind
from crossfuse.graph.shapes import dim_of
from crossfuse.targets.fan_out import LoweringBuilder, Site
from crossfuse.targets.lowering import (
    ATTENTION_OPSET,
    Lowered,
    at_opset,
    lower_sites,
    repeat_heads,
    zero_empty_rows,
)

__all__ = ["lower_ort_cpu", "onnx_attention"]

_MICROSOFT = "com.microsoft"
_LONG = 768
_ROOMY = 128
"""From so many keys of a state on, leaving out those behind the last costs less than it saves."""


def lower_ort_cpu(model: ir.Model) -> Lowered:
    """ONNX ``Attention``; ``MultiHeadAttention`` without a mask for many queries."""
    return lower_sites(
        at_opset(model.clone(), ATTENTION_OPSET, "ort-cpu"), _cpu_form, {_MICROSOFT: 1}
    )


def _cpu_form(build: LoweringBuilder, site: Site) -> ir.Value:
    if _roomy(build, site):
        site = _seen_keys(build, site)
    removed_by = (site.mask, site.bias, site.key_lengths)
    masked = site.causal != "none" or any(value is not None for value in removed_by)
    if masked or not _many_queries(site):
        return onnx_attention(build, site)
    return _multi_head_attention(build, site)


def _roomy(build: LoweringBuilder, site: Site) -> bool:
    """Keys and values are a state's, with many places that a mask keeps from being attended."""
    length = dim_of(site.key, 1)
    return (
        isinstance(length, int)
        and length >= _ROOMY
        and site.causal == "none"
        and not site.folded
        and (site.mask is not None or site.key_lengths is not None or _masks(build, site.bias))
        and all(
            value.is_graph_output() and (value.name or "").startswith(NEXT)
            for value in (site.key, site.value)
        )
    )


def _masks(build: LoweringBuilder, bias: ir.Value | None) -> bool:
    """A bias holds numbers as low as those that stand for keys which are not attended."""
    if bias is None or build.dtype != np.float32:
        return False
    return magnitudes_behind(bias).reach(-float(np.finfo(np.float32).min))


def _seen_keys(build: LoweringBuilder, site: Site) -> Site:
    """The site without the keys behind the last that any row attends."""
    attend = build.attended(site)
    count = _last_seen(build, site) if attend is None else _last_of(build, site, attend)

    def first(value: ir.Value, axis: int) -> ir.Value:
        shape = None if value.shape is None else [*value.shape]
        if shape is not None:
            shape[axis] = None
        return build.op(
            "Slice", value, build.ints(0), count, build.ints(axis), like=value, shape=shape
        )

    return replace(
        site,
        key=first(site.key, 1),
        value=first(site.value, 1),
        mask=None if attend is None else first(attend, 3),
        bias=None if site.bias is None else first(site.bias, 3),
        key_lengths=None,
    )


def _last_of(build: LoweringBuilder, site: Site, attend: ir.Value) -> ir.Value:
    """How many keys there are up to the last that any row of a bool mask attends, at least one,
    ``[1]`` int64."""
    seen = build.op("Cast", attend, to=ir.DataType.UINT8)
    columns = build.op("ReduceMax", seen, build.ints(0, 1, 2), keepdims=0)
    columns = build.op("Cast", columns, to=ir.DataType.INT64)
    places = build.op("Add", build.positions(build.size(site.key, 1)), build.ints(1))
    last = build.op("ReduceMax", build.op("Mul", columns, places), build.ints(0), keepdims=1)
    return build.op("Max", last, build.ints(1))


def _last_seen(build: LoweringBuilder, site: Site) -> ir.Value:
    """As `_last_of`, for a bias alone. What is far below any score has the weight 0, but where a
    row has nothing else: all its keys count then."""
    assert site.bias is not None
    half = build.constant(np.finfo(np.float32).min / 2, np.float32)
    attend = build.op("Greater", site.bias, half)
    seen = build.op("Cast", attend, to=ir.DataType.UINT8)
    rows = build.op("ReduceMax", seen, build.ints(3), keepdims=0)
    least = build.op("ReduceMin", rows, build.ints(0, 1, 2), keepdims=0)
    every = build.op("Equal", least, build.constant(0, np.uint8))
    return build.op("Where", every, build.size(site.key, 1), _last_of(build, site, attend))


def _many_queries(site: Site) -> bool:
    length = dim_of(site.query, 1)
    return length >= _LONG if isinstance(length, int) else site.square


def onnx_attention(build: LoweringBuilder, site: Site) -> ir.Value:
    """ONNX ``Attention`` (opset 23): bool or additive mask with all rows; grouped heads
    natively."""
    native_causal = (
        site.causal != "none" and not site.folded and (site.causal == "upper_left" or site.square)
    )
    attend = build.attended(site, skip_causal=native_causal)
    bias = None if site.bias is None else build.fold_mask(site, build.above_lowest(site.bias))
    mask = attend if bias is None else build.additive(site, attend, bias)
    inputs = [build.fold_query(site), site.key, site.value]
    if mask is not None:
        inputs.append(build.with_full_rows(site, mask))
    output = build.own(
        "Attention",
        *inputs,
        q_num_heads=site.num_heads,
        kv_num_heads=site.kv_num_heads,
        scale=site.scale,
        is_causal=int(native_causal),
    )
    if bias is not None and mask is not None:
        output = zero_empty_rows(build, site, mask, output)
    return build.unfold_output(site, output)


def _multi_head_attention(build: LoweringBuilder, site: Site) -> ir.Value:
    """``com.microsoft.MultiHeadAttention`` without a mask; grouped heads repeated."""
    output = build.own(
        "MultiHeadAttention",
        build.fold_query(site),
        repeat_heads(build, site, site.key),
        repeat_heads(build, site, site.value),
        domain=_MICROSOFT,
        num_heads=site.num_heads,
        scale=site.scale,
    )
    return build.unfold_output(site, output)
