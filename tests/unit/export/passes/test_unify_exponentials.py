"""Powers of a number become exponentials, equal in float64, and what is none stays."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import pytest

from crossfuse.export.passes.join_sinks import JoinSinksPass
from crossfuse.export.passes.unify_exponentials import UnifyExponentialsPass
from crossfuse.export.passes.unify_softmaxes import UnifySoftmaxesPass
from onnx_building import Graph
from small_graphs import applied, counts, model_of, untouched

Form = Callable[[Graph, str], str]
LOG2_E = math.log2(math.e)


def total(g: Graph, of: str, name: str = "ReduceSum") -> str:
    return g.op(name, of, g.weight([-1], "int64"))


def power(g: Graph, x: str, base: float = 2.0) -> str:
    return g.op("Pow", g.weight(base), x)


def over_its_sum(g: Graph, w: str) -> str:
    return g.op("Div", w, total(g, w))


def base_2(g: Graph, x: str) -> str:
    x = g.op("Mul", x, g.weight(LOG2_E))
    return over_its_sum(g, power(g, g.op("Sub", x, total(g, x, "ReduceMax"))))


def scaled_behind_the_maximum(g: Graph, x: str) -> str:
    shifted = g.op("Sub", x, total(g, x, "ReduceMax"))
    return over_its_sum(g, power(g, g.op("Mul", g.weight(LOG2_E), shifted)))


def base_10(g: Graph, x: str) -> str:
    return over_its_sum(g, power(g, x, 10.0))


def base_below_1(g: Graph, x: str) -> str:
    return over_its_sum(g, power(g, g.op("Sub", x, total(g, x, "ReduceMax")), 0.5))


def masked(g: Graph, x: str) -> str:
    w = g.op("Where", g.op("Greater", x, g.weight(0.0)), power(g, x), g.weight(1e-3))
    return over_its_sum(g, w)


def temperature(g: Graph, x: str) -> str:
    shifted = g.op("Sub", x, total(g, x, "ReduceMax"))
    w = g.op("Exp", g.op("Div", shifted, g.weight(0.7)))
    return g.op("Div", w, g.op("Add", total(g, w), g.weight(1e-9)))


def logarithm_to_base_2(g: Graph, x: str) -> str:
    """Scores that are made here: those from outside may be as low as absorbs a logarithm."""
    x = g.op("Tanh", x)
    of_sum = g.op("Div", g.op("Log", total(g, power(g, x))), g.weight(math.log(2)))
    return power(g, g.op("Sub", x, of_sum))


def logarithm_beside_a_maximum(g: Graph, x: str) -> str:
    x = g.op("Tanh", x)
    largest = total(g, x, "ReduceMax")
    of_sum = g.op("Log", total(g, g.op("Exp", g.op("Sub", x, largest))))
    return g.op("Exp", g.op("Sub", x, g.op("Add", largest, of_sum)))


def written(form: Form) -> ir.Model:
    g = Graph()
    x, v = g.input("x", ["B", "L", "S"]), g.input("v", ["B", "S", 4])
    g.op("MatMul", form(g, x), v, outputs=["y"])
    g.output("y", ["B", "L", 4])
    return model_of(g)


@pytest.mark.parametrize(
    "form",
    [
        *(base_2, scaled_behind_the_maximum, base_10, base_below_1, masked, temperature),
        logarithm_to_base_2,
    ],
    ids=lambda f: f.__name__,
)
def test_powers(form: Form) -> None:
    model = written(form)
    assert applied(UnifyExponentialsPass(), model).modified
    found = counts(model)
    assert "Pow" not in found
    assert found["Exp"] >= 1


@pytest.mark.parametrize(
    "form",
    [
        *(base_2, scaled_behind_the_maximum, base_10, temperature, logarithm_to_base_2),
        logarithm_beside_a_maximum,
    ],
    ids=lambda f: f.__name__,
)
def test_they_are_a_softmax_then(form: Form) -> None:
    model = written(form)
    UnifyExponentialsPass()(model)
    assert applied(UnifySoftmaxesPass(), model).modified
    found = counts(model)
    assert found["Softmax"] == 1
    assert not {"Exp", "Log", "ReduceSum"} & set(found)


def test_a_logarithm_of_2_and_one_of_e_cancel() -> None:
    model = written(scaled_behind_the_maximum)
    UnifyExponentialsPass()(model)
    kinds = ("ReduceMax", "Sub", "Exp", "ReduceSum", "Div", "MatMul")
    assert counts(model) == dict.fromkeys(kinds, 1)


def sink_in_the_denominator(g: Graph, x: str) -> str:
    """A key of score 0 beside the others, below a maximum that both are shifted by."""
    x = g.op("Mul", x, g.weight(LOG2_E))
    largest = g.op("Max", total(g, x, "ReduceMax"), g.weight(0.0))
    w = power(g, g.op("Sub", x, largest))
    return g.op("Div", w, g.op("Add", total(g, w), power(g, g.op("Neg", largest))))


def test_a_sink_stays_one() -> None:
    model = written(sink_in_the_denominator)
    assert applied(UnifyExponentialsPass(), model).modified
    assert applied(JoinSinksPass(), model).modified
    assert {"Softmax", "Slice"} <= set(counts(model))


def square(g: Graph, x: str) -> str:
    return over_its_sum(g, g.op("Pow", x, g.weight(2.0)))


def of_ones(g: Graph, x: str) -> str:
    return over_its_sum(g, power(g, x, 1.0))


def of_a_negative_number(g: Graph, x: str) -> str:
    return over_its_sum(g, power(g, g.op("Round", x), -2.0))


def of_many_numbers(g: Graph, x: str) -> str:
    return over_its_sum(g, g.op("Pow", g.weight([[[2.0], [3.0], [4.0]]]), x))


def weighed_by_nothing(g: Graph, x: str) -> str:
    return g.op("Tanh", power(g, x))


def beyond_float32(g: Graph, x: str) -> str:
    """The lowest number times log(10) is −inf."""
    filled = g.op("Where", g.op("Greater", x, g.weight(0.0)), x, g.weight(-3.4e38))
    return over_its_sum(g, power(g, g.op("Sub", filled, total(g, filled, "ReduceMax")), 10.0))


def plain(g: Graph, x: str) -> str:
    return over_its_sum(g, g.op("Exp", g.op("Sub", x, total(g, x, "ReduceMax"))))


@pytest.mark.parametrize(
    "form",
    [
        *(square, of_ones, of_a_negative_number, of_many_numbers, weighed_by_nothing),
        *(beyond_float32, plain),
    ],
    ids=lambda f: f.__name__,
)
def test_others_stay(form: Form) -> None:
    assert untouched(UnifyExponentialsPass(), written(form)).missed == ()
