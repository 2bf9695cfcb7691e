"""Lowering to what TensorRT's parser turns into ``IAttention``: ONNX ``Attention`` that fuses, or
fails the build.

TensorRT does not take such a node apart unless it is told so, which makes the builder the judge of
fusion. What it asks for, or gets wrong, decides the form:

- fp16 or bf16; static head sizes from 16 to 256. Others are padded with zeros, which changes
  neither scores nor outputs: queries, keys and values to one size, a multiple of 8.
- Lengths, masks, biases and causal kinds join in one additive mask of the scores' type, which goes
  straight into the fused kernel. A bool mask would be scattered by eight kernels in front of every
  attention, one of them a copy from the host; ``nonpad_kv_seqlen`` would be dropped without a word.
  An upper-left causal kind alone stays an attribute.
- Masks are finite: a kernel that goes through the keys in blocks may meet a block without any,
  whose maximum would be −inf.
- A tensor is an input of one attention only, and as queries or as keys and values (TensorRT-RTX 1.7
  crashes otherwise): the next use gets a copy, from a maximum with −inf.
- Rows without keys are set to 0 behind the kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossfuse.errors import FusionError
from crossfuse.graph.metadata import clone, dim_of, site_of
from crossfuse.targets.fan_out import Emitter, Site
from crossfuse.targets.lowering import (
    ATTENTION_OPSET,
    Lowered,
    at_opset,
    lower_sites,
    zero_empty_rows,
)

__all__ = ["DECOMPOSABLE", "allow_decomposition", "lower_tensorrt"]

DECOMPOSABLE = "TRT_decomposable"
"""Attribute of an ``Attention`` node that lets TensorRT take it apart where it has no fused
kernel."""

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SMALLEST, _LARGEST, _MULTIPLE = 16, 256, 8
_LOWEST = -65504.0
"""Added to the scores of keys that are not attended: the lowest fp16 number; in bf16 too, so that
no multiple overflows."""

_LOWEST_BIAS, _REMOVED = -1e30, -1e36
"""In fp32: the least that a bias adds, which absorbs scores, and what is added for keys that are
not attended, even less."""


def lower_tensorrt(model: ir.Model, *, executable: bool = False) -> Lowered:
    """``Attention`` nodes named by their sites.

    Args:
        model: the fused graph, in half precision.
        executable: give the same graph in the form that ONNX Runtime executes too: masks with all
            rows.

    Raises:
        FusionError: an attention whose head size is not static.
    """
    form = _Form(executable)
    lowered = lower_sites(at_opset(clone(model), ATTENTION_OPSET, "tensorrt"), form)
    return Lowered(
        lowered.model,
        {s: k for s, k in lowered.kernels.items() if s not in form.reasons},
        form.reasons,
    )


def allow_decomposition(model: ir.Model) -> ir.Model:
    """A copy whose attentions TensorRT may take apart."""
    model = clone(model)
    for node in model.graph:
        if node.op_type == "Attention":
            node.attributes[DECOMPOSABLE] = ir.AttrInt64(DECOMPOSABLE, 1)
    return model


class _Form:
    def __init__(self, executable: bool) -> None:
        self.executable = executable
        self.reasons: dict[str, str] = {}
        self.taken: set[ir.Value] = set()

    def __call__(self, emit: Emitter, site: Site) -> ir.Value:
        name = site_of(site.node) or site.node.name or ""
        head, value_head = (
            _head_size(name, site.query, site.num_heads),
            _head_size(name, site.value, site.kv_num_heads),
        )
        size = max(_SMALLEST, -(-max(head, value_head) // _MULTIPLE) * _MULTIPLE)
        if size > _LARGEST:
            self.reasons[name] = (
                f"TensorRT has no fused kernel for head size {max(head, value_head)} (at most "
                f"{_LARGEST})"
            )
        elif site.query.dtype not in _HALF:
            self.reasons[name] = (
                "TensorRT has no fused kernel for fp32 attention; build in fp16, bf16 or mixed"
            )
        query, key, value = (
            _padded(emit, emit.fold_query(site), site.num_heads, head, size),
            _padded(emit, site.key, site.kv_num_heads, head, size),
            _padded(emit, site.value, site.kv_num_heads, value_head, size),
        )
        same = key is value
        query, key = self._own(emit, query), self._own(emit, key)
        value = key if same else self._own(emit, value)

        native_causal = site.causal != "none" and not site.folded and site.never_empty
        attend = emit.attended(site, skip_causal=native_causal)
        bias = None if site.bias is None else emit.fold_mask(site, site.bias)
        inputs = [query, key, value]
        # −inf says which rows have keys; what the kernel adds is finite.
        removed = attend if bias is None else emit.additive(site, attend, bias)
        if removed is not None:
            mask = _finite(emit, removed, additive=bias is not None)
            inputs.append(emit.with_full_rows(site, mask) if self.executable else mask)
        attributes: dict[str, int | float] = {
            "q_num_heads": site.num_heads,
            "kv_num_heads": site.kv_num_heads,
            "scale": site.scale,
            "is_causal": int(native_causal),
        }
        if name in self.reasons and not self.executable:
            attributes[DECOMPOSABLE] = 1
        output = emit.tape.op("Attention", inputs, attributes=attributes)
        if size != value_head:
            split = emit.op("Reshape", output, emit.ints(0, 0, site.num_heads, size))
            cut = emit.op("Slice", split, emit.ints(0), emit.ints(value_head), emit.ints(3))
            output = emit.op("Reshape", cut, emit.ints(0, 0, site.num_heads * value_head))
        if removed is not None and not site.never_empty:
            output = zero_empty_rows(emit, site, removed, output, additive=bias is not None)
        return emit.unfold_output(site, output)

    def _own(self, emit: Emitter, value: ir.Value) -> ir.Value:
        """The value, or a copy of it where an attention takes it already."""
        if value not in self.taken:
            self.taken.add(value)
            return value
        copy = emit.tape.op("Max", [value, emit.constant(-np.inf, emit.dtype)])
        copy.shape, copy.type = value.shape, value.type
        return copy


def _finite(emit: Emitter, removed: ir.Value, *, additive: bool) -> ir.Value:
    """What is added to the scores; ``removed`` holds −inf, or where it is no bias False, for keys
    that are not attended."""
    lowest = emit.constant(_LOWEST, emit.dtype)
    if not additive:
        return emit.op("Where", removed, emit.constant(0, emit.dtype), lowest)
    if emit.dtype != np.float32:
        return emit.op("Max", removed, lowest)
    attended = emit.op("Greater", removed, emit.constant(-np.inf, emit.dtype))
    bounded = emit.op("Max", removed, emit.constant(_LOWEST_BIAS, emit.dtype))
    return emit.op("Where", attended, bounded, emit.constant(_REMOVED, emit.dtype))


def _head_size(site: str, value: ir.Value, heads: int) -> int:
    width = dim_of(value, 2)
    if not isinstance(width, int):
        raise FusionError(
            "TensorRT needs static head sizes",
            where=site,
            got=f"a width of {width}",
            do="Give the projections in front of this attention a fixed width",
        )
    return width // heads


def _padded(emit: Emitter, value: ir.Value, heads: int, size: int, wanted: int) -> ir.Value:
    """``[B, S, heads·size]`` → ``[B, S, heads·wanted]``, zeros behind each head."""
    if size == wanted:
        return value
    split = emit.op("Reshape", value, emit.ints(0, 0, heads, size))
    wide = emit.op("Pad", split, emit.ints(0, 0, 0, 0, 0, 0, 0, wanted - size))
    return emit.op("Reshape", wide, emit.ints(0, 0, heads * wanted))
