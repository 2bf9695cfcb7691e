"""Fills and biases that hide keys, and those that would mix in one row."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.matching.axes import FactoredValue
from crossfuse.export.matching.fills import may_hide, require_hiding_fills
from crossfuse.export.matching.softmax_chain import Mismatch
from crossfuse.export.matching.terms import Term
from onnx_text import parse, value_of

MODEL = parse(
    """(float[l, s] given, bool[l, s] m, int64[l, s] ids) => (float[l, s] y) {
        far = Where(m, low, none) near = Where(m, one, none) bounded = Tanh(given)
        scaled = Mul(far, one) counted = Cast<to = 1>(ids)
        a = Add(far, near) b = Add(bounded, scaled) c = Add(counted, given) d = Add(a, b)
        y = Add(c, d) }""",
    low=-1e4,
    one=1.0,
    none=0.0,
)


def operand(name: str) -> FactoredValue:
    return FactoredValue(value_of(MODEL, name), ())


@pytest.mark.parametrize(
    ("name", "hides"),
    [
        ("given", True),
        ("far", True),
        ("scaled", True),
        ("near", False),
        ("bounded", False),
        ("counted", False),
    ],
)
def test_what_may_be_as_low_as_a_mask(name: str, hides: bool) -> None:
    assert may_hide(value_of(MODEL, name)) == hides


def test_a_fill_that_a_scale_brings_near_is_refused() -> None:
    far = Term(operand("m"), fill=-1e5)
    require_hiding_fills([far])
    with pytest.raises(Mismatch, match="replaced by -100 where masked, which doesn't hide them"):
        require_hiding_fills([Term(operand("m"), factor=1e-3, fill=-1e5)])


@pytest.mark.parametrize(
    ("fill", "refused"),
    [(-1e4, True), (-1.9e4, True), (-2.1e4, False), (-4e3, False), (-1e9, False), (-np.inf, False)],
)
def test_a_fill_beside_an_equal_bias_is_refused(fill: float, refused: bool) -> None:
    terms = [Term(operand("m"), fill=fill), Term(operand("far"))]
    if not refused:
        require_hiding_fills(terms)
        return
    with pytest.raises(Mismatch, match="biased by -10000: rows where both hide every key mix"):
        require_hiding_fills(terms)


def test_the_lowest_number_absorbs_what_is_added_to_it() -> None:
    low = float(np.finfo(np.float32).min)
    model = parse(
        "(bool[l, s] m) => (float[l, s] y) { y = Where(m, low, none) }",
        low=np.float32(low),
        none=0.0,
    )
    bias = Term(FactoredValue(value_of(model, "y"), ()))
    require_hiding_fills([Term(operand("m"), fill=low), bias])
