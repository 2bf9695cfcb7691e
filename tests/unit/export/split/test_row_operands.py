"""Rows taken of what a table is computed from."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.split.row_operands import Operand, row_operands
from crossfuse.export.split.token_places import Alignment

Dims = list[int | str]
IDS = ir.Value(name="ids", shape=ir.Shape(["b", "t"]))
KEYS, ROWS, DATA = ["b", 1, 1, "t"], ["b", 1, "t", 1], [9, 8]


@pytest.mark.parametrize(
    ("name", "operands", "dims", "expected"),
    [
        ("Where", [KEYS, ROWS, [1]], ["b", 1, "t", "t"], [None, 4, None]),
        ("GatherND", [DATA, ["b", 1, "t", 1]], ["b", 1, "t", 8], [None, 4]),
        ("Gather", [DATA, ["t"]], ["t", 8], None),
        ("Add", [["b", "t", 8], ["t", 8]], ["b", "t", 8], [4, 4]),
        ("Gather", [DATA, ["b", 1, "t", 1]], ["b", 1, "t", 1, 8], None),
        ("GatherND", [DATA, ["b", 1, 3, 1]], ["b", 1, "t", 8], None),
        ("Not", [ROWS], ["b", 1, "t", 1], None),
        ("Neg", [["t", "t"]], ["t", "t"], None),
        ("Add", [["b", 1, "s", "t"], ROWS], ["b", 1, "t", "t"], None),
        ("Transpose", [["b", 1, "t", "t"]], ["b", 1, "t", "t"], None),
        ("CastLike", [["b", 1, "t", "t"], ROWS], ["b", 1, "t", "t"], None),
    ],
    ids=[
        "broadcast",
        "taken",
        "the same in each run",
        "of other ranks",
        "taken elsewhere",
        "other indices",
        "one element",
        "constant",
        "another size",
        "moved",
        "a type's operand",
    ],
)
def test_operands_of_rows(
    name: str, operands: list[Dims], dims: Dims, expected: list[int | None] | None
) -> None:
    given = [ir.Value(name=f"v{n}", shape=ir.Shape(one)) for n, one in enumerate(operands)]
    table = ir.Node("", name, given).outputs[0]
    table.shape = ir.Shape(dims)
    found = row_operands(table, Alignment(4, 0, 2, IDS, 0), "t")
    assert (found and [one.rows and one.rows.rank for one in found]) == expected
    assert found is None or [one.value for one in found] == given


def test_an_operand_of_one_row_is_each_sequences_own() -> None:
    given = [ir.Value(shape=ir.Shape(dims)) for dims in (ROWS, KEYS, [1, 1, 1, "t"], ["t"])]
    table = ir.Node("", "Max", given).outputs[0]
    table.shape = ir.Shape(["b", 1, "t", "t"])
    found = row_operands(table, Alignment(4, 0, 2, IDS, 0), "t")
    assert found is not None
    assert [one.batch for one in found] == [None, 0, None, None]


def test_indices_are_aligned_by_their_own_axes() -> None:
    at = Alignment(4, 0, 2, IDS, 0)
    given = [ir.Value(name="d", shape=ir.Shape([9, 8])), ir.Value(shape=ir.Shape(["b", 1, "t", 1]))]
    table = ir.Node("", "GatherND", given).outputs[0]
    table.shape = ir.Shape(["b", 1, "t", 8])
    assert row_operands(table, at, "t") == [Operand(given[0]), Operand(given[1], at)]
    flat = ir.Value(shape=ir.Shape(["b", "t"]))
    table = ir.Node("", "Gather", [given[0], flat]).outputs[0]
    table.shape = ir.Shape(["b", "t", 8])
    of_three = Alignment(3, 0, 1, IDS, 0)
    assert row_operands(table, of_three, "t") == [
        Operand(given[0]),
        Operand(flat, of_three._replace(rank=2)),
    ]
