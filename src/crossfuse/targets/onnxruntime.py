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

from crossfuse.graph.metadata import clone, dim_of
from crossfuse.targets.fan_out import Emitter, Site
from crossfuse.targets.lowering import (
    ATTENTION_OPSET,
    Lowered,
    at_opset,
    lower_sites,
    repeat_heads,
    zero_empty_rows,
)

__all__ = ["lower_ort_cpu"]

_MICROSOFT = "com.microsoft"
_LONG = 768


def lower_ort_cpu(model: ir.Model) -> Lowered:
    """ONNX ``Attention``; ``MultiHeadAttention`` without a mask for many queries."""
    return lower_sites(
        at_opset(clone(model), ATTENTION_OPSET, "ort-cpu"), _cpu_form, {_MICROSOFT: 1}
    )


def _cpu_form(emit: Emitter, site: Site) -> ir.Value:
    masked = (
        site.mask is not None
        or site.bias is not None
        or site.key_lengths is not None
        or site.causal != "none"
    )
    return (
        _onnx_attention(emit, site)
        if masked or not _many_queries(site)
        else _multi_head_attention(emit, site)
    )


def _many_queries(site: Site) -> bool:
    length = dim_of(site.query, 1)
    return length >= _LONG if isinstance(length, int) else site.square


def _onnx_attention(emit: Emitter, site: Site) -> ir.Value:
    """ONNX ``Attention`` (opset 23): bool or additive mask with all rows; grouped heads
    natively."""
    native_causal = (
        site.causal != "none" and not site.folded and (site.causal == "upper_left" or site.square)
    )
    attend = emit.attended(site, skip_causal=native_causal)
    bias = None if site.bias is None else emit.fold_mask(site, emit.above_lowest(site.bias))
    mask = attend if bias is None else emit.additive(site, attend, bias)
    inputs = [emit.fold_query(site), site.key, site.value]
    if mask is not None:
        inputs.append(emit.with_full_rows(site, mask))
    output = emit.tape.op(
        "Attention",
        inputs,
        attributes={
            "q_num_heads": site.num_heads,
            "kv_num_heads": site.kv_num_heads,
            "scale": site.scale,
            "is_causal": int(native_causal),
        },
    )
    if bias is not None:
        output = zero_empty_rows(emit, site, mask, output)
    return emit.unfold_output(site, output)


def _multi_head_attention(emit: Emitter, site: Site) -> ir.Value:
    """``com.microsoft.MultiHeadAttention``: additive mask with all rows; grouped heads repeated."""
    attend = emit.attended(site)
    bias = None if site.bias is None else emit.fold_mask(site, site.bias)
    mask = emit.additive(site, attend, bias)
    key, value = repeat_heads(emit, site, site.key), repeat_heads(emit, site, site.value)
    inputs: list[ir.Value | None] = [emit.fold_query(site), key, value]
    if mask is not None:
        inputs += [None, None, emit.with_full_rows(site, mask)]
    output = emit.tape.op(
        "MultiHeadAttention",
        inputs,
        attributes={"num_heads": site.num_heads, "scale": site.scale},
        domain=_MICROSOFT,
    )
    if mask is not None and not site.never_empty:
        output = zero_empty_rows(emit, site, mask, output)
    return emit.unfold_output(site, output)
