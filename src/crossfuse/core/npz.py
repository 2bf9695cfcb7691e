"""Arrays in NPZ files, as the command line reads and writes them: never pickled."""

from __future__ import annotations

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
from crossfuse.core.text import brief
from crossfuse.errors import InputError

__all__ = ["load_arrays", "save_arrays"]

_NPY = b"\x93NUMPY"
_WRITE = "Write it with numpy.savez, without Python objects"


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
            with zipfile.ZipFile(file) as entries:
                names = [entry.removesuffix(".npy") for entry in entries.namelist()]
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                raise InputError(
                    "the input file holds two arrays of one name",
                    where=path,
                    got=", ".join(twice),
                    do=_WRITE,
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
    except InputError:
        raise
    except Exception as error:  # a damaged file makes NumPy, zipfile and zlib raise anything
        raise InputError(
            f"the input file can't be read: {_damage(error)}", where=path, do=_WRITE
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(
                "the input file holds something that is not an array",
                where=path,
                got=name,
                do=_WRITE,
            )
    return arrays


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
        ) from error


def _write(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As ``numpy.savez``, whose own parameters are names that no array may have."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as members:
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
