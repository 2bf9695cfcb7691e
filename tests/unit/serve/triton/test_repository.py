"""A model repository: what is put into it, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossfuse import open_bundle, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.errors import InputError
from crossfuse.parity.reference import load_reference
from crossfuse.serve.load_engine import EngineOptions
from crossfuse.serve.triton.repository import TritonOptions, write_repository

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
