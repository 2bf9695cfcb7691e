"""Which target runs here, and who opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossfuse.bundle.manifest import EngineInfo
from crossfuse.core.target import TARGETS, EngineLibrary, Target
from crossfuse.errors import BundleError, InputError
from crossfuse.runtime import backends
from crossfuse.runtime.backends import best_target, open_stage, runs_here, target_of_bundle
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import HostStage, StageRequest


@pytest.fixture(autouse=True)
def _own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TARGETS, "_registered", {})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda count: monkeypatch.setattr(backends, "gpu_count", lambda: count)


def lowering(model: Any) -> None:
    raise AssertionError("a runtime lowers nothing")


class Answers(HostStage):
    def __init__(self, request: StageRequest) -> None:
        super().__init__("mine", ["x"], ["y"])
        self.request = request


def register(name: str, **about: Any) -> Target:
    target = Target(name, "", lowering, about.pop("opener", Answers), **about)
    TARGETS.register(name, target)
    return target


def request(target: Target, engine: EngineInfo | None = None) -> StageRequest:
    return StageRequest(target, Path("model.onnx"), SessionOptions(), engine=engine)


def test_the_best_that_runs_here_by_rank(gpus: Any) -> None:
    gpus(0)
    assert best_target(["onnx", "ort-cuda", "ort-cpu"]) == "ort-cpu"
    assert best_target(["onnx", "ort-cuda"]) == "onnx"
    gpus(1)
    assert best_target(["onnx", "ort-cuda", "ort-cpu"]) == "ort-cuda"
    register("mine", rank=35)
    assert best_target(["onnx", "ort-cuda", "mine"]) == "mine"
    register("last")
    assert best_target(["last", "onnx"]) == "onnx"


def test_what_is_missing_keeps_a_target_from_running(gpus: Any) -> None:
    gpus(0)
    register("absent", requires=("no_such_module_at_all",), rank=90)
    register("gpu", needs_gpu=True, rank=90)
    assert not runs_here("absent")
    assert not runs_here("gpu")
    assert not runs_here("nobody's")
    assert best_target(["absent", "gpu", "ort-cpu"]) == "ort-cpu"
    gpus(2)
    assert runs_here("gpu")


def test_where_none_runs_all_are_named(gpus: Any) -> None:
    gpus(0)
    register("absent", requires=("no_such_module_at_all",))
    with pytest.raises(
        BundleError, match="got absent, ort-cuda, nobody's, which no installed package provides"
    ):
        best_target(["ort-cuda", "nobody's", "absent"])
    with pytest.raises(BundleError, match="got no targets"):
        best_target([])


def test_a_bundle_s_target_that_nobody_provides_is_named_with_its_package() -> None:
    assert target_of_bundle("ort-cpu") is TARGETS["ort-cpu"]
    with pytest.raises(BundleError, match=r"got 'theirs', expected package 'their-package'"):
        target_of_bundle("theirs", "their-package")
    with pytest.raises(BundleError, match=r"got 'theirs'\."):
        target_of_bundle("theirs")


def test_an_opener_gets_the_request() -> None:
    asked = request(register("mine"))
    stage = open_stage(asked)
    assert isinstance(stage, Answers)
    assert stage.request is asked
    by_place = register("placed", opener="unit.runtime.test_backends:Answers")
    assert open_stage(request(by_place)).provider == "mine"


def test_an_opener_s_failures_are_its_own(tmp_path: Path) -> None:
    def raises(asked: StageRequest) -> None:
        raise OSError("the device is busy")

    def gives_text(asked: StageRequest) -> str:
        return "no stage"

    for name, about, message in (
        ("raises", {"opener": raises}, "the opener of target 'raises' raised OSError: the device"),
        ("text", {"opener": gives_text}, "the opener of target 'text' gives no stage: got 'no st"),
        (
            "absent",
            {"requires": ("no_such_module",), "install": "pip install it"},
            r"target 'absent' needs no_such_module, which is not installed\. pip install it",
        ),
        ("placed", {"opener": "math:nothing"}, "the opener of target 'placed' can't be imported"),
    ):
        with pytest.raises(InputError, match=message):
            open_stage(request(register(name, **about)))


def test_an_engine_needs_what_the_manifest_says_of_it() -> None:
    mine = Target("mine", "", engine=EngineLibrary("no_such_module", ()), install="pip install it")
    with pytest.raises(BundleError, match="the manifest says nothing about the engine"):
        open_stage(request(mine))
    TARGETS.register("mine", mine)
    info = EngineInfo("no_such_module", "1.0", (), ())
    with pytest.raises(BundleError, match=r"needs no_such_module, which is not installed"):
        open_stage(request(mine, info))
