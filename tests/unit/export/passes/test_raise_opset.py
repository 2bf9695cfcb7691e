"""Older graphs mean the same at a newer opset."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from crossfuse.errors import InputError
from crossfuse.export.passes.raise_opset import RaiseOpsetPass, opset_of
from crossfuse.graph.metadata import MODULE
from onnx_building import Graph, normal
from small_graphs import counts, feeds_of, model_of, untouched


def evaluated(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """In the graph's own types; its opset is what gives operators their meaning."""
    return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)


def graph(operator: str, rank: int, opset: int, **attributes: int) -> ir.Model:
    g = Graph()
    x = g.input("x", ["B", "L", 4, 2][:rank])
    large = g.op("MatMul", g.op("Neg", x), g.weight(normal(2 if rank == 4 else 4, 4)))
    g.op(operator, large, outputs=["y"], **attributes)
    g.output("y", [None] * rank)
    model = model_of(g, opset)
    for node in model.graph:
        node.metadata_props[MODULE] = node.op_type.lower()
    return model


def coerced(x: np.ndarray, axis: int) -> np.ndarray:
    """Softmax as opset 12 and before defines it: over all axes from ``axis`` on."""
    flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
    weights = np.exp(flat - flat.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).reshape(x.shape)


@pytest.mark.parametrize("opset", [9, 11, 12])
@pytest.mark.parametrize(("axis", "rank"), [(1, 3), (2, 3), (1, 4), (0, 3)])
def test_softmax_over_several_axes(opset: int, axis: int, rank: int) -> None:
    model = graph("Softmax", rank, opset, axis=axis)
    feeds = {"x": feeds_of(model)["x"].astype(np.float32)}
    weight = next(iter(model.graph.initializers.values())).const_value
    assert weight is not None
    expected = coerced(-feeds["x"] @ weight.numpy(), axis)
    assert RaiseOpsetPass(20)(model).modified
    assert opset_of(model) == 20
    np.testing.assert_allclose(evaluated(model, feeds)[0], expected, rtol=1e-5, atol=1e-6)
    plain = axis == rank - 1
    expected_nodes = {} if plain else {"Flatten": 1, "Shape": 1, "Reshape": 1}
    assert counts(model) == {"Neg": 1, "MatMul": 1, "Softmax": 1, **expected_nodes}


def test_modules_and_large_weights_survive() -> None:
    g = Graph()
    g.op("MatMul", g.input("x", ["B", 64]), g.weight(normal(64, 64)), outputs=["y"])
    g.output("y", ["B", 64])
    model = model_of(g, 13)
    (node,) = list(model.graph)
    node.metadata_props[MODULE] = "encoder"
    before = model.graph.initializers["w0"].const_value
    RaiseOpsetPass(20)(model)
    (node,) = list(model.graph)
    assert node.metadata_props[MODULE] == "encoder"
    assert model.graph.initializers["w0"].const_value is before
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_from_opset_18_on() -> None:
    model = graph("Relu", 3, 18)
    feeds = {"x": feeds_of(model)["x"].astype(np.float32)}
    before = evaluated(model, feeds)
    assert RaiseOpsetPass(20)(model).modified
    assert opset_of(model) == 20
    np.testing.assert_array_equal(evaluated(model, feeds)[0], before[0])


@pytest.mark.parametrize("opset", [20, 21])
def test_newer_graphs_stay(opset: int) -> None:
    untouched(RaiseOpsetPass(20), graph("Relu", 3, opset))


def test_what_the_converter_refuses() -> None:
    g = Graph()
    g.op("Scan", g.input("x", ["B"]), outputs=["y"])
    g.output("y", ["B"])
    model = model_of(g, 7)
    with pytest.raises(InputError, match=r"opset 7.*opset 20.*Export it again"):
        RaiseOpsetPass(20)(model)
