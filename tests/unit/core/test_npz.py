"""Arrays in NPZ files: any name, never pickled, whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from crossfuse.core.npz import load_arrays, save_arrays
from crossfuse.errors import InputError


def test_any_name_and_dtype(tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(6).reshape(2, 3),
        "a/b": np.float16([1, np.nan]),
        "größe.npy": np.array(True),
        "empty": np.zeros((0, 3), "i1"),
    }
    save_arrays(tmp_path / "a.npz", arrays)
    found = load_arrays(tmp_path / "a.npz")
    assert len(found) == len(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written"):
        save_arrays(tmp_path / "a.npz", {"a": np.array([object()])})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "b.npz", a=np.array([{"x": 1}]))
    with pytest.raises(InputError, match="can't be read"):
        load_arrays(tmp_path / "b.npz")


def test_what_is_no_file_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    np.save(tmp_path / "one.npy", np.ones(2))
    (tmp_path / "text").write_text("hello, this is no archive")
    with zipfile.ZipFile(tmp_path / "twice", "w") as file:
        file.writestr("a.npy", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a.npy", b"x")
    whole = tmp_path / "whole.npz"
    np.savez(whole, a=np.ones(1000))
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-100])
    for name, message in (
        ("none", "doesn't exist"),
        (".", "is a folder"),
        ("empty", "is empty"),
        ("one.npy", "one array"),
        ("text", "can't be read"),
        ("twice", "two arrays of one name"),
        ("cut", "can't be read"),
    ):
        with pytest.raises(InputError, match=message):
            load_arrays(tmp_path / name)
