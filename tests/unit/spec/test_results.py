"""Outputs have names, each once, and none of an input."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pytest
import torch

from crossfuse import InputError
from crossfuse.spec.results import distinct_names, named_outputs


@dataclass
class Result:
    states: Any
    weights: Any = None


class Pair(NamedTuple):
    first: Any
    second: Any


T = torch.arange(3.0)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (T, "output"),
        ((T, T), "output_0 output_1"),
        ({"a": T, "b": [T, {"c": T}]}, "a b_0 b_1_c"),
        (Result(T), "states"),
        (Result([T, Pair(T, None)], T), "states_0 states_1_first weights"),
        (Pair(T, Result(T, T)), "first second_states second_weights"),
        ({"a": {"b": T}, "a_b": T}, "a_b a_b_2"),
        ({"n": 3, "yes": True, "f": 0.5, "none": None}, "n yes f"),
        (T.shape, "output_0"),
    ],
)
def test_names(result: Any, names: str) -> None:
    assert " ".join(named_outputs(result)) == names


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("rows_*", "y"), ("rows_0", "y rows_0 rows_1"), ("*_0", "y rows_0 rows_1")],
)
def test_a_list_that_is_dropped_whole_is_left_out(pattern: str, names: str) -> None:
    """However many tensors it has; of one that is dropped in part all places stay."""
    found = named_outputs({"y": T, "rows": [T, T]}, (), lambda name: fnmatchcase(name, pattern))
    assert " ".join(found) == names


def test_numbers_become_tensors() -> None:
    found = named_outputs({"n": 3, "yes": True, "f": 0.5})
    kinds = {name: (t.dtype, tuple(t.shape), t.item()) for name, t in found.items()}
    assert kinds == {
        "n": (torch.int64, (), 3),
        "yes": (torch.bool, (), True),
        "f": (torch.float32, (), 0.5),
    }


@pytest.mark.parametrize(
    ("names", "inputs", "expected"),
    [
        ("x z", "x y", "x_out z"),
        ("x x_out", "x", "x_out_2 x_out"),
        ("x", "x x_out", "x_out_2"),
        ("a a a", "", "a a_2 a_3"),
        ("a a_2 a", "", "a a_2 a_3"),
        ("b.x", "b.x", "b.x_out"),
    ],
)
def test_names_are_distinct(names: str, inputs: str, expected: str) -> None:
    assert distinct_names(names.split(), inputs.split()) == expected.split()


@pytest.mark.parametrize("value", ["text", {1, 2}, object(), iter([1])])
def test_what_is_no_output(value: Any) -> None:
    result = {"z": T, "meta": {"k": value}}
    with pytest.raises(
        InputError, match=r"not a tensor \(meta_k\): got .*drop_outputs=\['meta_k'\]"
    ):
        named_outputs(result)
    assert list(named_outputs(result, (), lambda name: name == "meta_k")) == ["z", "meta_k"]
    with pytest.raises(InputError, match="returns no tensor"):
        named_outputs({"a": None})


@pytest.mark.parametrize(
    ("dtype", "instead"),
    [(torch.complex64, "torch.view_as_real of it"), (torch.uint32, "it in another type")],
)
def test_what_no_bundle_holds(dtype: torch.dtype, instead: str) -> None:
    result = {"z": T, "c": torch.ones(2, dtype=dtype)}
    with pytest.raises(
        InputError, match=rf"no bundle holds \(c\): got .*Return {instead}, or leave"
    ):
        named_outputs(result)
    assert named_outputs(result, (), lambda name: name == "c")["c"].shape == ()
