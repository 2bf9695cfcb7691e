"""Optimization profiles from the dimensions' ranges."""

from __future__ import annotations

import pytest

from crossfuse.core.tensors import CONTEXTS, Dim, TensorSpec
from crossfuse.errors import InputError
from crossfuse.targets.tensorrt.shape_profiles import input_shapes, parse_profile, profile_sizes

DIMS = {"batch": Dim("batch"), "text": Dim("text", 3, 10)}


def test_profiles_are_read() -> None:
    assert parse_profile("batch=4, text=3:5:7") == {"batch": (4,), "text": (3, 5, 7)}


@pytest.mark.parametrize("text", ["", "batch", "=3", "batch=", "batch=1:2", "batch=-1", "b=1:x:3"])
def test_what_can_not_be_read(text: str) -> None:
    with pytest.raises(InputError, match="profile shapes can't be read"):
        parse_profile(text)


def test_without_a_profile_the_whole_ranges_are_taken() -> None:
    # No maximum: four times the example's size, 8 at least.
    assert profile_sizes(DIMS, {"batch": 1, "text": 5}) == [
        {"batch": (1, 1, 8), "text": (3, 5, 10)}
    ]
    assert profile_sizes(DIMS, {"batch": 3})[0] == {"batch": (1, 3, 12), "text": (3, 3, 10)}


def test_one_profile_per_request_and_the_rest_by_their_ranges() -> None:
    first, second = profile_sizes(
        DIMS, {"batch": 2, "text": 4}, [{"text": [6]}, {"batch": [1, 2, 3]}]
    )
    assert first == {"batch": (1, 2, 8), "text": (6, 6, 6)}
    assert second == {"batch": (1, 2, 3), "text": (3, 4, 10)}


def test_contexts_divide_the_queries_batch() -> None:
    dims = {**DIMS, CONTEXTS: Dim(CONTEXTS)}
    example = {"batch": 6, "text": 4, CONTEXTS: 4}
    (sizes,) = profile_sizes(dims, example, [{"batch": [2, 6, 12]}], "batch")
    smallest, typical, largest = sizes[CONTEXTS]
    assert (smallest, largest) == (1, 12)
    assert 6 % typical == 0
    assert example[CONTEXTS] % typical == 0
    (own,) = profile_sizes(dims, example, [{"batch": [8], CONTEXTS: [2]}], "batch")
    assert own[CONTEXTS] == (2, 2, 2)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"rows": [1]}, "unknown dimensions: got rows, expected batch, text"),
        ({"text": [2]}, "outside the dimension's range"),
        ({"text": [3, 9, 8]}, "out of order"),
        ({"text": [3, 4, 11]}, "outside the dimension's range"),
    ],
)
def test_sizes_stay_in_their_ranges(requested: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile_sizes(DIMS, {"batch": 1, "text": 5}, [requested])


def test_shapes_follow_the_sizes() -> None:
    (sizes,) = profile_sizes(DIMS, {"batch": 2, "text": 4})
    specs = [
        TensorSpec("ids", "int64", ("batch", "text")),
        TensorSpec("wide", "float32", ("2*batch", 5, "text + 1")),
        TensorSpec("scalar", "float32", ()),
    ]
    assert input_shapes(specs, sizes) == {
        "ids": ((1, 3), (2, 4), (8, 10)),
        "wide": ((2, 5, 4), (4, 5, 5), (16, 5, 11)),
        "scalar": ((), (), ()),
    }
    with pytest.raises(InputError, match=r"a size is not determined.*\(x\): got other"):
        input_shapes([TensorSpec("x", "float32", ("other",))], sizes)
