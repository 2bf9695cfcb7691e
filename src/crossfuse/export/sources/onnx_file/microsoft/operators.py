"""Norms, activations, products and embeddings of ``com.microsoft``.

Each function emits what ONNX Runtime documents for the operator, in float32, and gives its outputs.
Statistics of norms (mean, inverse deviation) are of training, and not given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from crossfuse.export.sources.onnx_file.microsoft.emit import Expansion, Operator, UntakenError

__all__ = ["OPERATORS", "rotate"]

_ACTIVATIONS = {
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "Selu": ("alpha", "gamma"),
    "HardSigmoid": ("alpha", "beta"),
}
"""Activation → its parameters, in their order."""


def _layer_norm(of: Operator) -> list[ir.Value | None]:
    """Of ONNX's domain before opset 17, where ONNX Runtime writes it all the same."""
    of.refuse_outputs(1)
    x, scale, bias = of.needed(0), of.needed(1), of.given(2)
    given = [x, scale] if bias is None else [x, scale, bias]
    return [
        of.op(
            "LayerNormalization",
            *given,
            axis=of.integer("axis", -1),
            epsilon=of.number("epsilon", 1e-5),
        )
    ]


def _simplified_layer_norm(of: Operator) -> list[ir.Value | None]:
    """``x / √(mean(x²) + ε) · scale``, RMSNorm."""
    of.refuse_outputs(1)
    x, axis = of.needed(0), of.integer("axis", -1)
    axes = [-1] if axis == -1 else list(range(axis % of.rank(x), of.rank(x)))
    return [_rms(of, x, of.needed(1), of.number("epsilon", 1e-5), axes)]


def _rms(of: Operator, x: ir.Value, scale: ir.Value, epsilon: float, axes: list[int]) -> ir.Value:
    square = of.op("ReduceMean", of.op("Mul", x, x), of.ints(*axes), keepdims=1)
    return of.op(
        "Mul", of.op("Div", x, of.op("Sqrt", of.op("Add", square, of.float(epsilon)))), scale
    )


def _added(of: Operator, *indices: int) -> ir.Value:
    """The sum of those inputs that are given."""
    total = of.needed(0)
    for index in indices:
        value = of.given(index)
        total = total if value is None else of.op("Add", total, value)
    return total


def _skip_layer_norm(of: Operator) -> list[ir.Value | None]:
    of.refuse_outputs(1, but=[3])
    total = _added(of, 1, 4)
    beta = of.given(3)
    given = [total, of.needed(2)] if beta is None else [total, of.needed(2), beta]
    return [
        of.op("LayerNormalization", *given, axis=-1, epsilon=of.number("epsilon", 1e-12)),
        None,
        None,
        total,
    ]


def _skip_simplified_layer_norm(of: Operator) -> list[ir.Value | None]:
    of.refuse_outputs(1, but=[3])
    total = _added(of, 1, 3)
    return [_rms(of, total, of.needed(2), of.number("epsilon", 1e-12), [-1]), None, None, total]


def _embed_layer_norm(of: Operator) -> list[ir.Value | None]:
    """Word, position and segment embeddings, summed and normalised.

    The second output is how many ids of each row are not masked.
    """
    ids, segments = of.needed(0), of.given(1)
    mask, positions = of.given(7), of.given(8)
    if positions is None:
        positions = of.op("Unsqueeze", of.positions(of.size(ids, 1)), of.ints(0))
    total = of.op(
        "Add",
        of.op("Gather", of.needed(2), ids, axis=0),
        of.op("Gather", of.needed(3), positions, axis=0),
    )
    if segments is not None:
        total = of.op("Add", total, of.op("Gather", of.needed(4), segments, axis=0))
    normal = of.op(
        "LayerNormalization",
        total,
        of.needed(5),
        of.needed(6),
        axis=-1,
        epsilon=of.number("epsilon", 1e-12),
    )
    lengths: ir.Value | None = None
    if of.used(1):
        if mask is None:
            mask = of.op("Mul", ids, of.op("CastLike", of.constant(0, np.int32), ids))
        lengths = of.op(
            "Cast", of.op("ReduceSum", mask, of.ints(1), keepdims=0), to=ir.DataType.INT32
        )
    return [normal, lengths, total]


