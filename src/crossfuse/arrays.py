"""Arrays in NPZ files, as the command line reads and writes them: never pickled."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import InputError

__all__ = ["load_arrays", "save_arrays"]


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an NPZ file.

    Raises:
        InputError: no such file, not an NPZ file, or one that holds pickled objects.
    """
    if not path.is_file():
        raise InputError("the input file doesn't exist", where=path)
    try:
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise InputError("the input file holds one array, not arrays by name", where=path, do="Use np.savez")
        with data:
            return {name: data[name] for name in data.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the input file can't be read: {error}", where=path, do="Write it with numpy.savez, without Python objects"
        ) from error


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an NPZ file, whole or not at all.

    Raises:
        InputError: the file can't be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as file:
            _write(file, arrays)
        os.replace(partial, path)  # noqa: PTH105 - os.replace says what it does
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"the output file can't be written: {error.strerror or error}", where=path) from error


def _write(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As ``numpy.savez``, whose own parameters are names that no array may have."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as members:
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
