"""Operators that the CUDA provider has no kernel for: the lists in the sources, against the
provider itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from crossfuse.core.missing_kernels import CUDA_WITHOUT_BF16, CUDA_WITHOUT_KERNEL
from crossfuse.targets.cuda.lowering import OPSET
from crossfuse.targets.cuda.operators import replace_operators
from crossfuse.targets.precision.cast import cast_graph
from gpu_rehearsal.provider import Job, Provider

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
IMAGE, TOKENS = [2, 4, 8, 8], [2, 5, 8]

# Operator → shapes of its float inputs, integer and bool inputs as arrays, and its attributes.
UNARY = [
    "Abs", "Acos", "Asin", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
    "Flatten", "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid",
    "HardSwish", "Hardmax", "Identity", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization",
    "MeanVarianceNormalization", "Mish", "Neg", "NonZero", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu", "Dropout",
]  # fmt: skip
BINARY = [
    "Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Max",
    "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum",
]  # fmt: skip
REDUCE = [
    "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
]  # fmt: skip


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


OPERATORS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    **{op: ([IMAGE], {}) for op in UNARY},
    **{op: ([IMAGE, IMAGE], {}) for op in BINARY},
    **{f"Reduce{op}": ([IMAGE, ints(-1)], {}) for op in REDUCE},
    "ArgMax": ([IMAGE], {}),
    "ArgMin": ([IMAGE], {}),
    "AveragePool": ([IMAGE], dict(kernel_shape=[2, 2])),
    "BatchNormalization": ([IMAGE, [4], [4], [4], [4]], {}),
    "CastLike": ([IMAGE, IMAGE], {}),
    "Clip": ([IMAGE, [], []], {}),
    "Compress": ([TOKENS, np.array([True, False])], dict(axis=1)),
    "Concat": ([IMAGE, IMAGE], dict(axis=1)),
    "Conv": ([IMAGE, [4, 4, 3, 3]], {}),
    "ConvTranspose": ([IMAGE, [4, 4, 3, 3]], {}),
    "CumSum": ([IMAGE, np.array(1)], {}),
    "DepthToSpace": ([IMAGE], dict(blocksize=2)),
    "Det": ([[4, 4]], {}),
    "Einsum": ([TOKENS, [2, 7, 8]], dict(equation="bid,bjd->bij")),
    "Expand": ([TOKENS, ints(2, 5, 8)], {}),
    "EyeLike": ([[4, 4]], {}),
    "GRU": ([[5, 2, 8], [1, 12, 8], [1, 12, 4]], dict(hidden_size=4)),
    "Gather": ([TOKENS, ints(0)], {}),
    "GatherElements": ([TOKENS, np.zeros((2, 5, 8), np.int64)], {}),
    "GatherND": ([TOKENS, np.zeros((1, 1), np.int64)], {}),
    "Gemm": ([[4, 8], [8, 3], [3]], {}),
    "GridSample": ([IMAGE, [2, 3, 3, 2]], {}),
    "GroupNormalization": ([IMAGE, [4], [4]], dict(num_groups=2)),
    "InstanceNormalization": ([IMAGE, [4], [4]], {}),
    "LRN": ([IMAGE], dict(size=3)),
    "LSTM": ([[5, 2, 8], [1, 16, 8], [1, 16, 4]], dict(hidden_size=4)),
    "LayerNormalization": ([TOKENS, [8], [8]], {}),
    "MaxPool": ([IMAGE], dict(kernel_shape=[2, 2])),
    "OneHot": ([ints(1), np.array(4), [2]], {}),
    "Pad": ([TOKENS, ints(0, 0, 0, 0, 0, 3)], {}),
    "RMSNormalization": ([TOKENS, [8]], {}),
    "Range": ([[], [], []], {}),
    "Reshape": ([IMAGE, ints(0, -1)], {}),
    "Resize": ([IMAGE, None, np.array([1, 1, 2, 2], np.float32)], {}),
    "ReverseSequence": ([TOKENS, ints(1, 2, 3, 4, 5)], dict(time_axis=0, batch_axis=1)),
    "ScatterElements": ([TOKENS, np.zeros((1, 1, 1), np.int64), [1, 1, 1]], {}),
    "ScatterND": ([TOKENS, np.zeros((1, 1), np.int64), [1, 5, 8]], {}),
    "Slice": ([IMAGE, ints(0), ints(2), ints(1)], {}),
    "SpaceToDepth": ([IMAGE], dict(blocksize=2)),
    "Split": ([IMAGE], dict(axis=1, num_outputs=1)),
    "Squeeze": ([[1, 4], ints(0)], {}),
    "Tile": ([TOKENS, ints(1, 2, 1)], {}),
    "TopK": ([TOKENS, ints(2)], {}),
    "Transpose": ([TOKENS], dict(perm=[0, 2, 1])),
    "Unsqueeze": ([TOKENS, ints(0)], {}),
    "Where": ([np.array([True]), TOKENS, TOKENS], {}),
}
RESULTS = dict.fromkeys(("ArgMax", "ArgMin", "NonZero"), ir.DataType.INT64)
RESULTS |= dict.fromkeys(
    ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), ir.DataType.BOOL
)


def model_of(op: str, precision: str) -> ir.Model:
    given, attributes = OPERATORS[op]
    dtype = TYPES[precision]
    names, inputs, constants = [], [], []
    for i, about in enumerate(given):
        names.append("" if about is None else f"x{i}")
        if isinstance(about, np.ndarray):
            constants.append(numpy_helper.from_array(about, f"x{i}"))
        elif about is not None:
            inputs.append(helper.make_tensor_value_info(f"x{i}", dtype, about))
    outputs = ["y", "indices"] if op == "TopK" else ["y"]
    node = helper.make_node(op, names, outputs, name="the node", **attributes)
    ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "g", inputs, ends, constants)
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    )


def lacks(result: dict[str, Any]) -> bool:
    return "failed" in result or bool(result["on_cpu"])


def test_operators_without_a_bf16_kernel(provider: Provider) -> None:
    assert OPERATORS.keys() | {"Upsample"} >= CUDA_WITHOUT_BF16, "the table lacks some"
    names = list(OPERATORS)
    results = provider.run([Job(model_of(op, "bf16"), []) for op in names])
    assert {
        op for op, result in zip(names, results, strict=True) if lacks(result)
    } == CUDA_WITHOUT_BF16 - {"Upsample"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_is_lowered_has_kernels(provider: Provider, precision: str) -> None:
    """Each operator in a graph as a target gets it: in its precision, written in others where it
    has no kernel."""
    models = []
    for op in OPERATORS:
        model = model_of(op, "fp32")
        for node in model.graph:
            for value, about in zip(node.inputs, OPERATORS[op][0], strict=False):
                if value is not None and isinstance(about, list):
                    value.shape = ir.Shape(about)
            node.outputs[0].type = ir.TensorType(RESULTS.get(op, ir.DataType.FLOAT))
        if precision != "fp32":
            model = cast_graph(model, precision, without_bf16=CUDA_WITHOUT_BF16).model
        replace_operators(model)
        models.append(model)
    results = provider.run([Job(model, []) for model in models])
    failed = {op: result for op, result in zip(OPERATORS, results, strict=True) if lacks(result)}
    assert failed.keys() <= CUDA_WITHOUT_KERNEL, failed


def test_operators_without_a_kernel_of_their_own(provider: Provider) -> None:
    """The rehearsal would tell: as they are, these go to the CPU."""
    names = [
        *CUDA_WITHOUT_KERNEL,
        "MaxPool",
        "InstanceNormalization",
        "Elu",
        "Tan",
        "Mean",
        "Dropout",
    ]
    results = provider.run([Job(model_of(op, "fp32"), []) for op in names])
    assert [result["on_cpu"] for result in results] == [[f"{op} the node"] for op in names]
