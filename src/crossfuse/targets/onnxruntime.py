"""Lowering to ONNX Runtime's fused operators for the CPU.

As `benchmarks/attention_forms.py` measured, an attention becomes ONNX ``Attention``: up to some
hundred queries it is faster than ``com.microsoft.MultiHeadAttention`` and than primitives, several
times for few queries, and with a mask it yields 0 for rows without keys by itself. Without a mask,
from some 800 queries on, MultiHeadAttention's flash path is faster, and it needs no memory for the
scores; so it is taken there, and for self-attention over a length that isn't known and may be long.

GELU with its bias, quick-GELU and layer norms behind one addition are fused by ONNX Runtime itself
when it loads a graph. Additions whose sum is used again (pre-norm residuals) it leaves: joining
those changed nothing within the noise (CLIP and ViLT at published sizes).
"""

from __future__ import annotations

import onnx_ir as ir

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


def lower_ort_cpu(model: ir.Model) -> Lowered:
    """ONNX ``Attention``; ``MultiHeadAttention`` without a mask for many queries."""
    return lower_sites(
        at_opset(model.clone(), ATTENTION_OPSET, "ort-cpu"), _cpu_form, {_MICROSOFT: 1}
    )


def _cpu_form(build: LoweringBuilder, site: Site) -> ir.Value:
    removed_by = (site.mask, site.bias, site.key_lengths)
    masked = site.causal != "none" or any(value is not None for value in removed_by)
    if masked or not _many_queries(site):
        return onnx_attention(build, site)
    return _multi_head_attention(build, site)


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
