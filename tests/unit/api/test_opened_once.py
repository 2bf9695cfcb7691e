"""A command opens a bundle once and hashes each file once; what changes in between is seen."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from crossfuse import BundleError, runtime
from crossfuse.bundle import store
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.cli import main
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.measure.sampling import Plan
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.triton.repository import write_repository

NAME = "cross_modal_attention"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often manifests were read, and each file hashed."""
    counts: Counter[str] = Counter()
    hashed, loads = store.sha256_of, Manifest.loads

    def sha256_of(path: Path) -> str:
        counts[path.name] += 1
        return hashed(path)

    def read(text: str, where: str) -> Manifest:
        counts["manifest"] += 1
        return loads(text, where)

    monkeypatch.setattr(store, "sha256_of", sha256_of)
    monkeypatch.setattr(Manifest, "loads", read)
    return counts


def given(folder: Path) -> Path:
    file = folder / "in.npz"
    np.savez(file, **{name: t.numpy() for name, t in zoo_spec(NAME, "tiny").inputs.items()})
    return file


def profile(bundle: Path, folder: Path) -> list[object]:
    quick = ["--rounds", 3, "--seconds", 0.001, "--cold-starts", 0]
    return ["profile", bundle, "--target", "ort-cpu", "--against", "eager", *quick]


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "inspect": lambda bundle, folder: ["inspect", bundle],
    "run": lambda bundle, folder: ["run", bundle, "--input", given(folder)],
    "verify": lambda bundle, folder: ["verify", bundle, "--target", "ort-cpu"],
    "verify with a source": lambda bundle, folder: ["verify", bundle, "--source", NAME],
    "verify on inputs": lambda bundle, folder: [
        *["verify", bundle, "--target", "ort-cpu", "--input", given(folder)]
    ],
    "bisect": lambda bundle, folder: ["verify", bundle, "--target", "ort-cpu", "--bisect"],
    "profile": profile,
    "build": lambda bundle, folder: ["build", bundle, "--target", "onnx"],
    "package": lambda bundle, folder: ["package", bundle, "-o", folder / "repository"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_opens_once_and_hashes_once(
    command: str, bundle_copy: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    arguments = COMMANDS[command](bundle_copy, tmp_path)
    counted.clear()
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    assert end.value.code == 0
    assert counted.pop("manifest") == 1
    assert counted, "files were hashed"
    assert max(counted.values()) == 1, counted


def test_a_server_opens_once_and_hashes_once(bundle_copy: Path, counted: Counter[str]) -> None:
    open_engine(bundle_copy, EngineOptions(target="ort-cpu"))
    assert counted["manifest"] == max(counted.values()) == 1
    assert counted["weights.bin"] == 1


def test_functions_take_an_open_bundle(
    bundle_copy: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    """All that a user may do with one, each file hashed once."""
    bundle = open_bundle(bundle_copy)
    assert open_bundle(bundle) is bundle
    assert crossfuse.verify(bundle, "ort-cpu").passed
    with runtime.load(bundle, "ort-cpu") as session:
        assert session.target == "ort-cpu"
    quick: dict[str, Any] = {"plan": Plan(3, 0.001), "cold_starts": 0, "trace": False}
    assert crossfuse.profile(bundle, "ort-cpu", **quick).rows
    assert write_repository(bundle, tmp_path / "repository")
    open_engine(bundle, EngineOptions(target="ort-cpu"))
    assert counted["manifest"] == max(counted.values()) == 1
    built = crossfuse.build(bundle, "onnx")
    assert counted["manifest"] == 1
    assert built.manifest.files["reference.npz"] == bundle.manifest.files["reference.npz"]


def test_kept_files_are_listed_as_they_are(bundle_copy: Path, counted: Counter[str]) -> None:
    """What a build takes over keeps its entry; what it writes is hashed; all of it is right."""
    built = crossfuse.build(bundle_copy, "onnx")
    again = open_bundle(built.path)
    assert len(again.verified(again.manifest.files)) == len(again.manifest.files)
    assert set(again.manifest.files) == {
        path.name for path in built.path.iterdir() if path.name != "manifest.json"
    }


@pytest.mark.parametrize("change", ["content", "time", "replaced"])
def test_what_changes_after_it_was_hashed_is_hashed_again(bundle_copy: Path, change: str) -> None:
    bundle = open_bundle(bundle_copy)
    (file,) = bundle.verified(["weights.bin"])
    about, data = file.stat(), bytearray(file.read_bytes())
    data[100] ^= 1
    if change == "replaced":
        file.with_name("other").write_bytes(data)
        file.with_name("other").replace(file)
    else:
        file.write_bytes(data)
    if change != "content":
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(BundleError, match="was changed"):
        bundle.verified(["weights.bin"])
    with pytest.raises(BundleError, match="was changed"):
        runtime.load(bundle, "ort-cpu")


def test_a_damaged_file_is_not_taken_over(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    file = bundle_copy / "reference.npz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match="wrong size"):
        crossfuse.build(bundle, "onnx")
    assert open_bundle(bundle_copy).targets == bundle.targets


def test_bundles_compare_by_what_they_are(zoo_bundle: Callable[[str], Bundle]) -> None:
    bundle = zoo_bundle(NAME)
    other = Bundle(bundle.path, bundle.manifest)
    other.verified(["reference.npz"])
    assert bundle == other
    assert "_checked" not in repr(other)
