"""Which target runs here, and what is refused before any engine is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfuse.errors import BundleError
from crossfuse.runtime import backends
from crossfuse.runtime.backends import PROVIDERS, best_target, open_stage, runs_here
from crossfuse.runtime.options import SessionOptions


def here(monkeypatch: pytest.MonkeyPatch, *, gpus: int, libraries: tuple[str, ...]) -> None:
    monkeypatch.setattr(backends, "gpu_count", lambda: gpus)
    monkeypatch.setattr(backends, "has_onnxruntime", lambda: "onnxruntime" in libraries)
    monkeypatch.setattr(
        backends,
        "runtime_module",
        lambda target, lean: object() if target in libraries else None,
    )


@pytest.mark.parametrize(
    ("gpus", "libraries", "best"),
    [
        (1, ("onnxruntime", "tensorrt", "tensorrt-rtx"), "tensorrt"),
        (1, ("onnxruntime", "tensorrt-rtx"), "tensorrt-rtx"),
        (1, ("onnxruntime",), "ort-cuda"),
        (0, ("onnxruntime", "tensorrt"), "ort-cpu"),
    ],
)
def test_the_best_that_runs_here(
    monkeypatch: pytest.MonkeyPatch, gpus: int, libraries: tuple[str, ...], best: str
) -> None:
    here(monkeypatch, gpus=gpus, libraries=libraries)
    assert best_target(reversed(PROVIDERS)) == best
    assert best_target([best, "onnx"]) == best


def test_nothing_runs_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, gpus=1, libraries=())
    assert not any(runs_here(target) for target in (*PROVIDERS, "openvino"))
    with pytest.raises(BundleError, match="can run here: got onnx, ort-cpu"):
        best_target(["ort-cpu", "onnx"])
    with pytest.raises(BundleError, match="no targets"):
        best_target([])


def test_a_gpu_without_its_library_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, gpus=0, libraries=("onnxruntime", "tensorrt"))
    assert not runs_here("ort-cuda")
    assert not runs_here("tensorrt")
    assert runs_here("onnx")


def test_stages_that_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no engine for the target.*'abacus'"):
        open_stage("abacus", tmp_path / "x", SessionOptions())
    with pytest.raises(BundleError, match=r"nothing about the engine \(query.plan\)"):
        open_stage("tensorrt", tmp_path / "query.plan", SessionOptions())
