"""Masks are told to be one by what they are made of, however they are written."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.matching.conditions import (
    hides_as_bias,
    is_binary,
    literals_of,
    low_bias,
    same_value,
)
from onnx_text import parse, value_of

INPUTS = "(bool[b, s] m, bool[l, s] late, int64[b, s] ids, float[b, s] x)"
WEIGHTS = {
    "one": np.float32(1),
    "zero": np.float32(0),
    "zero_id": np.int64(0),
    "low": np.float32(-1e9),
    "near": np.float32(-2),
    "axes": np.array([1, 2]),
    "table": np.tri(4, dtype=np.float32),
    "twos": 2 * np.tri(4, dtype=np.float32),
    "first": np.array([0, 0]),
    "last": np.array([2, 3]),
}
BODY = """
    n = Not(m) u = Unsqueeze(m, axes) v = Unsqueeze(n, axes) f = Cast<to=1>(u)
    w = Not(u) g = Sub(one, f) h = Where(w, zero, one)
    e = Equal(ids, zero_id) c = Cast<to=9>(ids) q = Identity(c)
    o = Or(n, e) p = And(m, c) k = Cast<to=1>(m) i = Cast<to=1>(c) j = Mul(k, i)
    add = Mul(g, low) few = Mul(g, near) sel = Where(u, zero, low) wrong = Where(u, low, zero)
    n2 = Not(m) v2 = Unsqueeze(n2, axes) t = Transpose<perm=[1, 0]>(late) y = Identity(x)
    cut = Slice(table, first, last) other = Slice(twos, first, last) left = Sub(one, cut)
    under = Mul(left, low)
"""
GRAPH = parse(f"{INPUTS} => (float[b, s] y) {{ {BODY} }}", **WEIGHTS)


def value(name: str):
    return value_of(GRAPH, name)


def same(one: str, hides: bool, other: str, other_hides: bool) -> bool:
    first, second = literals_of(value(one), hides), literals_of(value(other), other_hides)
    return len(first) == len(second) and all(any(a.same_as(b) for b in second) for a in first)


@pytest.mark.parametrize(
    ("one", "hides", "other", "other_hides"),
    [
        ("m", False, "n", True),
        ("u", False, "v", True),  # negated before the axes come, or behind
        ("w", True, "v", True),
        ("f", False, "w", True),  # ones where attended
        ("g", True, "u", False),  # 1 − mask
        ("h", False, "w", True),
        ("e", True, "c", False),  # ids == 0, and ids as bool
        ("q", False, "e", True),
        ("o", True, "p", False),  # not m or ids == 0, and m and ids
        ("o", True, "j", False),  # the product of both as numbers
        ("v", True, "v2", True),  # computed twice
    ],
)
def test_masks_that_are_one(one: str, hides: bool, other: str, other_hides: bool) -> None:
    assert same(one, hides, other, other_hides)
    assert not same(one, not hides, other, other_hides)


@pytest.mark.parametrize(
    ("one", "other"), [("m", "late"), ("m", "c"), ("m", "u"), ("late", "t"), ("o", "n")]
)
def test_masks_that_are_not(one: str, other: str) -> None:
    assert not same(one, True, other, True)


def test_zeros_and_ones() -> None:
    assert all(is_binary(value(name)) for name in ("m", "f", "g", "h", "j", "o", "table", "cut"))
    assert not any(
        is_binary(value(name)) for name in ("x", "ids", "add", "sel", "twos", "other", "low")
    )


def test_biases_that_hide() -> None:
    (added,), (chosen,) = hides_as_bias(value("add"), 1.0), hides_as_bias(value("sel"), 1.0)
    (mask,) = literals_of(value("u"), False)
    assert added.same_as(mask)
    assert chosen.same_as(mask)
    assert hides_as_bias(value("few"), 1.0) == ()
    assert len(hides_as_bias(value("few"), 1000.0)) == 1
    assert hides_as_bias(value("add"), -1.0) == (), "it lifts where the mask is 0"
    (turned,) = hides_as_bias(value("wrong"), 1.0)
    assert turned.same_as(literals_of(value("u"), True)[0])
    assert hides_as_bias(value("x"), 1.0) == ()


def test_how_low_a_bias_is() -> None:
    added, under = low_bias(value("add"), 1.0), low_bias(value("under"), 1.0)
    assert added is not None
    assert under is not None
    assert added.number == under.number == pytest.approx(-1e9)
    assert added.literals == hides_as_bias(value("add"), 1.0)
    assert under.literals[0].same_as(literals_of(value("cut"), False)[0])
    chosen = low_bias(value("sel"), 2.0)
    assert chosen is not None
    assert chosen.number == pytest.approx(-2e9)
    assert low_bias(value("few"), 1.0) is None


def test_equal_values_are_computed_alike_from_the_same() -> None:
    assert same_value(value("v"), value("v2"))
    assert not same_value(value("v"), value("u"))
    assert not same_value(value("m"), value("late"))
    assert not same_value(value("v"), None)
