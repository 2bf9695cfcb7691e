"""Products of numbers rounded row by row: against float64, and what rows do to each other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rewrite import DYNAMIC, WHOLE, Form, RoundedWeights, rewrite
from crossfuse.targets.quantize.row_products import RowProducts
from onnx_building import normal
from onnx_text import parse

W, V = normal(40, 24, seed=2) / 6, normal(40, 16, seed=3) / 6


def two(form: Form, dims: str = "b, l, 40") -> ir.Model:
    """Two products of one input, and a bias."""
    rows = dims.rpartition(",")[0]
    around = f"{rows}, " if rows else ""
    model = parse(
        f"""(float[{dims}] x) => (float[{around}24] y, float[{around}16] z) {{
              p = MatMul(x, w) y = Add(p, bias) z = MatMul(x, v) }}""",
        w=W,
        v=V,
        bias=normal(24, seed=4),
    )
    rewrite(model, [(layer, form) for layer in linear_layers(model)], RoundedWeights())
    return model


def errors(got: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of each row, relative to its RMS, without the bias."""
    truth = x.astype(np.float64) @ V
    return np.linalg.norm(got - truth, axis=-1) / np.linalg.norm(truth, axis=-1)


@pytest.mark.parametrize("dims", ["b, l, 40", "b, 40", "40"])
def test_each_row_is_right_whatever_stands_beside_it(dims: str) -> None:
    """Rows of magnitudes from 1e-30 to 1e30: a step for all would leave one of them."""
    shape = {"b, l, 40": (3, 5, 40), "b, 40": (15, 40), "40": (40,)}[dims]
    x = normal(*shape, seed=5)
    if len(shape) > 1:
        scales = 10.0 ** np.linspace(-30, 30, x.size // 40)
        x = (x * scales.reshape(*shape[:-1], 1)).astype(np.float32)
    _, z = run_once(two(DYNAMIC, dims), {"x": x})
    assert errors(z, x).max() < 0.02
    if len(shape) > 1:
        _, whole = run_once(two(WHOLE, dims), {"x": x})
        assert errors(whole, x).max() > 0.5, "the case tells the forms apart"


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x = normal(4, 5, 40, seed=6)
    x[2] *= 1000
    whole = run_once(two(DYNAMIC), {"x": x})
    alone = run_once(two(DYNAMIC), {"x": x[:1]})
    for many, one in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(many[:1], one)


def test_zeros_and_tiny_numbers_are_no_nan() -> None:
    x = np.zeros((1, 3, 40), np.float32)
    x[0, 1] = 1e-39
    y, z = run_once(two(DYNAMIC), {"x": x})
    np.testing.assert_allclose(y, np.broadcast_to(normal(24, seed=4), y.shape), atol=1e-30)
    np.testing.assert_allclose(z, 0, atol=1e-30)


def test_layers_of_one_input_share_its_codes() -> None:
    kinds = [node.op_type for node in two(DYNAMIC).graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert RowProducts.__module__ == "crossfuse.targets.quantize.row_products"
