"""Arrays in NPZ files: any name, never pickled, whole or not at all."""

from __future__ import annotations

import io
import resource
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


def archive(path: Path, members: dict[str, bytes], *, packed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """As NumPy writes it, or with another shape in its header."""
    stream = io.BytesIO()
    about = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, about | {"shape": shape or array.shape})
    return stream.getvalue() + array.tobytes(order="A")


def test_what_unpacks_to_more_than_such_a_file_holds(tmp_path: Path) -> None:
    """A hundred megabytes of zeros in a tenth of one: nothing is unpacked."""
    bomb = archive(tmp_path / "bomb.npz", {"a.npy": bytes(100 << 20)}, packed=True)
    assert bomb.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="would unpack to 104857600 bytes"):
        load_arrays(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    np.savez_compressed(tmp_path / "small.npz", a=np.zeros(1 << 20))
    assert not load_arrays(tmp_path / "small.npz")["a"].any()


@pytest.mark.parametrize("shape", [(1 << 40,), (3,), (5,), (-1,), (-2, -2), (1 << 62, 4)])
def test_headers_say_what_is_there(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = archive(tmp_path / "a.npz", {"a.npy": npy(np.ones(4), shape)})
    with pytest.raises(InputError, match="can't be read.*says"):
        load_arrays(path)


def test_every_damage_is_one_paragraph(tmp_path: Path) -> None:
    """A byte changed anywhere, or the end cut off, also where nothing checks the sum."""
    whole = tmp_path / "whole.npz"
    arrays = {"a": np.arange(12.0).reshape(3, 4), "b": np.asfortranarray(np.ones((2, 3), "i1"))}
    save_arrays(whole, arrays)
    data = whole.read_bytes()
    generator = np.random.default_rng(0)
    told: list[str] = []
    for turn in range(150):
        damaged = bytearray(data)
        if turn % 3:
            damaged[generator.integers(len(data))] = generator.integers(256)
        else:
            del damaged[generator.integers(len(data)) :]
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            found = load_arrays(tmp_path / "a.npz")
        except InputError as error:
            told.append(str(error))
            continue
        for name, array in arrays.items():
            if name in found and found[name].shape == array.shape:
                np.testing.assert_array_equal(found[name].view(np.uint8), array.view(np.uint8))
    assert told
    assert all(len(text.splitlines()) == 1 for text in told)
