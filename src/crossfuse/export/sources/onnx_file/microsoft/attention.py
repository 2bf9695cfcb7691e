"""Attentions of ``com.microsoft`` as ONNX ``Attention`` nodes, which the pass after them reads.

Hidden keys get what ONNX Runtime adds to their scores (``mask_filter_value``, −10⁴ by default), so
a row without keys comes out as it does there. A cache, packed batches, quantised weights and capped
scores can't be taken in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from crossfuse.export.sources.onnx_file.microsoft.emit import (
    Expansion,
    NotYetError,
    Operator,
    UntakenError,
)
from crossfuse.export.sources.onnx_file.microsoft.operators import rotate

__all__ = ["ATTENTIONS", "UNTAKEN"]

UNTAKEN = {
    "PackedAttention": "its batch is packed without padding",
    "PackedMultiHeadAttention": "its batch is packed without padding",
    "RemovePadding": "its batch is packed without padding",
    "RestorePadding": "its batch is packed without padding",
    "DecoderAttention": "it has a cache",
    "DecoderMaskedSelfAttention": "it has a cache",
    "DecoderMaskedMultiHeadAttention": "it has a cache",
    "PagedAttention": "it has a cache",
    "SparseAttention": "its scores are sparse",
    "LongformerAttention": "its scores are sparse",
    "QAttention": "it is quantised as a whole",
    "QOrderedAttention": "it is quantised as a whole",
    "QOrderedLongformerAttention": "it is quantised as a whole",
    "GatedRelativePositionBias": "its bias is computed by an operator of its own",
    "RelativePositionBias": "its bias is computed by an operator of its own",
}
"""Operators that are attentions, or parts of one, and can't be taken in; with the reason."""

_FILL = -10000.0


def _attend(
    of: Operator,
    operands: Sequence[ir.Value],
    heads: tuple[int, int],
    bias: ir.Value | None,
    *,
    causal: bool,
) -> ir.Value:
    given = [*operands] if bias is None else [*operands, bias]
    scale = of.number("scale", 0.0)
    attributes: dict[str, Any] = {
        "q_num_heads": heads[0],
        "kv_num_heads": heads[1],
        "is_causal": int(causal),
    }
    if scale:
        attributes["scale"] = scale
    return of.op("Attention", *given, **attributes)


def _bias(
    of: Operator, mask: ir.Value | None, scores: ir.Value | None, batch: ir.Value, keys: ir.Value
) -> ir.Value | None:
    """What is added to the scores: of a mask of keys in any of its forms, and of a bias."""
    if mask is None:
        return scores
    fill = of.float(of.number("mask_filter_value", _FILL))
    hidden = of.op("Where", _attended(of, mask, batch, keys), of.float(0), fill)
    return hidden if scores is None else of.op("Add", scores, hidden)


def _attended(of: Operator, mask: ir.Value, batch: ir.Value, keys: ir.Value) -> ir.Value:
    """Bool, four axes, True where a key is attended; ``batch`` and ``keys`` are ``[1]`` lengths."""
    rank = of.rank(mask)
    zero = of.op("CastLike", of.constant(0, np.int64), mask)
    if rank == 1:
        # [B]: so many keys. [2·B]: the keys' ends, then their beginnings. [3·B + 2]: so many keys,
        # then sums.
        places = of.positions(keys)
        ends, rest = (of.op("Cast", v, to=ir.DataType.INT64) for v in _cut(of, mask, batch))
        upto = of.op("Less", places, of.op("Unsqueeze", ends, of.ints(1, 2, 3)))
        twice = of.op("Equal", of.op("Mul", batch, of.ints(2)), of.op("Shape", mask))
        begins = of.op(
            "Where",
            twice,
            of.op("Slice", _filled(of, rest, batch), of.ints(0), batch, of.ints(0)),
            of.ints(0),
        )
        return of.op(
            "And",
            upto,
            of.op("GreaterOrEqual", places, of.op("Unsqueeze", begins, of.ints(1, 2, 3))),
        )
    if rank == 2:
        return of.op("Greater", of.op("Unsqueeze", mask, of.ints(1, 2)), zero)
    if rank == 3:
        return of.op("Greater", of.op("Unsqueeze", mask, of.ints(1)), zero)
    raise UntakenError("its mask has four axes")


