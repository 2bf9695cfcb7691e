"""Classes of operators, against ONNX's own definitions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from crossfuse.graph.op_classes import (
    BOUNDED_OPS,
    LAYOUT_OPS,
    MOVING_OPS,
    PRODUCT_OPS,
    SIZE_OPS,
    is_onnx,
)


def test_every_name_is_an_operator() -> None:
    for names in (LAYOUT_OPS, MOVING_OPS, PRODUCT_OPS, SIZE_OPS, BOUNDED_OPS - {"FusedAttention"}):
        assert [name for name in names if not onnx.defs.has(name, 20, "")] == []
    assert LAYOUT_OPS < MOVING_OPS
    assert PRODUCT_OPS | SIZE_OPS < BOUNDED_OPS


SECOND = {
    "Reshape": [4, 6],
    "Squeeze": [1],
    "Unsqueeze": [0],
    "Expand": [2, 2, 3, 4],
    "Gather": [1],
}


@pytest.mark.parametrize("name", sorted(MOVING_OPS - {"Slice", "Split", "Concat", "Cast"}))
def test_moving_operators_make_no_numbers(name: str) -> None:
    """Results hold elements of the input alone; layout operators hold each once."""
    x = np.arange(24.0, dtype=np.float32).reshape(2, 1, 3, 4)
    inputs = ["x", *(["s"] if name in SECOND else [])]
    node = onnx.helper.make_node(name, inputs, ["y"])
    given = [onnx.helper.make_tensor_value_info("x", 1, None)]
    given += [onnx.helper.make_tensor_value_info("s", 7, None)] if name in SECOND else []
    graph = onnx.helper.make_graph(
        [node], "g", given, [onnx.helper.make_empty_tensor_value_info("y")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    feeds = {"x": x} | ({"s": np.array(SECOND[name])} if name in SECOND else {})
    (y,) = ReferenceEvaluator(model).run(None, feeds)
    assert set(y.reshape(-1)) <= set(x.reshape(-1))
    if name in LAYOUT_OPS:
        assert sorted(y.reshape(-1)) == sorted(x.reshape(-1))


@pytest.mark.parametrize(
    ("domain", "op_type", "asked", "expected"),
    [
        ("", "Add", (), True),
        ("ai.onnx", "Add", ("Mul", "Add"), True),
        ("", "Add", ("Mul",), False),
        ("com.microsoft", "Add", ("Add",), False),
        ("com.microsoft", "Add", (), False),
    ],
)
def test_domains(domain: str, op_type: str, asked: tuple[str, ...], expected: bool) -> None:
    assert is_onnx(ir.node(op_type, [ir.Value(name="x")], domain=domain), *asked) is expected
