"""Operators that rearrange a value's factors, executed and compared with NumPy's transposes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.matching.axes import Axes, axes_of
from crossfuse.export.matching.layout_builder import LayoutBuilder, UnknownSizeError
from onnx_text import parse, run_reference, with_tape

RNG = np.random.default_rng(0)


def arranged(dims: str, order: object, sizes: tuple[int, ...], **options: bool) -> np.ndarray:
    """``x`` of these dimensions, brought to the order that a function of its axes gives, on random
    numbers of these sizes."""
    model = parse(f"(float[{dims}] x) => (float[{dims}] y) {{ y = Identity(x) }}")
    value = model.graph.inputs[0]
    axes = axes_of(value)
    builder = LayoutBuilder()
    builder.knows(value, axes)
    assert callable(order)
    result = builder.arrange(value, axes, order(axes), **options)
    array = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    (got,) = run_reference(with_tape(model, list(builder.build.nodes), result), {"x": array})
    return got


def numbers(sizes: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)


@pytest.mark.parametrize("dims", ["2, 3, 4", "batch, 3, 4", "batch, length, 4", "a, b, c"])
def test_any_permutation_with_any_known_sizes(dims: str) -> None:
    sizes = (2, 3, 4)
    got = arranged(dims, lambda axes: (axes[2], axes[0], axes[1]), sizes)
    np.testing.assert_array_equal(got, numbers(sizes).transpose(2, 0, 1))


@pytest.mark.parametrize("dims", ["2, 3, 4", "batch, length, 4"])
def test_axes_are_merged(dims: str) -> None:
    sizes = (2, 3, 4)
    got = arranged(dims, lambda axes: (axes[1], (*axes[0], *axes[2])), sizes)
    np.testing.assert_array_equal(got, numbers(sizes).transpose(1, 0, 2).reshape(3, 8))


def test_nothing_is_emitted_for_nothing() -> None:
    value = ir.Value(name="x", shape=ir.Shape([2, "length"]), type=ir.TensorType(ir.DataType.FLOAT))
    axes = axes_of(value)
    assert axes is not None
    builder = LayoutBuilder()
    assert builder.arrange(value, axes, axes) is value
    assert not builder.build.nodes


def of_two(**options: bool) -> tuple[ir.Value, list[ir.Node], ir.Model]:
    """``m[keys]`` brought to the axes of ``x[batch, keys]``."""
    model = parse(
        "(float[batch, keys] x, float[keys] m) => (float[batch, keys] y) { y = Mul(x, m) }"
    )
    x, m = model.graph.inputs
    axes = axes_of(x)
    assert axes is not None
    own: Axes = (axes[1],)
    builder = LayoutBuilder()
    builder.knows(x, axes)
    return builder.arrange(m, own, axes, **options), list(builder.build.nodes), model


def test_factors_that_are_lacking_are_expanded_or_left_at_one() -> None:
    x, m = RNG.standard_normal((2, 3)), RNG.standard_normal(3)
    inputs = {"x": x.astype(np.float32), "m": m.astype(np.float32)}
    value, nodes, model = of_two()
    (got,) = run_reference(with_tape(model, nodes, value), inputs)
    np.testing.assert_array_equal(got, np.broadcast_to(inputs["m"], (2, 3)))
    value, nodes, model = of_two(expand=False)
    (got,) = run_reference(with_tape(model, nodes, value), inputs)
    np.testing.assert_array_equal(got, inputs["m"][None])


def test_sizes_are_read_off_what_is_known() -> None:
    model = parse("(float[batch, length, 4] x) => (float[batch, length, 4] y) { y = Identity(x) }")
    (value,) = model.graph.inputs
    axes = axes_of(value)
    assert axes is not None
    builder = LayoutBuilder()
    builder.knows(value, axes)
    sizes = builder.sizes(((*axes[1], *axes[2]), axes[0], ()))
    (got,) = run_reference(
        with_tape(model, list(builder.build.nodes), sizes), {"x": np.zeros((2, 3, 4), np.float32)}
    )
    np.testing.assert_array_equal(got, [12, 2, 1])


def test_a_size_on_no_known_value_is_an_error() -> None:
    value = ir.Value(name="x", shape=ir.Shape(["batch", "length"]))
    axes = axes_of(value)
    assert axes is not None
    with pytest.raises(UnknownSizeError, match="length"):
        LayoutBuilder().sizes((axes[1],))


def test_neighbours_that_stay_neighbours_move_as_one_axis() -> None:
    value = ir.Value(name="x", shape=ir.Shape([2, 3, 4, 5]), type=ir.TensorType(ir.DataType.FLOAT))
    axes = axes_of(value)
    assert axes is not None
    builder = LayoutBuilder()
    builder.arrange(
        value, ((*axes[0], *axes[1]), axes[2], axes[3]), (axes[3], axes[0], axes[1], axes[2])
    )
    (transpose,) = [node for node in builder.build.nodes if node.op_type == "Transpose"]
    assert len(transpose.attributes["perm"].as_ints()) == 3
