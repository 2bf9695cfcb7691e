"""Outputs of steps: their tokens come second, and none has two axes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.step_outputs import has_columns, tokens_second
from crossfuse.targets.cpu_run import run_once


def value(*dims: int | str) -> ir.Value:
    return ir.Value(name="v", shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        (("b", "t"), False), (("b", 4, "t", 9), False), (("b", 4), False), (("t*b", 3), False),
        (("b", 4, "t", "t"), True), (("b", "t", "t + 5"), True),
    ],
)  # fmt: skip
def test_a_column_for_each_token(dims: tuple[int | str, ...], expected: bool) -> None:
    assert has_columns(value(*dims), "t") == expected


@pytest.mark.parametrize("dims", [("b", 4, "t", 3), ("b", 4, 3, "t"), ("b", 5, "t")])
def test_tokens_come_second(dims: tuple[int | str, ...]) -> None:
    given = value(*dims)
    made = ir.node("Relu", [given])
    made.outputs[0].name, made.outputs[0].shape = "y", ir.Shape(dims)
    made.outputs[0].type = given.type
    graph = ir.Graph([given], [], nodes=[made], opset_imports={"": 21})
    out = tokens_second(graph, made.outputs[0], "t")
    graph.outputs.append(out)
    sizes = {"b": 2, "t": 6}
    array = np.random.default_rng(0).random([sizes.get(d, d) for d in dims]).astype(np.float32)
    (found,) = run_once(ir.Model(graph, ir_version=10), {"v": array})
    assert out.name == "y"
    np.testing.assert_array_equal(found, np.moveaxis(array, dims.index("t"), 1))
    assert list(out.shape or ()) == ["b", "t", *(d for d in dims[1:] if d != "t")]


@pytest.mark.parametrize("dims", [("b", "t", 3), ("b", 3), ("t", "b"), ("b", "2*t", 3)])
def test_others_stay(dims: tuple[int | str, ...]) -> None:
    given = value(*dims)
    graph = ir.Graph([given], [given], nodes=[])
    assert tokens_second(graph, given, "t") is given
    assert given.name == "v"
