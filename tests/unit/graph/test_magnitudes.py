"""How large the numbers behind a bias are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crossfuse.graph.magnitudes import Magnitudes, magnitudes_behind
from onnx_building import BOOL, FLOAT, HALF, INT64, Graph
from small_graphs import model_of

LOWEST = float(np.finfo(np.float32).min)


def behind(form: Callable[[Graph], str], kind: int = FLOAT) -> Magnitudes:
    """Of the first input of the ``Identity`` that ``form``'s result goes into."""
    g = Graph()
    g.op("Identity", form(g), outputs=["y"])
    g.output("y", [None], kind)
    (last,) = [node for node in model_of(g).graph if node.outputs[0].name == "y"]
    assert last.inputs[0] is not None
    return magnitudes_behind(last.inputs[0])


def of_mask(fill: float, dtype: type = np.float32) -> Callable[[Graph], str]:
    def form(g: Graph) -> str:
        mask = g.input("m", ["B", "S"], BOOL)
        return g.op("Where", mask, g.weight(0, dtype), g.weight(fill, dtype))

    return form


def inverted(g: Graph) -> str:
    """``(1 − mask) · lowest``, the mask an input of integers."""
    kept = g.op("Cast", g.input("m", ["B", "S"], INT64), to=FLOAT)
    return g.op("Mul", g.op("Sub", g.weight(1, np.float32), kept), g.weight(LOWEST, np.float32))


@pytest.mark.parametrize(
    ("form", "largest", "outside"),
    [
        (of_mask(-1e4), {0.0, 1e4}, False),
        (of_mask(-np.inf), {0.0, np.inf}, False),
        (of_mask(-65504, np.float16), {0.0, 65504.0}, False),
        (inverted, {1.0, -LOWEST}, False),
        (lambda g: g.weight([1, np.nan, -3], np.float32), {3.0}, False),
        (lambda g: g.input("b", ["B", "S"]), set(), True),
        (lambda g: g.op("Neg", g.input("b", ["B", "S"])), set(), True),
        (lambda g: g.op("Cast", g.input("b", ["B"], HALF), to=FLOAT), set(), True),
        (lambda g: g.op("Cast", g.input("n", ["B"], INT64), to=FLOAT), set(), False),
        (lambda g: g.op("Tanh", g.input("b", ["B", "S"])), set(), False),
        (lambda g: g.op("MatMul", g.input("b", ["B", "S"]), g.input("c", ["S"])), set(), False),
        (
            lambda g: g.op(
                "Gather", g.weight([[2.0], [-5.0]], np.float32), g.input("i", ["B"], INT64)
            ),
            {5.0},
            False,
        ),
    ],
)
def test_constants_and_inputs(
    form: Callable[[Graph], str], largest: set[float], outside: bool
) -> None:
    found = behind(form, FLOAT)
    assert found == Magnitudes(frozenset(largest), outside)


@pytest.mark.parametrize(
    ("largest", "outside", "limit", "reaches"),
    [
        ({1e4}, False, 1e4, True),
        ({1e4}, False, 1.1e4, False),
        ({np.inf}, False, 1e300, True),
        (set(), False, 1.0, False),
        (set(), True, 1e300, True),
    ],
)
def test_reach(largest: set[float], outside: bool, limit: float, reaches: bool) -> None:
    assert Magnitudes(frozenset(largest), outside).reach(limit) is reaches


def test_a_comparison_of_inputs_is_no_number() -> None:
    """What is compared decides where the fill stands, not how large it is."""

    def form(g: Graph) -> str:
        a, b = g.input("a", ["B", "S"]), g.input("b", ["B", "S"])
        later = g.op("Greater", a, b)
        return g.op("Where", later, g.weight(0, np.float32), g.weight(-9, np.float32))

    assert behind(form) == Magnitudes(frozenset({0.0, 9.0}), False)
