"""Chains of layout operators become as few as do the same."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from crossfuse.export.passes.cancel_layout import CancelLayoutPass
from onnx_building import Graph, normal
from small_graphs import applied, counts, model_of

Form = Callable[[Graph, str], str]


def graph(form: Form, shape: list[int | str]) -> ir.Model:
    """The chain between two products with weights, so that no end of it is an input or output."""
    g = Graph()
    x = g.op("MatMul", g.input("x", ["B", "L", 8]), g.weight(normal(8, 8)))
    g.op("Neg", form(g, x), outputs=["y"])
    g.output("y", shape)
    return model_of(g)


def there_and_back(g: Graph, x: str) -> str:
    four = g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, 2, 4)), perm=[0, 2, 1, 3])
    return g.op("Reshape", g.op("Transpose", four, perm=[0, 2, 1, 3]), g.ints(0, 0, 8))


def two_transposes(g: Graph, x: str) -> str:
    return g.op("Transpose", g.op("Transpose", x, perm=[1, 0, 2]), perm=[0, 2, 1])


def squeezed(g: Graph, x: str) -> str:
    return g.op("Squeeze", g.op("Unsqueeze", x, g.ints(1)), g.ints(1))


@pytest.mark.parametrize(
    ("form", "shape", "left"),
    [
        (there_and_back, ["B", "L", 8], {}),
        (squeezed, ["B", "L", 8], {}),
        (two_transposes, ["L", 8, "B"], {"Transpose": 1}),
        (lambda g, x: g.op("Identity", there_and_back(g, x)), ["B", "L", 8], {}),
    ],
    ids=["there and back", "squeezed", "two transposes", "identity"],
)
def test_chains_become_shorter(form: Form, shape: list[int | str], left: dict[str, int]) -> None:
    model = graph(form, shape)
    assert applied(CancelLayoutPass(), model).modified
    assert counts(model) == {"MatMul": 1, "Neg": 1, **left}


def test_a_split_into_heads_stays() -> None:
    model = graph(
        lambda g, x: g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, 2, 4)), perm=[0, 2, 1, 3]),
        ["B", 2, "L", 4],
    )
    assert not CancelLayoutPass()(model).modified
    assert counts(model) == {"MatMul": 1, "Neg": 1, "Reshape": 1, "Transpose": 1}


def test_what_others_use_stays() -> None:
    g = Graph()
    x = g.op("MatMul", g.input("x", ["B", "L", 8]), g.weight(normal(8, 8)))
    turned = g.op("Transpose", x, perm=[1, 0, 2])
    g.op("Exp", turned, outputs=["z"])
    g.op("Neg", g.op("Transpose", turned, perm=[0, 2, 1]), outputs=["y"])
    g.output("y", ["L", 8, "B"])
    g.output("z", ["L", "B", 8])
    model = model_of(g)
    applied(CancelLayoutPass(), model)
    assert counts(model) == {"MatMul": 1, "Transpose": 2, "Exp": 1, "Neg": 1}


def test_a_reshape_to_an_unknown_size_stays() -> None:
    """Nothing says that it keeps an axis whole."""
    g = Graph()
    x, shape = g.input("x", ["B", "L", 8]), g.input("shape", [2], 7)
    flat = g.op("Reshape", g.op("Neg", x), shape)
    back = g.op("Reshape", flat, g.op("Shape", x))
    g.op("Neg", back, outputs=["y"])
    g.output("y", ["B", "L", 8])
    model = model_of(g)
    assert not CancelLayoutPass()(model).modified
    assert counts(model)["Reshape"] == 2


def test_an_input_that_comes_back_as_output_keeps_its_chain() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    g.op("Transpose", g.op("Transpose", x, perm=[1, 0, 2]), outputs=["y"], perm=[1, 0, 2])
    g.output("y", ["B", "L", 8])
    model = model_of(g)
    applied(CancelLayoutPass(), model)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0] is not model.graph.inputs[0]
