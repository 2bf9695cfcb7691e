"""Weights and their sums, read off the graph."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.matching.written_softmax import (
    Sum,
    is_sum_alone,
    reduction_of,
    sum_of,
    unconverted,
    weights_of,
    without_shift,
)
from onnx_text import parse, value_of

WEIGHTS = {
    "last": np.array([-1]),
    "second": np.array([1]),
    "third": np.array([2]),
    "tiny": np.float32(1e-9),
    "large": np.float32(1e-3),
    "zero": np.float32(0),
    "low": np.float32(-1e9),
    "keep": np.array([2, 3, 5]),
}
BODY = """
    n = Not(m) filled = Where(n, low, s) top = ReduceMax(s, last) shifted = Sub(s, top)
    e = Exp(shifted) f = Cast<to=1>(m) ef = Mul(f, e) total = ReduceSum(e, last)
    wide = Expand(total, keep) some = ReduceSum(ef, last) safe = Add(tiny, total)
    unsafe = Add(total, large) masked_safe = Add(some, tiny) limited = Clip(some, tiny)
    flat = ReduceSum<keepdims=0>(e, third) back = Unsqueeze(flat, last)
    aside = Unsqueeze(flat, second)
    p = Softmax(filled) pf = Where(n, zero, p) of_p = ReduceL1(pf, last) safe_p = Add(of_p, tiny)
    top2 = ReduceMax(filled, last) down = Sub(filled, top2) e2 = Exp(down) e2m = Where(m, e2, zero)
    sum2 = ReduceSum(e2m, last) least = Max(sum2, tiny)
    d = Cast<to=11>(e) g = Cast<to=1>(d) r = Relu(s) rows = Sub(s, other) er = Exp(rows)
    y = Identity(s)
"""
GRAPH = parse(
    f"(float[2, 3, 5] s, bool[2, 1, 5] m, float[2, 3, 5] other) => (float[2, 3, 5] y) {{ {BODY} }}",
    **WEIGHTS,
)


def value(name: str):
    return value_of(GRAPH, name)


def test_weights_are_exponentials_or_probabilities_behind_masks() -> None:
    for name, scores, base, masks in (
        ("e", "shifted", "Exp", 0),
        ("ef", "shifted", "Exp", 1),
        ("pf", "filled", "Softmax", 1),
        ("g", "shifted", "Exp", 0),
    ):
        found = weights_of(value(name))
        assert found is not None
        assert (found.scores.name, found.base.op_type, len(found.masks)) == (scores, base, masks)
    assert weights_of(value("r")) is None
    assert weights_of(value("s")) is None


def test_sums_keep_their_axis_or_get_it_back() -> None:
    for name in ("total", "wide", "back"):
        assert sum_of(value(name)) == Sum(value("e"), -1)
    assert sum_of(value("aside")) is None, "the axis is put back elsewhere"
    assert sum_of(value("top")) is None
    assert reduction_of(value("top"), "ReduceMax") == Sum(value("s"), -1)
    assert sum_of(value("safe")) == Sum(value("e"), -1, added=pytest.approx(1e-9))
    assert sum_of(value("limited")) == Sum(value("ef"), -1, limit=pytest.approx(1e-9))
    assert sum_of(value("least")) == Sum(value("e2m"), -1, limit=pytest.approx(1e-9))


@pytest.mark.parametrize(
    ("weights", "total", "alone"),
    [
        ("e", "total", True),
        ("e", "safe", True),  # the largest weight is 1
        ("e", "unsafe", False),
        ("ef", "some", True),
        ("ef", "masked_safe", False),  # the largest one may be masked
        ("ef", "limited", False),
        ("pf", "safe_p", True),  # masked before, too
        ("e2m", "least", True),
    ],
)
def test_what_is_added_to_a_sum(weights: str, total: str, alone: bool) -> None:
    found, summed = weights_of(value(weights)), sum_of(value(total))
    assert found is not None
    assert summed is not None
    assert is_sum_alone(found, summed) is alone


def test_what_all_along_the_axis_share_cancels() -> None:
    shifted, apart = weights_of(value("e")), weights_of(value("er"))
    assert shifted is not None
    assert apart is not None
    assert without_shift(shifted, -1) is value("s")
    assert without_shift(shifted, -2) is value("shifted"), "the maximum differs along the rows"
    assert without_shift(apart, -1) is value("rows")


def test_conversions_between_floats_are_looked_through() -> None:
    assert unconverted(value("g")) is value("e")
    assert unconverted(value("r")) is value("r")
