"""What layers became, against graphs of which it is known: engines fold and fuse as they like."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.linear_ledger import FP32, INT8, weights_in
from crossfuse.parity.linear_check import engine_graph
from crossfuse.targets.graph_files import save_graph
from crossfuse.targets.quantize.engine_graph import EngineGraph
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rewrite import DYNAMIC, Form, RoundedWeights, rewrite
from onnx_building import normal
from onnx_text import parse

N = 32
W8 = np.random.default_rng(0).integers(-127, 128, (N, N)).astype(np.int8)
STEP, ZERO = np.array(0.01, np.float32), np.array(128, np.uint8)


def optimized(model: ir.Model, tmp_path: Path) -> EngineGraph:
    graph = tmp_path / "model.onnx"
    save_graph(model, graph, tmp_path / "model.bin")
    return engine_graph(graph)


@pytest.mark.parametrize(
    ("forms", "bias"),
    [
        ([DYNAMIC] * 3, True),
        ([DYNAMIC, None, DYNAMIC, None, None], False),
        ([Form(8, blocks=True), DYNAMIC, None, Form(4, blocks=True), DYNAMIC], True),
    ],
)
def test_a_known_number_of_each(forms: list[Form | None], bias: bool, tmp_path: Path) -> None:
    """A chain of layers; what is rewritten, and nothing else, is in integers."""
    add = "Add(m{i}, b)" if bias else "Identity(m{i})"
    steps = " ".join(
        f"m{i} = MatMul(h{i}, w{i}) a{i} = {add.format(i=i)} h{i + 1} = Tanh(a{i})"
        for i in range(len(forms))
    )
    text = (
        f"(float[n, {N}] x) => (float[n, {N}] y) {{ h0 = Relu(x) {steps} y = Neg(h{len(forms)}) }}"
    )
    weights = {f"w{i}": normal(N, N, seed=i) for i in range(len(forms))}
    model = parse(text, **weights, **({"b": normal(N)} if bias else {}))
    layers = linear_layers(model)
    chosen = [(layer, form) for layer, form in zip(layers, forms, strict=True) if form]
    names = rewrite(model, chosen, RoundedWeights())
    engine = optimized(model, tmp_path)
    got = Counter(engine.became(name).words for name in names.values())
    words = {
        None: [],
        DYNAMIC: [INT8],
        Form(8, blocks=True): [weights_in(8, "int8")],
        Form(4, blocks=True): [weights_in(4, "int8")],
    }
    assert got == Counter(word for form in forms for word in words[form])


PRODUCTS = ["Gemm(x, w)", "MatMul(w, x)", 'Einsum <equation = "bk,kn->bn"> (x, w)']


@pytest.mark.parametrize("product", [*PRODUCTS, "MatMul(x, w)"])
def test_weights_alone_are_folded_back_by_the_engine(product: str, tmp_path: Path) -> None:
    """Integers that are cast and scaled: constants, which are computed while the graph loads."""
    model = parse(
        f"""(float[{N}, {N}] x) => (float[{N}, {N}] y) {{
              c = Cast <to = 1> (w8) w = Mul(c, step) y = {product} }}""",
        w8=W8,
        step=STEP,
    )
    found = optimized(model, tmp_path).became("w8", widened="w")
    assert found.words == FP32
    assert "widened its weights to fp32" in found.reason


@pytest.mark.parametrize("product", PRODUCTS[1:])
def test_weights_alone_that_are_widened_at_every_run(product: str, tmp_path: Path) -> None:
    model = parse(
        f"""(float[{N}, {N}] x) => (float[{N}, {N}] y) {{
              w = DequantizeLinear(w8, step) y = {product} }}""",
        w8=W8,
        step=STEP,
    )
    assert optimized(model, tmp_path).became("w8", widened="w").words == weights_in(8)


@pytest.mark.parametrize("product", ["Gemm(x, w)", "MatMul(x, w)"])
def test_weights_alone_that_the_engine_has_a_kernel_for(product: str, tmp_path: Path) -> None:
    """ONNX Runtime makes MatMulNBits of these by itself."""
    model = parse(
        f"""(float[n, {N}] x) => (float[n, {N}] y) {{
              w = DequantizeLinear(w8, step) y = {product} }}""",
        w8=W8,
        step=STEP,
    )
    assert optimized(model, tmp_path).became("w8", widened="w").words == weights_in(8, "int8")


def test_a_full_qdq_layer_is_an_integer_product(tmp_path: Path) -> None:
    model = parse(
        f"""(float[n, {N}] x) => (float[n, {N}] y) {{
              q = QuantizeLinear(x, step, zero) d = DequantizeLinear(q, step, zero)
              w = DequantizeLinear(w8, step) m = MatMul(d, w)
              r = QuantizeLinear(m, step, zero) y = DequantizeLinear(r, step, zero) }}""",
        w8=W8,
        step=STEP,
        zero=ZERO,
    )
    assert optimized(model, tmp_path).became("w8", widened="w").words == INT8


def test_weights_widened_where_they_are_used(tmp_path: Path) -> None:
    """An engine that keeps the DequantizeLinear: the graph as it was written stands for it."""
    model = parse(
        f"""(float[n, {N}] x) => (float[n, {N}] y) {{
              w = DequantizeLinear(w8, step) t = Transpose(w) y = MatMul(x, t) }}""",
        w8=W8,
        step=STEP,
    )
    assert EngineGraph(model).became("w8").words == weights_in(8)


def test_integers_that_nothing_multiplies_by() -> None:
    model = parse(f"(float[n, {N}] x) => (float[n, {N}] y) {{ y = MatMul(x, w) }}", w=normal(N, N))
    found = EngineGraph(model).became("gone")
    assert (found.words, found.reason) == (
        FP32,
        "the engine's graph has no product with its integers",
    )


def test_one_product_in_fp32_among_those_of_the_same_weights_counts() -> None:
    """Weights shifted to uint8, as on CPUs without VNNI, have another name."""
    model = parse(
        f"""(uint8[n, {N}] q, float[n, {N}] x) => (int32[n, {N}] a, float[n, {N}] y) {{
              a = MatMulInteger(q, w8_s8_2_u8) w = DequantizeLinear(w8, step)
              y = MatMul(x, w) }}""",
        w8=W8,
        w8_s8_2_u8=W8.astype(np.uint8),
        step=STEP,
    )
    engine = EngineGraph(model)
    assert engine.became("w8_s8").words == INT8
    assert engine.became("w8").words in (INT8, weights_in(8))
