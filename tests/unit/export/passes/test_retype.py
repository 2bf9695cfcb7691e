"""Floating types change wherever a graph names them; nothing else does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.retype import DOUBLE, SINGLE, RetypePass, has_types
from onnx_building import FLOAT, HALF, INT64, Graph, run
from small_graphs import computed, model_of, untouched


def half_graph() -> ir.Model:
    """``y = cast(layer norm(x · w), float16) + constant``, and ids beside it."""
    g = Graph()
    x = g.input("x", ["N", 4], HALF)
    product = g.op("MatMul", x, g.weight(np.eye(4) / 3, np.float16))
    scale = g.weight(np.ones(4), np.float16)
    norm = g.op("LayerNormalization", product, scale, stash_type=10)
    g.op("Add", g.op("Cast", norm, to=HALF), g.weight(0.1, np.float16), outputs=["y"])
    g.op("Mul", g.input("ids", ["N"], INT64), g.ints(3), outputs=["z"])
    g.output("y", ["N", 4], HALF)
    g.output("z", ["N"], INT64)
    return model_of(g)


def types(model: ir.Model) -> set[str]:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [v for node in model.graph for v in node.outputs]
    return {value.dtype.name for value in values if value.dtype is not None}


@pytest.mark.parametrize(("target", "name"), [(SINGLE, "FLOAT"), (DOUBLE, "DOUBLE")])
def test_everything_that_names_a_type(target: dict, name: str) -> None:
    model = half_graph()
    assert has_types(model, target)
    assert RetypePass(target)(model).modified
    assert types(model) == {name, "INT64"}
    assert not has_types(model, target)
    (cast,) = [node for node in model.graph if node.op_type == "Cast"]
    assert cast.attributes["to"].as_int() == ir.DataType[name]
    (norm,) = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert norm.attributes["stash_type"].as_int() == ir.DataType.FLOAT
    assert not RetypePass(target)(model).modified


def test_weights_are_the_same_numbers(tmp_path) -> None:
    model = half_graph()
    weights = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}
    RetypePass(SINGLE)(model)
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), weights[name])
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    path = tmp_path / "g.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    got, scaled = run(path, {"x": x, "ids": np.arange(3)})
    wide = x @ weights["w0"].astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, normal + np.float64(weights["w2"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scaled, 3 * np.arange(3))


def test_bfloat16_constants_and_bodies() -> None:
    value = ir.tensor(np.array([1.5, -2.0], ml_dtypes.bfloat16))
    constant = ir.node("Constant", [], {"value": value})
    constant.outputs[0].name, constant.outputs[0].type = "y", ir.TensorType(ir.DataType.BFLOAT16)
    graph = ir.Graph([], constant.outputs, nodes=[constant], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    assert RetypePass(SINGLE)(model).modified
    assert types(model) == {"FLOAT"}
    np.testing.assert_array_equal(computed(model, {})[0], [1.5, -2.0])


def test_single_precision_is_no_half() -> None:
    g = Graph()
    x = g.input("x", ["N"])
    g.op("Cast", g.op("Cast", x, to=INT64), outputs=["y"], to=FLOAT)
    g.output("y", ["N"])
    model = model_of(g)
    untouched(RetypePass(SINGLE), model)
    assert RetypePass(DOUBLE)(model).modified
    assert types(model) == {"DOUBLE", "INT64"}
