"""Masks that are proven to keep the first keys, and masks that only may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.graph.attention_node import attentions
from crossfuse.targets.cuda.prefix import is_prefix, masks_keys
from crossfuse.targets.fan_out import Site
from graphs_for_tests import Case
from onnx_building import BOOL, INT64, Graph
from small_graphs import computed, model_of

Form = Callable[[Graph, str, str], str]
"""Positions ``[1, S]`` and lengths ``[B, 1]`` → a mask ``[B, S]``."""


def mask(form: Form, start: int = 0, step: int = 1) -> tuple[ir.Model, ir.Value]:
    g = Graph()
    x, n = g.input("x", ["B", "S", 4]), g.input("n", ["B"], INT64)
    count = g.op("Squeeze", g.op("Shape", x, start=1, end=2))
    places = g.op("Range", g.weight(start, np.int64), count, g.weight(step, np.int64))
    compared = form(g, g.op("Unsqueeze", places, g.ints(0)), g.op("Unsqueeze", n, g.ints(1)))
    four = g.op("Unsqueeze", compared, g.ints(1, 2))
    g.op("Identity", four, outputs=["y"])
    g.output("y", ["B", 1, 1, "S"], BOOL)
    model = model_of(g)
    for node in model.graph:  # as the exporter knows them; ONNX's inference gives up at Range
        if node.op_type == "Range":
            node.outputs[0].shape = ir.Shape(["S"])
        elif node.op_type == "Unsqueeze" and node.inputs[0].producer() is not None:
            kind = node.inputs[0].producer().op_type
            if kind == "Range":
                node.outputs[0].shape = ir.Shape([1, "S"])
        elif node.op_type in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And"):
            node.outputs[0].shape = ir.Shape(["B", "S"])
    found = next(node for node in model.graph if node.outputs[0].name == four)
    found.outputs[0].shape = ir.Shape(["B", 1, 1, "S"])
    return model, found.outputs[0]


PREFIXES: dict[str, Form] = {
    "less": lambda g, p, n: g.op("Less", p, n),
    "at most": lambda g, p, n: g.op("LessOrEqual", p, n),
    "greater, turned": lambda g, p, n: g.op("Greater", n, p),
    "not at least": lambda g, p, n: g.op("Not", g.op("GreaterOrEqual", p, n)),
    "not turned": lambda g, p, n: g.op("Not", g.op("LessOrEqual", n, p)),
}
OTHERS: dict[str, Form] = {
    "suffix": lambda g, p, n: g.op("GreaterOrEqual", p, n),
    "less, turned": lambda g, p, n: g.op("Less", n, p),
    "not less": lambda g, p, n: g.op("Not", g.op("Less", p, n)),
    "two tests": lambda g, p, n: g.op("And", g.op("Less", p, n), g.op("Less", p, n)),
}


def keeps_the_first(model: ir.Model) -> bool:
    """By running: whether every row of the mask is True up to some key and False behind it."""
    rng = np.random.default_rng(0)
    found = True
    for _ in range(20):
        lengths = rng.integers(0, 6, 3)
        (y,) = computed(model, {"x": np.zeros((3, 5, 4)), "n": lengths})
        found &= bool((np.sort(y, -1)[..., ::-1] == y).all())
    return found


@pytest.mark.parametrize("name", PREFIXES)
def test_every_spelling_is_proven(name: str) -> None:
    model, value = mask(PREFIXES[name])
    assert is_prefix(value)
    assert keeps_the_first(model)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not(name: str) -> None:
    model, value = mask(OTHERS[name])
    assert not is_prefix(value)
    assert keeps_the_first(model) == (name == "two tests")  # true there, but not proven


@pytest.mark.parametrize(("start", "step"), [(1, 1), (0, 2)])
def test_positions_are_0_1_2(start: int, step: int) -> None:
    assert not is_prefix(mask(PREFIXES["less"], start, step)[1])


def test_an_input_proves_nothing() -> None:
    (attention,) = attentions(Case(mask=True, mask_batch="k", mask_rows=False).model().graph)
    assert attention.mask is not None
    assert not is_prefix(attention.mask)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(mask=True, mask_batch="k", mask_rows=False), True),
        (Case(mask=True, mask_batch="1", mask_rows=False), False),
        (Case(mask=True, mask_batch="k", mask_rows=True), False),
        (Case(mask=True, mask_batch="k", mask_rows=False, mask_heads=True), False),
        (Case(mask=True, mask_batch="k", mask_rows=False, bias=True), False),
        (Case(mask=True, mask_batch="k", mask_rows=False, causal="upper_left"), False),
        (Case(), False),
    ],
)
def test_which_masks_speak_of_keys_alone(case: Case, expected: bool) -> None:
    (attention,) = attentions(case.model().graph)
    assert masks_keys(Site.of(attention)) is expected
