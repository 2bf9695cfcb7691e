"""A model repository: what is put into it, and what is left alone."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse import open_bundle, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.errors import InputError
from crossfuse.parity.reference import load_reference
from crossfuse.serve.load_engine import EngineOptions
from crossfuse.serve.triton import repository
from crossfuse.serve.triton.models import TritonOptions
from crossfuse.serve.triton.repository import write_repository

NAME = "cross_modal_attention"
ON_CPU = TritonOptions(engine=EngineOptions("ort-cpu"))


def test_models_hold_what_they_need(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = zoo_bundle(NAME)
    python, native = write_repository(bundle.path, tmp_path / "r", ON_CPU)
    inside = tmp_path / "r" / python / "1" / "bundle"
    again = open_bundle(inside)
    again.verified(again.manifest.files)
    given = load_reference(bundle.path / "reference.npz").points[0].inputs
    with runtime.load(bundle.path, "ort-cpu") as old, runtime.load(inside, "ort-cpu") as new:
        for name, array in old.run(given).items():
            np.testing.assert_array_equal(new.run(given)[name], array)
    assert (tmp_path / "r" / native / "1" / "model.onnx").is_file()
    assert python in (tmp_path / "r" / "README.md").read_text()
    warm = sorted((tmp_path / "r" / python / "warmup").iterdir())
    assert len(warm) == len(bundle.manifest.inputs)


def test_an_older_model_of_ours_is_replaced_and_a_strangers_is_not(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle = zoo_bundle(NAME)
    root = tmp_path / "r"
    (name, *_) = write_repository(bundle.path, root, ON_CPU)
    (root / name / "stale").touch()
    (root / "other").mkdir()
    write_repository(bundle.path, root, ON_CPU)
    assert not (root / name / "stale").exists()
    assert (root / "other").is_dir()
    (root / name / "config.pbtxt").write_text("written by hand")
    with pytest.raises(InputError, match="didn't write"):
        write_repository(bundle.path, root, ON_CPU)
    assert (root / name / "config.pbtxt").read_text() == "written by hand"
    assert not list(root.glob(".*partial*"))


@pytest.mark.parametrize("name", ["a/b", "../up", "a b"])
def test_names_that_triton_can_not_take(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match="must be letters"):
        write_repository(zoo_bundle(NAME).path, tmp_path / "r", TritonOptions(name=name))
    assert not (tmp_path / "r").exists()


def test_a_readme_of_the_user_stays(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    (tmp_path / "elsewhere.md").write_text("mine")
    (root / "README.md").symlink_to(tmp_path / "elsewhere.md")
    write_repository(zoo_bundle(NAME), root, replace(ON_CPU, name="first"))
    write_repository(zoo_bundle(NAME), root, replace(ON_CPU, name="second"))
    assert (tmp_path / "elsewhere.md").read_text() == "mine"
    assert (root / "README.md").is_symlink()
    told = (root / "README.crossfuse.md").read_text()
    assert "`first`" in told
    assert "`second`: python" in told
    (root / "README.md").unlink()
    write_repository(zoo_bundle(NAME), root, replace(ON_CPU, name="third"))
    assert "`third`: python" in (root / "README.md").read_text()


def test_no_part_of_an_older_model_stays(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    root = tmp_path / "r"
    (name, native) = write_repository(zoo_bundle(NAME), root, ON_CPU)
    for folder in (f".{name}.partial-0123456789ab", ".other.partial-0123456789ab"):
        (root / folder).mkdir()
    (root / f".{name}.partial-mine").mkdir()
    assert write_repository(zoo_bundle(NAME), root, replace(ON_CPU, native=False)) == [name]
    assert not (root / native).exists()
    assert sorted(path.name for path in root.iterdir()) == [
        f".{name}.partial-mine",
        "README.md",
        name,
    ]


def test_a_disk_that_is_full_at_the_second_model_leaves_both_old_ones(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    (name, native) = write_repository(zoo_bundle(NAME), root, ON_CPU)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    write = repository._write_model

    def full(folder: Path, config: Any, *more: Any) -> None:
        write(folder, config, *more)
        if config.name == native:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(repository, "_write_model", full)
    with pytest.raises(InputError, match=r"No space left on device.*Make room"):
        write_repository(zoo_bundle(NAME), root, replace(ON_CPU, instances=2))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert "count: 1" in (root / name / "config.pbtxt").read_text()
