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
3. Removed keys are −inf where there is a bias, whose finite numbers are arithmetic (raised to −1e30
   at least: kernels multiply by log2(e)), and finite otherwise: a kernel that goes through the keys
   in blocks may meet a block without any.
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

from crossfuse.graph.metadata import clone, dim_of, site_of
from crossfuse.targets.cuda.kernels import FLASH_LIMIT, SIZE_MULTIPLE, Form, kernel_text
from crossfuse.targets.cuda.operators import replace_operators
from crossfuse.targets.cuda.prefix import is_prefix, masks_keys
from crossfuse.targets.fan_out import Emitter, Site
from crossfuse.targets.lowering import Lowered, at_opset, lower_sites, repeat_heads, zero_empty_rows

__all__ = ["KEYS_PADDED_TO", "OPSET", "Handed", "is_half", "lower_ort_cuda", "needs_padded_keys"]

OPSET = 24
"""The first opset whose ``Attention`` takes lengths."""

KEYS_PADDED_TO = 8
"""What the number of keys under a mask is padded to."""

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LOWEST = {"float16": -65504.0, "bfloat16": -1e30, "float32": -1e30}
"""Added to the scores of keys that are not attended; far below any score, and finite in bf16 and
fp32 even times log2(e)."""

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
    model = clone(model)
    replace_operators(model)
    form = _Form(handed or Handed(), half)
    lowered = lower_sites(at_opset(model, OPSET, "ort-cuda"), form, {"com.microsoft": 1})
    fuse_skip_layer_normalization(lowered.model)
    kernels = {
        site: f"{name} ({form.kernels[site]})"
        for site, name in lowered.kernels.items()
        if site in form.kernels
    }
    return Lowered(lowered.model, kernels, form.reasons)


def is_half(node: ir.Node) -> bool:
    """An attention node computes in fp16 or bf16."""
    return node.inputs[0] is not None and node.inputs[0].dtype in _HALF


def needs_padded_keys(site: Site) -> bool:
    """Keys and values of this attention have to be padded; its mask is known to be no prefix."""
    keys = dim_of(*site.keys)
    return _is_masked(site) and not (isinstance(keys, int) and keys % KEYS_PADDED_TO == 0)


def _is_masked(site: Site) -> bool:
    if site.mask is not None or site.bias is not None:
        return True
    return site.causal != "none" and not _native_causal(site)


def _native_causal(site: Site) -> bool:
    """Causality alone, and as the operator means it."""
    return site.causal != "none" and not site.folded and site.never_empty


