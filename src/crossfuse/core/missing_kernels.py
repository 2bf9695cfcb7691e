"""Operators that libraries have no kernel for: names only.

ONNX Runtime's CUDA provider (1.31, opset 24): in bf16 a node without a kernel makes the session
fail, so it stays in fp32. In fp32 and fp16 it would go to the CPU; the lowering for the provider
writes most of those in others. `tests/gpu_rehearsal` asks the provider, operator by operator.
"""

from __future__ import annotations

__all__ = ["CUDA_WITHOUT_BF16", "CUDA_WITHOUT_KERNEL", "TENSORRT_WITHOUT_BF16"]

CUDA_WITHOUT_BF16 = frozenset({
    "Acos", "ArgMax", "ArgMin", "Asin", "Atan", "BatchNormalization", "Ceil", "Celu", "Clip",
    "Compress", "ConvTranspose", "Cosh", "CumSum", "DepthToSpace", "Det", "Dropout", "Einsum",
    "Elu", "Equal", "EyeLike", "Floor", "GRU", "GlobalAveragePool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "GroupNormalization", "Hardmax", "InstanceNormalization", "LRN",
    "LSTM", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MaxPool", "Mean",
    "MeanVarianceNormalization", "NonZero", "OneHot", "PRelu", "Pad", "Range", "Reciprocal",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd", "Resize",
    "ReverseSequence", "Round", "Selu", "Shrink", "Sinh", "SpaceToDepth", "Tan", "ThresholdedRelu",
    "Upsample",
})  # fmt: skip
"""Operators that the CUDA provider has no bf16 kernel for."""

CUDA_WITHOUT_KERNEL = frozenset({
    "Acos", "Asin", "Atan", "Det", "EyeLike", "GRU", "Hardmax", "MeanVarianceNormalization",
})  # fmt: skip
"""Operators that it has no kernel for, and no form written here: it leaves them to the CPU."""

TENSORRT_WITHOUT_BF16 = frozenset({"ConvTranspose"})
"""Operators that TensorRT and TensorRT-RTX have no bf16 kernel for."""
