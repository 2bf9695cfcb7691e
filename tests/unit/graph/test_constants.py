"""What depends on constants alone is read, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.graph.constants import constant_of, is_constant
from onnx_building import normal
from onnx_text import parse, value_of

W = normal(4, 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("c = Identity(w)", W),
        ("a, b = Split<axis = 1>(w, parts) c = Transpose<perm = [1, 0]>(b)", W[:, 4:].T),
        ("s = Shape(w) z = ConstantOfShape(s) c = Sub(z, w)", -W),
        ("h = Cast<to = 10>(w) c = Cast<to = 1>(h)", W.astype(np.float16).astype(np.float32)),
    ],
)
def test_constants_are_computed(text: str, expected: np.ndarray) -> None:
    model = parse(f"(float[4, 6] x) => (float[m, n] c) {{ {text} }}", w=W, parts=np.array([4, 2]))
    found = constant_of(value_of(model, "c"))
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), expected)
    assert tuple(found.shape) == expected.shape


@pytest.mark.parametrize(
    ("text", "constant"),
    [("c = Add(w, x)", False), ("c = RandomNormalLike(w)", False), ("c = Gelu(w)", True)],
)
def test_what_is_not_known(text: str, constant: bool) -> None:
    model = parse(f"(float[4, 6] x) => (float[4, 6] c) {{ {text} }}", w=W)
    value = value_of(model, "c")
    assert constant_of(value) is None
    assert is_constant(value) is constant
    assert constant_of(value_of(model, "x")) is None
