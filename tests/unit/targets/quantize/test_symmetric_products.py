"""Products of symmetric codes: numbers against fp32, in the forms that layers have, as they are and
with the rest in fp16; and what TensorRT-RTX makes of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from crossfuse.core.linear_ledger import FP8, INT8
from crossfuse.core.target import TARGETS
from crossfuse.core.tensorrt_linears import linear_types
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.precision.simulate import simulate, write_out_fp8
from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.half_rest import half_rest
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rewrite import WHOLE, RoundedWeights
from crossfuse.targets.quantize.rules import quantizable
from crossfuse.targets.quantize.sensitivity import sensitivities
from crossfuse.targets.quantize.stages import QuantizedStages, quantize_stages, sites_of
from crossfuse.targets.quantize.static_plan import static_plan
from crossfuse.targets.quantize.symmetric_products import dequantized_weights, parts_of
from crossfuse.targets.tensorrt.build_engine import BuilderOptions, build_engine
from crossfuse.targets.tensorrt.lowering import lower_tensorrt
from onnx_building import normal
from onnx_text import parse

RTX = TARGETS["tensorrt-rtx"]
NEEDS_RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (pip install 'crossfuse[rtx]')",
)
SCALE = np.ones(40, np.float32)
SCALE[3] = 300.0


def model(size: float = 1.0) -> ir.Model:
    """Products that share what they are given, one with a channel of outliers, one with a bias; a
    Gemm with all its attributes; weights per expert; convolutions, one by groups, one of sounds."""
    return parse(
        """(float[b, l, 40] x, float[b, 4, 12, 12] image, float[3, n, 16] e, float[b, 8, 20] s)
           => (float[b, l, 40] y, float[b, 32] z, float[3, n, 24] t, float[b, 16, 18] u) {
             p = MatMul(x, w) p1 = Add(p, b1) q = MatMul(x, u1) h = Add(p1, q) g = Tanh(h)
             m = MatMul(g, v) y = Add(b2, m)
             c = Conv<strides = [2, 2]>(image, f1, b3) r = Relu(c)
             k = Conv<group = 4>(r, f2) f = Flatten(k)
             gm = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w3, b1) z = MatMul(gm, w4)
             t = MatMul(e, w5) u = Conv(s, f3) }""",
        w=normal(40, 24, seed=1) / 6 / SCALE[:, None] * size,
        u1=normal(40, 24, seed=2) / 6 / SCALE[:, None] * size,
        v=normal(24, 40, seed=3) / 5,
        b1=normal(24, seed=4),
        b2=normal(40, seed=5),
        f1=normal(16, 4, 2, 2, seed=6) / 4,
        b3=normal(16, seed=7),
        f2=normal(16, 4, 3, 3, seed=8) / 6,
        w3=normal(24, 256, seed=11) / 16,
        w4=normal(24, 32, seed=13) / 5,
        w5=normal(3, 16, 24, seed=14) * np.array([1, 10, 0.1])[:, None, None],
        f3=normal(16, 8, 3, seed=15) / 5,
    )


def inputs(seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "x": normal(2, 5, 40, seed=seed) * SCALE * np.float32(size),
        "image": normal(2, 4, 12, 12, seed=seed + 1),
        "e": normal(3, 7, 16, seed=seed + 2),
        "s": normal(2, 8, 20, seed=seed + 3),
    }


POINTS = [inputs(20 + 4 * i) for i in range(3)]
LAYERS, CONVOLUTIONS = 9, 3


def quantized(codes: Codes) -> QuantizedStages:
    keys = [layer.key for layer in quantizable(model(), codes)]
    plan = static_plan(model(), keys, POINTS, qdq=True, codes=codes)
    precision = "fp8" if codes is Codes.FP8 else "int8"
    return quantize_stages({"model": model()}, precision, sites_of(model()), static=plan)


def relative(got: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2)))


@pytest.mark.parametrize(("codes", "most"), [(Codes.INT8, 0.04), (Codes.FP8, 0.12)])
@pytest.mark.parametrize("half", [False, True])
def test_numbers_on_inputs_that_nothing_was_chosen_on(
    codes: Codes, most: float, half: bool
) -> None:
    stages = quantized(codes)
    graph = stages.graphs["model"]
    quantised = [layer for layer in stages.layers if layer.weights is not None]
    assert len(quantised) == LAYERS - (CONVOLUTIONS if codes is Codes.FP8 else 0)
    onnx.checker.check_model(ir.to_proto(graph))
    names = [node.name for node in graph.graph]
    for layer in quantised:
        assert set(parts_of(layer.key)[:4]) <= set(names)
    if half:
        own = {node.name for node in model().graph}
        graph = simulate(half_rest(stages.graphs, RTX, {}, own).graphs["model"])
    else:
        write_out_fp8(graph.graph)
    truth, got = run_once(model(), inputs(99)), run_once(graph, inputs(99))
    assert [one.shape for one in got] == [one.shape for one in truth]
    errors = [relative(*pair) for pair in zip(got, truth, strict=True)]
    assert most / 20 < max(errors) < most


def test_what_stays_in_fp32_does_so_with_all_its_parts() -> None:
    stages = quantized(Codes.INT8)
    graph = stages.graphs["model"]
    wide = {stages.layers[0].key: "it reaches far"}
    own = {node.name for node in model().graph}
    found = half_rest({"model": graph}, RTX, wide, own)
    assert found.kept == wide, "nodes that are no part of the fused graph are not told of"
    types = {node.name: node.outputs[0].dtype for node in found.graphs["model"].graph}
    for layer in stages.layers:
        expected = ir.DataType.FLOAT if layer.key in wide else ir.DataType.FLOAT16
        assert {types[part] for part in parts_of(layer.key) if part in types} == {expected}
    rounding = [n for n in found.graphs["model"].graph if n.op_type == "QuantizeLinear"]
    assert {node.inputs[0].dtype for node in rounding} == {ir.DataType.FLOAT}  # type: ignore[union-attr]


@pytest.mark.parametrize("codes", [Codes.INT8, Codes.FP8])
def test_sensitivities_are_measured_beside_the_layers(codes: Codes) -> None:
    keys = [layer.key for layer in quantizable(model(), codes)]
    plan = static_plan(model(), keys, POINTS, qdq=True, codes=codes)
    found = sensitivities(model(), POINTS, WHOLE, RoundedWeights(), plan)
    assert {one.layer.key for one in found} == set(keys)
    assert all(1e-4 < one.error < (0.04 if codes is Codes.INT8 else 0.06) for one in found)


def test_sums_are_no_larger_than_results() -> None:
    """In half precision the sum of a product is held before the ratios multiply it: results of
    30,000 are, too."""
    big = parse(
        "(float[b, 64] x) => (float[b, 32] y) { y = MatMul(x, w) }",
        w=np.abs(normal(64, 32, seed=1)) * np.logspace(0, 1.5, 32) * 10,
    )
    x = np.abs(normal(4, 64, seed=2))
    keys = [layer.key for layer in linear_layers(big)]
    plan = static_plan(big, keys, [{"x": x}], qdq=True, codes=Codes.INT8)
    stages = quantize_stages({"model": big}, "int8", sites_of(big), static=plan)
    half = half_rest(stages.graphs, RTX, {}, set(keys)).graphs["model"]
    (truth,), (got,) = run_once(big, {"x": x}), run_once(simulate(half), {"x": x})
    assert truth.max() > 15_000
    assert np.isfinite(got).all()
    assert relative(got, truth) < 0.01


@NEEDS_RTX
@pytest.mark.parametrize(
    ("codes", "sm"),
    [(Codes.INT8, "8.6"), pytest.param(Codes.FP8, "8.9", marks=pytest.mark.slow)],
)
def test_tensorrt_rtx_computes_all_of_them_on_codes(codes: Codes, sm: str, tmp_path: Path) -> None:
    stages = quantized(codes)
    own = {node.name for node in model().graph}
    half = half_rest(stages.graphs, RTX, {}, own).graphs["model"]
    shapes = {
        "x": tuple((n, n, 40) for n in (1, 4, 8)),
        "image": tuple((n, 4, 12, 12) for n in (1, 4, 8)),
        "e": tuple((3, n, 16) for n in (1, 4, 8)),
        "s": tuple((n, 8, 20) for n in (1, 4, 8)),
    }
    engine = build_engine(
        "tensorrt-rtx",
        "model",
        lower_tensorrt(half),
        tmp_path / "p",
        [shapes],
        BuilderOptions((sm,)),
    )
    products = {layer.key: dequantized_weights(layer.key) for layer in stages.layers}
    found = {key: one.words for key, one in linear_types(engine.layers, products).items()}
    words = FP8 if codes is Codes.FP8 else INT8
    assert found == {
        layer.key: words if layer.weights is not None else "fp16" for layer in stages.layers
    }