def _gelu(of: Operator) -> list[ir.Value | None]:
    return [of.op("Gelu", of.needed(0))]


def _bias_gelu(of: Operator) -> list[ir.Value | None]:
    return [of.op("Gelu", _added(of, 1))]


def _fast_gelu(of: Operator) -> list[ir.Value | None]:
    return [of.op("Gelu", _added(of, 1), approximate="tanh")]


def _quick_gelu(of: Operator) -> list[ir.Value | None]:
    x, alpha = of.needed(0), of.number("alpha", 1.702)
    return [of.op("Mul", x, of.op("Sigmoid", of.op("Mul", x, of.float(alpha))))]


def _fused_matmul(of: Operator) -> list[ir.Value | None]:
    """A product with transposed sides and a factor."""
    sides = []
    for index, side in ((0, "A"), (1, "B")):
        value = of.needed(index)
        order = list(range(of.rank(value)))
        if of.integer(f"transBatch{side}"):
            order = [*order[1:-1], order[0], order[-1]]
        if of.integer(f"trans{side}") and len(order) > 1:
            order = [*order[:-2], order[-1], order[-2]]
        sides.append(value if order == sorted(order) else of.op("Transpose", value, perm=order))
    product = of.op("MatMul", *sides)
    alpha = of.number("alpha", 1.0)
    return [product if alpha == 1 else of.op("Mul", product, of.float(alpha))]


def _activated(of: Operator, value: ir.Value, name: str, parameters: list[float]) -> ir.Value:
    if name == "Clip":
        return of.op("Clip", value, *(of.float(p) for p in parameters))
    if name not in _ACTIVATIONS:
        raise UntakenError(f"its activation {name!r} is not known")
    attributes: dict[str, Any] = dict(zip(_ACTIVATIONS[name], parameters, strict=False))
    return of.op(name, value, **attributes)


def _fused_gemm(of: Operator) -> list[ir.Value | None]:
    c = of.given(2)
    given = [of.needed(0), of.needed(1)] if c is None else [of.needed(0), of.needed(1), c]
    product = of.op(
        "Gemm",
        *given,
        alpha=of.number("alpha", 1.0),
        beta=of.number("beta", 1.0),
        transA=of.integer("transA"),
        transB=of.integer("transB"),
    )
    name = of.text("activation")
    parameters = [
        of.number(f"activation_{p}", 0.0)
        for p in _ACTIVATIONS.get(name, ())
        if f"activation_{p}" in of.node.attributes
    ]
    return [_activated(of, product, name, parameters)]


def _fused_conv(of: Operator) -> list[ir.Value | None]:
    kept = {
        n: a.value
        for n, a in of.node.attributes.items()
        if n not in ("activation", "activation_params")
    }
    bias, addend = of.given(2), of.given(3)
    given = [of.needed(0), of.needed(1)] if bias is None else [of.needed(0), of.needed(1), bias]
    result = of.op("Conv", *given, **kept)
    if addend is not None:
        result = of.op("Add", result, addend)
    name = of.text("activation")
    attribute = of.node.attributes.get("activation_params")
    return [
        _activated(of, result, name, [] if attribute is None else list(attribute.as_floats()))
        if name
        else result
    ]


