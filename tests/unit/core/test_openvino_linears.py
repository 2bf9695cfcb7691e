"""What an execution graph says of linear layers: models of which it is known, compiled here, and
nodes that are made here."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.linear_ledger import INT8, Became, weights_in
from crossfuse.core.openvino import openvino
from crossfuse.core.openvino_linears import MarkedLinears, mark_linears
from crossfuse.core.openvino_nodes import ExecutedNode, executed_nodes
from onnx_building import normal
from onnx_text import parse

N = 32
W8 = np.random.default_rng(0).integers(-127, 128, (N, N)).astype(np.int8)
STEPS = np.full(N, 0.01, np.float32)
WHAT = {
    "w": normal(N, N),
    "b": normal(N),
    "w8": W8,
    "v8": W8[::-1].copy(),
    "k8": W8.reshape(N, N, 1, 1),
    "steps": STEPS,
    "step": np.array(0.03, np.float32),
    "zero": np.array(130, np.uint8),
}
QUANTIZED = "q = QuantizeLinear({x}, step, zero) d = DequantizeLinear(q, step, zero)"


def became(text: str) -> dict[str, str]:
    """Words by the name of the result, of all products of a graph."""
    model = parse(text, **{name: array for name, array in WHAT.items() if name in text})
    products = {"MatMul", "Gemm", "Conv", "Einsum"}
    results = [str(n.outputs[0].name) for n in model.graph if n.op_type in products]
    ov = openvino()
    read = ov.Core().read_model(ir.to_proto(model).SerializeToString())
    marked = mark_linears(read)
    settings = {"INFERENCE_PRECISION_HINT": "dynamic", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(read, "CPU", settings)
    found = marked.became(executed_nodes(compiled.get_runtime_model()), results)
    return {name: one.words for name, one in found.items()}


def test_a_known_number_of_each() -> None:
    """Products in integers, of widened weights, and in fp32; biases, sums with what others gave."""
    found = became(
        f"""(float[b, 5, {N}] x) => (float[b, 5, {N}] y) {{
              {QUANTIZED.format(x="x")}
              w1 = DequantizeLinear <axis = 1> (w8, steps) m1 = MatMul(d, w1) a1 = Add(m1, b)
              w2 = DequantizeLinear <axis = 1> (v8, steps) m2 = MatMul(d, w2) s = Add(a1, m2)
              w3 = DequantizeLinear <axis = 1> (w8, steps) m3 = MatMul(s, w3) t = Tanh(m3)
              m4 = MatMul(t, w) m5 = Add(m4, s) m6 = MatMul(m5, w) y = Add(m6, b) }}"""
    )
    alone = weights_in(8)
    assert found == {"m1": INT8, "m2": INT8, "m3": alone, "m4": "fp32", "m6": "fp32"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"(float[b, {N}] x) => (float[b, {N}] y) {{ y = Gemm <alpha = 0.5> (x, w, b) }}", "fp32"),
        (
            f"""(float[b, {N}] x) => (float[b, {N}] y) {{ {QUANTIZED.format(x="x")}
                  v = DequantizeLinear <axis = 1> (w8, steps) y = Gemm(d, v, b) }}""",
            INT8,
        ),
        (
            f"""(float[b, {N}, 4, 4] x) => (float[b, {N}, 4, 4] y) {{ {QUANTIZED.format(x="x")}
                  v = DequantizeLinear <axis = 0> (k8, steps) y = Conv(d, v, b) }}""",
            INT8,
        ),
        (
            f"""(float[b, 5, {N}] x) => (float[b, 5, {N}] y) {{
                  y = Einsum <equation = "bld,de->ble"> (x, w) }}""",
            "fp32",
        ),
    ],
    ids=["gemm", "gemm-int8", "conv-int8", "einsum"],
)
def test_the_forms_of_a_layer(text: str, words: str) -> None:
    assert became(text) == {"y": words}


MARKED = MarkedLinears(
    {"out": "crossfuse.linear.1.", "bias": "crossfuse.linear.1."},
    {"crossfuse.linear.1.": "layer"},
    {"crossfuse.linear.1.": ("sum",)},
)


@pytest.mark.parametrize(
    ("implementation", "precision", "weights", "words"),
    [
        ("undef_I8", "u8", "i8", INT8),
        ("brgemm_avx512_amx_i8", "i8", "i8", INT8),
        ("undef_i8", "i8", "u4", weights_in(4, "int8")),
        ("undef_bf16", "bf16", "i8", weights_in(8, "bf16")),
        ("gemm_any", "f16", "f16", "fp16"),
        ("brgemm_avx512_f32", "f32", "f32", "fp32"),
    ],
)
def test_types(implementation: str, precision: str, weights: str, words: str) -> None:
    origins = ("crossfuse.linear.1./WithoutBiases", "sum")
    node = ExecutedNode("n", "FullyConnected", implementation, origins, precision, weights)
    other = ExecutedNode("o", "MatMul", "x_f32", ("crossfuse.linear.12.",))
    assert MARKED.became([other, node], ["out", "gone"]) == {"out": Became(words)}


def test_a_node_under_the_name_of_the_bias_or_behind_its_product() -> None:
    joined = ExecutedNode("n", "FullyConnected", "undef_bf16", ("sum",))
    assert MARKED.became([joined], ["bias"]) == {"bias": Became("bf16")}
    product = ExecutedNode("p", "MatMul", "x_f32", ("MatMul_7",))
    layout = ExecutedNode("r", "Reshape", "x_f32", ("crossfuse.linear.1.",), given=("p",))
    assert MARKED.became([product, layout], ["out"]) == {"out": Became("fp32")}
    assert MARKED.became([layout], ["out"]) == {}
    assert MARKED.original("crossfuse.linear.1./WithoutBiases") == "layer"
    assert MARKED.original("crossfuse.linear.x") == "crossfuse.linear.x"


def test_a_node_under_another_name_whose_weights_bear_the_mark() -> None:
    given = ("other", "crossfuse.linear.1./transpose_b", "Constant_7")
    named = ExecutedNode("n", "FullyConnected", "undef_I8", ("Multiply_5",), "u8", "i8", given)
    weights = ExecutedNode("w", "Transpose", "x_i8", ("crossfuse.linear.1./transpose_b",))
    assert MARKED.became([weights, named], ["out"]) == {"out": Became(INT8)}
    product = ExecutedNode("crossfuse.linear.1.", "FullyConnected", "undef_f32", ())
    for given in (("crossfuse.linear.1.", "query"), ("query", "crossfuse.linear.1.")):
        scores = ExecutedNode("s", "MatMul", "x_I8", (), given=given)
        assert MARKED.became([scores, product], ["out"]) == {}
