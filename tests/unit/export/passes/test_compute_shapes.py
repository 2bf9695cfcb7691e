"""Shapes that a file computes are known after the pass; sizes that are numbers are constants."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from crossfuse.export.passes.compute_shapes import ComputeShapesPass
from crossfuse.graph.shapes import dims_of
from onnx_building import BOOL, INT64, Graph, normal
from small_graphs import computed, counts, feeds_of, model_of, same_numbers


def inferred(g: Graph, opset: int = 20) -> ir.Model:
    """The graph as a file gives it, without inferred shapes, after the pass; equal in numbers."""
    model = model_of(g, opset)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    feeds = feeds_of(model)
    before = computed(model, feeds)
    ComputeShapesPass()(model)
    same_numbers(before, computed(model, feeds))
    return model


def shape_of(model: ir.Model, name: str) -> list[int | str | None] | None:
    (value,) = [v for node in model.graph for v in node.outputs if v.name == name]
    return dims_of(value)


def test_heads_are_merged_into_the_batch() -> None:
    """``[B, L, 8]`` → ``[B·2, L, 4]``, its shape computed from sizes of the input."""
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    size = g.op("Shape", x)
    batch, length = (g.op("Gather", size, g.weight(i, np.int64)) for i in (0, 1))
    merged = g.op("Mul", batch, g.weight(2, np.int64))
    parts = [g.op("Unsqueeze", part, g.ints(0)) for part in (merged, length)]
    shape = g.op("Concat", *parts, g.ints(4), axis=0)
    heads = g.op("Reshape", x, g.ints(0, 0, 2, 4))
    g.op("Reshape", g.op("Transpose", heads, perm=[0, 2, 1, 3]), shape, outputs=["m"])
    g.op("Neg", "m", outputs=["y"])
    g.output("y", [None, None, None])
    assert shape_of(inferred(g), "m") == ["2*B", "L", 4]


def test_sizes_that_are_numbers_become_constants() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    width = g.op("Gather", g.op("Shape", x), g.weight(2, np.int64))
    half = g.op("Div", width, g.weight(2, np.int64))
    ends = g.op("Unsqueeze", half, g.ints(0))
    g.op("Slice", x, g.ints(0), ends, g.ints(2), outputs=["s"])
    g.op("Neg", "s", outputs=["y"])
    g.output("y", [None, None, None])
    model = inferred(g)
    assert shape_of(model, "s") == ["B", "L", 4]
    (cut,) = [node for node in model.graph if node.op_type == "Slice"]
    end = ir.convenience.get_const_tensor(cut.inputs[2])
    assert end is not None
    assert end.numpy().tolist() == [4]


def test_a_scale_from_constants() -> None:
    g = Graph()
    x = g.input("x", ["B", 8])
    root = g.op("Sqrt", g.op("Cast", g.weight(64, np.int64), to=1))
    g.op("Div", x, root, outputs=["y"])
    g.output("y", ["B", 8])
    model = inferred(g)
    (division,) = [node for node in model.graph if node.op_type == "Div"]
    scale = ir.convenience.get_const_tensor(division.inputs[1])
    assert scale is not None
    assert float(scale.numpy()) == 8.0


def branches(condition: str, g: Graph) -> None:
    x = g.input("x", ["B", 8])

    def branch(name: str, operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, [x], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", 1, None)
        return helper.make_graph([node], name, [], [out])

    g.op(
        "If",
        condition,
        outputs=["y"],
        then_branch=branch("a", "Neg"),
        else_branch=branch("b", "Abs"),
    )
    g.output("y", ["B", 8])


@pytest.mark.parametrize(("value", "left"), [(True, {"Neg": 1}), (False, {"Abs": 1})])
def test_a_constant_condition_chooses_its_branch(value: bool, left: dict[str, int]) -> None:
    g = Graph()
    branches(g.weight(value, np.bool_), g)
    model = inferred(g)
    assert counts(model) == left
    assert [v.name for v in model.graph.outputs] == ["y"]


def test_a_condition_on_data_stays() -> None:
    g = Graph()
    branches(g.input("c", [], BOOL), g)
    assert counts(inferred(g)) == {"If": 1}


def test_a_table_that_is_cut_to_a_length() -> None:
    """A table of the file has at least that length; an activation may have less."""
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    long = g.input("long", ["S", 8])
    length = g.op("Shape", x, start=1, end=2)
    for source, name in ((g.weight(normal(16, 8)), "table"), (long, "activation")):
        g.op("Slice", source, g.ints(0), length, g.ints(0), outputs=[name])
    g.op("Add", x, "table", outputs=["y"])
    g.op("Neg", "activation", outputs=["z"])
    g.output("y", ["B", "L", 8])
    g.output("z", [None, 8])
    model = inferred(g)
    assert shape_of(model, "table") == ["L", 8]
    found = shape_of(model, "activation")
    assert found is not None
    assert found[0] != "L"


def test_what_depends_on_data_stays_unknown() -> None:
    g = Graph()
    x, n = g.input("x", ["B", 8]), g.input("n", [1], INT64)
    g.op("Slice", x, g.ints(0), n, g.ints(1), outputs=["s"])
    g.op("Neg", "s", outputs=["y"])
    g.output("y", [None, None])
    model = inferred(g)
    found = shape_of(model, "s")
    assert found is not None
    assert len(found) == 2
    assert not isinstance(found[1], int)
    assert counts(model) == {"Slice": 1, "Neg": 1}
