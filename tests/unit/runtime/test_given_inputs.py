"""Inputs of calls by flat names, from whatever holds them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.given_inputs import GivenInputs, given_by_name
from crossfuse.runtime.input_checks import InputChecker


@dataclass
class Batch:
    x: Any
    mask: Any = None
    scale: Any = 0.5


class Pair(NamedTuple):
    x: Any
    mask: Any


GIVEN = GivenInputs(
    ["b.x", "b.mask", "ids", "f.0", "f.1.k"],
    {"b.scale": 0.5, "mode": "wide", "none": None, "low": "-inf", "deep": True},
)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"b.x": 1, "ids": 2}, {"b.x": 1, "ids": 2}),
        ({"b": {"x": 1, "mask": 2}}, {"b.x": 1, "b.mask": 2}),
        ({"b": Batch(1, 2)}, {"b.x": 1, "b.mask": 2}),
        ({"b": Pair(1, 2)}, {"b.x": 1, "b.mask": 2}),
        ({"b": Batch(1)}, {"b.x": 1, "b.mask": None}),
        ({"f": [1, {"k": 2}]}, {"f.0": 1, "f.1.k": 2}),
        ({"f": (1, None)}, {"f.0": 1}),
        ({"ids": [3, 4]}, {"ids": [3, 4]}),
        ({"ids": 1, "mode": "wide", "none": None, "deep": True}, {"ids": 1}),
        ({"b.scale": np.float32(0.5), "low": float("-inf")}, {}),
        ({"b": {"y": 1}}, {"b.y": 1}),
        ({"other": {"y": 1}}, {"other": {"y": 1}}),
    ],
)
def test_containers_are_opened(named: dict[str, Any], expected: dict[str, Any]) -> None:
    if expected.get("b.mask", 0) is None:
        del expected["b.mask"]
    assert GIVEN(None, named) == expected
    assert GIVEN(MappingProxyType(named), {}) == expected


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"b": Batch(1, scale=2)}, r"another value.*\(b\.scale\): got 2, expected 0\.5"),
        ({"mode": "narrow"}, r"\(mode\): got 'narrow', expected 'wide'"),
        ({"none": 0}, r"\(none\): got 0, expected None"),
        ({"deep": None}, r"\(deep\): got None, expected True"),
        ({"b.scale": np.full(2, 0.5)}, r"\(b\.scale\)"),
    ],
)
def test_constants_keep_their_values(named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GIVEN(None, named)


def test_one_mapping_or_keywords() -> None:
    own = {"x": 1}
    assert given_by_name(own, {}) is own
    with pytest.raises(InputError, match="given twice"):
        given_by_name(own, {"y": 2})
    with pytest.raises(InputError, match="given by name.*got list"):
        GIVEN([1], {})


@pytest.mark.parametrize(
    ("dtype", "value", "taken"),
    [
        ("float32", 0.5, True),
        ("float32", 2, True),
        ("float16", np.float32(0.5), True),
        ("int64", 3, True),
        ("bool", True, True),
        ("int64", 0.5, False),
        ("bool", 1, False),
    ],
)
def test_numbers_are_inputs_without_axes(dtype: str, value: Any, taken: bool) -> None:
    check = InputChecker((TensorSpec("s", dtype, ()),), {})
    if taken:
        found = check({"s": value})["s"]
        assert (found.dtype, found.shape, found.item()) == (np.dtype(dtype), (), value)
    else:
        with pytest.raises(InputError, match=r"wrong dtype \(s\)"):
            check({"s": value})
    with pytest.raises(InputError, match=r"not an array|wrong rank"):
        InputChecker((TensorSpec("s", dtype, (1,)),), {})({"s": value})


def test_axes_that_are_multiples_of_a_dimension() -> None:
    specs = (
        TensorSpec("image", "float32", ("8*height",)),
        TensorSpec("latent", "float32", ("height",)),
        TensorSpec("made", "float32", ("height + 1",)),
    )
    check = InputChecker(specs, {"height": Dim("height", 2, 4)})

    def given(*sizes: int) -> dict[str, np.ndarray]:
        return {
            spec.name: np.zeros(size, np.float32) for spec, size in zip(specs, sizes, strict=True)
        }

    assert check(given(24, 3, 4))["image"].shape == (24,)
    for sizes, message in (
        ((25, 3, 4), "no multiple of 8"),
        ((24, 2, 3), "disagree about dimension 'height'.*got 2, expected 3"),
        ((40, 5, 6), "outside its range"),
        ((8, 1, 2), "outside its range"),
    ):
        with pytest.raises(InputError, match=message):
            check(given(*sizes))


def test_placeholders_are_counted_in_every_row() -> None:
    check = InputChecker((TensorSpec("ids", "int64", ("b", "n"), None, ((7, 2), (9, 0))),), {})
    ids = np.array([[1, 7, 7], [7, 2, 7]])
    assert check({"ids": ids})["ids"] is ids
    for wrong, message in (
        ([[7, 7, 1], [7, 7, 7]], r"ids\[1\].*got 3.*expected 2"),
        ([[7, 1, 1], [7, 7, 1]], r"ids\[0\].*got 1.*expected 2"),
        ([[7, 7, 9], [7, 7, 1]], r"ids\[0\].*got 1.*expected 0"),
    ):
        with pytest.raises(InputError, match=message):
            check({"ids": np.array(wrong)})
