"""Integer products on grids chosen before: numbers against fp32, and what ONNX Runtime and OpenVINO
make of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from crossfuse.core.linear_ledger import INT8
from crossfuse.core.target import TARGETS
from crossfuse.parity.linear_check import compiled, linear_ledger, optimized
from crossfuse.runtime.openvino_stage import OpenVinoStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import LinearStage, StageRequest
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.graph_files import save_graph
from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.rewrite import WHOLE, RoundedWeights
from crossfuse.targets.quantize.rules import quantizable
from crossfuse.targets.quantize.sensitivity import sensitivities
from crossfuse.targets.quantize.stages import (
    QuantizedStages,
    quantize_stages,
    sites_of,
)
from crossfuse.targets.quantize.static_plan import static_plan
from crossfuse.targets.quantize.static_products import MICROSOFT
from onnx_building import normal
from onnx_text import parse

SCALE = np.ones(40, np.float32)
SCALE[3] = 300.0


def model() -> ir.Model:
    """Products that share what they are given, with and without a bias, one with a channel of
    outliers; convolutions in a row, one with a Relu, one by groups; a Gemm; weights per expert."""
    return parse(
        """(float[b, l, 40] x, float[b, 3, 16, 16] image, float[3, n, 16] e)
           => (float[b, l, 40] y, float[b, 32] z, float[3, n, 24] t) {
             p = MatMul(x, w) p1 = Add(p, b1) q = MatMul(x, u) h = Add(p1, q) g = Tanh(h)
             m = MatMul(g, v) y = Add(b2, m)
             c = Conv<strides = [2, 2]>(image, f1, b3) r = Relu(c) d = Conv(r, f2)
             k = Conv<group = 16>(d, f3, b4) s = Flatten(k)
             gm = Gemm<transB = 1, alpha = 0.5>(s, w3, b1) z = MatMul(gm, w4)
             t = MatMul(e, w5) }""",
        w=normal(40, 24, seed=1) / 6 / SCALE[:, None],
        u=normal(40, 24, seed=2) / 6 / SCALE[:, None],
        v=normal(24, 40, seed=3) / 5,
        b1=normal(24, seed=4),
        b2=normal(40, seed=5),
        f1=normal(16, 3, 2, 2, seed=6),
        b3=normal(16, seed=7),
        f2=normal(16, 16, 3, 3, seed=8) / 12,
        f3=normal(16, 1, 3, 3, seed=9) / 3,
        b4=normal(16, seed=10),
        w3=normal(24, 256, seed=11) / 16,
        w4=normal(24, 32, seed=13) / 5,
        w5=normal(3, 16, 24, seed=14) * np.array([1, 10, 0.1])[:, None, None],
    )


def inputs(seed: int) -> dict[str, np.ndarray]:
    return {
        "x": normal(2, 5, 40, seed=seed) * SCALE,
        "image": normal(2, 3, 16, 16, seed=seed + 1),
        "e": normal(3, 7, 16, seed=seed + 2),
    }


POINTS = [inputs(20 + 3 * i) for i in range(3)]
LAYERS = 9


def static(*, qdq: bool) -> QuantizedStages:
    keys = [layer.key for layer in quantizable(model(), Codes.UINT8)]
    plan = static_plan(model(), keys, POINTS, qdq=qdq)
    return quantize_stages({"model": model()}, "int8", sites_of(model()), static=plan)


def relative(got: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2)))


def written(stages: QuantizedStages, folder: Path) -> Path:
    graph = stages.graphs["model"]
    onnx.checker.check_model(ir.to_proto(graph))
    path = folder / "model.onnx"
    save_graph(graph, path, folder / "model.bin")
    return path


def check(got: list[np.ndarray]) -> None:
    """On inputs that nothing was chosen on."""
    truth = run_once(model(), inputs(99))
    assert [one.shape for one in got] == [one.shape for one in truth]
    errors = [relative(*pair) for pair in zip(got, truth, strict=True)]
    assert all(1e-4 < error < most for error, most in zip(errors, (0.01, 0.04, 0.015), strict=True))


def test_onnx_runtime_computes_all_of_them_in_integers(tmp_path: Path) -> None:
    stages = static(qdq=False)
    operators = [node.op_type for node in stages.graphs["model"].graph]
    assert operators.count("MatMulIntegerToFloat") == 5
    assert operators.count("QLinearConv") == 3
    assert stages.graphs["model"].graph.opset_imports[MICROSOFT] == 1
    assert operators.count("DequantizeLinear") == 1, "convolutions hand codes on"
    assert operators.count("MatMulInteger") == 1, "weights per expert are not for a grid"
    assert "Relu" not in operators
    path = written(stages, tmp_path)
    ledger = linear_ledger(stages.layers, {}, optimized({"model": path}))
    assert ledger.counts() == {INT8: LAYERS}
    check(run_once(stages.graphs["model"], inputs(99)))


def test_openvino_computes_all_of_them_in_integers(tmp_path: Path) -> None:
    stages = static(qdq=True)
    stage = OpenVinoStage(
        StageRequest(
            TARGETS["openvino"],
            written(stages, tmp_path),
            SessionOptions(threads=1),
            precision="int8",
        )
    )
    assert isinstance(stage, LinearStage)
    told = {"model": stage.linears([layer.result for layer in stages.layers])}
    ledger = linear_ledger(stages.layers, {}, compiled(told, "int8", stage.provider))
    assert ledger.counts() == {INT8: LAYERS}
    check(stage.run(inputs(99)))


def test_channels_of_outliers_cost_little() -> None:
    """Dynamic int8 loses the others beside them."""
    keys = [layer.key for layer in quantizable(model(), Codes.UINT8)]
    plan = static_plan(model(), keys, POINTS, qdq=True)
    found = sensitivities(model(), POINTS, WHOLE, RoundedWeights(), plan)
    plain = sensitivities(model(), POINTS, WHOLE, RoundedWeights())
    assert len(found) == LAYERS
    errors = {one.layer.site: one.error for one in found}
    assert all(error < 0.02 for error in errors.values())
    assert max(one.error for one in plain) > 0.1


@pytest.mark.parametrize("bias", [1e-3, 1e9])
def test_a_bias_far_larger_than_its_filters_is_kept(bias: float, tmp_path: Path) -> None:
    """It is an int32 of the products' own steps."""

    def convolution() -> ir.Model:
        return parse(
            "(float[b, 8, 4, 4] x) => (float[b, 8, 4, 4] y) { y = Conv(x, f, c) }",
            f=normal(8, 8, 1, 1, seed=1) * 1e-9,
            c=np.full(8, bias, np.float32),
        )

    x = normal(2, 8, 4, 4, seed=2)
    keys = [layer.key for layer in quantizable(convolution(), Codes.UINT8)]
    plan = static_plan(convolution(), keys, [{"x": x}], qdq=False)
    stages = quantize_stages({"model": convolution()}, "int8", sites_of(convolution()), static=plan)
    (got,) = run_once(stages.graphs["model"], {"x": x})
    np.testing.assert_allclose(got, bias, rtol=1e-2)
