"""What layers are given and give, against NumPy."""

from __future__ import annotations

import numpy as np

from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.ranges import observed, relu_behind
from onnx_building import normal
from onnx_text import parse

W, F = normal(6, 9, seed=1), normal(4, 3, 1, 1, seed=2)


def test_the_least_and_the_largest_over_all_inputs() -> None:
    model = parse(
        """(float[b, l, 6] x, float[b, 3, 2, 2] image) => (float[b, l, 9] y, float[b, 4, 2, 2] z) {
             y = MatMul(x, w) c = Conv(image, f) z = Relu(c) }""",
        w=W,
        f=F,
    )
    layers = linear_layers(model)
    assert [relu_behind(one) is not None for one in layers] == [False, True]
    points = [
        {"x": normal(2, 3 + i, 6, seed=i), "image": normal(2, 3, 2, 2, seed=9 + i)}
        for i in range(3)
    ]
    product, convolution = observed(model, layers, points)
    rows = np.concatenate([point["x"].reshape(-1, 6) for point in points])
    np.testing.assert_array_equal(product.given.low, rows.min(axis=0))
    np.testing.assert_array_equal(product.given.high, rows.max(axis=0))
    assert product.made is None
    images = np.concatenate([point["image"] for point in points])
    assert (convolution.given.low, convolution.given.high) == (images.min(), images.max())
    made = np.maximum(np.einsum("bchw,mc->bmhw", images, F[:, :, 0, 0]), 0)
    assert convolution.made is not None
    np.testing.assert_allclose(
        [convolution.made.low, convolution.made.high], [0, made.max()], rtol=1e-5
    )


def test_numbers_that_are_not_finite_make_no_range() -> None:
    model = parse("(float[b, 6] x) => (float[b, 9] y) { y = MatMul(x, w) }", w=W)
    x = normal(2, 6, seed=3)
    x[1, 2] = np.inf
    (found,) = observed(model, linear_layers(model), [{"x": normal(2, 6)}, {"x": x}])
    assert not found.given.known


def test_a_relu_that_others_pass_by_is_not_behind() -> None:
    model = parse(
        """(float[b, 3, 2, 2] x) => (float[b, 4, 2, 2] c, float[b, 4, 2, 2] y) {
             c = Conv(x, f) y = Relu(c) }""",
        f=F,
    )
    (layer,) = linear_layers(model)
    assert relu_behind(layer) is None
