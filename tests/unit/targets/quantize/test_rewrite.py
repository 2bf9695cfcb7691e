"""Integer products: against ONNX Runtime's own quantiser and float64, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rewrite import DYNAMIC, WHOLE, Form, RoundedWeights, rewrite
from onnx_building import normal
from onnx_text import parse

X = normal(2, 5, 40, seed=1)
W, V, B = normal(40, 24, seed=2) / 6, normal(24, 40, seed=3) / 5, normal(40, seed=4)
BLOCKS = Form(8, blocks=True)


def block() -> ir.Model:
    """Two products of one input, an addition, a product of the sum."""
    return parse(
        """(float[b, l, 40] x) => (float[b, l, 40] y) {
             p = MatMul(x, w) q = MatMul(x, u) h = Add(p, q) g = Tanh(h)
             m = MatMul(g, v) y = Add(m, bias) }""",
        w=W,
        u=W[:, ::-1].copy(),
        v=V,
        bias=B,
    )


def quantized(model: ir.Model, form: Form) -> ir.Model:
    rewrite(model, [(layer, form) for layer in linear_layers(model)], RoundedWeights())
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_dynamic_products_are_onnx_runtimes_own(tmp_path: Path) -> None:
    """The peer's quantiser, told the same: per channel, int8 weights, no reduced range."""
    plain, theirs = tmp_path / "plain.onnx", tmp_path / "theirs.onnx"
    onnx.save(ir.to_proto(block()), plain)
    quantize_dynamic(
        plain,
        theirs,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    ours = quantized(block(), WHOLE)
    (got,) = run_once(ours.clone(), {"x": X})
    (expected,) = run_once(ir.load(theirs), {"x": X})
    assert operators(ours).count("DynamicQuantizeLinear") == 2, "one for all that are given a value"
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-2)
    h = np.tanh(X.astype(np.float64) @ W + X.astype(np.float64) @ W[:, ::-1])
    truth = h @ V + B
    errors = [float(np.sqrt(np.mean((one - truth) ** 2))) for one in (got, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.2)
    assert errors[0] < 0.02 * float(np.sqrt(np.mean(truth**2)))


def test_results_keep_their_names_types_and_shapes() -> None:
    before, after = block(), quantized(block(), DYNAMIC)

    def about(model: ir.Model) -> dict[str | None, tuple[object, ...]]:
        values = [out for node in model.graph for out in node.outputs]
        return {v.name: (v.dtype, str(v.shape)) for v in values if v.name in set("pqhgmy")}

    assert about(before) == about(after)
    assert not {"w", "u", "v"} & set(after.graph.initializers), "fp32 weights are gone"


@pytest.mark.parametrize(
    ("attributes", "weights"),
    [("", W), ("<transB = 1>", W.T.copy()), ("<alpha = 0.5, beta = 2.0>", W)],
)
def test_gemm(attributes: str, weights: np.ndarray) -> None:
    def gemm() -> ir.Model:
        text = f"(float[b, 40] x) => (float[b, 24] y) {{ y = Gemm{attributes}(x, w, c) }}"
        return parse(text, w=weights, c=B[:24])

    x = X.reshape(-1, 40)
    alpha, beta = (0.5, 2.0) if "alpha" in attributes else (1.0, 1.0)
    truth = alpha * (x.astype(np.float64) @ W) + beta * B[:24]
    for form in (DYNAMIC, WHOLE, BLOCKS):
        (got,) = run_once(quantized(gemm(), form), {"x": x})
        assert np.sqrt(np.mean((got - truth) ** 2)) < 0.02 * np.sqrt(np.mean(truth**2))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.2)])
def test_blocks(bits: int, most: float) -> None:
    """40 rows are a block and a part of one."""
    model = quantized(block(), Form(bits, blocks=True))
    assert operators(model).count("MatMulNBits") == 3
    (got,) = run_once(model, {"x": X})
    (truth,) = run_once(block(), {"x": X})
    error = np.sqrt(np.mean((got - truth) ** 2)) / np.sqrt(np.mean(truth**2))
    assert 0 < error < most


def test_weights_of_several_axes_are_multiplied_per_expert() -> None:
    experts = normal(3, 40, 24, seed=5) * np.array([1, 10, 0.1])[:, None, None]
    text = "(float[3, n, 40] x) => (float[3, n, 24] y) { y = MatMul(x, w) }"
    model = parse(text, w=experts)
    x = normal(3, 7, 40, seed=6)
    (got,) = run_once(quantized(model, BLOCKS), {"x": x})
    truth = x.astype(np.float64) @ experts
    for one in range(3):
        error = np.sqrt(np.mean((got[one] - truth[one]) ** 2))
        assert error < 0.02 * np.sqrt(np.mean(truth[one] ** 2)), one


def test_layers_of_the_same_weights_share_their_integers() -> None:
    model = parse(
        """(float[b, 40] x) => (float[b, 40] y) {
             a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }""",
        w=normal(40, 40, seed=7),
    )
    layers = [(layer, DYNAMIC) for layer in linear_layers(model)]
    names = rewrite(model, layers, RoundedWeights())
    assert len(names) == 2
    assert len(set(names.values())) == 1
    assert len([n for n in model.graph.initializers if n.endswith(":weights")]) == 1


def test_attention_stays(tmp_path: Path) -> None:
    model = parse(
        """(float[b, l, 40] x) => (float[b, l, 24] y) {
             q = MatMul(x, w)
             y = crossfuse.FusedAttention <num_heads = 2, kv_num_heads = 2, scale = 0.3,
                                           causal = "none"> (q, q, q) }""",
        w=W,
    )
    before = ir.to_proto(model.clone())
    kinds = operators(quantized(model, DYNAMIC))
    assert kinds[-1] == "FusedAttention"
    assert "MatMul" not in kinds
    assert before.graph.node[-1].op_type == "FusedAttention"
