"""Softmaxes written out become ``Softmax``, equal in float64, and what is none stays."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from crossfuse.export.passes.unify_softmaxes import UnifySoftmaxesPass
from onnx_building import BOOL, Graph
from small_graphs import applied, counts, model_of, untouched

Form = Callable[[Graph, str, str], str]


def total(g: Graph, of: str, name: str = "ReduceSum", axis: int = -1) -> str:
    return g.op(name, of, g.weight([axis], "int64"))


def quotient(g: Graph, x: str, m: str) -> str:
    e = g.op("Exp", x)
    return g.op("Div", e, total(g, e))


def reciprocal(g: Graph, x: str, m: str) -> str:
    e = g.op("Exp", x)
    return g.op("Mul", g.op("Reciprocal", total(g, e)), e)


def shifted(g: Graph, x: str, m: str) -> str:
    return quotient(g, g.op("Sub", x, total(g, x, "ReduceMax")), m)


def over_the_rows(g: Graph, x: str, m: str) -> str:
    e = g.op("Exp", x)
    return g.op("Div", e, total(g, e, axis=1))


def of_logarithms(g: Graph, x: str, m: str) -> str:
    return g.op("Exp", g.op("LogSoftmax", x, axis=-1))


def of_logsumexp(g: Graph, x: str, m: str) -> str:
    x = x_made(g, x)
    return g.op("Exp", g.op("Sub", x, total(g, x, "ReduceLogSumExp")))


def masked(g: Graph, x: str, m: str) -> str:
    e = g.op("Mul", g.op("Exp", x), g.op("Cast", m, to=1))
    return g.op("Div", e, total(g, e))


def masked_and_normalised_again(g: Graph, x: str, m: str) -> str:
    p = g.op("Where", m, g.op("Softmax", x, axis=-1), g.weight(0.0))
    return g.op("Div", p, total(g, p))


def safe_beside_a_maximum(g: Graph, x: str, m: str) -> str:
    e = g.op("Exp", g.op("Sub", x, total(g, x, "ReduceMax")))
    return g.op("Div", e, g.op("Add", total(g, e), g.weight(1e-12)))


HIDDEN = [[[True, False, True, True, False]], [[False] * 5]]
"""One sample attends to no key."""


def guarded(g: Graph, w: str) -> str:
    return g.op("Where", g.op("IsNaN", w), g.weight(0.0), w)


def fills_without_a_maximum(g: Graph, x: str, m: str) -> str:
    """A row of fills is 0 / 0."""
    filled = g.op("Where", g.weight(HIDDEN, "bool"), x_made(g, x), g.weight(-3.4e38))
    return guarded(g, quotient(g, filled, m))


def fills_on_the_other_side(g: Graph, x: str, m: str) -> str:
    hidden = g.op("Not", g.weight(HIDDEN, "bool"))
    filled = g.op("Where", hidden, g.weight(-2e4), x_made(g, x))
    return guarded(g, g.op("Identity", quotient(g, filled, m)))


def fills_and_a_maximum(g: Graph, x: str, m: str) -> str:
    """A row of fills is an average."""
    filled = g.op("Where", g.weight(HIDDEN, "bool"), x_made(g, x), g.weight(-2e4))
    return guarded(g, shifted(g, filled, m))


def x_made(g: Graph, x: str) -> str:
    """Scores that are made here: those from outside may be as low as fills."""
    return g.op("Tanh", x)


def written(form: Form) -> ir.Model:
    g = Graph()
    x, m = g.input("x", ["B", "L", "S"]), g.input("m", ["B", 1, "S"], BOOL)
    g.op("Identity", form(g, x, m), outputs=["y"])
    g.output("y", ["B", "L", "S"])
    return model_of(g)


FORMS = [
    *(quotient, reciprocal, shifted, over_the_rows, of_logarithms, of_logsumexp, masked),
    *(masked_and_normalised_again, safe_beside_a_maximum),
    *(fills_without_a_maximum, fills_on_the_other_side, fills_and_a_maximum),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_forms_of_a_softmax(form: Form) -> None:
    model = written(form)
    assert applied(UnifySoftmaxesPass(), model).modified
    found = counts(model)
    assert found["Softmax"] == 1
    assert not {"Exp", "Div", "ReduceSum", "LogSoftmax", "ReduceMax"} & set(found)


def test_a_quotient_behind_the_product() -> None:
    g = Graph()
    x, v = g.input("x", ["B", "L", "S"]), g.input("v", ["B", "S", 4])
    e = g.op("Exp", x)
    g.op("Div", g.op("MatMul", e, v), total(g, e), outputs=["y"])
    g.output("y", ["B", "L", 4])
    model = model_of(g)
    assert applied(UnifySoftmaxesPass(), model).modified
    assert counts(model) == {"Softmax": 1, "MatMul": 1}


def test_probabilities_are_not_infinite() -> None:
    """``nan_to_num`` as the exporter writes it; what replaces NaN stays for the matching."""
    g = Graph()
    p = g.op("Softmax", g.input("x", ["B", "L", "S"]), axis=-1)
    finite = g.op("Where", g.op("IsNaN", p), g.weight(0.0), p)
    infinite = g.op("And", g.op("Greater", p, g.weight(0.0)), g.op("IsInf", p))
    g.op("Where", infinite, g.weight(3e38), finite, outputs=["y"])
    g.output("y", ["B", "L", "S"])
    model = model_of(g)
    assert applied(UnifySoftmaxesPass(), model).modified
    assert set(counts(model)) <= {"Softmax", "IsNaN", "Where", "Identity"}


def logsumexp_of_an_input(g: Graph, x: str, m: str) -> str:
    return g.op("Exp", g.op("Sub", x, total(g, x, "ReduceLogSumExp")))


def logsumexp_of_low_fills(g: Graph, x: str, m: str) -> str:
    """Rows of fills weigh 1 each: log(n) is nothing beside the lowest number."""
    filled = g.op("Where", m, g.op("Tanh", x), g.weight(-3.4e38))
    return g.op("Exp", g.op("Sub", filled, total(g, filled, "ReduceLogSumExp")))


def weights_of_another_sum(g: Graph, x: str, m: str) -> str:
    return g.op("Div", g.op("Exp", x), total(g, g.op("Exp", g.op("Neg", x))))


def number_beside_the_sum(g: Graph, x: str, m: str) -> str:
    e = g.op("Exp", x)
    return g.op("Div", e, g.op("Add", total(g, e), g.weight(1.0)))


def relu(g: Graph, x: str, m: str) -> str:
    e = g.op("Relu", x)
    return g.op("Div", e, total(g, e))


def exponential(g: Graph, x: str, m: str) -> str:
    return g.op("Exp", g.op("Sub", x, total(g, x, "ReduceMax")))


def power(g: Graph, x: str, m: str) -> str:
    e = g.op("Exp", x)
    return g.op("Div", e, g.op("ReduceL2", e, g.weight([-1], "int64")))


def softmax_of_another_axis(g: Graph, x: str, m: str) -> str:
    p = g.op("Mul", g.op("Softmax", x, axis=1), g.op("Cast", m, to=1))
    return g.op("Div", p, total(g, p))


def biases_without_a_maximum(g: Graph, x: str, m: str) -> str:
    """A row of them is 0 / 0, too, but they are read nowhere."""
    hidden = g.op("Mul", g.op("Cast", m, to=1), g.weight(-2e4))
    return guarded(g, quotient(g, g.op("Add", x_made(g, x), hidden), m))


@pytest.mark.parametrize(
    "form",
    [
        *(softmax_of_another_axis, biases_without_a_maximum),
        *(weights_of_another_sum, number_beside_the_sum, relu, exponential, power),
        *(logsumexp_of_an_input, logsumexp_of_low_fills),
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_no_softmax_stays(form: Form) -> None:
    assert untouched(UnifySoftmaxesPass(), written(form)).missed == ()


def test_a_softmax_that_others_read_is_written_beside_them() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", "S"])
    e = g.op("Exp", x)
    g.op("Div", e, total(g, e), outputs=["y"])
    g.op("Sqrt", e, outputs=["z"])
    g.output("y", ["B", "L", "S"])
    g.output("z", ["B", "L", "S"])
    model = model_of(g)
    assert applied(UnifySoftmaxesPass(), model).modified
    assert counts(model) == {"Exp": 1, "Sqrt": 1, "Softmax": 1}
