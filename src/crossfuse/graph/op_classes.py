"""Sets of ONNX's operators that several rooms mean the same by."""

from __future__ import annotations

import onnx_ir as ir

__all__ = [
    "BOUNDED_OPS",
    "LAYOUT_OPS",
    "MOVING_OPS",
    "PRODUCT_OPS",
    "RANDOM_OPS",
    "SIZE_OPS",
    "is_onnx",
]

LAYOUT_OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that move elements without changing, repeating or leaving out any."""

MOVING_OPS = LAYOUT_OPS | {"Cast", "Identity", "Expand", "Slice", "Gather", "Split", "Concat"}
"""Operators whose results hold elements of their inputs and nothing else."""

PRODUCT_OPS = frozenset({"MatMul", "Gemm", "Einsum"})
"""Operators that sum products of two operands."""

RANDOM_OPS = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    }
)
"""Operators whose results are drawn, or may be."""

SIZE_OPS = frozenset({"Shape", "Size"})
"""Operators that read sizes and no content."""

BOUNDED_OPS = (
    PRODUCT_OPS
    | SIZE_OPS
    | {"Softmax", "LayerNormalization", "Tanh", "Sigmoid", "FusedAttention"}
    | {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Not"}
)
"""Operators whose results are no larger than scores usually are, whatever they are made from."""


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """A node of ONNX's own domain; with ``op_types``, of one of these types."""
    return node.domain in ("", "ai.onnx") and (not op_types or node.op_type in op_types)
