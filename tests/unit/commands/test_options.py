"""Options that commands share: closed sets, dynamic axes, completion."""

from __future__ import annotations

from typing import get_args

import pytest

from crossfuse import InputError
from crossfuse.commands.options import (
    HalfType,
    PrecisionName,
    SizeName,
    complete_sources,
    complete_targets,
    dynamic_axes,
)
from crossfuse.core.target import IO_DTYPES, PRECISIONS, TARGETS
from crossfuse.models.registry import SIZES, ZOO


def test_closed_sets_are_those_of_the_registries() -> None:
    assert get_args(PrecisionName) == tuple(PRECISIONS)
    assert get_args(SizeName) == SIZES
    assert get_args(HalfType) == tuple(IO_DTYPES)


def test_dynamic_axes() -> None:
    assert dynamic_axes([]) == {}
    assert dynamic_axes(["x:0=batch", "x:1=length:1:8", "a:b:c:2=n"]) == {
        "x": {0: "batch", 1: "length:1:8"},
        "a:b:c": {2: "n"},
    }
    assert dynamic_axes(["x:0=a", "x:0=b"]) == {"x": {0: "b"}}, "the last one counts"


@pytest.mark.parametrize("text", ["", "x", "x=n", "x:=n", "x:0", "x:0=", ":0=n", "x:a=n", "x:-1=n"])
def test_axes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match=r"--dynamic can't be read.*INPUT:AXIS=NAME\[:MIN:MAX\]"):
        dynamic_axes([text])


def test_completion() -> None:
    assert [name for name, _ in complete_targets("")] == list(TARGETS)
    assert [name for name, _ in complete_targets("tensorrt")] == ["tensorrt", "tensorrt-rtx"]
    assert complete_targets("nothing") == []
    assert [name for name, _ in complete_sources("")] == list(ZOO)
    assert complete_sources("cl") == [("clip", ZOO["clip"].summary)]
