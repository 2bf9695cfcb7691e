"""The libraries with TensorRT's API: which GPUs they build for, and that they are here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crossfuse.core.target import TARGETS, EngineLibrary, Target
from crossfuse.errors import InputError
from crossfuse.targets.tensorrt.libraries import (
    RTX,
    check_capabilities,
    check_fp8,
    library_of,
    library_version,
    require_library,
)

TENSORRT, TENSORRT_RTX = TARGETS["tensorrt"], TARGETS["tensorrt-rtx"]


def test_polygraphy_s_other_library_is_tensorrt_rtx() -> None:
    assert library_of(TENSORRT_RTX).module == RTX
    assert library_of(TENSORRT).module != RTX
    with pytest.raises(InputError, match="the target has no engines: got 'ort-cpu'"):
        library_of(TARGETS["ort-cpu"])


def test_capabilities_are_sorted_as_numbers_and_told_once() -> None:
    asked = ["12.0", "8.9", "7.5", "8.9"]
    assert check_capabilities(TENSORRT_RTX, asked) == ("7.5", "8.9", "12.0")
    assert check_capabilities(TENSORRT, []) == ()


@pytest.mark.parametrize(
    ("target", "asked", "message"),
    [
        (TENSORRT_RTX, [], "which GPUs to build for is not given"),
        (TENSORRT_RTX, ["9.0", "8.9"], "TensorRT-RTX can't build for.*got 9.0, expected 7.5"),
        (TENSORRT_RTX, ["sm89"], "a compute capability can't be read: got 'sm89'"),
        (TENSORRT_RTX, ["8"], "can't be read"),
        (TENSORRT_RTX, ["8.9.1"], "can't be read"),
        (TENSORRT, ["8.9"], "TensorRT builds for the GPU at hand: got 8.9"),
    ],
)
def test_what_can_not_be_built_for(target: Target, asked: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_capabilities(target, asked)


@pytest.mark.parametrize("asked", [("8.0",), ("7.5", "8.9"), ("8.6", "12.0")])
def test_fp8_is_for_gpus_that_multiply_in_it(asked: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=rf"fp8: got compute capability {asked[0]}, expected 8\.9"):
        check_fp8(TENSORRT_RTX, asked)
    for target in (TENSORRT, TENSORRT_RTX):
        check_fp8(target, ("8.9", "9.0", "10.0", "12.1"))


def test_a_library_s_version_is_read_from_its_package_or_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_stand_in.py").write_text("__version__ = '3.4.5'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "engine_stand_in", raising=False)
    alone = Target("mine", "", engine=EngineLibrary("engine_stand_in", ("no-such-package",)))
    assert library_version(alone) == "3.4.5"
    packaged = Target("mine", "", engine=EngineLibrary("no_such_module", ("absent", "engine-x")))
    metadata = tmp_path / "engine_x-7.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: engine-x\nVersion: 7.1\n")
    assert library_version(packaged) == "7.1"


def test_what_a_build_needs_is_named() -> None:
    absent = Target(
        "mine", "", engine=EngineLibrary("no_such_module", ()), install="pip install mine"
    )
    with pytest.raises(
        InputError, match=r"building for target 'mine' needs no_such_module.*pip install mine"
    ):
        require_library(absent)
