"""Shapes of results by rule, against what NumPy makes of arrays of these sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.matching.axes import Size
from crossfuse.export.matching.size_arithmetic import Sizes
from crossfuse.export.passes.shape_rules import SHAPE_RULES, Shape


class Known:
    """What a test says about values: shapes by value, elements by value."""

    def __init__(self) -> None:
        self.shapes: dict[ir.Value, list[Size | None]] = {}
        self.elements: dict[ir.Value, Sizes] = {}

    def of(self, value: ir.Value | None) -> Sizes | None:
        return None if value is None else self.elements.get(value)

    def dims(self, value: ir.Value | None) -> list[Size | None] | None:
        return None if value is None else self.shapes.get(value)


def size(dim: int | str | None) -> Size | None:
    return None if dim is None else Size.parse(dim)


def shape(
    operator: str,
    sources: list[list[int | str | None] | None],
    *elements: list[int | str | None],
    **attributes: int,
) -> list[int | str | None] | None:
    """The shape of ``operator(sources…, elements…)`` by its rule."""
    known = Known()
    values = [ir.Value(name=f"v{i}") for i in range(len(sources) + len(elements))]
    for value, dims in zip(values, sources, strict=False):
        if dims is not None:
            known.shapes[value] = [size(d) for d in dims]
    for value, given in zip(values[len(sources) :], elements, strict=True):
        known.elements[value] = Sizes(tuple(size(d) for d in given))
    node = ir.node(operator, values, attributes or None)
    found: Shape | None = SHAPE_RULES[operator](node, known)
    return None if found is None else [None if s is None else s.dim for s in found]


X = np.zeros((2, 6, 4))


@pytest.mark.parametrize(
    ("operator", "elements", "expected"),
    [
        ("Reshape", [[3, 16]], X.reshape(3, 16).shape),
        ("Reshape", [[0, -1]], X.reshape(2, -1).shape),
        ("Reshape", [[-1]], X.reshape(-1).shape),
        ("Expand", [[5, 1, 6, 1]], np.broadcast_to(X, (5, 2, 6, 4)).shape),
        ("Tile", [[1, 2, 3]], np.tile(X, (1, 2, 3)).shape),
        ("Slice", [[1, 0], [5, 2], [1, 2], [1, 1]], X[:, 1:5, 0:2].shape),
        ("Slice", [[-2], [2**62], [1]], X[:, -2:].shape),
    ],
)
def test_numbers(operator: str, elements: list[list[int]], expected: tuple[int, ...]) -> None:
    assert shape(operator, [[2, 6, 4]], *elements) == list(expected)


def test_other_sources() -> None:
    joined = shape("Concat", [[2, 6], [2, 3]], axis=1)
    assert joined == list(np.concatenate([np.zeros((2, 6)), np.zeros((2, 3))], 1).shape)
    assert shape("Concat", [["B", 6], [None, 3]], axis=-1) == ["B", 9]
    assert shape("Range", [], [2], [7], [1]) == list(np.arange(2, 7).shape)
    assert shape("ConstantOfShape", [], ["B", 3]) == ["B", 3]


@pytest.mark.parametrize(
    ("operator", "source", "elements", "expected"),
    [
        ("Reshape", ["B", "L", 8], [[0, 0, 2, -1]], ["B", "L", 2, 4]),
        ("Reshape", ["B", "L", 8], [[-1, 8]], ["B*L", 8]),
        ("Reshape", ["B", "L", 8], [["2*B", "L", 4]], ["2*B", "L", 4]),
        ("Reshape", ["B", None, 8], [[0, -1]], ["B", None]),
        ("Expand", ["B", 1, 8], [["B", "L", 8]], ["B", "L", 8]),
        ("Expand", ["B", 4], [["L", 4]], [None, 4]),  # one of the two is 1, or they are equal
        ("Slice", ["L", 8], [[0], ["L"], [0]], ["L", 8]),
        ("Slice", ["L", 8], [[1], [2**62], [0]], ["(L - 1)", 8]),
        ("Slice", ["L", 8], [[0], ["S"], [0]], [None, 8]),
    ],
)
def test_symbols(operator: str, source: list, elements: list, expected: list) -> None:
    assert shape(operator, [source], *elements) == expected


@pytest.mark.parametrize(
    ("operator", "sources", "elements"),
    [
        ("Reshape", [["B", 8], None], []),
        ("Expand", [None], [[2, 2]]),
        ("Tile", [["B", 8]], [[2]]),
        ("Slice", [["L", 8]], [[0], [4], [0], [2]]),  # in steps of two
        ("Concat", [["B", 8], ["B"]], []),
        ("Range", [], [[0], [6], [2]]),
    ],
)
def test_what_is_unknown(operator: str, sources: list, elements: list) -> None:
    attributes = {"axis": 0} if operator == "Concat" else {}
    assert shape(operator, sources, *elements, **attributes) is None
