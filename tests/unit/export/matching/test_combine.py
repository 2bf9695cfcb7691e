"""Operands behind multipliers and gates, executed."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.matching.axes import Axes, AxisFactor, FactoredValue, Size, size_of
from crossfuse.export.matching.combine import gated, multiplied
from crossfuse.export.matching.gates import Gate, GateKind
from crossfuse.export.matching.layout_builder import LayoutBuilder
from crossfuse.export.matching.terms import Multiplier
from onnx_text import parse, run_reference, value_of, with_tape

BATCH, HEADS, KEYS, SIZE = ((AxisFactor(Size(n)),) for n in (2, 4, 5, 3))
OWN: Axes = (BATCH, KEYS, SIZE)
RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((2, 5, 3)).astype(np.float32)
BY_HEAD = RNG.standard_normal((4, 1, 5)).astype(np.float32)
SEEN = RNG.random((2, 1, 1, 5)) > 0.4


def run(of: FactoredValue, model, layout: LayoutBuilder) -> np.ndarray:
    target = [[*BATCH], [*HEADS], [*KEYS], [*SIZE]]
    whole = layout.arrange(of.value, of.axes, target, expand=False)
    graph = with_tape(model, list(layout.build.nodes), whole)
    (got,) = run_reference(graph, {"v": VALUES, "g": BY_HEAD, "m": SEEN})
    return got


@pytest.mark.parametrize("kind", list(GateKind))
def test_values_behind_gates(kind: GateKind) -> None:
    model = parse(
        "(float[2, 5, 3] v, float[4, 1, 5] g, bool[2, 1, 1, 5] m) => (float[2, 5, 3] y) "
        "{ y = Identity(v) }"
    )
    masks = kind in (GateKind.KEEP, GateKind.HIDE)
    name, axes = ("m", (BATCH, (), (), KEYS)) if masks else ("g", (HEADS, (), KEYS))
    layout = LayoutBuilder()
    layout.knows(value_of(model, "v"), OWN)
    gate = Gate(FactoredValue(value_of(model, name), axes), kind)
    found = gated(FactoredValue(value_of(model, "v"), OWN), [gate], (*BATCH, *HEADS), layout)
    values, by_head = VALUES[:, None].astype(np.float64), BY_HEAD[None, :, 0, :, None]
    seen = SEEN[:, 0, 0, :, None][:, None]
    expected = {
        GateKind.MULTIPLY: values * by_head,
        GateKind.DIVIDE: values / by_head,
        GateKind.KEEP: values * seen,
        GateKind.HIDE: values * ~seen,
    }[kind]
    np.testing.assert_allclose(run(found, model, layout), expected, rtol=1e-5)


def test_a_multiplier_adds_the_heads_that_queries_lack() -> None:
    model = parse(
        "(float[2, 5, 3] v, float[4, 1, 5] g, bool[2, 1, 1, 5] m) => (float[2, 5, 3] y) "
        "{ y = Identity(v) }"
    )
    layout = LayoutBuilder()
    layout.knows(value_of(model, "v"), OWN)
    multiplier = Multiplier(FactoredValue(value_of(model, "g"), (HEADS, (), KEYS)), divides=False)
    query = FactoredValue(value_of(model, "v"), OWN)
    found = multiplied(query, [multiplier], (*BATCH, *HEADS), layout)
    assert [size_of(axis).dim for axis in found.axes] == [4, 2, 5, 3]
    expected = VALUES[:, None].astype(np.float64) * BY_HEAD[None, :, 0, :, None]
    np.testing.assert_allclose(run(found, model, layout), expected, rtol=1e-5)
    assert multiplied(query, [], (*BATCH, *HEADS), layout) is query