class _Form:
    def __init__(self, handed: Handed, half: Container[str] | None) -> None:
        self.padded = handed.padded
        self.prefixes = handed.prefixes
        self.half = half
        self.kernels: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def __call__(self, emit: Emitter, site: Site) -> ir.Value:
        name = site_of(site.node) or site.node.name or ""
        half = is_half(site.node) if self.half is None else name in self.half
        if (
            masks_keys(site)
            and site.mask is not None
            and (site.mask.name in self.prefixes or is_prefix(site.mask))
        ):
            site = _with_lengths(emit, site, site.mask)
        masked = _is_masked(site)
        counted = site.mask if site.mask is not None else site.bias
        if counted is not None and site.key.name in self.padded:
            site = replace(site, counted=(counted, 3))
        query, key, value = emit.fold_query(site), site.key, site.value
        rest = emit.rest(*site.keys, KEYS_PADDED_TO) if needs_padded_keys(site) else None
        if rest is not None and site.key.name not in self.padded:
            key, value = emit.longer(key, 1, rest, 0), emit.longer(value, 1, rest, 0)
        head, value_head = (
            _head_size(site.query, site.num_heads),
            _head_size(site.value, site.kv_num_heads),
        )
        size, value_size = head, value_head
        if head is not None and value_head is not None:
            grouped = site.kv_num_heads != site.num_heads
            size, value_size = _sizes(head, value_head, one=half and (grouped or not masked))
            query = _wider(emit, query, site.num_heads, head, size)
            key = _wider(emit, key, site.kv_num_heads, head, size)
            value = _wider(emit, value, site.kv_num_heads, value_head, value_size)
        kv_num_heads = site.kv_num_heads
        if kv_num_heads != site.num_heads and (not half or size != value_size):
            key, value = repeat_heads(emit, site, key), repeat_heads(emit, site, value)
            kv_num_heads = site.num_heads
        causal = _native_causal(site)
        form = Form(
            half, size, value_size, kv_num_heads != site.num_heads, masked, causal, site.square
        )
        self._note(name, form)

        attend = emit.attended(site) if masked else None
        inputs: list[ir.Value | None] = [query, key, value]
        removed = None
        if masked:
            removed, mask = self._mask(emit, site, attend)
            keys = emit.size(*site.keys)
            if rest is not None:
                mask, keys = emit.longer(mask, 3, rest, -np.inf), emit.op("Add", keys, rest)
            inputs.append(emit.with_full_rows(site, mask, keys))
        elif site.key_lengths is not None:
            inputs += [None, None, None, self._lengths(emit, site)]
        output = emit.tape.op(
            "Attention",
            inputs,
            attributes={
                "q_num_heads": site.num_heads,
                "kv_num_heads": kv_num_heads,
                "scale": site.scale,
                "is_causal": int(causal),
            },
        )
        if value_size is not None and value_head is not None and value_size != value_head:
            output = _narrower(emit, output, site.num_heads, value_size, value_head)
        if removed is not None and not site.never_empty:
            output = zero_empty_rows(emit, site, removed, output, additive=site.bias is not None)
        elif not masked and site.key_lengths is not None:
            zero = emit.constant(0, emit.dtype)
            some = emit.op(
                "Greater", emit.op("Cast", site.key_lengths, to=ir.DataType.INT64), emit.ints(0)
            )
            output = emit.op("Where", emit.op("Reshape", some, emit.ints(-1, 1, 1)), output, zero)
        return emit.unfold_output(site, output)

    def _note(self, site: str, form: Form) -> None:
        text = kernel_text(form, padded=True)
        if text is not None:
            self.kernels[site] = text
        elif form.size is None or form.value_size is None:
            self.reasons[site] = _NO_KERNEL + "its head size is not known from the graph"
        else:
            self.reasons[site] = f"{_NO_KERNEL}head sizes {form.size} and {form.value_size}"

    def _mask(
        self, emit: Emitter, site: Site, attend: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """What says which keys are removed, and the additive mask; both without rows that it
        doesn't need."""
        bias = None if site.bias is None else emit.fold_mask(site, site.bias)
        if bias is not None:
            both = emit.additive(site, attend, self._bounded(emit, bias))
            assert both is not None
            return both, both
        assert attend is not None
        lowest = emit.constant(_LOWEST[emit.dtype.name], emit.dtype)
        return attend, emit.op("Where", attend, emit.constant(0, emit.dtype), lowest)

    def _bounded(self, emit: Emitter, bias: ir.Value) -> ir.Value:
        """The bias, its finite numbers no lower than what kernels can multiply by log2(e); −inf
        stays."""
        if emit.dtype == np.float16:
            return bias
        wide = bias if emit.dtype == np.float32 else emit.op("Cast", bias, to=ir.DataType.FLOAT)
        finite = emit.op("Greater", wide, emit.constant(-np.inf, np.float32))
        return emit.op(
            "Where",
            finite,
            emit.op("Max", bias, emit.constant(_LOWEST[emit.dtype.name], emit.dtype)),
            bias,
        )

    def _lengths(self, emit: Emitter, site: Site) -> ir.Value:
        lengths = emit.op("Cast", site.key_lengths, to=ir.DataType.INT64)
        return emit.op("Min", emit.op("Max", lengths, emit.ints(1)), emit.size(site.key, 1))


def _with_lengths(emit: Emitter, site: Site, mask: ir.Value) -> Site:
    """The site with the number of keys that its mask, a prefix, keeps of each context."""
    counts = emit.op(
        "Reshape",
        emit.op("Cast", mask, to=ir.DataType.INT64),
        emit.concat(emit.size(mask, 0), emit.ints(-1)),
    )
    lengths = emit.op("ReduceSum", counts, emit.ints(1), keepdims=0)
    if site.key_lengths is not None:
        lengths = emit.op("Min", lengths, emit.op("Cast", site.key_lengths, to=ir.DataType.INT64))
    return replace(site, mask=None, key_lengths=lengths)


def _head_size(value: ir.Value, heads: int) -> int | None:
    width = dim_of(value, 2)
    return width // heads if isinstance(width, int) else None


def _sizes(head: int, value_head: int, *, one: bool) -> tuple[int, int]:
    """What head sizes are padded to: multiples of 8, and one size where that is asked for and flash
    attention takes it."""
    size, value_size = (-(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in (head, value_head))
    largest = max(size, value_size)
    return (largest, largest) if one and largest <= FLASH_LIMIT else (size, value_size)


def _wider(emit: Emitter, value: ir.Value, heads: int, size: int, wanted: int) -> ir.Value:
    """``[B, S, heads·size]`` → ``[B, S, heads·wanted]``, zeros behind each head."""
    if size == wanted:
        return value
    split = emit.op("Reshape", value, emit.ints(0, 0, heads, size))
    wide = emit.longer(split, 3, emit.ints(wanted - size), 0)
    return emit.op("Reshape", wide, emit.ints(0, 0, heads * wanted))


def _narrower(emit: Emitter, value: ir.Value, heads: int, size: int, wanted: int) -> ir.Value:
    """`_wider` undone."""
    split = emit.op("Reshape", value, emit.ints(0, 0, heads, size))
    cut = emit.op("Slice", split, emit.ints(0), emit.ints(wanted), emit.ints(3))
    return emit.op("Reshape", cut, emit.ints(0, 0, heads * wanted))
