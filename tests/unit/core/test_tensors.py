"""Dimensions and specs check themselves."""

from __future__ import annotations

import pytest

from crossfuse.core.tensors import Dim, TensorSpec, axis_size, collect_dims, names_of
from crossfuse.errors import InputError


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        ("batch", Dim("batch")),
        ("batch:2", Dim("batch", 2)),
        ("batch:0", Dim("batch", 0)),
        ("batch:0:3", Dim("batch", 0, 3)),
        ("a.b:2:9", Dim("a.b", 2, 9)),
        ("8*height:2:9", Dim("height", 2, 9)),
    ],
)
def test_dims_are_read(text: str, dim: Dim) -> None:
    assert Dim.parse(text) == dim
    assert Dim.parse(dim) is dim


@pytest.mark.parametrize(
    "text", ["", "a b", "0*n", "n*8", "n:x", "n:1:2:3", "n:-1", "n:3:2", "n:", "n::4"]
)
def test_dims_that_cant_be_read(text: str) -> None:
    with pytest.raises(InputError):
        Dim.parse(text)


@pytest.mark.parametrize("bound", [True, 1.0, "1"])
def test_bounds_are_whole_numbers(bound: object) -> None:
    with pytest.raises(InputError, match="whole number"):
        Dim("n", bound)  # type: ignore[arg-type]


def test_sizes_are_checked() -> None:
    Dim("n", 2, 4).check(4, "x")
    for size in (1, 5):
        with pytest.raises(InputError, match=r"outside its range.*at least 2 and at most 4"):
            Dim("n", 2, 4).check(size, "x")
    Dim("n").check(10**12, "x")
    assert str(Dim("n", 2)) == "n=2..∞"


def test_a_name_has_one_range() -> None:
    found = collect_dims({"a": {0: "n"}, "b": {0: "n:2:4", 1: "m"}, "c": {0: Dim("n", 2, 4)}})
    assert found == {"n": Dim("n", 2, 4), "m": Dim("m")}
    with pytest.raises(InputError, match="two ranges"):
        collect_dims({"a": {0: "n:2"}, "b": {0: "n:3"}})


def test_specs() -> None:
    spec = TensorSpec("ids", "int64", ("batch", 4), (0, 9))
    assert str(spec) == "ids: int64[batch, 4]"
    assert names_of([spec, TensorSpec("x", "bool", ())]) == ("ids", "x")
    with pytest.raises(InputError, match="dtype isn't supported"):
        TensorSpec("x", "complex64", ())


def test_sizes_of_axes() -> None:
    for text in ("8*height", " 8 * height:2:9", "8*height:2"):
        assert axis_size(text) == "8*height"
    assert axis_size("height:2") == axis_size("1*height") == axis_size(Dim("height", 2)) == "height"
