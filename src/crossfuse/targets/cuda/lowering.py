"""Lowering to the forms that ONNX Runtime's CUDA provider computes with a fused kernel at every
length.

Every attention becomes ONNX ``Attention`` (opset 24). ``com.microsoft.MultiHeadAttention`` computes
the scores in memory where a mask meets queries that are no multiple of 8, in fp32 and bf16 at small
sizes too, and fails where a mask's rows are not aligned. What the kernels ask for (`kernels`)
decides the rest:

1. Without a mask nothing is added. Key lengths stay lengths (``nonpad_kv_seqlen``), held between 1
   and the number of keys; a mask that is proven to keep the first keys (`prefix`) becomes lengths.
2. Masks, biases and what else removes keys join in one additive mask, prepared once for all
   attentions that use it. Keys, values and the mask are padded to a multiple of 8 keys, unless
   their number is one; the mask is −inf there. A split bundle's context stage does it for the keys
   and values that it hands over (`padding`).
3. Removed keys are −inf where there is a bias, whose finite numbers are arithmetic (raised to −1e29
   at least: kernels multiply by log2(e), and the provider takes −1e30 and what is below for removed
   keys), and finite otherwise: a kernel that goes through the keys in blocks may meet a block
   without any.
4. Head sizes are padded with zeros to a multiple of 8, and to one size where flash attention or
grouped heads need it.
5. Grouped heads stay grouped, except in fp32, where they are repeated.
6. Rows without keys are set to 0 behind the kernel.

Padding is ``Pad``, except in bf16, where that has no kernel: there it is ``Concat`` with zeros.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_layer_normalization

from crossfuse.graph.attention_node import AttentionNode
from crossfuse.graph.shapes import dim_of
from crossfuse.targets.cuda.kernels import FLASH_LIMIT, SIZE_MULTIPLE, Form, kernel_text
from crossfuse.targets.cuda.operators import replace_operators
from crossfuse.targets.cuda.prefix import is_prefix, masks_keys
from crossfuse.targets.fan_out import LoweringBuilder, Site
from crossfuse.targets.lowering import Lowered, at_opset, lower_sites, repeat_heads, zero_empty_rows

__all__ = ["KEYS_PADDED_TO", "OPSET", "Handed", "is_half", "lower_ort_cuda", "needs_padded_keys"]

OPSET = 24
"""The first opset whose ``Attention`` takes lengths."""

KEYS_PADDED_TO = 8
"""What the number of keys under a mask is padded to."""

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LOWEST = {"float16": -65504.0, "bfloat16": -1e30, "float32": -1e30}
"""Added to the scores of keys that are not attended; far below any score, and finite in bf16 and
fp32 even times log2(e). The provider sets rows of nothing but these, or less, to 0."""

_LOWEST_BIAS = -1e29
"""The lowest finite bias in bf16 and fp32: it absorbs scores, and is no sign of a removed key."""

_NO_KERNEL = (
    "ONNX Runtime's CUDA provider has no fused kernel for it (it would compute the "
    "scores in memory): "
)


@dataclass(frozen=True)
class Handed:
    """What is known of tensors that the context stage hands over: names.

    Attributes:
        padded: keys and values with rows behind the last one, up to a multiple of `KEYS_PADDED_TO`.
        prefixes: masks that keep the first keys of each context.
    """

    padded: frozenset[str] = frozenset()
    prefixes: frozenset[str] = frozenset()


def lower_ort_cuda(
    model: ir.Model, handed: Handed | None = None, half: Container[str] | None = None
) -> Lowered:
    """``Attention`` nodes with fused kernels, and residual additions joined with the layer norms
    behind them.

    Args:
        model: the fused graph, in any precision.
        handed: what is known of inputs that the context stage made.
        half: sites to treat as if they computed in half precision; where omitted, by their types.
    """
    model = model.clone()
    replace_operators(model)
    form = _CudaForm(handed or Handed(), half)
    lowered = lower_sites(at_opset(model, OPSET, "ort-cuda"), form, {"com.microsoft": 1})
    fuse_skip_layer_normalization(lowered.model)
    kernels = {
        site: f"{name} ({form.kernels[site]})"
        for site, name in lowered.kernels.items()
        if site in form.kernels
    }
    return Lowered(lowered.model, kernels, form.reasons)


def is_half(attention: AttentionNode) -> bool:
    """An attention computes in fp16 or bf16."""
    return attention.query.dtype in _HALF


def needs_padded_keys(site: Site) -> bool:
    """Keys and values of this attention have to be padded; its mask is known to be no prefix."""
    keys = dim_of(*site.keys)
    return _is_masked(site) and not (isinstance(keys, int) and keys % KEYS_PADDED_TO == 0)


def _is_masked(site: Site) -> bool:
    if site.mask is not None or site.bias is not None:
        return True
    return site.causal != "none" and not site.causal_alone


@dataclass(frozen=True)
class _HeadSizes:
    """Sizes of a head as the node has them, and as the kernel gets them; None where unknown."""

    own: tuple[int | None, int | None]
    padded: tuple[int | None, int | None]


@dataclass(frozen=True)
class _Operands:
    """What the kernel gets; ``extra_keys`` is how many rows were put behind the keys, ``[1]``."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    kv_num_heads: int
    extra_keys: ir.Value | None


