"""Rows of a result are made of the same rows of the operands, or no rule says so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.token_axes import index_parts, integers, operand_axes, own_axis
from onnx_text import node_of, parse, run_reference, value_of

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((2, 5, 4)).astype(np.float32) for _ in range(2))

CASES = {
    "sum": ("y = Add(x, row)", 1, [1, None]),
    "sum of other ranks": ("y = Add(x, table)", 1, [1, 0]),
    "choice": ("b = Greater(x, row) y = Where(b, x, z)", 1, [1, 1, 1]),
    "product": ("y = MatMul(x, weight)", 1, [1, None]),
    "columns of a product": ("y = MatMul(x, weight)", 2, [None, 1]),
    "batch of a product": ("y = MatMul(x, weight)", 0, [0, None]),
    "keys of scores": ("t = Transpose<perm = [0, 2, 1]>(z) y = MatMul(x, t)", 2, [None, 2]),
    "normalization": ("y = LayerNormalization<axis = -1>(x, scale)", 1, [1, None]),
    "normalization over the rows": ("y = LayerNormalization<axis = 1>(x, scale2)", 1, None),
    "softmax": ("y = Softmax<axis = -1>(x)", 1, [1]),
    "softmax over the rows": ("y = Softmax<axis = 1>(x)", 1, None),
    "mean of a row": ("y = ReduceMean<keepdims = 0>(x, last)", 1, [1, None]),
    "mean over the rows": ("y = ReduceMean<keepdims = 1>(x, rows)", 1, None),
    "heads": ("y = Reshape(x, heads)", 1, [1, None]),
    "rows merged with the batch": ("y = Reshape(x, merged)", 0, None),
    "moved": ("y = Transpose<perm = [1, 0, 2]>(x)", 0, [1]),
    "new axis": ("y = Unsqueeze(x, rows)", 2, [1, None]),
    "no axis": ("u = Unsqueeze(x, rows) y = Squeeze(u, rows)", 1, [2, None]),
    "table": ("y = Gather<axis = 0>(table, ids)", 1, [None, 1]),
    "behind the table": ("y = Gather<axis = 0>(table, ids)", 2, [1, None]),
    "gathered along": ("y = Gather<axis = 1>(x, first)", 1, [None, 0]),
    "repeated": ("y = Expand(small, wide)", 1, [None, None]),
    "features": ("y = Slice(x, first, two, last)", 1, [1, None, None, None]),
    "some rows": ("y = Slice(x, first, two, rows)", 1, None),
    "joined features": ("y = Concat<axis = 2>(x, z)", 1, [1, 1]),
    "joined rows": ("y = Concat<axis = 1>(x, z)", 1, None),
    "running sum": ("y = CumSum(x, one)", 1, None),
    "running sum of features": ("y = CumSum(x, two0)", 1, [1, None]),
    "triangle": ("y = Trilu(x)", 1, None),
    "padded features": ("y = Pad(x, pads)", 1, [1, None]),
    "tiled features": ("y = Tile(x, tiles)", 1, [1, None]),
    "unknown": ("y = LpPool<kernel_shape = [2]>(x)", 1, None),
}


def made(text: str) -> ir.Model:
    model = parse(
        f"""(float[2, 5, 4] x, float[2, 5, 4] z) => (float out)
            {{ {text} out = ReduceSum<keepdims = 0>(y) }}""",
        row=RNG.standard_normal((1, 4)),
        table=RNG.standard_normal((5, 4)),
        weight=RNG.standard_normal((4, 3)),
        scale=RNG.standard_normal(4),
        scale2=RNG.standard_normal((5, 4)),
        small=RNG.standard_normal((1, 1, 4)),
        ids=[[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]],
        heads=[2, 5, 2, 2],
        merged=[10, 4],
        wide=[2, 5, 4],
        last=[-1],
        rows=[1],
        first=[0],
        two=[2],
        one=1,
        two0=2,
        rows2=[[0], [1]],
        columns=[[2], [3]],
        pads=[0, 0, 0, 0, 0, 1],
        tiles=[1, 1, 2],
    )
    model.graph.outputs[:] = [value_of(model, "y")]
    return model


@pytest.mark.parametrize("name", list(CASES))
def test_rows_are_made_of_rows(name: str) -> None:
    text, axis, expected = CASES[name]
    model = made(text)
    node = value_of(model, "y").producer()
    assert node is not None
    axes = operand_axes(node, axis)
    assert axes == expected


@pytest.mark.parametrize("name", [n for n, (_, _, axes) in CASES.items() if axes is not None])
def test_what_the_rules_say_is_so(name: str) -> None:
    """A change of the last places of the operands along those axes leaves the first places of the
    result as they are."""
    text, axis, _ = CASES[name]
    model = made(text)
    node = value_of(model, "y").producer()
    assert node is not None
    (before,) = run_reference(model, {"x": X, "z": Y})
    names = [v.name for v in node.inputs if v is not None]
    axes = dict(zip(names, operand_axes(node, axis) or (), strict=True))
    changed = {}
    for key, value in (("x", X), ("z", Y)):
        own = axes.get(key)
        changed[key] = value.copy()
        if own is not None:
            np.moveaxis(changed[key], own, 0)[2:] += 1.0
    (after,) = run_reference(model, changed)
    first = np.arange(min(2, before.shape[axis] - 1))
    np.testing.assert_array_equal(before.take(first, axis), after.take(first, axis))


def test_a_rank_that_is_not_known_has_no_axes() -> None:
    model = made("y = Add(x, row)")
    node = node_of(model, "Add")
    node.outputs[0].shape = None
    assert operand_axes(node, 1) is None


def test_what_is_taken_along_each_axis_is_read() -> None:
    parts = "at = Concat<axis = 1>(rows2, columns)"
    model = made(f"{parts} y = GatherND(table, at)")
    names = [v.name for v in index_parts(node_of(model, "GatherND")) or ()]
    assert names == ["rows2", "columns"]
    assert index_parts(node_of(made(f"{parts} y = GatherND(x, at)"), "GatherND")) is None
    assert index_parts(node_of(made("y = GatherND(table, rows2)"), "GatherND")) is None


def test_numbers_and_axes_are_read() -> None:
    model = made("y = Concat<axis = -2>(x, z)")
    assert own_axis(node_of(model, "Concat"), 0) == 1
    assert integers(value_of(model, "heads")) == [2, 5, 2, 2]
    assert integers(value_of(model, "x")) is None
    assert integers(None) is None
