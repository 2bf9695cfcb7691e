"""What mixes tokens otherwise than by attention is found, and what keeps them apart is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.mixed_tokens import mixing_node
from onnx_building import normal
from onnx_text import parse

MIXING = {
    "Conv": "t = Transpose<perm = [0, 2, 1]>(x) p = Pad(t, front) c = Conv(p, filters) y = Relu(c)",
    "Slice": "p = Pad(x, shift) s = Slice(p, zero, last, one) y = Add(x, s)",
    "Gather": "y = Gather<axis = 1>(x, zero)",
    "ReduceMean": "m = ReduceMean<keepdims = 1>(x, one) y = Mul(x, m)",
    "AveragePool": """t = Transpose<perm = [0, 2, 1]>(x) p = Pad(t, front)
        y = AveragePool<kernel_shape = [3]>(p)""",
    "CumSum": "c = CumSum(x, axis) y = Relu(c)",
    "Softmax": "y = Softmax<axis = 1>(x)",
    "MatMul": "t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t) y = MatMul(s, x)",
    "GRU": """t = Transpose<perm = [1, 0, 2]>(x)
        r, ends = GRU<hidden_size = 8>(t, gates, hidden) y = Squeeze(r, one)""",
}
APART = {
    "norm": "y = LayerNormalization<axis = -1>(x, scale)",
    "heads": """h = Reshape(x, split) t = Transpose<perm = [0, 2, 1, 3]>(h)
        m = MatMul(t, square) b = Transpose<perm = [0, 2, 1, 3]>(m) y = Reshape(b, joined)""",
    "one by one": "f = Reshape(x, flat) w = MatMul(f, wide) g = Relu(w) y = Reshape(g, joined)",
    "features": "c = CumSum(x, features) s = Softmax(c) y = ReduceMax<keepdims = 1>(s, two)",
    "convolution of single tokens": """u = Unsqueeze(x, one)
        t = Transpose<perm = [2, 0, 1, 3]>(u) z = Reshape(t, rows) c = Conv(z, single)
        y = Relu(c)""",
    "rows in front": "p = Concat<axis = 1>(row, x) y = Transpose<perm = [0, 2, 1]>(p)",
}


def found_in(body: str) -> ir.Node | None:
    model = parse(
        f"(int64[b, t] ids) => (int64 size) {{ x = Gather(table, ids) {body} size = Size(y) }}",
        table=normal(5, 8),
        filters=normal(8, 8, 3),
        single=normal(4, 1, 3),
        gates=normal(1, 24, 8),
        hidden=normal(1, 24, 8),
        scale=normal(8),
        wide=normal(8, 8),
        square=normal(4, 4),
        row=np.zeros((1, 1, 8), np.float32),
        front=np.array([0, 0, 2, 0, 0, 0]),
        shift=np.array([0, 1, 0, 0, 0, 0]),
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        last=np.array([-1]),
        axis=np.array(1),
        features=np.array(2),
        split=np.array([0, 0, 2, 4]),
        joined=np.array([0, 0, 8]),
        flat=np.array([-1, 8]),
        rows=np.array([-1, 1, 8]),
    )
    for node in model.graph:
        if node.op_type == "Pad":  # ONNX infers no size of it
            of_conv = node.inputs[1].name == "front"  # type: ignore[union-attr]  # it has amounts
            shape: list[int | str] = ["b", 8, "t + 2"] if of_conv else ["b", "t + 1", 8]
            node.outputs[0].shape = ir.Shape(shape)
    moving = {value for node in [*model.graph][:-1] for value in node.outputs}
    moving.add(model.graph.inputs[0])
    return mixing_node(model.graph, moving, "t")


@pytest.mark.parametrize("op_type", MIXING)
def test_what_mixes_tokens_is_found(op_type: str) -> None:
    node = found_in(MIXING[op_type])
    assert node is not None
    assert node.op_type == op_type


@pytest.mark.parametrize("what", APART)
def test_what_keeps_them_apart_is_let_be(what: str) -> None:
    assert found_in(APART[what]) is None
