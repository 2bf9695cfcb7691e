"""Arrays in NPZ files: never pickled, and never more than a file of that size may hold.

A ZIP archive unpacks to a thousand times its size, and a header in it names any shape. So all sizes
are compared before anything is unpacked.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.files import whole_file
from crossfuse.core.foreign import cause_of
from crossfuse.core.os_errors import help_for
from crossfuse.core.text import brief
from crossfuse.errors import InputError

__all__ = ["load_arrays", "read_arrays", "save_arrays"]

_NPY = b"\x93NUMPY"
_WRITE = "Write it with numpy.savez, without Python objects"
_SMALL = 64 << 20
"""Bytes that any file may unpack to."""
_MOST_TIMES = 50
"""A larger file unpacks to at most so many times its size."""
_MOST_ARRAYS = 100_000
_CHUNK = 4 << 20


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an NPZ file.

    Raises:
        InputError: no such file, not an NPZ file, a damaged one, one that holds two arrays of one
            name or pickled objects.
    """
    if path.is_dir():
        raise InputError(
            "the input file is a folder", where=path, expected="a file that numpy.savez wrote"
        )
    if not path.exists():
        raise InputError("the input file doesn't exist", where=path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_NPY))
            if not start:
                raise InputError("the input file is empty", where=path, do=_WRITE)
            if start == _NPY:
                raise InputError(
                    "the input file holds one array, not arrays by name",
                    where=path,
                    do="Use numpy.savez",
                )
            file.seek(0)
            return read_arrays(file)
    except _DoubledError as error:
        raise InputError(
            "the input file holds two arrays of one name", where=path, got=str(error), do=_WRITE
        ) from error
    except InputError:
        raise
    except Exception as error:  # a damaged file makes NumPy, zipfile and zlib raise anything
        raise InputError(
            f"the input file can't be read: {_damage(error)}", where=path, do=_WRITE
        ) from error


class _DoubledError(ValueError):
    """Two arrays have one name."""


def read_arrays(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """All arrays of an opened NPZ file.

    Raises:
        ValueError: two arrays of one name, something that is no array, Python objects, or more than
            a file of that size may hold.
        Exception: a damaged file makes zipfile, zlib and NumPy raise anything.
    """
    size = file.seek(0, 2)
    file.seek(0)
    with zipfile.ZipFile(file) as entries:
        members = entries.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise _DoubledError(", ".join(twice))
        limit = max(_SMALL, _MOST_TIMES * size)
        total = sum(member.file_size for member in members)
        if total > limit or len(members) > _MOST_ARRAYS:
            raise ValueError(
                f"{size} bytes would unpack to {total} bytes in {len(members)} arrays, which is "
                "more than such a file may hold; numpy.savez, without compression, writes one that "
                "is read"
            )
        return {name: _array(entries, one) for name, one in zip(names, members, strict=True)}


def _array(entries: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, whose header says no more than its member holds."""
    with entries.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{member.filename!r} has an unknown version {version}")
        shape, by_columns, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError(f"{member.filename!r} holds Python objects, which are never read")
        wanted = math.prod(shape) * dtype.itemsize
        held = member.file_size - stream.tell()
        if wanted != held or min(shape, default=0) < 0:
            raise ValueError(f"{member.filename!r} says {list(shape)}, and holds {held} bytes")
        flat = np.empty(wanted, np.uint8)
        for start in range(0, wanted, _CHUNK):
            chunk = stream.read(min(_CHUNK, wanted - start))
            if len(chunk) != min(_CHUNK, wanted - start):
                raise ValueError(f"{member.filename!r} is cut")
            flat[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        array: NDArray[Any] = np.ndarray(shape, dtype, flat, order="F" if by_columns else "C")
        return array


def _damage(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError):
        return f"it is damaged, cut or no NPZ file ({cause_of(error)})"
    return brief(error) if isinstance(error, ValueError) and str(error) else cause_of(error)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an NPZ file, whole or not at all.

    Raises:
        InputError: the file can't be written.
    """
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            _write(file, arrays)
    except (OSError, ValueError) as error:  # ValueError for arrays of Python objects
        raise InputError(
            f"the output file can't be written: {getattr(error, 'strerror', None) or error}",
            where=path,
            do=help_for(error, writing=True),
        ) from error


def _write(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As ``numpy.savez``, whose own parameters are names that no array may have."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as members:
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
