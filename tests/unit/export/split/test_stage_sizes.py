"""Sizes read off values that a stage has, or computed from theirs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.stage_sizes import MissingSizeError, SizeReader, read_sizes_off
from onnx_text import node_of, parse, run_reference, value_of, with_tape

SIZES = {"n": 6, "s": 7, "l": 3}
TEXT = """(float[n, s, 4] image, float[n, l] text) => (int64{} y) {{
    hidden = Neg(image) y = {}(hidden) }}"""


def read(dims: list[int | str | None], op: str = "Shape<start = 0>") -> np.ndarray:
    """What stands for a size of ``hidden`` where only ``image`` and ``text`` may be read."""
    model = parse(TEXT.format("" if op == "Size" else "[k]", op))
    hidden = value_of(model, "hidden")
    hidden.shape = ir.Shape(dims)
    read_sizes_off(model.graph, {hidden}, list(model.graph.inputs))
    assert all(node.inputs[0] is not hidden for node in model.graph if node.op_type == "Shape")
    image, text = np.zeros((6, 7, 4), np.float32), np.zeros((6, 3), np.float32)
    (got,) = run_reference(model, {"image": image, "text": text})
    return got


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        (["n", "s", 4], [6, 7, 4]),
        (["4*n", "l"], [24, 3]),
        (["n*s", "(s - 1)//2 + 1", 5], [42, 4, 5]),
        (["-(-s//2)", "s % 4", "Max(s, l)", "Min(n, 2)"], [4, 3, 7, 2]),
        (["n", "n*l/2"], [6, 9]),
        ([], []),
    ],
)
def test_sizes_are_read_or_computed(dims: list[int | str | None], expected: list[int]) -> None:
    assert read(dims).tolist() == expected
    if dims:
        assert read(dims, "Shape<start = -1>").tolist() == expected[-1:]
    assert read(dims, "Size").tolist() == np.prod(expected, dtype=int)


def test_a_name_may_be_read_elsewhere() -> None:
    """The number of contexts in place of the queries'."""
    model = parse(TEXT.format("[k]", "Shape<end = 2>"))
    node = node_of(model, "Shape")
    model.graph.inputs[0].shape = ir.Shape(["2*n", "s", 4])
    value_of(model, "hidden").shape = ir.Shape(["2*n", "s", 4])
    image, text = model.graph.inputs
    reader = SizeReader([image, text], {"n": (text, 1)})
    model = with_tape(model, list(reader.build.nodes), reader.like(node))
    model.graph.extend(reader.build.nodes)
    arrays = {"image": np.zeros((6, 7, 4), np.float32), "text": np.zeros((6, 3), np.float32)}
    assert run_reference(model, arrays)[0].tolist() == [6, 7]


@pytest.mark.parametrize("dims", [["m"], [None], ["2**n"], ["m + 1"]])
def test_a_size_that_nothing_has(dims: list[int | str | None]) -> None:
    with pytest.raises(MissingSizeError) as caught:
        read(dims)
    assert list(caught.value.kept) in (["hidden"], [""])


def test_an_unknown_shape() -> None:
    model = parse(TEXT.format("[k]", "Shape"))
    hidden = value_of(model, "hidden")
    hidden.shape = None
    with pytest.raises(MissingSizeError, match="read off a tensor that is in the other stage"):
        read_sizes_off(model.graph, {hidden}, list(model.graph.inputs))
