"""A checkpoint's folder is looked at before any library reads it.

`test_checkpoint_folders` has what libraries would do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from crossfuse.core.checkpoint_folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    WeightNames,
    require_plain,
    weight_files,
)
from crossfuse.errors import InputError


def checkpoint(folder: Path, index: Any = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"model_type": "bert"} | config))
    if index is None:
        save_file({"a": torch.ones(2)}, folder / WEIGHTS)
    else:
        (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_plain_folders(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one")
    require_plain(one)
    assert weight_files(one) == [one / WEIGHTS]
    shards = {"b": "x-2.safetensors", "a": "x-1.safetensors", "c": "x-2.safetensors"}
    two = checkpoint(tmp_path / "two", {"weight_map": shards})
    with pytest.raises(InputError, match="no safetensors file"):
        require_plain(two)
    require_plain(two, complete=False)
    for name in set(shards.values()):
        save_file({"a": torch.ones(2)}, two / name)
    assert [path.name for path in weight_files(two)] == ["x-1.safetensors", "x-2.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.bin", ".x.safetensors",
     "x\n.safetensors", "C:x.safetensors", "a\\b.safetensors", 3, None, ["x.safetensors"]],
)  # fmt: skip
def test_an_index_names_plain_files(tmp_path: Path, name: Any) -> None:
    folder = checkpoint(tmp_path / "m", {"weight_map": {"a": name}})
    with pytest.raises(InputError, match="names a file that can't be loaded"):
        require_plain(folder, complete=False)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, [1]])
def test_an_index_names_weights(tmp_path: Path, index: Any) -> None:
    with pytest.raises(InputError, match=r"names no weights|holds no JSON object"):
        require_plain(checkpoint(tmp_path / "m", index), complete=False)


def test_links_stay_inside(tmp_path: Path) -> None:
    outside = checkpoint(tmp_path / "outside")
    folder = checkpoint(tmp_path / "m")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(outside / WEIGHTS)
    for check in (require_plain, weight_files):
        with pytest.raises(InputError, match="leads out of its folder"):
            check(folder)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nothing")
    with pytest.raises(InputError, match="link to nothing"):
        require_plain(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "an adapter"),
        (".metadata", "distributed"),
        ("x.distcp", "distributed"),
    ],
)
def test_other_kinds(tmp_path: Path, name: str, message: str) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / name).write_text("{}")
    with pytest.raises(InputError, match=message):
        require_plain(folder)


def test_pickles_are_named_and_not_loaded(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"never loaded.*pytorch_model\.bin"):
        require_plain(folder)


def test_other_names_of_weights(tmp_path: Path) -> None:
    names = WeightNames("diffusion.safetensors", "diffusion.safetensors.index.json")
    folder = checkpoint(tmp_path / "m")
    with pytest.raises(InputError, match=r"have another name.*expected diffusion.safetensors, or"):
        require_plain(folder, names=names)
    (folder / WEIGHTS).rename(folder / names.weights)
    require_plain(folder, names=names)
    assert weight_files(folder, names) == [folder / names.weights]


def test_a_component_in_a_hubs_cache_links_to_its_repositorys_blobs(tmp_path: Path) -> None:
    blobs, revision = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    revision.mkdir(parents=True)
    component = checkpoint(revision / "unet")
    (component / WEIGHTS).rename(blobs / "0123")
    (component / WEIGHTS).symlink_to("../../../blobs/0123")
    require_plain(component)
    (blobs / "0123").rename(tmp_path / "0123")
    (component / WEIGHTS).unlink()
    (component / WEIGHTS).symlink_to(tmp_path / "0123")
    with pytest.raises(InputError, match="leads out of its folder"):
        require_plain(component)
