"""Tensors in safetensors files: what the library reads, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from crossfuse import InputError
from crossfuse.core.tensor_file import Stored, read_tensors, write_tensors

PLAIN = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def tensors() -> dict[str, Stored]:
    generator = np.random.default_rng(0)
    made = {
        name: Stored(name, (generator.standard_normal((2, 3)) * 50).astype(name)) for name in PLAIN
    }
    made["half"] = Stored("bfloat16", generator.integers(0, 1 << 16, (4,)).astype(np.uint16))
    made["none"] = Stored("float32", np.zeros((0, 3), np.float32))
    made["one"] = Stored("int64", np.array(7))
    return made


def test_what_is_written_is_read_and_the_library_reads_it(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", tensors(), {"owner": "me"})
    found = read_tensors(tmp_path / "a")
    assert found.about == {"owner": "me"}
    assert found.tensors.keys() == tensors().keys()
    for name, (dtype, array) in tensors().items():
        assert found.tensors[name].dtype == dtype
        assert found.tensors[name].array.dtype == array.dtype
        np.testing.assert_array_equal(found.tensors[name].array, array)
    write_tensors(tmp_path / "b", {n: t for n, t in tensors().items() if n in PLAIN}, {"a": "b"})
    for name, array in load_file(tmp_path / "b").items():
        np.testing.assert_array_equal(array, tensors()[name].array)
    with safe_open(tmp_path / "b", "np") as opened:
        assert opened.metadata()["a"] == "b"


def test_every_change_of_a_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    few = {"a": Stored("float32", np.arange(6, dtype=np.float32).reshape(2, 3))}
    write_tensors(tmp_path / "a", few, {"count": "2"})
    whole = (tmp_path / "a").read_bytes()
    damaged = tmp_path / "b"
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 + place % 200
        damaged.write_bytes(changed)
        try:
            found = read_tensors(damaged)
        except InputError:
            continue
        assert whole[place : place + 1] == b" ", "only spaces behind the header say nothing"
        np.testing.assert_array_equal(found.tensors["a"].array, few["a"].array)
    for length in range(len(whole)):
        damaged.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_tensors(damaged)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "theirs")
    with pytest.raises(InputError, match="damaged"):
        read_tensors(tmp_path / "theirs")
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "none")
    with pytest.raises(InputError, match="can't be written"):
        write_tensors(tmp_path / "no" / "folder", tensors(), {})
