"""Sizes computed as texts, against the same operators on numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from crossfuse.core.dimensions import size_at
from crossfuse.export.matching.axes import Size
from crossfuse.export.matching.size_arithmetic import (
    Sizes,
    difference,
    folded,
    follow_sizes,
    total,
)
from onnx_text import parse

DIMS = {"b": 3, "l": 10}


@dataclass
class Known:
    """What `follow_sizes` asks: constants, shapes, and what it made so far."""

    made: dict[ir.Value, Sizes] = field(default_factory=dict)

    def of(self, value: ir.Value | None) -> Sizes | None:
        if value is None or value in self.made:
            return None if value is None else self.made[value]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.INT64:
            return None
        array = tensor.numpy()
        return Sizes(tuple(Size(int(n)) for n in array.reshape(-1)), array.ndim == 0)

    def dims(self, value: ir.Value | None) -> list[Size | None] | None:
        if value is None or value.shape is None:
            return None
        return [Size.parse(d if isinstance(d, int) else str(d.value)) for d in value.shape]


def followed(text: str, **weights: object) -> Sizes | None:
    """The sizes behind the last node."""
    model = parse(text, **weights)
    known = Known()
    found = None
    for node in model.graph:
        found = follow_sizes(node, known)
        if found is not None:
            known.made[node.outputs[0]] = found
    return found


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Shape(x)", {}),
        ("y = Shape<start = 1, end = 3>(x)", {}),
        ("s = Shape(x) y = Gather(s, i)", {"i": [1, -1]}),
        ("s = Shape(x) y = Slice(s, one, two)", {"one": [1], "two": [3]}),
        (
            "s = Shape(x) t = Slice(s, one, two) y = Concat<axis = 0>(t, c)",
            {"one": [0], "two": [1], "c": [-1, 7]},
        ),
        ("s = Shape(x) y = ReduceProd(s)", {}),
        ("s = Shape(x) y = Mul(s, two)", {"two": [2]}),
        ("s = Shape(x) y = Add(s, two)", {"two": [2]}),
        ("s = Shape(x) y = Sub(s, two)", {"two": [2]}),
        ("s = Shape(x) y = Div(s, two)", {"two": [2]}),
        ("s = Shape(x) y = Div(s, s)", {}),
        ("s = Shape(x) y = Sub(s, s)", {}),
        ("s = Shape(x) i = Identity(s) y = Cast<to = 7>(i)", {}),
        ("s = Shape<end = 1>(x) t = Squeeze(s) y = Unsqueeze(t, zero)", {"zero": [0]}),
        (
            "s = Shape<start = 1>(x) e = Equal(s, minus) y = Where(e, ones, s)",
            {"minus": [-1], "ones": [1, 1]},
        ),
    ],
)
def test_sizes_are_what_the_operators_compute(body: str, weights: dict) -> None:
    header = "(float[b, 4, l] x) => (int64[n] y)"
    weights = {name: np.array(value, np.int64) for name, value in weights.items()}
    found = followed(f"{header} {{ {body} }}", **weights)
    assert found is not None
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g {header} {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    array = np.zeros((DIMS["b"], 4, DIMS["l"]), np.float32)
    (truth,) = ReferenceEvaluator(proto).run(None, {"x": array})
    got = [None if size is None else size_at(size.dim, DIMS) for size in found.elements]
    assert got == truth.reshape(-1).tolist()
    assert found.scalar == (truth.ndim == 0)


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",
        "s = Shape(x) y = Neg(s)",
        "s = Shape(x) y = Cast<to = 1>(s)",
        "s = Shape(x) y = Div(s, zero)",
    ],
)
def test_what_is_no_size_is_unknown(body: str) -> None:
    kinds = {"Relu": "float[b, 4, l]", "Cast": "float[3]"}
    kind = next((dims for op, dims in kinds.items() if op in body), "int64[3]")
    weights = {"zero": [0]} if "zero" in body else {}
    found = followed(
        f"(float[b, 4, l] x) => ({kind} y) {{ {body} }}",
        **{name: np.array(value, np.int64) for name, value in weights.items()},
    )
    assert found is None or None in found.elements


@pytest.mark.parametrize(("place", "found"), [(2, True), (-3, True), (3, False), (-4, False)])
def test_a_place_beyond_the_sizes_is_unknown(place: int, found: bool) -> None:
    sizes, index = ir.Value(name="s"), ir.Value(name="i")
    known = Known({sizes: Sizes((Size(1), Size(2), Size(3))), index: Sizes((Size(place),))})
    gathered = follow_sizes(ir.node("Gather", [sizes, index]), known)
    assert (gathered == Sizes((Size(3 if place > 0 else 1),))) == found
    assert (gathered is None) != found


@pytest.mark.parametrize(
    ("operator", "a", "b", "text"),
    [
        (total, "2*b", "3*b", "5*b"),
        (total, "b", 0, "b"),
        (total, "l", "b", "(b + l)"),
        (difference, "3*b", "b", "2*b"),
        (difference, "b", "b", 0),
        (difference, "b", "l", "(b - l)"),
    ],
)
def test_sums_and_differences(operator: object, a: str, b: int | str, text: object) -> None:
    assert callable(operator)
    found = operator(Size.parse(a), Size.parse(b))
    assert found.dim == text
    assert operator(None, Size(1)) is None


@pytest.mark.parametrize(
    ("op", "arrays", "expected"),
    [
        ("Add", ([1, 2], [3, 4]), [4, 6]),
        ("Div", ([-7, 7], [2, 2]), [-3, 3]),
        ("Div", ([7.0], [2.0]), [3.5]),
        ("Div", ([7], [0]), None),
        ("Pow", ([2.0], [3.0]), [8.0]),
        ("Floor", ([2.5],), [2.0]),
        ("Greater", ([1, 3], [2, 2]), [False, True]),
        ("Add", ([1], [1.5]), None),
        ("Sin", ([1.0],), None),
        ("Unsqueeze", ([1, 2], [0]), [[1, 2]]),
        ("Squeeze", ([[1, 2]], [0]), [1, 2]),
    ],
)
def test_constants_are_folded(op: str, arrays: tuple, expected: object) -> None:
    node = ir.node(op, [ir.Value(name=f"x{i}") for i in range(len(arrays))])
    found = folded(node, [np.array(array) for array in arrays])
    assert (None if found is None else found.tolist()) == expected


def test_a_cast_gives_the_type_asked_for() -> None:
    node = ir.node("Cast", [ir.Value(name="x")], attributes={"to": int(ir.DataType.INT64)})
    found = folded(node, [np.array([2.7, -2.7], np.float32)])
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [2, -2]