class _CudaForm:
    """Emits an attention in the form that has a fused kernel, and notes which kernel that is."""

    def __init__(self, handed: Handed, half: Container[str] | None) -> None:
        self.padded = handed.padded
        self.prefixes = handed.prefixes
        self.half = half
        self.kernels: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def __call__(self, build: LoweringBuilder, site: Site) -> ir.Value:
        site = self._as_counted(build, site)
        half = is_half(site.attention) if self.half is None else site.name in self.half
        masked = _is_masked(site)
        sizes = _head_sizes(site, half=half, masked=masked)
        given = self._operands(build, site, sizes, half=half)
        causal = site.causal_alone
        grouped = given.kv_num_heads != site.num_heads
        self._note(site.name, Form(half, *sizes.padded, grouped, masked, causal, site.square))
        removed, restriction = self._restriction(build, site, given.extra_keys)
        output = build.own(
            "Attention",
            *(given.query, given.key, given.value, *restriction),
            q_num_heads=site.num_heads,
            kv_num_heads=given.kv_num_heads,
            scale=site.scale,
            is_causal=int(causal),
        )
        own, padded = sizes.own[1], sizes.padded[1]
        if own is not None and padded is not None and own != padded:
            output = _narrower(build, output, site.num_heads, padded, own)
        output = self._without_empty_rows(build, site, removed, output)
        return build.unfold_output(site, output)

    def _as_counted(self, build: LoweringBuilder, site: Site) -> Site:
        """The site with lengths where its mask is a prefix, and with the value that counts its keys
        where they have rows behind the last."""
        if masks_keys(site) and site.mask is not None and self._keeps_first(site.mask):
            site = _with_lengths(build, site, site.mask)
        counted = site.mask if site.mask is not None else site.bias
        if counted is not None and site.key.name in self.padded:
            site = replace(site, counted=(counted, 3))
        return site

    def _keeps_first(self, mask: ir.Value) -> bool:
        return mask.name in self.prefixes or is_prefix(mask)

    def _operands(
        self, build: LoweringBuilder, site: Site, sizes: _HeadSizes, *, half: bool
    ) -> _Operands:
        query, key, value = build.fold_query(site), site.key, site.value
        extra = build.rest(*site.keys, KEYS_PADDED_TO) if needs_padded_keys(site) else None
        if extra is not None and site.key.name not in self.padded:
            key, value = build.longer(key, 1, extra, 0), build.longer(value, 1, extra, 0)
        (head, value_head), (size, value_size) = sizes.own, sizes.padded
        query = _wider(build, query, site.num_heads, head, size)
        key = _wider(build, key, site.kv_num_heads, head, size)
        value = _wider(build, value, site.kv_num_heads, value_head, value_size)
        kv_num_heads = site.kv_num_heads
        if kv_num_heads != site.num_heads and (not half or size != value_size):
            key, value = repeat_heads(build, site, key), repeat_heads(build, site, value)
            kv_num_heads = site.num_heads
        return _Operands(query, key, value, kv_num_heads, extra)

    def _restriction(
        self, build: LoweringBuilder, site: Site, extra_keys: ir.Value | None
    ) -> tuple[ir.Value | None, list[ir.Value | None]]:
        """What says which keys are removed, and the kernel's inputs behind the values: an additive
        mask, or lengths."""
        if not _is_masked(site):
            if site.key_lengths is None:
                return None, []
            return None, [None, None, None, self._lengths(build, site)]
        removed, mask = self._mask(build, site)
        keys = build.size(*site.keys)
        if extra_keys is not None:
            mask = build.longer(mask, 3, extra_keys, -np.inf)
            keys = build.op("Add", keys, extra_keys)
        return removed, [build.with_full_rows(site, mask, keys)]

    def _without_empty_rows(
        self, build: LoweringBuilder, site: Site, removed: ir.Value | None, output: ir.Value
    ) -> ir.Value:
        if removed is not None:
            if site.never_empty:
                return output
            return zero_empty_rows(build, site, removed, output, additive=site.bias is not None)
        if site.key_lengths is None:
            return output
        lengths = build.op("Cast", site.key_lengths, to=ir.DataType.INT64)
        some = build.op("Greater", lengths, build.ints(0))
        rows = build.op("Reshape", some, build.ints(-1, 1, 1))
        return build.op("Where", rows, output, build.constant(0, build.dtype))

    def _note(self, site: str, form: Form) -> None:
        text = kernel_text(form, padded=True)
        if text is not None:
            self.kernels[site] = text
        elif form.size is None or form.value_size is None:
            self.reasons[site] = _NO_KERNEL + "its head size is not known from the graph"
        else:
            self.reasons[site] = f"{_NO_KERNEL}head sizes {form.size} and {form.value_size}"

    def _mask(self, build: LoweringBuilder, site: Site) -> tuple[ir.Value, ir.Value]:
        """What says which keys are removed, and the additive mask; both without rows that it
        doesn't need."""
        attend = build.attended(site)
        bias = None if site.bias is None else build.fold_mask(site, site.bias)
        if bias is not None:
            both = build.additive(site, attend, self._bounded(build, bias))
            assert both is not None
            return both, both
        assert attend is not None
        lowest = build.constant(_LOWEST[build.dtype.name], build.dtype)
        return attend, build.op("Where", attend, build.constant(0, build.dtype), lowest)

    def _bounded(self, build: LoweringBuilder, bias: ir.Value) -> ir.Value:
        """The bias, its finite numbers no lower than `_LOWEST_BIAS`; −inf stays."""
        if build.dtype == np.float16:
            return bias
        wide = bias if build.dtype == np.float32 else build.op("Cast", bias, to=ir.DataType.FLOAT)
        finite = build.op("Greater", wide, build.constant(-np.inf, np.float32))
        return build.op(
            "Where",
            finite,
            build.op("Max", bias, build.constant(_LOWEST_BIAS, build.dtype)),
            bias,
        )

    def _lengths(self, build: LoweringBuilder, site: Site) -> ir.Value:
        lengths = build.op("Cast", site.key_lengths, to=ir.DataType.INT64)
        return build.op("Min", build.op("Max", lengths, build.ints(1)), build.size(site.key, 1))


