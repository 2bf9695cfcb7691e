"""Operators that ONNX Runtime's CUDA provider (1.31, opset 24) has no kernel for. Names only: this
imports nothing.

In bf16 a node without a kernel makes the session fail, so it stays in fp32. In fp32 and fp16 it
would go to the CPU; `operators` writes most of those in others. `tests/gpu_rehearsal` asks the
provider, operator by operator.
"""

from __future__ import annotations

__all__ = ["NO_BF16", "NO_KERNEL"]

NO_BF16 = frozenset({
    "Acos", "ArgMax", "ArgMin", "Asin", "Atan", "BatchNormalization", "Ceil", "Celu", "Clip", "Compress", "ConvTranspose",
    "Cosh", "CumSum", "DepthToSpace", "Det", "Dropout", "Einsum", "Elu", "Equal", "EyeLike", "Floor", "GRU",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "Hardmax",
    "InstanceNormalization", "LRN", "LSTM", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MaxPool", "Mean",
    "MeanVarianceNormalization", "NonZero", "OneHot", "PRelu", "Pad", "Range", "Reciprocal", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd", "Resize", "ReverseSequence", "Round", "Selu", "Shrink",
    "Sinh", "SpaceToDepth", "Tan", "ThresholdedRelu", "Upsample",
})  # fmt: skip
"""Operators without a bf16 kernel."""

NO_KERNEL = frozenset({
    "Acos", "Asin", "Atan", "Det", "EyeLike", "GRU", "Hardmax", "MeanVarianceNormalization",
})  # fmt: skip
"""Operators without any kernel, and no form written here: the provider leaves them to the CPU."""
