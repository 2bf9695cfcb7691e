"""Sizes read off values."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.core.tensors import TensorSpec
from crossfuse.graph.metadata import RANGE
from crossfuse.graph.shapes import boundary, dim_of, dims_of, rank_of, same_dim


def value(shape: list[int | str | None] | None, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    given = None if shape is None else ir.Shape(shape)
    return ir.Value(name="x", shape=given, type=ir.TensorType(kind))


def test_sizes() -> None:
    x = value(["B", 3, None, "2*L"])
    assert dims_of(x) == [dim_of(x, i) for i in range(4)] == ["B", 3, None, "2*L"]
    assert dim_of(x, -1) == "2*L"
    assert rank_of(x) == 4
    assert (rank_of(value([])), dims_of(value([]))) == (0, [])
    for unknown in (None, value(None)):
        assert (dim_of(unknown, 0), dims_of(unknown), rank_of(unknown)) == (None, None, None)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [(3, 3, True), ("B", "B", True), (3, 4, False), ("B", "L", False), (None, None, False)],
)
def test_equal_sizes_are_known_ones(a: int | str | None, b: int | str | None, same: bool) -> None:
    assert same_dim(a, b) is same


def test_specs_of_inputs() -> None:
    ids = value(["B", "L"], ir.DataType.INT64)
    ids.metadata_props[RANGE] = "0:9"
    assert boundary([value(["B", 3]), ids]) == (
        TensorSpec("x", "float32", ("B", 3)),
        TensorSpec("x", "int64", ("B", "L"), (0, 9)),
    )
    with pytest.raises(AssertionError, match="x has no shape"):
        boundary([value(None)])