def _with_lengths(build: LoweringBuilder, site: Site, mask: ir.Value) -> Site:
    """The site with the number of keys that its mask, a prefix, keeps of each context."""
    counts = build.op(
        "Reshape",
        build.op("Cast", mask, to=ir.DataType.INT64),
        build.concat(build.size(mask, 0), build.ints(-1)),
    )
    lengths = build.op("ReduceSum", counts, build.ints(1), keepdims=0)
    if site.key_lengths is not None:
        lengths = build.op("Min", lengths, build.op("Cast", site.key_lengths, to=ir.DataType.INT64))
    return replace(site, mask=None, key_lengths=lengths)


def _head_sizes(site: Site, *, half: bool, masked: bool) -> _HeadSizes:
    """Multiples of 8, and one size where flash attention or grouped heads need it and flash
    attention takes it."""
    widths = dim_of(site.query, 2), dim_of(site.value, 2)
    head = widths[0] // site.num_heads if isinstance(widths[0], int) else None
    value_head = widths[1] // site.kv_num_heads if isinstance(widths[1], int) else None
    own = (head, value_head)
    if head is None or value_head is None:
        return _HeadSizes(own, own)
    size, value_size = (-(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in (head, value_head))
    largest = max(size, value_size)
    grouped = site.kv_num_heads != site.num_heads
    if half and (grouped or not masked) and largest <= FLASH_LIMIT:
        size = value_size = largest
    return _HeadSizes(own, (size, value_size))


def _wider(
    build: LoweringBuilder, value: ir.Value, heads: int, size: int | None, wider: int | None
) -> ir.Value:
    """``[B, S, heads·size]`` → ``[B, S, heads·wider]``, zeros behind each head."""
    if size is None or wider is None or size == wider:
        return value
    split = build.op("Reshape", value, build.ints(0, 0, heads, size))
    wide = build.longer(split, 3, build.ints(wider - size), 0)
    return build.op("Reshape", wide, build.ints(0, 0, heads * wider))


def _narrower(
    build: LoweringBuilder, value: ir.Value, heads: int, size: int, narrower: int
) -> ir.Value:
    """`_wider` undone."""
    split = build.op("Reshape", value, build.ints(0, 0, heads, size))
    cut = build.op("Slice", split, build.ints(0), build.ints(narrower), build.ints(3))
    return build.op("Reshape", cut, build.ints(0, 0, heads * narrower))
