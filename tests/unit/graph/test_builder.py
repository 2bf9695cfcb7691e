"""The builder: what it emits, what it shares, and where it puts it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.metadata import CAPTURED, MODULE, SITE
from onnx_building import Graph
from small_graphs import computed, counts, model_of


def value(name: str = "x", shape: list[int | str | None] | None = None) -> ir.Value:
    kind = ir.TensorType(ir.DataType.FLOAT)
    return ir.Value(name=name, type=kind, shape=None if shape is None else ir.Shape(shape))


def test_types_shapes_and_attributes() -> None:
    build, x = GraphBuilder(), value()
    made = build.op("Transpose", x, like=x, shape=["B", 2], perm=[1, 0])
    assert made.dtype == ir.DataType.FLOAT
    assert list(made.shape or ()) == ["B", 2]
    (node,) = build.nodes
    assert (node.op_type, node.domain, list(node.inputs)) == ("Transpose", "", [x])
    assert list(node.attributes["perm"].as_ints()) == [1, 0]
    bare = build.op("Custom", x, None, x, domain="own")
    assert bare.shape is None
    assert bare.producer().domain == "own"
    assert list(bare.producer().inputs) == [x, None, x]


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, np.int64, np.bool_, ml_dtypes.bfloat16], ids=str
)
def test_constants_are_known(dtype: type) -> None:
    made = GraphBuilder().constant([[1, 0, 1]], dtype)
    assert made.dtype == ir.DataType.from_numpy(np.dtype(dtype))
    assert list(made.shape or ()) == [1, 3]
    tensor = ir.convenience.get_const_tensor(made)
    assert tensor is not None
    assert tensor.numpy().astype(float).tolist() == [[1, 0, 1]]


def test_equal_nodes_are_shared_where_that_is_asked_for() -> None:
    x = value(shape=["B", 3, None])
    for share, expected in ((True, 1), (False, 2)):
        build = GraphBuilder(share=share)
        assert len({build.op("Neg", x) for _ in "ab"}) == expected
        assert len({build.ints(1, 2) for _ in "ab"}) == expected
        assert len({build.size(x, 0) for _ in "ab"}) == expected
    build = GraphBuilder(share=True)
    others = [build.op("Neg", x), build.op("Abs", x), build.op("Neg", value("other"))]
    others += [build.op("Cast", x, to=1), build.op("Cast", x, to=7), build.own("Neg", x)]
    others += [build.constant(1, np.int64), build.constant([1], np.int64)]
    others += [build.constant(1, np.float16), build.constant(1, ml_dtypes.bfloat16)]
    assert len(set(others)) == len(others)


def test_a_named_dimension_is_read_once() -> None:
    build = GraphBuilder(share=True)
    first, second = value("a", ["B", 3]), value("b", [2, "B", None])
    assert build.size(first, 0) is build.size(second, 1)
    known = ir.convenience.get_const_tensor(build.size(first, 1))
    assert known is not None
    assert known.numpy().tolist() == [3]
    assert build.size(second, 2).producer().op_type == "Shape"
    assert build.size(value("c", ["L"]), 0) is not build.size(first, 0)


def test_numbers_of_what_it_emits() -> None:
    g = Graph()
    x = g.input("x", ["B", "S", 4])
    g.op("Neg", x, outputs=["y"])
    g.output("y", [None])
    model = model_of(g)
    (node,) = list(model.graph)
    build = GraphBuilder()
    given = model.graph.inputs[0]
    positions = build.positions(build.size(given, 1))
    halves = build.split(positions, [2, 3], 0)
    build.replace(node, build.concat(halves[1], halves[0], build.size(given, 2)))
    (got,) = computed(model, {"x": np.zeros((2, 5, 4))})
    assert got.tolist() == [2, 3, 4, 0, 1, 4]


def chain() -> tuple[ir.Model, list[ir.Node]]:
    g = Graph()
    g.op("Abs", g.op("Neg", g.input("x", ["N"])), outputs=["y"])
    g.output("y", ["N"])
    model = model_of(g)
    return model, list(model.graph)


def test_what_stands_for_a_node_is_part_of_its_module() -> None:
    model, (neg, _) = chain()
    neg.metadata_props.update({MODULE: "m", "pkg.note": "n", SITE: "s", CAPTURED: "pattern"})
    build = GraphBuilder()
    made = build.op("Sub", build.constant(0, np.float32), neg.inputs[0])
    made.producer().metadata_props["pkg.note"] = "its own"
    old = neg.outputs[0]
    shape, name = old.shape, old.name
    build.replace(neg, made)
    assert counts(model) == {"Sub": 1, "Abs": 1}
    constant, sub, _ = model.graph
    assert dict(sub.metadata_props) == {MODULE: "m", "pkg.note": "its own"}
    assert dict(constant.metadata_props) == {MODULE: "m", "pkg.note": "n"}
    assert (made.shape, made.dtype, made.name) == (shape, ir.DataType.FLOAT, name)
    assert not build.nodes
    np.testing.assert_array_equal(computed(model, {"x": np.array([-1.0, 2])})[0], [1, 2])


def test_an_output_keeps_its_name() -> None:
    model, (neg, absolute) = chain()
    build = GraphBuilder()
    build.replace(absolute, build.op("Exp", neg.outputs[0]))
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert counts(model) == {"Neg": 1, "Exp": 1}
    model, (neg, absolute) = chain()
    GraphBuilder().replace(absolute, neg.outputs[0])  # an existing value takes its place
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert counts(model) == {"Neg": 1}


def test_an_input_does_not_become_an_output() -> None:
    model, (neg, absolute) = chain()
    GraphBuilder().replace(neg, neg.inputs[0])
    assert counts(model) == {"Abs": 1}
    GraphBuilder().replace(absolute, absolute.inputs[0])
    assert counts(model) == {"Identity": 1}
    assert ([v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs]) == (
        ["x"],
        ["y"],
    )


def test_at_the_end_of_a_graph() -> None:
    model, (_, absolute) = chain()
    build = GraphBuilder()
    model.graph.outputs[0] = build.op("Exp", absolute.outputs[0])
    build.append_to(model.graph)
    assert [node.op_type for node in model.graph] == ["Neg", "Abs", "Exp"]
    assert not build.nodes
