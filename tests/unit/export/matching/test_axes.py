"""Axes as factors: what layout operators do to them, against NumPy doing it to numbers."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.matching.axes import (
    AxisFactor,
    Size,
    all_factors,
    axes_of,
    factors,
    follow_layout,
    size_of,
)
from onnx_text import parse


@pytest.mark.parametrize(
    ("dim", "factor", "symbols"),
    [
        (6, 6, ()),
        ("batch", 1, ("batch",)),
        ("4*batch", 4, ("batch",)),
        ("length*2*batch*3", 6, ("batch", "length")),
        ("(length + 1)*batch", 1, ("(length + 1)", "batch")),
        ("length//2", 1, ("length//2",)),
        ("batch - 1", 1, ("batch - 1",)),
    ],
)
def test_sizes_are_parsed_as_products(dim: int | str, factor: int, symbols: tuple) -> None:
    size = Size.parse(dim)
    assert (size.factor, size.symbols) == (factor, symbols)
    assert Size.parse(size.dim) == size


@pytest.mark.parametrize(
    ("dividend", "divisor", "quotient"),
    [
        ("12*batch", 4, "3*batch"),
        ("12*batch", "batch", 12),
        ("batch*batch", "batch", "batch"),
        ("12*batch", 5, None),
        ("12*batch", "length", None),
        ("batch", "batch*batch", None),
        (8, 0, None),
    ],
)
def test_a_quotient_is_whole_or_unknown(
    dividend: int | str, divisor: int | str, quotient: int | str | None
) -> None:
    found = Size.parse(dividend).over(Size.parse(divisor))
    assert (None if found is None else found.dim) == quotient


def test_a_split_is_seen_by_all_who_hold_the_factor() -> None:
    factor = AxisFactor(Size.parse("8*batch"))
    held = (factor,)
    first, rest = factor.split(Size.parse("batch"), Size(8))
    assert factors(held) == (first, rest)
    inner = rest.split(Size(2), Size(4))
    assert factors(held) == (first, *inner)
    assert size_of(factors(held)) == size_of(held)


def test_factors_are_themselves_whatever_their_size() -> None:
    assert AxisFactor(Size(4)) != AxisFactor(Size(4))


def test_an_axis_of_one_has_no_factor_and_an_unknown_one_its_own() -> None:
    value = ir.Value(name="x", shape=ir.Shape([1, None, 3, None]))
    axes = axes_of(value)
    assert axes is not None
    assert [len(axis) for axis in axes] == [0, 1, 1, 1]
    assert size_of(axes[1]) != size_of(axes[3])
    assert axes_of(ir.Value(name="x")) is None


def chain_of(*steps: tuple[str, list[int]], shape: list[int]) -> ir.Model:
    """Reshapes and transposes one after the other, from ``x``."""
    lines, name, array = [], "x", np.zeros(shape)
    weights: dict[str, np.ndarray] = {}
    for i, (op, numbers) in enumerate(steps):
        if op == "Transpose":
            lines.append(f"v{i} = Transpose<perm = {numbers}>({name})")
            array = array.transpose(numbers)
        else:
            weights[f"s{i}"] = np.array(numbers, np.int64)
            lines.append(f"v{i} = Reshape({name}, s{i})")
            array = array.reshape(numbers)
        name = f"v{i}"
    before, after = (", ".join(map(str, dims)) for dims in (shape, array.shape))
    text = f"(float[{before}] x) => (float[{after}] {name}) {{ {' '.join(lines)} }}"
    return parse(text, **weights)


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ([6, 5, 7], [("Reshape", [2, 3, 5, 7]), ("Transpose", [0, 2, 1, 3])]),
        ([6, 5, 7], [("Reshape", [2, 3, 5, 7]), ("Transpose", [1, 0, 3, 2]), ("Reshape", [3, -1])]),
        ([24], [("Reshape", [4, 6]), ("Transpose", [1, 0]), ("Reshape", [3, 2, 2, 2])]),
        ([4, 6], [("Reshape", [2, 12]), ("Reshape", [2, 2, 6]), ("Transpose", [2, 1, 0])]),
        ([2, 1, 3], [("Transpose", [2, 1, 0]), ("Reshape", [3, 2]), ("Reshape", [1, 6])]),
    ],
)
def test_factors_go_where_the_numbers_go(shape: list[int], steps: list) -> None:
    """The result's factors say how to make it of the input in one transpose; NumPy says whether
    that is so."""
    model = chain_of(*steps, shape=shape)
    start = axes_of(model.graph.inputs[0])
    axes = start
    expected = np.arange(math.prod(shape)).reshape(shape)
    for node, (op, numbers) in zip(model.graph, steps, strict=True):
        assert axes is not None
        axes = follow_layout(node, axes)
        expected = expected.transpose(numbers) if op == "Transpose" else expected.reshape(numbers)
    assert start is not None
    assert axes is not None
    source, target = all_factors(start), all_factors(axes)
    apart = np.arange(math.prod(shape)).reshape([f.size.factor for f in source])
    got = apart.transpose([source.index(f) for f in target]).reshape(expected.shape)
    np.testing.assert_array_equal(got, expected)
    assert [size_of(axis).static for axis in axes] == list(expected.shape)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, None])
def test_what_is_made_flat_needs_no_sizes(axis: int | None) -> None:
    """The factors before the axis, and those from it on; by default all behind the first."""
    x = ir.Value(name="x", shape=ir.Shape(["b", None, 4]))
    node = ir.node("Flatten", [x], {} if axis is None else {"axis": axis})
    start = axes_of(x)
    assert start is not None
    first = 1 if axis is None else axis
    assert follow_layout(node, start) == (all_factors(start[:first]), all_factors(start[first:]))
    shape = np.arange(24).reshape(2, 3, 4)
    rows = math.prod(shape.shape[:first])
    flat = follow_layout(node, tuple((AxisFactor(Size(n)),) for n in shape.shape))
    assert flat is not None
    assert [size_of(each).static for each in flat] == [rows, 24 // rows]


def test_two_ways_to_split_heads_are_the_same() -> None:
    """``unflatten`` then ``transpose``, or ``view`` to the order of old ONNX files and back."""
    first = chain_of(("Reshape", [2, 5, 3, 4]), ("Transpose", [0, 2, 1, 3]), shape=[2, 5, 12])
    second = chain_of(
        ("Transpose", [1, 0, 2]),
        ("Reshape", [5, 6, 4]),
        ("Transpose", [1, 0, 2]),
        ("Reshape", [2, 3, 5, 4]),
        shape=[2, 5, 12],
    )
    axes = axes_of(first.graph.inputs[0])
    results = []
    for model in (first, second):
        found = axes
        for node in model.graph:
            assert found is not None
            found = follow_layout(node, found)
        assert found is not None
        results.append(found)
    assert all_factors(results[0]) == all_factors(results[1])


def test_a_cut_through_an_indivisible_factor_is_unknown() -> None:
    model = chain_of(("Reshape", [6, 2]), shape=[4, 3])
    axes = axes_of(model.graph.inputs[0])
    assert axes is not None
    assert follow_layout(next(iter(model.graph)), axes) is None


def test_an_unknown_shape_is_not_followed() -> None:
    node = ir.node("Reshape", [ir.Value(name="x"), ir.Value(name="s")])
    assert follow_layout(node, ((AxisFactor(Size(4)),),)) is None