def _cut(of: Operator, mask: ir.Value, batch: ir.Value) -> tuple[ir.Value, ir.Value]:
    most = of.ints(np.iinfo(np.int64).max)
    return of.op("Slice", mask, of.ints(0), batch, of.ints(0)), of.op(
        "Slice", mask, batch, most, of.ints(0)
    )


def _filled(of: Operator, rest: ir.Value, batch: ir.Value) -> ir.Value:
    """At least ``batch`` numbers."""
    return of.op("Concat", rest, of.op("Expand", of.ints(0), batch), axis=0)


def _attention(of: Operator) -> list[ir.Value | None]:
    """Queries, keys and values projected by one matrix from one input."""
    if of.given(4) is not None or of.given(6) is not None or of.used(1):
        raise UntakenError("it has a cache")
    if of.integer("do_rotary"):
        raise UntakenError("it rotates its queries and keys")
    x, weights, heads = of.needed(0), of.needed(1), of.integer("num_heads")
    given = of.node.attributes.get("qkv_hidden_sizes")
    width = of.static_size(weights, 1)
    sizes = [width // 3] * 3 if given is None else [int(s) for s in given.as_ints()]
    projected = of.op("MatMul", x, weights)
    offset = of.given(2)
    if offset is not None:
        projected = of.op("Add", projected, offset)
    batch, length = of.size(x, 0), of.size(x, 1)
    bias = _bias(of, of.given(3), of.given(5), batch, length)
    causal = bool(of.integer("unidirectional"))
    return [_attend(of, of.split(projected, sizes, -1), (heads, heads), bias, causal=causal), None]


def _multi_head_attention(of: Operator) -> list[ir.Value | None]:
    if any(of.given(i) is not None for i in range(6, 10)):
        raise UntakenError("it has a cache")
    of.refuse_outputs(1)
    query, key, value, heads = of.needed(0), of.given(1), of.given(2), of.integer("num_heads")
    projected = False
    if of.rank(query) == 5:
        query, key, value = (_merged(of, part) for part in _unpacked(of, query))
    elif key is None:
        raise UntakenError("it has no keys")
    elif of.rank(key) == 5:
        key, value = (_merged(of, part) for part in _unpacked(of, key))
    elif value is None:
        raise UntakenError("it has no values")
    elif of.rank(key) == 4:
        # Keys and values that an encoder has projected, biases and all.
        projected = True
        key, value = (
            _merged(of, of.op("Transpose", v, perm=[0, 2, 1, 3]), like=v) for v in (key, value)
        )
    offset = of.given(3)
    if offset is not None:
        query, key, value = _offset(of, (query, key, value), offset, projected=projected)
    batch, length = of.size(of.needed(0), 0), of.size(key, 1)
    bias = _bias(of, of.given(4), of.given(5), batch, length)
    return [
        _attend(
            of, [query, key, value], (heads, heads), bias, causal=bool(of.integer("unidirectional"))
        ),
        None,
        None,
    ]


def _unpacked(of: Operator, packed: ir.Value) -> list[ir.Value]:
    """``[B, L, H, n, D]`` → n times ``[B, L, H, D]``."""
    count = of.static_size(packed, 3)
    parts = [of.op("Squeeze", part, of.ints(3)) for part in of.split(packed, [1] * count, 3)]
    for part in parts:
        assert packed.shape is not None
        part.shape = ir.Shape([*packed.shape[:3], packed.shape[4]])
    return parts


def _merged(of: Operator, value: ir.Value, like: ir.Value | None = None) -> ir.Value:
    """``[B, L, H, D]`` → ``[B, L, H·D]``; ``like`` is ``[B, H, L, D]``."""
    width = (
        of.static_size(value, 2) * of.static_size(value, 3)
        if like is None
        else of.static_size(like, 1) * of.static_size(like, 3)
    )
    return of.op("Reshape", value, of.ints(0, 0, width))


def _offset(
    of: Operator, operands: Sequence[ir.Value], offset: ir.Value, *, projected: bool
) -> list[ir.Value]:
    """The operands with their parts of the bias of the projections."""
    query = of.needed(0)
    width = (
        of.static_size(query, 2) * of.static_size(query, 4)
        if of.rank(query) == 5
        else of.static_size(query, 2)
    )
    total = of.static_size(offset, 0)
    if total < 2 * width:
        raise UntakenError("its bias is shorter than its queries and keys")
    parts = of.split(offset, [width, width, total - 2 * width], 0)
    if projected:
        return [of.op("Add", operands[0], parts[0]), *operands[1:]]
    return [of.op("Add", value, part) for value, part in zip(operands, parts, strict=True)]


def _grouped_query_attention(of: Operator) -> list[ir.Value | None]:
    """Causal self-attention of a whole sequence without a cache.

    It may have rotary embeddings and a window.
    """
    if of.given(3) is not None or of.given(4) is not None or of.used(1) or of.used(2):
        raise UntakenError("it has a cache")
    if (
        of.number("softcap", 0.0)
        or of.integer("smooth_softmax")
        or any(of.given(i) is not None for i in range(11, 14))
    ):
        raise UntakenError("its scores are capped, quantised, or have a sink")
    of.refuse_outputs(3)
    heads, kv_heads = of.integer("num_heads"), of.integer("kv_num_heads")
    query, key, value = of.needed(0), of.given(1), of.given(2)
    if key is None or value is None:
        size = of.static_size(query, 2) // (heads + 2 * kv_heads)
        query, key, value = of.split(query, [heads * size, kv_heads * size, kv_heads * size], 2)
    else:
        size = of.static_size(query, 2) // heads
    x = of.needed(0)
    if of.integer("do_rotary"):
        query, key = (
            _rotated(of, v, size, count) for v, count in ((query, heads), (key, kv_heads))
        )
    places = of.positions(of.size(x, 1))
    lengths = of.op("Cast", of.needed(5), to=ir.DataType.INT64)
    attended = of.op("LessOrEqual", places, of.op("Reshape", lengths, of.ints(-1, 1, 1, 1)))
    window = of.integer("local_window_size", -1)
    if window > 0:
        first = of.op("Sub", of.op("Unsqueeze", places, of.ints(1)), of.constant(window, np.int64))
        attended = of.op("And", attended, of.op("Greater", places, first))
    scores = of.given(10)
    if scores is not None:
        attended = of.op("Where", attended, scores, of.float(-np.inf))
    return [_attend(of, [query, key, value], (heads, kv_heads), attended, causal=True), None, None]


def _rotated(of: Operator, value: ir.Value, size: int, heads: int) -> ir.Value:
    cos, sin = of.given(7), of.given(8)
    if cos is None or sin is None:
        raise UntakenError("its tables of angles are missing")
    split = of.op(
        "Transpose", of.op("Reshape", value, of.ints(0, 0, heads, size)), perm=[0, 2, 1, 3]
    )
    turned = rotate(
        of, split, size, of.given(9), cos, sin, interleaved=bool(of.integer("rotary_interleaved"))
    )
    return of.op(
        "Reshape", of.op("Transpose", turned, perm=[0, 2, 1, 3]), of.ints(0, 0, heads * size)
    )


def _must_know_width(expansion: Expansion) -> Expansion:
    """Heads can be told only where the width of the queries is known."""

    def expand(of: Operator) -> list[ir.Value | None]:
        query = of.needed(0)
        if of.rank(query) not in (3, 5):
            raise NotYetError
        of.static_size(query, -1)
        return expansion(of)

    return expand


ATTENTIONS: dict[str, Expansion] = {
    "Attention": _must_know_width(_attention),
    "MultiHeadAttention": _must_know_width(_multi_head_attention),
    "GroupQueryAttention": _must_know_width(_grouped_query_attention),
}
"""Operator → its expansion."""
