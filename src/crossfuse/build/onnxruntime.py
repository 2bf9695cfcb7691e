"""Lowering to ONNX Runtime's fused operators.

On the CPU (`benchmarks/attention_forms.py` measures the forms): an attention without mask and bias becomes
``com.microsoft.MultiHeadAttention``, whose flash path wins over long keys; one with a mask becomes ONNX ``Attention`` with a
bool mask, which beat MultiHeadAttention with an additive mask, and primitives, in every case measured, and yields 0 for rows
without keys by itself.

For the CUDA provider every attention becomes ``MultiHeadAttention``, masks as ``attention_bias``; rows without keys, where that
operator gives NaN, are set to 0 behind it.

GELU with its bias, quick-GELU and layer norms behind one addition are fused by ONNX Runtime itself when it loads a graph, on
both. Additions whose sum is used again (pre-norm residuals) it leaves; onnxscript's fusion joins those for the CUDA provider,
where each operator is a kernel launch. On the CPU that changed nothing within the noise (CLIP and ViLT at published sizes).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_layer_normalization
from onnxscript.version_converter import convert_version

from crossfuse.build.attention import Emitter, Site, read_site
from crossfuse.build.targets import Lowered
from crossfuse.errors import CrossfuseError
from crossfuse.graphs import SITE, attention_nodes, clone, dim_of, site_of

__all__ = ["lower_ort_cpu", "lower_ort_cuda"]

_MICROSOFT = "com.microsoft"
_ATTENTION_OPSET = 23


def lower_ort_cpu(model: ir.Model) -> Lowered:
    """``MultiHeadAttention`` without a mask, ONNX ``Attention`` with one."""
    model = clone(model)
    convert_version(model, _ATTENTION_OPSET)
    if model.graph.opset_imports[""] != _ATTENTION_OPSET:
        raise CrossfuseError(
            "the graph can't be converted to the opset that ort-cpu needs",
            got=model.graph.opset_imports[""],
            expected=_ATTENTION_OPSET,
        )
    return _lower(model, _cpu_form)


def lower_ort_cuda(model: ir.Model) -> Lowered:
    """``MultiHeadAttention`` everywhere, and residual additions joined with the layer norms behind them."""
    lowered = _lower(clone(model), _multi_head_attention)
    fuse_skip_layer_normalization(lowered.model)
    return lowered


def _lower(model: ir.Model, form: Callable[[Emitter, Site], ir.Value]) -> Lowered:
    kernels = {}
    emitters: dict[ir.DataType | None, Emitter] = {}
    for node in list(attention_nodes(model.graph)):
        site = read_site(node)
        dtype = site.query.dtype
        emit = emitters.setdefault(dtype, Emitter(np.dtype(np.float32 if dtype is None else dtype.numpy())))
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
    model.graph.opset_imports[_MICROSOFT] = 1
    RemoveUnusedNodesPass()(model)
    return Lowered(model, kernels, {})


def _kernel_of(output: ir.Value) -> ir.Node:
    """The attention kernel behind the (guarded, unfolded) output."""
    node = output.producer()
    while node is not None and node.op_type not in ("MultiHeadAttention", "Attention"):
        data = node.inputs[1] if node.op_type == "Where" else node.inputs[0]
        node = None if data is None else data.producer()
    assert node is not None
    return node


def _cpu_form(emit: Emitter, site: Site) -> ir.Value:
    if site.mask is None and site.bias is None and site.key_lengths is None and site.causal == "none":
        return _multi_head_attention(emit, site)
    return _onnx_attention(emit, site)


def _onnx_attention(emit: Emitter, site: Site) -> ir.Value:
    """ONNX ``Attention`` (opset 23): bool or additive mask with all rows; grouped heads natively."""
    native_causal = site.causal != "none" and not site.folded and (site.causal == "upper_left" or site.square)
    attend = emit.attended(site, skip_causal=native_causal)
    bias = None if site.bias is None else emit.fold_mask(site, site.bias)
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
        output = _zero_empty_rows(emit, site, mask, output)
    return emit.unfold_output(site, output)


def _multi_head_attention(emit: Emitter, site: Site) -> ir.Value:
    """``com.microsoft.MultiHeadAttention``: additive mask with all rows; grouped heads repeated."""
    attend = emit.attended(site)
    bias = None if site.bias is None else emit.fold_mask(site, site.bias)
    mask = emit.additive(site, attend, bias)
    key, value = _repeat_heads(emit, site, site.key), _repeat_heads(emit, site, site.value)
    inputs: list[ir.Value | None] = [emit.fold_query(site), key, value]
    if mask is not None:
        inputs += [None, None, emit.with_full_rows(site, mask)]
    output = emit.tape.op(
        "MultiHeadAttention",
        inputs,
        attributes={"num_heads": site.num_heads, "scale": site.scale},
        domain=_MICROSOFT,
    )
    if mask is not None and not _never_empty(site):
        output = _zero_empty_rows(emit, site, mask, output)
    return emit.unfold_output(site, output)


def _never_empty(site: Site) -> bool:
    """Every row has a key: nothing but an upper-left causal mask."""
    only_causal = site.mask is None and site.bias is None and site.key_lengths is None
    return only_causal and (site.causal == "upper_left" or site.square)


def _zero_empty_rows(emit: Emitter, site: Site, mask: ir.Value | None, output: ir.Value) -> ir.Value:
    """Set rows whose mask is −inf for every key to 0, per head."""
    assert mask is not None
    zero = emit.constant(0, emit.dtype)
    peak = emit.op("ReduceMax", mask, emit.ints(-1), keepdims=1)
    has_keys = emit.op("Greater", peak, emit.constant(-np.inf, emit.dtype))
    if dim_of(mask, 1) == 1 or _one_head(site):
        rows = emit.op("Squeeze", has_keys, emit.ints(1))
        return emit.op("Where", rows, output, zero)
    heads = emit.constant([0, 0, site.num_heads, -1], np.int64)
    split = emit.op("Reshape", output, heads)
    rows = emit.op("Transpose", has_keys, perm=[0, 2, 1, 3])
    guarded = emit.op("Where", rows, split, zero)
    return emit.op("Reshape", guarded, emit.ints(0, 0, -1))


def _one_head(site: Site) -> bool:
    """Mask and bias are the same for all heads."""
    return all(m is None or dim_of(m, 1) == 1 for m in (site.mask, site.bias))


def _repeat_heads(emit: Emitter, site: Site, tensor: ir.Value) -> ir.Value:
    """``[B, S, Hkv·D]`` → ``[B, S, Hq·D]``, each key head repeated for the query heads that share it."""
    if site.kv_num_heads == site.num_heads:
        return tensor
    repeat = site.num_heads // site.kv_num_heads
    split = emit.op("Reshape", tensor, emit.ints(0, 0, site.kv_num_heads, 1, -1))
    full = emit.op("Expand", split, emit.ints(1, 1, 1, repeat, 1))
    return emit.op("Reshape", full, emit.ints(0, 0, -1))
