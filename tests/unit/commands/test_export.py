"""`crossfuse export` and `crossfuse build`: what their options become."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crossfuse
from crossfuse.api import build as building
from crossfuse.api import export as exporting
from crossfuse.bundle.store import Bundle
from crossfuse.cli import main

EXPORTED = set(inspect.signature(crossfuse.export).parameters)
BUILT = set(inspect.signature(crossfuse.build).parameters)


class StoppedError(Exception):
    pass


def called(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, arguments: list[str]
) -> dict[str, Any]:
    """What a command calls the function with, by parameter."""
    found: dict[str, Any] = {}
    signature = inspect.signature(getattr(module, name))

    def stop(*args: Any, **kwargs: Any) -> None:
        found.update(signature.bind(*args, **kwargs).arguments)
        raise StoppedError

    monkeypatch.setattr(module, name, stop)
    with pytest.raises(SystemExit):
        main([name, *arguments])
    assert found
    return found


EXPORT = {
    "--target": ("onnx", "targets", ["onnx"]),
    "--precision": ("fp16", "precision", "fp16"),
    "--io-dtype": ("fp16", "io_dtype", "fp16"),
    "--sm": ("8.9", "compute_capabilities", ["8.9"]),
    "--profile-shapes": ("a=1:2:3", "profile_shapes", ["a=1:2:3"]),
    "--context": ("b", "context", ["b"]),
    "--dynamic": ("b:1=n:1:4", "dynamic", {"b": {1: "n:1:4"}}),
    "--size": ("tiny", "size", "tiny"),
    "--seed": ("4", "seed", 4),
    "--checkpoint": ("there", "checkpoint", "there"),
    "--task": ("t", "task", "t"),
    "--trust-remote-code": (None, "trust_remote_code", True),
    "--allow-missing": (None, "allow_missing", True),
    "--example": ("x.npz", "example", [Path("x.npz")]),
    "--image": ("a.jpg", "image", [Path("a.jpg")]),
    "--text": ("t", "text", ["t"]),
    "--audio": ("a.wav", "audio", [Path("a.wav")]),
    "--video": ("a.gif", "video", [Path("a.gif")]),
    "--drop-output": ("y", "drop_outputs", ["y"]),
    "--keep-probabilities": ("s:0,3", "keep_probabilities", ["s:0,3"]),
    "--decode": ("ids", "decode", "ids"),
    "--whole": (None, "whole", True),
    "--quick": (None, "quick", True),
    "--allow-unfused": (None, "allow_unfused", True),
    "--allow-unquantized": (None, "allow_unquantized", True),
    "--calibrate": ("real.npz", "calibrate", [Path("real.npz")]),
    "--metric": ("m.py:top1", "metric", "m.py:top1"),
    "--max-drop": ("0.1", "max_drop", 0.1),
    "--prefix": ("placeholders", "prefix", "placeholders"),
}


def test_every_option_of_export_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        word
        for option, (value, _, _) in EXPORT.items()
        for word in (option, *([] if value is None else [value]))
    ]
    given = called(monkeypatch, exporting, "export", ["clip", "-o", "out", *words])
    assert (given.pop("source"), given.pop("path")) == ("clip", Path("out"))
    assert callable(given.pop("step"))
    assert given == {name: expected for _, name, expected in EXPORT.values()}
    assert {*given, "source", "path", "step"} == EXPORTED, "no argument without an option"


def test_defaults_are_those_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = inspect.signature(crossfuse.export).parameters
    given = called(monkeypatch, exporting, "export", ["clip", "-o", "out"])
    for name, parameter in parameters.items():
        if name not in ("source", "path", "step"):
            default = parameter.default
            assert (given[name] or None) == (
                list(default) if name == "targets" else default or None
            ), name


def test_every_option_of_build_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--target tensorrt-rtx --precision mixed --io-dtype fp32 --sm 8.9 --sm 12.0 "
    words += "--profile-shapes a=1 --memory-limit 5 --optimization-level 2 --lean --allow-unfused "
    words += "--allow-unquantized --calibrate real.npz --metric m.py:top1 --max-drop 0.1"
    given = called(monkeypatch, building, "build", ["b", *words.split()])
    assert callable(given.pop("step"))
    assert given == {
        "path": Path("b"),
        "target": "tensorrt-rtx",
        "precision": "mixed",
        "io_dtype": "fp32",
        "compute_capabilities": ["8.9", "12.0"],
        "profile_shapes": ["a=1"],
        "memory_limit": 5,
        "optimization_level": 2,
        "lean": True,
        "allow_unfused": True,
        "allow_unquantized": True,
        "calibrate": [Path("real.npz")],
        "metric": "m.py:top1",
        "max_drop": 0.1,
    }
    assert {*given, "step"} == BUILT


def test_what_was_built_is_shown(
    bundle_copy: Path,
    zoo_bundle: Callable[[str], Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["build", str(bundle_copy), "--target", "onnx"])
    assert end.value.code == 0
    got = capsys.readouterr()
    assert "1 fused in onnx" in got.out
    assert f"bundle written to {bundle_copy}" in got.out
    assert "· onnx: parity" in got.err
