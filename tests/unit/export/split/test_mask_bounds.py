"""What masks hold where first rows meet later keys, by what they are made of."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.mask_bounds import MaskBounds
from crossfuse.export.split.spans import EVERY_PLACE, Bound, Span
from onnx_text import parse, value_of

P = 3
FIRST, REST = Span.of(0, P - 1), Span(Bound(P), Bound(math.inf))
OWN = Span(Bound.of("row"), Bound.of("row"))
WEIGHTS = {
    "zero": 0,
    "one": 1,
    "minus_one": -1,
    "unit": 1.0,
    "off": False,
    "on": True,
    "inf": -math.inf,
    "low": -1e9,
    "null": 0.0,
    "back": [0],
    "last": [-1],
    "down": [1],
    "start": [0],
    "end": [2**31 - 1],
    "axis0": [0],
    "axes": [0, 1],
    "three": np.ones(P, bool),
    "lower": np.tril(np.ones((9, 9), bool)),
    "window": np.tril(np.ones((9, 9), bool)) & ~np.tril(np.ones((9, 9), bool), -3),
    "block": np.tril(np.ones((9, 9), bool))
    | (np.arange(9) < P)[None] & (np.arange(9) < P)[:, None],
    "slope": 0.25,
}
POSITIONS = """s = Shape<start = 0, end = 1>(seen) n = Squeeze(s) r = Range(zero, n, one)
               row = Unsqueeze(r, down) column = Unsqueeze(r, back)"""
POSITIONS += (
    """ ws = Shape(word) rest = Expand(minus_one, ws) group = Concat<axis = 0>(front, rest)"""
)
SHAPES = """<int64[1] s, int64 n, int64[n] r, int64[n, 1] row, int64[1, n] column, int64[1] ws,
            int64[t] rest, int64[n] group, int64[n, 1] rg, int64[1, n] kg, int64[n, n, 1] ru,
            int64[n, n, 1] ku, int64[n, n, 2] at>"""


def made(text: str, kind: str = "bool") -> ir.Model:
    """``mask`` of ``[n, n]``, over the positions and a padding ``seen`` of the queries."""
    model = parse(
        f"(bool[n] seen, float[n, n] any, int64[n] any_group, int64[{P}] front, int64[t] word) "
        f"=> ({kind}[n, n] mask) {SHAPES} {{ {POSITIONS} {text} }}",
        **WEIGHTS,
    )
    for value in (out for node in model.graph for out in node.outputs):
        value.shape = value.shape if value.shape is not None else ir.Shape(["n", "n"])
    return model


def at(model: ir.Model, rows: Span, keys: Span) -> tuple[float, float]:
    span = MaskBounds().at(value_of(model, "mask"), (rows, keys))
    assert not span.low.sizes or not span.high.sizes or span.low == span.high
    return span.low.number, span.high.number


HIDDEN = {
    "comparison": "mask = LessOrEqual(column, row)",
    "comparison the other way": "mask = GreaterOrEqual(row, column)",
    "not later": "later = Greater(column, row) mask = Not(later)",
    "distance": "d = Sub(row, column) mask = GreaterOrEqual(d, zero)",
    "padded": "c = LessOrEqual(column, row) mask = And(c, seen)",
    "window": """c = LessOrEqual(column, row) d = Sub(row, column) w = Less(d, one)
                 mask = And(c, w)""",
    "table": "s2 = Concat<axis = 0>(s, s) mask = Slice(lower, start, s, axis0)",
    "table with a window": "mask = Slice(window, start, s, axis0)",
    "whole in front": "mask = Slice(block, start, s, axis0)",
    "triangle": "s2 = Concat<axis = 0>(s, s) o = Expand(on, s2) mask = Trilu<upper = 0>(o)",
    "not the other triangle": """s2 = Concat<axis = 0>(s, s) o = Expand(on, s2)
                                 u = Trilu<upper = 1>(o, one) mask = Not(u)""",
    "blocks that end in front": """rg = Unsqueeze(group, down) kg = Unsqueeze(group, back)
        e = Equal(rg, kg) i = GreaterOrEqual(rg, zero) c = LessOrEqual(column, row)
        b = And(e, i) mask = Or(c, b)""",
    "taken by places": """s2 = Concat<axis = 0>(s, s) re = Expand(row, s2) ke = Expand(column, s2)
        ru = Unsqueeze(re, last) ku = Unsqueeze(ke, last) at = Concat<axis = 2>(ru, ku)
        c = LessOrEqual(column, row) mask = GatherND(c, at)""",
    "as numbers": """s2 = Concat<axis = 0>(s, s) o = Expand(unit, s2)
                     t = Trilu<upper = 0>(o, minus_one) mask = Cast<to = 9>(t)""",
}
SEEN = {
    "everything": "s2 = Concat<axis = 0>(s, s) mask = Expand(on, s2)",
    "padding alone": "s2 = Concat<axis = 0>(s, s) mask = Expand(seen, s2)",
    "earlier rows hidden": "mask = GreaterOrEqual(column, row)",
    "one key ahead": "d = Sub(column, row) mask = LessOrEqual(d, one)",
    "blocks of any tokens": """rg = Unsqueeze(any_group, down) kg = Unsqueeze(any_group, back)
        e = Equal(rg, kg) i = GreaterOrEqual(rg, zero) c = LessOrEqual(column, row)
        b = And(e, i) mask = Or(c, b)""",
    "blocks that hold the rest": """rg = Unsqueeze(group, down) kg = Unsqueeze(group, back)
        e = Equal(rg, kg) i = GreaterOrEqual(rg, minus_one) c = LessOrEqual(column, row)
        b = And(e, i) mask = Or(c, b)""",
    "or what is seen": "c = LessOrEqual(column, row) mask = Or(c, seen)",
    "of the inputs": "mask = Greater(any, null)",
}


@pytest.mark.parametrize("name", list(HIDDEN))
def test_a_causal_mask_hides_what_follows(name: str) -> None:
    assert at(made(HIDDEN[name]), FIRST, REST) == (0, 0)


@pytest.mark.parametrize("name", list(SEEN))
def test_nothing_else_is_known_to_hide_it(name: str) -> None:
    assert at(made(SEEN[name]), FIRST, REST)[1] == 1


BIASES = {
    "filled": ("c = Greater(column, row) mask = Where(c, inf, null)", -math.inf, 0),
    "filled low": ("c = Greater(column, row) mask = Where(c, low, null)", -1e9, 0),
    "multiplied": (
        "c = LessOrEqual(column, row) f = Cast<to = 1>(c) g = Sub(unit, f) mask = Mul(g, low)",
        -1e9,
        0,
    ),
    "with distances": (
        """c = Greater(column, row) f = Where(c, inf, null) d = Sub(column, row)
           e = Cast<to = 1>(d) a = Mul(e, slope) mask = Add(f, a)""",
        -math.inf,
        0,
    ),
    "with a bias": (
        "c = Greater(column, row) f = Where(c, inf, null) mask = Add(f, any)",
        -math.inf,
        -math.inf,
    ),
    "of the inputs": ("mask = Identity(any)", math.inf, -math.inf),
}


@pytest.mark.parametrize("name", list(BIASES))
def test_biases_have_bounds(name: str) -> None:
    """At later keys the largest, and at a row's own key the smallest."""
    text, most, least = BIASES[name]
    model = made(text, "float")
    assert at(model, FIRST, REST)[1] == most
    assert at(model, OWN, OWN)[0] == least


def test_a_row_sees_itself() -> None:
    assert at(made(HIDDEN["comparison"]), OWN, OWN) == (1, 1)
    assert at(made(HIDDEN["triangle"]), OWN, OWN) == (1, 1)
    assert at(made(HIDDEN["table"]), OWN, OWN) == (1, 1)
    assert at(made(HIDDEN["padded"]), OWN, OWN) == (0, 1)
    assert at(made(HIDDEN["as numbers"]), OWN, OWN) == (0, 0)


def test_places_lead_into_what_was_joined() -> None:
    """A mask of ones in front of one of the queries'."""
    model = parse(
        """(bool[t] seen) => (bool[n] mask) <bool[n] joined>
           { joined = Concat<axis = 0>(three, seen) mask = Identity(joined) }""",
        **WEIGHTS,
    )
    bounds = MaskBounds()
    mask = value_of(model, "joined")
    assert bounds.at(mask, (FIRST,)) == Span.of(1, 1)
    assert bounds.at(mask, (REST,)) == Span.of(0, 1)
    assert bounds.at(mask, (EVERY_PLACE,)) == Span.of(0, 1)
    assert bounds.at(mask, ()) == Span.of(0, 1)
    assert bounds.at(None, ()) == Span.of(-math.inf, math.inf)
