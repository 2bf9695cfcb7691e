"""What a node of ONNX Runtime computes and moves, from the shapes that it was executed with.

Floating-point operations by the rules of :mod:`crossfuse.core.flops`. Bytes are what the node must
at least read and write: its inputs, weights and outputs, once each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossfuse.core.flops import attention_flops, convolution_flops, product_flops

__all__ = ["KINDS", "kind_of", "work_of"]

KINDS = {
    "GEMM": (
        "MatMul",
        "Gemm",
        "FusedMatMul",
        "FusedGemm",
        "TransposeMatMul",
        "MatMulNBits",
        "MatMulInteger",
        "Einsum",
    ),
    "convolution": ("Conv", "FusedConv", "ConvTranspose", "NhwcConv", "NhwcFusedConv"),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
    "norm": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "EmbedLayerNormalization",
        "RMSNormalization",
        "GroupNorm",
        "GroupNormalization",
        "BatchNormalization",
        "InstanceNormalization",
    ),
    "activation": (
        *(
            "Gelu",
            "FastGelu",
            "BiasGelu",
            "QuickGelu",
            "Erf",
            "Relu",
            "LeakyRelu",
            "Sigmoid",
            "Tanh",
            "Softmax",
            "LogSoftmax",
        ),
        *("Elu", "HardSigmoid", "HardSwish", "Softplus", "Clip"),
    ),
    "element-wise": (
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "Sqrt",
            "Reciprocal",
            "Neg",
            "Abs",
            "Exp",
            "Log",
            "Sin",
            "Cos",
            "Where",
            "Sum",
        ),
        *(
            "Equal",
            "Less",
            "LessOrEqual",
            "Greater",
            "GreaterOrEqual",
            "And",
            "Or",
            "Not",
            "Min",
            "Max",
            "Floor",
            "Round",
        ),
        *(
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceSum",
            "ReduceL2",
            "LpNormalization",
            "ArgMax",
            "ArgMin",
            "TopK",
        ),
        *("CumSum", "MaxPool", "AveragePool", "GlobalAveragePool"),
    ),
    "copy": (
        *(
            "Transpose",
            "Reshape",
            "Concat",
            "Slice",
            "Gather",
            "GatherND",
            "GatherElements",
            "Scatter",
            "ScatterND",
            "Expand",
        ),
        *(
            "Cast",
            "Split",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Identity",
            "Tile",
            "Pad",
            "Shape",
            "Resize",
            "Range",
        ),
        *(
            "ScatterElements",
            "DepthToSpace",
            "SpaceToDepth",
            "ConstantOfShape",
            "MemcpyToHost",
            "MemcpyFromHost",
        ),
        *("ReorderInput", "ReorderOutput"),
    ),
}
"""Kind → operators."""

_KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops}
_ITEM_SIZES = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8}


def kind_of(op: str) -> str:
    """The kind of an operator; ``other`` for those that are not listed."""
    return _KIND_OF.get(op, "other")


def work_of(
    op: str, args: Mapping[str, Any], kernel: Sequence[int] | None = None
) -> tuple[int, int]:
    """Floating-point operations and bytes of one execution.

    Args:
        op: the operator.
        args: the profiler's account of a node.
        kernel: shape of a convolution's weight, where it is known otherwise: packed ones are not in
            the account.
    """
    inputs, outputs = _shapes(args.get("input_type_shape")), _shapes(args.get("output_type_shape"))
    kind = kind_of(op)
    moved = sum(int(args.get(k, 0)) for k in ("activation_size", "parameter_size", "output_size"))
    if kind not in ("GEMM", "convolution", "attention") or not inputs or not outputs:
        return 0, moved
    first, out = inputs[0], outputs[0]
    item = _item_size(args["output_type_shape"])
    if kind == "attention":
        query, key, value = inputs[:3]
        if min(len(query), len(key), len(value)) < 3:
            return 0, moved
        length, width = _rows(query)
        keys, key_width = _rows(key)
        values = _rows(value)[1]
        value_width = values * width // max(key_width, 1)
        return attention_flops(query[0] * length, keys, width, value_width), moved
    if kind == "convolution":
        weight = kernel or (inputs[1] if len(inputs) > 1 else ())
        if len(weight) < 3:
            return 0, moved
        if list(weight) not in inputs:
            moved += math.prod(weight) * item
        # Channels are the weight's: blocked layouts pad the tensors'.
        positions = math.prod((first if op == "ConvTranspose" else out)[2:]) * out[0]
        return convolution_flops(positions, weight), moved
    inner = _inner(first, out, inputs)
    if len(inputs) < 2 or not inputs[1]:
        # The weight was packed when the graph was loaded, and is not among the inputs any more.
        moved += inner * out[-1] * item
    return product_flops(out, inner), moved


def _inner(first: list[int], out: list[int], inputs: Sequence[list[int]]) -> int:
    """The length that a product sums over: what the first operand has beyond the output's rows."""
    rows = math.prod(out) // max(out[-1], 1)
    if len(inputs) > 1 and len(inputs[1]) >= 2 and len(first) >= 2 and len(out) == len(first):
        return math.prod(first) // max(math.prod(first[:-2]) * out[-2], 1)
    return math.prod(first) // max(rows, 1)


def _rows(shape: list[int]) -> tuple[int, int]:
    """Length and width of ``[B, L, H·D]`` or ``[B, H, L, D]``."""
    return (shape[1], shape[2]) if len(shape) == 3 else (shape[2], shape[1] * shape[3])


def _shapes(described: Any) -> list[list[int]]:
    return [next(iter(one.values())) if one else [] for one in described or []]


def _item_size(described: Any) -> int:
    return _ITEM_SIZES.get(next(iter(described[0]), "float"), 4) if described else 4
