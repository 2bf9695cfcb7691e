"""Whether a safetensors file is whole is told before a library fails in its own words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crossfuse.core.safetensors_files import require_whole
from crossfuse.errors import InputError


def test_a_whole_file_and_parts_of_it(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3, 5), "b": torch.zeros(2)}, file, {"format": "pt"})
    require_whole(file)
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for length, message in (
        (0, "is empty"),
        (5, "no safetensors file"),
        (header - 1, "is cut"),
        (len(data) - 1, rf"is cut.*got {len(data) - 1} bytes, expected {len(data)} bytes"),
    ):
        file.write_bytes(data[:length])
        with pytest.raises(InputError, match=message):
            require_whole(file)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[1]",
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": []}}',
        b"not JSON",
        b"[" * 5000,
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    if header == b"{}":
        require_whole(file)
        return
    with pytest.raises(InputError, match="no safetensors file"):
        require_whole(file)


def test_pointers_and_absurd_lengths(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match="git lfs pull"):
        require_whole(file)
    file.write_bytes((1 << 60).to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(InputError, match="no safetensors file"):
        require_whole(file)
    with pytest.raises(InputError, match="can't be read"):
        require_whole(tmp_path / "none")