def _rotary_embedding(of: Operator) -> list[ir.Value | None]:
    x, positions, cos, sin = (of.needed(i) for i in range(4))
    if of.integer("is_packed_batching") or of.number("scale", 1.0) != 1.0:
        raise UntakenError("its positions are packed or scaled")
    four = of.rank(x) == 4
    heads = of.integer("num_heads")
    if not four:
        size = of.static_size(x, -1) // heads if heads else 2 * of.static_size(cos, 1)
        x = of.op("Transpose", of.op("Reshape", x, of.ints(0, 0, -1, size)), perm=[0, 2, 1, 3])
    else:
        size = of.static_size(x, -1)
    rotated = rotate(of, x, size, positions, cos, sin, interleaved=bool(of.integer("interleaved")))
    if four:
        return [rotated]
    width = of.static_size(of.needed(0), -1)
    return [of.op("Reshape", of.op("Transpose", rotated, perm=[0, 2, 1, 3]), of.ints(0, 0, width))]


def rotate(
    of: Operator,
    x: ir.Value,
    size: int,
    positions: ir.Value | None,
    cos: ir.Value,
    sin: ir.Value,
    *,
    interleaved: bool,
) -> ir.Value:
    """Rotary embedding of ``[B, H, S, D]``.

    ``positions`` are ``[B, S]``, ``[1]`` of the first one, or None for 0.
    """
    half = of.static_size(cos, 1)
    if positions is None or of.rank(positions) == 1:
        places = of.positions(of.size(x, 2))
        places = places if positions is None else of.op("Add", places, positions)
        places = of.op("Unsqueeze", places, of.ints(0))
    else:
        places = positions
    cosine, sine = (
        of.op("Unsqueeze", of.op("Gather", t, places, axis=0), of.ints(1)) for t in (cos, sin)
    )
    parts = [2 * half, size - 2 * half] if size > 2 * half else [size]
    turned, *rest = of.split(x, parts, 3) if len(parts) > 1 else [x]
    if interleaved:
        pairs = of.op("Reshape", turned, of.ints(0, 0, 0, half, 2))
        first, second = (of.op("Squeeze", part, of.ints(4)) for part in of.split(pairs, [1, 1], 4))
    else:
        first, second = of.split(turned, [half, half], 3)
    one = of.op("Sub", of.op("Mul", first, cosine), of.op("Mul", second, sine))
    two = of.op("Add", of.op("Mul", first, sine), of.op("Mul", second, cosine))
    if interleaved:
        pairs = of.op(
            "Concat",
            of.op("Unsqueeze", one, of.ints(4)),
            of.op("Unsqueeze", two, of.ints(4)),
            axis=4,
        )
        turned = of.op("Reshape", pairs, of.ints(0, 0, 0, 2 * half))
    else:
        turned = of.op("Concat", one, two, axis=3)
    return of.op("Concat", turned, *rest, axis=3) if rest else turned


def _bias_add(of: Operator) -> list[ir.Value | None]:
    return [_added(of, 1, 2)]


def _bias_split_gelu(of: Operator) -> list[ir.Value | None]:
    x = _added(of, 1)
    width = of.static_size(of.needed(0), -1)
    left, right = of.split(x, [width // 2, width // 2], -1)
    return [of.op("Mul", left, of.op("Gelu", right))]


def _bias_softmax(of: Operator) -> list[ir.Value | None]:
    """A softmax behind an addition, over all axes from ``axis`` on."""
    x, axis = of.needed(0), of.integer("axis", 1)
    rank = of.rank(x)
    if axis % rank != rank - 1 or not of.integer("is_inner_broadcast", 1):
        raise UntakenError("its softmax is over several axes")
    return [of.op("Softmax", of.op("Add", x, of.needed(1)), axis=-1)]


OPERATORS: dict[str, Expansion] = {
    "LayerNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_simplified_layer_norm,
    "EmbedLayerNormalization": _embed_layer_norm,
    "Gelu": _gelu,
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "FusedGemm": _fused_gemm,
    "FusedConv": _fused_conv,
    "RotaryEmbedding": _rotary_embedding,
    "BiasAdd": _bias_add,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasSoftmax": _bias_softmax,
}
"""Operator → its expansion."""
