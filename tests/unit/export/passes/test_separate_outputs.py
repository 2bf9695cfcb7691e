"""Every output is a value of its own, under the name that the model gives it."""

from __future__ import annotations

import numpy as np

from crossfuse.export.passes.separate_outputs import SeparateOutputsPass
from onnx_building import Graph
from small_graphs import computed, counts, feeds_of, model_of, same_numbers


def test_one_value_twice_and_an_input() -> None:
    g = Graph()
    x = g.input("x", ["B", 4])
    g.op("Neg", x, outputs=["a"])
    g.output("a", ["B", 4])
    model = model_of(g)
    value = model.graph.outputs[0]
    model.graph.outputs[:] = [value, model.graph.inputs[0], value]
    feeds = feeds_of(model)
    result = SeparateOutputsPass(["first", "second", "third"])(model)
    assert result.modified
    assert [v.name for v in model.graph.outputs] == ["first", "second", "third"]
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert counts(model) == {"Neg": 1, "Identity": 2}
    same_numbers([-feeds["x"], feeds["x"], -feeds["x"]], computed(model, feeds))
    assert not SeparateOutputsPass(["first", "second", "third"])(model).modified


def test_weights_that_are_outputs() -> None:
    """The exporter calls them as the output; they keep their own value, which others may use."""
    g = Graph()
    x, w = g.input("x", ["B", 4]), g.weight(np.arange(4, dtype=np.float32))
    g.op("Add", x, w, outputs=["a"])
    g.output("a", ["B", 4])
    model = model_of(g)
    weight = model.graph.initializers[w]
    weight.name = "w"
    model.graph.outputs[:] = [weight, model.graph.outputs[0], weight]
    feeds = feeds_of(model)
    names = ["w", "sum", "again"]
    SeparateOutputsPass(names)(model)
    assert [v.name for v in model.graph.outputs] == names
    assert not {*model.graph.initializers} & {*names}
    same_numbers([np.arange(4), feeds["x"] + np.arange(4), np.arange(4)], computed(model, feeds))


def test_names_are_given_where_they_differ() -> None:
    g = Graph()
    g.op("Neg", g.input("x", ["B", 4]), outputs=["a"])
    g.output("a", ["B", 4])
    model = model_of(g)
    assert not SeparateOutputsPass(["a"])(model).modified
    assert SeparateOutputsPass(["b"])(model).modified
    assert [v.name for v in model.graph.outputs] == ["b"]
    assert counts(model) == {"Neg": 1}
