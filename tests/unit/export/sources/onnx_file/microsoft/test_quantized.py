"""Quantised operators against integer arithmetic done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossfuse.export.sources.onnx_file.microsoft.quantized import QUANTIZED
from onnx_building import Graph, normal
from unit.export.sources.onnx_file.microsoft.expanding import computed

RNG = np.random.default_rng(0)
A = RNG.integers(0, 256, (3, 8)).astype(np.uint8)
WEIGHTS = RNG.integers(-128, 128, (8, 5)).astype(np.int8)
BIAS = normal(5)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_integers_are_scaled(tmp_path: Path, zeros: bool, bias: bool) -> None:
    g = Graph()
    g.input("a", ["n", 8], 2)
    given = [
        "a",
        g.weight(WEIGHTS),
        g.weight(0.02, np.float32),
        g.weight(0.5, np.float32),
        g.weight(100, np.uint8) if zeros else "",
        g.weight(3, np.int8) if zeros else "",
        g.weight(BIAS) if bias else "",
    ]
    while not given[-1]:
        given.pop()
    g.op("Identity", g.microsoft("MatMulIntegerToFloat", *given), outputs=["y"])
    g.output("y", ["n", 5])
    left, right = A.astype(np.int64) - 100 * zeros, WEIGHTS.astype(np.int64) - 3 * zeros
    expected = (left @ right) * 0.01 + (BIAS if bias else 0)
    np.testing.assert_allclose(computed(g, tmp_path, {"a": A}), expected, rtol=1e-6, atol=1e-5)


def test_a_dynamic_product_quantises_what_it_gets(tmp_path: Path) -> None:
    """Within half a step of the input's own range, which holds 0."""
    x = normal(4, 8)
    g = Graph()
    g.input("x", ["n", 8])
    made = g.microsoft("DynamicQuantizeMatMul", "x", g.weight(WEIGHTS), g.weight(0.5, np.float32))
    g.op("Identity", made, outputs=["y"])
    g.output("y", ["n", 5])
    got = computed(g, tmp_path, {"x": x})
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    exact = x.astype(np.float64) @ (WEIGHTS.astype(np.float64) * 0.5)
    most = np.abs(WEIGHTS.astype(np.float64) * 0.5).sum(0) * step
    assert (np.abs(got - exact) <= most).all()
    assert np.abs(got - exact).max() > 1e-3, "something was quantised"


@pytest.mark.parametrize("name", ["QLinearAdd", "QLinearMul"])
def test_both_sides_are_read_and_the_result_written(tmp_path: Path, name: str) -> None:
    other = RNG.integers(0, 256, (3, 8)).astype(np.uint8)
    numbers = [(0.05, 10), (0.1, 128), (0.2, 90)]
    g = Graph()
    g.input("a", ["n", 8], 2)
    scales = [(g.weight(s, np.float32), g.weight(z, np.uint8)) for s, z in numbers]
    made = g.microsoft(name, "a", *scales[0], g.weight(other), *scales[1], *scales[2])
    g.op("Identity", made, outputs=["y"])
    g.output("y", ["n", 8], 2)
    assert name in QUANTIZED
    left, right = (0.05 * (A.astype(float) - 10), 0.1 * (other.astype(float) - 128))
    exact = left + right if name == "QLinearAdd" else left * right
    expected = np.clip(np.rint(exact / 0.2) + 90, 0, 255)
    got = computed(g, tmp_path, {"a": A}).astype(float)
    assert np.abs(got - expected).max() <= 1, "one step where a quotient is halfway"
    assert (got == expected).mean() > 0.9
