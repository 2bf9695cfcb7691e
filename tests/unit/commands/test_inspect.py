"""`crossfuse inspect` reads and hashes all of a bundle; `crossfuse models` costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossfuse import BundleError
from crossfuse.commands.inspect import inspect, models
from crossfuse.models.registry import SIZES, ZOO


def test_the_manifest_is_printed_as_it_is(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(bundle_copy, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((bundle_copy / "manifest.json").read_text())


def test_a_damaged_file_is_found(bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundle_copy / "fused.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"was changed .*fused\.onnx"):
        inspect(bundle_copy)
    assert capsys.readouterr().out == "", "nothing is shown of it"


def test_models_are_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    models()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ZOO)
    assert all(entry.summary in line for entry, line in zip(ZOO.values(), lines, strict=True))
    models(as_json=True)
    assert {tuple(one["sizes"]) for one in json.loads(capsys.readouterr().out)} == {SIZES}
