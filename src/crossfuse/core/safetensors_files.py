"""Whether a safetensors file is whole, told before a library reads it and fails in its own
words."""

from __future__ import annotations

import json
from pathlib import Path

from crossfuse.errors import InputError

__all__ = ["require_whole"]

_POINTER = b"version https://git-lfs"
_LARGEST_HEADER = 100 << 20


def require_whole(path: Path) -> None:
    """Check a file's beginning against its size.

    Raises:
        InputError: it is empty, a Git LFS pointer, cut, or no safetensors file.
    """
    again = "Download it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
            if not start:
                raise InputError("the safetensors file is empty", where=path, do=again)
            if start == _POINTER:
                raise InputError(
                    "the safetensors file is a Git LFS pointer, not the weights",
                    where=path,
                    do="Run `git lfs pull` in its folder",
                )
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > _LARGEST_HEADER:
                raise InputError(
                    "the file is no safetensors file, whatever its name says", where=path, do=again
                )
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        raise InputError(
            f"the safetensors file can't be read: {error.strerror or error}", where=path
        ) from error
    if len(header) < length:
        raise InputError(
            "the safetensors file is cut",
            where=path,
            got=f"{size} bytes",
            expected="its whole header",
            do=again,
        )
    try:
        ends = [
            entry["data_offsets"][1]
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        ]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(
            "the file is no safetensors file, whatever its name says", where=path, do=again
        ) from error
    if size < needed:
        raise InputError(
            "the safetensors file is cut",
            where=path,
            got=f"{size} bytes",
            expected=f"{needed} bytes",
            do=again,
        )
