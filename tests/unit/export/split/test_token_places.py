"""Rows of tables at places of tokens, as NumPy indexes them, however the table is aligned."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.token_places import Alignment, TokenPlaces
from crossfuse.graph.builder import GraphBuilder
from crossfuse.targets.cpu_run import run_once

LENGTH = 6
PLACES = np.array([[0, 3], [5, 5], [2, 4], [1, 1]])
RNG = np.random.default_rng(0)


def value(name: str, shape: tuple[int | str, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def plain(size: object) -> object:
    return size.value if isinstance(size, ir.SymbolicDim) else size


def taken(
    table: np.ndarray, shape: tuple[int | str, ...], at: tuple[int, int, int], merged: int = 1
) -> tuple[np.ndarray, ir.Shape]:
    """Rows by a graph of their own, for a tensor of rank ``at[0]``; its batch is merged with
    ``merged`` others."""
    position = value("position", ("b", "new_tokens"), ir.DataType.INT64)
    source = value("table", shape, ir.DataType.FLOAT)
    like = value("like", ("b" if merged == 1 else f"{merged}*b",), ir.DataType.FLOAT)
    places, build = TokenPlaces(position, LENGTH, "b"), GraphBuilder()
    rows = places.rows(build, source, Alignment(*at, like, 0))
    rows.name = "rows"
    nodes = [*places.shared.nodes, *build.nodes]
    graph = ir.Graph([position, source, like], [rows], nodes=nodes, opset_imports={"": 20})
    likes = np.zeros(merged * len(PLACES), np.float32)
    feeds = {"position": PLACES, "table": table, "like": likes}
    (found,) = run_once(ir.Model(graph, ir_version=10), feeds)
    assert rows.shape is not None
    return found, rows.shape


def table(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "at", "rows"),
    [
        ((LENGTH, 3), (3, 0, 1), (4, 2, 3)),
        ((1, LENGTH, 3), (3, 0, 1), (4, 2, 3)),
        ((LENGTH, 3), (4, 0, 2), (4, 1, 2, 3)),
        ((1, 5, LENGTH, 3), (4, 0, 2), (4, 5, 2, 3)),
        ((1, 1, LENGTH, LENGTH), (4, 0, 2), (4, 1, 2, LENGTH)),
        ((LENGTH,), (2, 0, 1), (4, 2)),
        ((LENGTH, 1, 3), (3, 1, 0), (2, 4, 3)),
        ((3, LENGTH), (3, 0, 2), (4, 3, 2)),
    ],
)
def test_a_table_for_all_sequences(
    shape: tuple[int, ...], at: tuple[int, int, int], rows: tuple[int, ...]
) -> None:
    given = table(*shape)
    found, told = taken(given, shape, at)
    rank, batch, tokens = at
    full = given.reshape((1,) * (rank - given.ndim) + given.shape)
    for i, places in enumerate(PLACES):
        # One number and one array of places, side by side in an index, would lead.
        expected = np.take(full, places, axis=tokens).take(0, axis=batch)
        np.testing.assert_array_equal(found.take(i, axis=batch), expected)
    assert found.shape == rows
    sizes = {"b": 4, "new_tokens": 2}
    assert [sizes.get(n, n) for n in map(plain, told)] == [*rows]  # type: ignore[call-overload]


@pytest.mark.parametrize(("count", "name"), [(4, "b"), (2, "contexts")])
def test_a_table_for_each_sequence_or_group(count: int, name: str) -> None:
    given = table(count, 3, LENGTH, 5)
    found, _ = taken(given, (name, 3, LENGTH, 5), (4, 0, 2))
    for i, places in enumerate(PLACES):
        np.testing.assert_array_equal(found[i], given[i * count // 4][:, places])


def test_a_batch_that_heads_are_merged_with() -> None:
    given = table(1, LENGTH, 3)
    found, _ = taken(given, (1, LENGTH, 3), (3, 0, 1), merged=2)
    for i in range(8):
        np.testing.assert_array_equal(found[i], given[0, PLACES[i // 2]])


def test_indices_and_what_is_seen_are_made_once() -> None:
    places = TokenPlaces(value("position", ("b", "new_tokens"), ir.DataType.INT64), LENGTH, "b")
    assert places.indices is places.indices
    assert places.seen is places.seen
    assert [plain(n) for n in places.seen.shape or ()] == ["b", 1, "new_tokens", LENGTH]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_what_is_a_groups_is_each_of_its_sequences(groups: int) -> None:
    position = value("position", ("b", "new_tokens"), ir.DataType.INT64)
    source = value("table", (3, "c"), ir.DataType.FLOAT)
    places, build = TokenPlaces(position, LENGTH, "b"), GraphBuilder()
    made = places.spread(build, source, 1)
    made.name = "made"
    graph = ir.Graph([position, source], [made], nodes=build.nodes, opset_imports={"": 20})
    given = table(3, groups)
    (found,) = run_once(ir.Model(graph, ir_version=10), {"position": PLACES, "table": given})
    assert made.shape == ir.Shape([3, "b"])
    np.testing.assert_array_equal(found, np.repeat(given, 4 // groups, 1))
