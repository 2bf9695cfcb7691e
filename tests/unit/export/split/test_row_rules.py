"""Where a rule for rows doesn't hold, it says so; what they give where they hold is tested with
`row_parts`."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.row_parts import Asked, RowParts
from crossfuse.export.split.row_rules import ROW_RULES
from crossfuse.export.split.rows import Rows, Side
from onnx_text import parse, value_of

TEXT = """(float[B, 3, 4] image, float[B, T, 4] text, int64[N] places) => (float y)
          <float[B, N, 4] x, float[B, N, 4] v>
          { x = Concat<axis = 1>(image, text) SOME y = ReduceSum<keepdims = 0>(x) }"""

DOES_NOT_HOLD = {
    "other operands in front": ("v = Concat<axis = 1>(text, image)", 1, Side.FIRST),
    "another axis": (
        "p, q = Split<axis = 2, num_outputs = 2>(x) v = Concat<axis = 2>(p, q)",
        1,
        Side.FIRST,
    ),
    "a sum from behind": ("v = CumSum<reverse = 1>(x, one)", 1, Side.FIRST),
    "the rest of a sum": ("v = CumSum(x, one)", 1, Side.REST),
    "every other row": ("v = Slice(x, zero, end, ones, twos)", 1, Side.FIRST),
    "from the end": ("v = Slice(x, minus, end, ones)", 1, Side.FIRST),
    "a batch of triangles": ("v = Trilu(x)", 0, Side.FIRST),
    "the rest of the columns": ("v = Trilu(x)", 2, Side.REST),
    "padded from its end": ("v = Pad(x, negative)", 1, Side.FIRST),
    "the rest of what is padded": ("v = Pad(x, front)", 1, Side.REST),
    "taken at any places": ("v = Gather<axis = 1>(x, places)", 1, Side.FIRST),
    "rows that are there": ("v = Expand(x, ones)", 1, Side.FIRST),
}


def parts_of(some: str) -> tuple[RowParts, Rows, ir.Node]:
    model = parse(
        TEXT.replace("SOME", some),
        one=1,
        zero=[0],
        ones=[1],
        twos=[2],
        end=[2**31 - 1],
        minus=[-2],
        negative=[0, -1, 0, 0, 0, 0],
        front=[0, 1, 0, 0, 0, 0],
    )
    image, text, _ = model.graph.inputs
    node = value_of(model, "v").producer()
    assert node is not None
    parts = RowParts(model.graph, Dependence(model.graph, ["image"]), ROW_RULES)
    return parts, Rows((image, 1), (text, 1)), node


@pytest.mark.parametrize("name", list(DOES_NOT_HOLD))
def test_a_rule_that_does_not_hold_gives_nothing(name: str) -> None:
    some, axis, side = DOES_NOT_HOLD[name]
    parts, rows, node = parts_of(some)
    before = len(parts.graph)
    assert ROW_RULES[node.op_type](parts, Asked(node, axis, rows, side)) is None
    assert len(parts.graph) == before
