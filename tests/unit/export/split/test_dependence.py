"""Whose content a value depends on, and which sizes were read on the way."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.split.dependence import (
    Content,
    Dependence,
    shape_symbols,
    shape_window,
)
from onnx_text import node_of, parse, value_of

MODEL = parse(
    """(float[n, 3, 4] image, float[n, l, 4] text) => (float[n, l, 3] y) {
         k = MatMul(image, w) m = Neg(w) batch = Shape<start = 0, end = 1>(text)
         words = Shape<start = 1, end = 2>(text) shape = Concat<axis = 0>(batch, twelve)
         flat = Reshape(image, shape) long = Expand(one, words)
         sum = ReduceSum<keepdims = 1>(k, axes) wide = Mul(sum, long)
         t = Transpose<perm = [0, 2, 1]>(k) a = MatMul(text, t) y = Softmax(a) }""",
    w=[[1.0] * 4] * 4,
    twelve=[12],
    axes=[1, 2],
    one=[[[1.0] * 4]],
)
DEPENDENCE = Dependence(MODEL.graph, ["image"])


@pytest.mark.parametrize(
    ("name", "content", "needs", "early"),
    [
        ("image", Content.CONTEXT, set(), True),
        ("text", Content.QUERY, set(), False),
        ("m", Content.NEUTRAL, set(), False),
        ("k", Content.CONTEXT, set(), True),
        ("batch", Content.NEUTRAL, {"n"}, False),
        ("words", Content.NEUTRAL, {"l"}, False),
        ("flat", Content.CONTEXT, {"n"}, True),
        ("wide", Content.CONTEXT, {"l"}, False),
        ("a", Content.CONTEXT | Content.QUERY, set(), False),
    ],
)
def test_content_is_whose_numbers_were_read(
    name: str, content: Content, needs: set[str], early: bool
) -> None:
    """A size that the context has may be read early; the number of words is the queries'."""
    value = value_of(MODEL, name)
    assert DEPENDENCE.of(value) == content
    assert DEPENDENCE.needs.get(value, frozenset()) == needs
    assert DEPENDENCE.early(value) == early


def test_what_must_stay_whole_is_the_queries() -> None:
    k = value_of(MODEL, "k")
    whole = Dependence(MODEL.graph, ["image"], [k])
    assert Content.QUERY in whole.of(k)
    assert Content.QUERY in whole.of(value_of(MODEL, "t"))
    assert whole.of(value_of(MODEL, "flat")) == Content.CONTEXT


def test_a_weight_and_nothing_are_neutral() -> None:
    assert DEPENDENCE.of(None) == DEPENDENCE.of(value_of(MODEL, "w")) == Content.NEUTRAL


def test_windows_and_symbols() -> None:
    assert shape_window(node_of(MODEL, "Shape", 1)) == ["l"]
    assert shape_window(ir.node("Size", [MODEL.graph.inputs[1]])) == ["n", "l", 4]
    assert shape_symbols(MODEL.graph.inputs[1]) == {"n", "l"}
    assert shape_symbols(ir.Value(name="x", shape=ir.Shape(["2*n + l", None]))) == {"n", "l"}
    assert shape_symbols(ir.Value(name="x")) == set()
