"""`crossfuse.build`: a target added, others and the reference left as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

import crossfuse
from crossfuse import BundleError, InputError
from crossfuse.api.build import build
from crossfuse.bundle.store import open_bundle


def test_it_is_the_public_function() -> None:
    assert crossfuse.build is build


def test_the_rest_of_the_bundle_stays(bundle_copy: Path) -> None:
    before = open_bundle(bundle_copy)
    told: list[str] = []
    built = build(bundle_copy, "ort-cpu", precision="bf16", step=told.append)
    assert built.manifest.targets["ort-cpu"].precision == "bf16"
    assert "ort-cpu: casting to bf16" in told
    assert set(built.targets) == set(before.targets)
    for name in ("onnx", "ort-cuda"):
        assert built.manifest.targets[name] == before.manifest.targets[name]
    for file in ("fused.onnx", "weights.bin", "reference.npz", "model.onnx"):
        assert built.manifest.files[file] == before.manifest.files[file]
    assert built.manifest.source == before.manifest.source
    assert crossfuse.verify(built, "ort-cpu").passed


def test_what_cannot_be_built_changes_nothing(bundle_copy: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="unknown target"):
        build(bundle_copy, "ort-cup")
    (bundle_copy / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="wrong size"):
        build(bundle_copy, "onnx")
    assert (bundle_copy / "manifest.json").read_bytes() == before
    assert not list(bundle_copy.parent.glob(".*partial*"))
