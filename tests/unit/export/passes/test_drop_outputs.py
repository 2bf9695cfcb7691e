"""Outputs that are left out take with them what only they need."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.passes.drop_outputs import DropOutputsPass
from onnx_building import Graph
from small_graphs import computed, counts, feeds_of, model_of, same_numbers, untouched


def two_outputs() -> ir.Model:
    g = Graph()
    x = g.input("x", ["B", 4])
    shared = g.op("Neg", x)
    g.op("Exp", shared, outputs=["a"])
    g.op("Sin", g.op("Cos", shared), outputs=["b"])
    g.op("Abs", x, outputs=["c"])
    for name in "abc":
        g.output(name, ["B", 4])
    return model_of(g)


@pytest.mark.parametrize(
    ("kept", "operators"),
    [("a", {"Neg": 1, "Exp": 1}), ("ca", {"Neg": 1, "Exp": 1, "Abs": 1}), ("c", {"Abs": 1})],
)
def test_what_only_a_dropped_output_needs_goes(kept: str, operators: dict[str, int]) -> None:
    model = two_outputs()
    feeds = feeds_of(model)
    before = dict(zip("abc", computed(model, feeds), strict=True))
    result = DropOutputsPass("abc", kept)(model)
    assert result.modified
    assert [value.name for value in model.graph.outputs] == sorted(kept)  # the graph's own order
    assert counts(model) == operators
    same_numbers([before[name] for name in sorted(kept)], computed(model, feeds))


def test_nothing_is_dropped_where_all_stay() -> None:
    untouched(DropOutputsPass("abc", "abc"), two_outputs())
