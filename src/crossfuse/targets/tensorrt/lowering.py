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
from crossfuse.graph.shapes import dim_of
from crossfuse.targets.fan_out import LoweringBuilder, Site
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
    form = _TensorRTForm(executable)
    lowered = lower_sites(at_opset(model.clone(), ATTENTION_OPSET, "tensorrt"), form)
    return Lowered(
        lowered.model,
        {s: k for s, k in lowered.kernels.items() if s not in form.reasons},
        form.reasons,
    )


def allow_decomposition(model: ir.Model) -> ir.Model:
    """A copy whose attentions TensorRT may take apart."""
    model = model.clone()
    for node in model.graph:
        if node.op_type == "Attention":
            _make_decomposable(node)
    return model


def _make_decomposable(node: ir.Node) -> None:
    node.attributes[DECOMPOSABLE] = ir.AttrInt64(DECOMPOSABLE, 1)


class _TensorRTForm:
    """Emits attentions as TensorRT fuses them; notes why where it can't."""

    def __init__(self, executable: bool) -> None:
        self.executable = executable
        self.reasons: dict[str, str] = {}
        self.taken: set[ir.Value] = set()

    def __call__(self, build: LoweringBuilder, site: Site) -> ir.Value:
        head = _head_size(site.name, site.query, site.num_heads)
        value_head = _head_size(site.name, site.value, site.kv_num_heads)
        size = max(_SMALLEST, -(-max(head, value_head) // _MULTIPLE) * _MULTIPLE)
        self._note(site, size, max(head, value_head))
        key = _padded(build, site.key, site.kv_num_heads, head, size)
        value = _padded(build, site.value, site.kv_num_heads, value_head, size)
        query = _padded(build, build.fold_query(site), site.num_heads, head, size)
        same = key is value
        query, key = self._own(build, query), self._own(build, key)
        inputs = [query, key, key if same else self._own(build, value)]
        removed = self._removed(build, site)
        if removed is not None:
            inputs.append(self._mask(build, site, removed))
        output = build.own(
            "Attention",
            *inputs,
            q_num_heads=site.num_heads,
            kv_num_heads=site.kv_num_heads,
            scale=site.scale,
            is_causal=int(site.causal_alone),
        )
        kernel = output.producer()
        if kernel is not None and site.name in self.reasons and not self.executable:
            _make_decomposable(kernel)
        if size != value_head:
            split = build.op("Reshape", output, build.ints(0, 0, site.num_heads, size))
            cut = build.op("Slice", split, build.ints(0), build.ints(value_head), build.ints(3))
            output = build.op("Reshape", cut, build.ints(0, 0, site.num_heads * value_head))
        if removed is not None and not site.never_empty:
            additive = site.bias is not None
            output = zero_empty_rows(build, site, removed, output, additive=additive)
        return build.unfold_output(site, output)

    def _note(self, site: Site, size: int, head: int) -> None:
        if size > _LARGEST:
            self.reasons[site.name] = (
                f"TensorRT has no fused kernel for head size {head} (at most {_LARGEST})"
            )
        elif site.query.dtype not in _HALF:
            self.reasons[site.name] = (
                "TensorRT has no fused kernel for fp32 attention; build in fp16, bf16 or mixed"
            )

    def _removed(self, build: LoweringBuilder, site: Site) -> ir.Value | None:
        """Which keys are removed: a bool mask, or, where there is a bias, an additive one with −inf
        for them; None where none is."""
        attend = build.attended(site, skip_causal=site.causal_alone)
        if site.bias is None:
            return attend
        return build.additive(site, attend, build.fold_mask(site, site.bias))

    def _mask(self, build: LoweringBuilder, site: Site, removed: ir.Value) -> ir.Value:
        """What the kernel adds: finite numbers."""
        mask = _finite(build, removed, additive=site.bias is not None)
        return build.with_full_rows(site, mask) if self.executable else mask

    def _own(self, build: LoweringBuilder, value: ir.Value) -> ir.Value:
        """The value, or a copy of it where an attention takes it already."""
        if value not in self.taken:
            self.taken.add(value)
            return value
        copy = build.own("Max", value, build.constant(-np.inf, build.dtype))
        copy.shape, copy.type = value.shape, value.type
        return copy


def _finite(build: LoweringBuilder, removed: ir.Value, *, additive: bool) -> ir.Value:
    """What is added to the scores; ``removed`` holds −inf, or where it is no bias False, for keys
    that are not attended."""
    lowest = build.constant(_LOWEST, build.dtype)
    if not additive:
        return build.op("Where", removed, build.constant(0, build.dtype), lowest)
    if build.dtype != np.float32:
        return build.op("Max", removed, lowest)
    attended = build.op("Greater", removed, build.constant(-np.inf, build.dtype))
    bounded = build.op("Max", removed, build.constant(_LOWEST_BIAS, build.dtype))
    return build.op("Where", attended, bounded, build.constant(_REMOVED, build.dtype))


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


def _padded(build: LoweringBuilder, value: ir.Value, heads: int, size: int, wider: int) -> ir.Value:
    """``[B, S, heads·size]`` → ``[B, S, heads·wider]``, zeros behind each head."""
    if size == wider:
        return value
    split = build.op("Reshape", value, build.ints(0, 0, heads, size))
    wide = build.op("Pad", split, build.ints(0, 0, 0, 0, 0, 0, 0, wider - size))
    return build.op("Reshape", wide, build.ints(0, 0, heads * wider))
