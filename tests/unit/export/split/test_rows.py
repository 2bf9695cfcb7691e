"""Two runs of rows, and sizes that are sums."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.split.rows import Cut, Rows, Side, equal_sizes, joined_along, sum_of
from crossfuse.graph.builder import GraphBuilder
from onnx_text import parse, value_of

MODEL = parse(
    """(float[B, P, 4] image, float[B, 5, 4] text) => (float[B, n, 4] y)
       { y = Concat<axis = 1>(image, text) }"""
)
IMAGE, TEXT = MODEL.graph.inputs
ROWS = Rows((IMAGE, 1), (TEXT, 1))


def test_rows_are_counted_by_tensors() -> None:
    assert (ROWS.dim(Side.FIRST), ROWS.dim(Side.REST)) == ("P", 5)
    build = GraphBuilder()
    assert ROWS.count(build, Side.FIRST).producer().op_type == "Shape"  # type: ignore[union-attr]
    assert ROWS.count(build, Side.REST).const_value.numpy().tolist() == [5]  # type: ignore[union-attr]
    assert ROWS.like(Rows((IMAGE, 1), (IMAGE, 1)))
    assert not ROWS.like(Rows((TEXT, 1), (TEXT, 1)))
    cut = Cut(1, ROWS, IMAGE, TEXT)
    assert (cut.part(Side.FIRST), cut.part(Side.REST)) == (IMAGE, TEXT)


@pytest.mark.parametrize(
    ("some", "others", "same"),
    [
        ([3], [3], True),
        ([3], [4], False),
        (["P"], ["P"], True),
        (["P"], ["Q"], False),
        (["P + 3"], ["3 + P"], True),
        ([3, "P"], ["P + 3"], True),
        (["P", "Q"], ["P + Q"], True),
        (["P", "P"], ["2*P"], True),
        (["P", "P"], ["P*P"], False),
        ([None], [None], False),
        ([1, 2], [3], True),
    ],
)
def test_sums_are_compared(some: list, others: list, same: bool) -> None:
    assert equal_sizes(some, others) is same


def test_sizes_add_up() -> None:
    assert sum_of([3, 4]) == 7
    assert sum_of(["P", 4]) == "P + 4"
    assert sum_of(["P", "T"]) == "P + T"
    assert sum_of(["P", None]) is None


def test_what_a_value_was_joined_from() -> None:
    joined = value_of(MODEL, "y")
    assert joined_along(joined, 1) == [IMAGE, TEXT]
    assert joined_along(joined, 0) == []
    assert joined_along(IMAGE, 1) == []
    assert isinstance(joined.producer(), ir.Node)
