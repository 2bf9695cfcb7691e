"""Arrow's rows as arrays and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from crossfuse.core.tensors import TensorSpec  # noqa: E402
from crossfuse.errors import InputError  # noqa: E402
from crossfuse.serve.bulk.columns import to_array, to_column  # noqa: E402


def spec(dtype: str = "float32", *shape: int | str) -> TensorSpec:
    return TensorSpec("x", dtype, shape)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_rows_come_back_as_they_were(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 2, shape).astype(dtype) for _ in range(3)]
    column = to_column(rows)
    assert len(column) == 3
    for row, scalar in zip(rows, column, strict=True):
        found = to_array(scalar, spec(dtype, *shape), shape)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, row)


def test_rows_may_have_sizes_of_their_own() -> None:
    rows = [np.arange(n * 2, dtype=np.float32).reshape(n, 2) for n in (3, 2, 1)]
    found = [to_array(scalar, spec("float32", "n", 2), ("n", 2)) for scalar in to_column(rows)]
    for row, array in zip(rows, found, strict=True):
        np.testing.assert_array_equal(array, row)


def test_one_list_stands_for_a_shape_with_a_single_open_size() -> None:
    flat = pa.scalar([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert to_array(flat, spec("float32", "n", 3), ("n", 3)).shape == (2, 3)
    with pytest.raises(InputError, match=r"wrong shape \(x\): got .*expected \[n, m\]"):
        to_array(flat, spec("float32", "n", "m"), ("n", "m"))
    with pytest.raises(InputError, match="wrong shape"):
        to_array(flat, spec("float32", "n", 4), ("n", 4))


@pytest.mark.parametrize(
    ("value", "kind", "dtype", "message"),
    [
        (None, "list", "float32", "a value is missing"),
        ([1.0, None], "list", "float32", "missing.*1 nulls"),
        ([[1.0], [1.0, 2.0]], "lists", "float32", "ragged"),
        ([1.5], "list", "int64", "type doesn't fit"),
        ([300], "ints", "uint8", "out of the element type's range"),
        ([1], "ints", "bool", "type doesn't fit"),
    ],
)
def test_what_is_no_array(value: Any, kind: str, dtype: str, message: str) -> None:
    kinds = {
        "list": pa.list_(pa.float64()),
        "lists": pa.list_(pa.list_(pa.float64())),
        "ints": pa.list_(pa.int64()),
    }
    with pytest.raises(InputError, match=message):
        to_array(pa.scalar(value, kinds[kind]), spec(dtype, "n"), ("n",))


def test_numbers_become_floats_and_wide_floats_narrow() -> None:
    found = to_array(pa.scalar([1, 2]), spec("float32", "n"), ("n",))
    assert found.dtype == np.float32
    assert to_array(pa.scalar(7), spec("int64"), ()).shape == ()


def tensors(flat: np.ndarray, shape: tuple[int, ...], permutation: tuple[int, ...]) -> Any:
    kind = pa.fixed_shape_tensor(pa.float32(), shape, permutation=permutation)
    stored = pa.array(flat.reshape(len(flat), -1).tolist(), pa.list_(pa.float32(), flat[0].size))
    return pa.ExtensionArray.from_storage(kind, stored)


@pytest.mark.parametrize("permutation", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)])
def test_tensors_are_read_in_the_order_of_their_axes(permutation: tuple[int, ...]) -> None:
    """As Arrow's specification has it: axis i is the stored axis permutation[i]."""
    logical = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    inverse = np.argsort(permutation)
    stored = logical.transpose(0, *(1 + inverse))
    column = tensors(stored, stored.shape[1:], permutation)
    for scalar, expected in zip(column, logical, strict=True):
        found = to_array(scalar, spec("float32", 2, 3, 4), (2, 3, 4))
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_what_arrows_writer_stores_is_read_back(order: tuple[int, ...]) -> None:
    """It turns the permutation around."""
    logical = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    memory = np.ascontiguousarray(logical.transpose(0, *(1 + np.array(order))))
    given = memory.transpose(0, *(1 + np.argsort(order)))
    for scalar, expected in zip(
        pa.FixedShapeTensorArray.from_numpy_ndarray(given), logical, strict=True
    ):
        found = to_array(scalar, spec("float32", 2, 3, 4), (2, 3, 4))
        np.testing.assert_array_equal(found, expected)


def test_what_can_be_read_in_two_ways_is_refused() -> None:
    column = tensors(np.zeros((1, 2, 2, 2), np.float32), (2, 2, 2), (1, 2, 0))
    with pytest.raises(InputError, match="read in two ways"):
        to_array(column[0], spec("float32", "a", "b", "c"), ("a", "b", "c"))


def tensors_of_any_shape(
    rows: list[tuple[list[float], list[int]]], permutation: list[int] | None
) -> Any:
    """A column of Arrow's tensors of variable shape, as a file's reader gives it."""
    kind = pa.struct([("data", pa.list_(pa.float32())), ("shape", pa.list_(pa.int32(), 2))])
    about = {
        "ARROW:extension:name": "arrow.variable_shape_tensor",
        "ARROW:extension:metadata": json.dumps({"permutation": permutation} if permutation else {}),
    }
    column = pa.array([{"data": data, "shape": shape} for data, shape in rows], kind)
    schema = pa.schema([pa.field("x", kind, metadata=about)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table([column], schema=schema))
    return pa.ipc.open_stream(sink.getvalue()).read_all().column("x")


@pytest.mark.parametrize("permutation", [None, [0, 1], [1, 0]])
def test_tensors_of_any_shape(permutation: list[int] | None) -> None:
    rows = [([0.0, 1, 2, 3, 4, 5], [2, 3]), ([7.0, 8], [1, 2])]
    for scalar, (data, shape) in zip(tensors_of_any_shape(rows, permutation), rows, strict=True):
        expected = np.float32(data).reshape(shape)
        if permutation == [1, 0]:
            expected = expected.T
        found = to_array(scalar, spec("float32", "n", "m"), ("n", "m"))
        np.testing.assert_array_equal(found, expected)


def test_tensors_that_say_what_they_do_not_hold() -> None:
    (scalar,) = tensors_of_any_shape([([1.0, 2.0], [2, 2])], None)
    with pytest.raises(InputError, match=r"another shape than its data.*2 numbers"):
        to_array(scalar, spec("float32", "n", "m"), ("n", "m"))
