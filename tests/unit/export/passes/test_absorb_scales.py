"""Constant factors of queries and keys join in the attention's scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.absorb_scales import AbsorbScalesPass
from crossfuse.graph.attention_node import attentions
from onnx_building import Graph, normal
from small_graphs import applied, counts, fused, model_of, untouched

Form = Callable[[Graph, str], str]


def attention(query: Form, key: Form | None = None, shared: bool = False) -> ir.Model:
    """``query`` and ``key`` make the operands of ``[B, L, 8]`` inputs."""
    g = Graph()
    q, k, v = (g.input(n, ["B", s, 8]) for n, s in (("q", "L"), ("k", "S"), ("v", "S")))
    query_value = query(g, q)
    out = fused(g, query_value, key(g, k) if key else k, v)
    g.op("Identity", out, outputs=["y"])
    g.output("y", ["B", "L", 8])
    if shared:
        g.op("Neg", query_value, outputs=["z"])
        g.output("z", ["B", "L", 8])
    return model_of(g, shapes={out: ["B", "L", 8]})


def times(number: float, shape: tuple[int, ...] = ()) -> Form:
    return lambda g, x: g.op("Mul", x, g.weight(np.full(shape, number, np.float32)))


def over(number: float) -> Form:
    return lambda g, x: g.op("Div", x, g.weight(number, np.float32))


def before_layout(g: Graph, x: str) -> str:
    four = g.op("Reshape", g.op("Mul", g.weight(0.5, np.float32), x), g.ints(0, 0, 2, 4))
    back = g.op("Transpose", g.op("Transpose", four, perm=[0, 2, 1, 3]), perm=[0, 2, 1, 3])
    return g.op("Reshape", back, g.ints(0, 0, 8))


@pytest.mark.parametrize(
    ("query", "key", "scale"),
    [
        (times(0.25), None, 0.125),
        (over(4), None, 0.125),
        (times(0.5, (1, 1, 1)), over(2), 0.125),
        (lambda g, x: times(3.0)(g, over(2)(g, x)), None, 0.75),
        (before_layout, None, 0.25),
    ],
    ids=["product", "quotient", "both", "two", "before layout"],
)
def test_factors_join(query: Form, key: Form | None, scale: float) -> None:
    model = attention(query, key)
    result = applied(AbsorbScalesPass(), model)
    assert result.modified
    assert not result.missed
    (found,) = attentions(model.graph)
    assert found.scale == pytest.approx(scale)
    way = _way(found.query) | _way(found.key)
    assert not way & {"Mul", "Div"}


def _way(value: ir.Value | None) -> set[str]:
    """Operators from an operand back along first inputs."""
    found = set()
    while value is not None and (node := value.producer()) is not None:
        found.add(node.op_type)
        value = node.inputs[0]
    return found


@pytest.mark.parametrize(
    "query",
    [
        lambda g, x: g.op("Mul", x, g.weight(normal(8))),
        times(0.0),
        over(0.0),
        lambda g, x: g.op("Div", g.weight(2, np.float32), x),
        lambda g, x: g.op("Add", x, g.weight(2, np.float32)),
        lambda g, x: g.op("Exp", times(2.0)(g, x)),
    ],
    ids=["one per feature", "zero", "over zero", "reciprocal", "sum", "not next to it"],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_no_factor_stays(query: Form) -> None:
    result = untouched(AbsorbScalesPass(), attention(query))
    assert result.missed == ()


def test_a_scaled_tensor_with_another_use_stays() -> None:
    model = attention(times(0.25), shared=True)
    (missed,) = untouched(AbsorbScalesPass(), model).missed
    assert missed.reason == "its scaled query has another use"
    assert counts(model)["Mul"] == 1


def test_the_source_of_a_factor_may_have_other_uses() -> None:
    g = Graph()
    q, k = g.input("q", ["B", "L", 8]), g.input("k", ["B", "S", 8])
    out = fused(g, times(0.25)(g, q), k, k)
    g.op("Add", out, q, outputs=["y"])
    g.output("y", ["B", "L", 8])
    model = model_of(g, shapes={out: ["B", "L", 8]})
    assert applied(AbsorbScalesPass(), model).modified
    assert attentions(model.graph)[0].scale == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("query", "key", "signed"),
    [
        (times(-1.0), None, "Neg"),
        (times(-1.0), over(-2), None),
        (times(0.0), None, "Mul"),
    ],
    ids=["negative", "twice", "zero"],
)
def test_engines_get_positive_scales(query: Form, key: Form | None, signed: str | None) -> None:
    model = attention(query, key)
    applied(AbsorbScalesPass(), model)
    (found,) = attentions(model.graph)
    assert found.scale > 0
    made = found.query.producer()
    assert (None if made is None else made.op_type) == signed


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_a_scale_that_was_given(scale: float) -> None:
    model = attention(lambda g, x: x, None)
    (found,) = attentions(model.graph)
    found.set_scale(scale)
    assert applied(AbsorbScalesPass(), model).modified
    assert found.scale == (1.0 if not scale else 0.5)
