"""Tensors in safetensors files, written and read with NumPy alone; bfloat16, which NumPy lacks, as
its bits.

A file is read as a stranger's: sizes are compared before anything is made of them, and a digest in
the file's own metadata finds what changed since it was written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.core.files import open_plain, whole_file
from crossfuse.core.safetensors_files import require_whole
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Stored", "TensorFile", "read_tensors", "write_tensors"]

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {short: name for name, short in _NAMES.items()}
_DIGEST = "sha256"
_ALIGNED = 8


class Stored(NamedTuple):
    """One tensor.

    Attributes:
        dtype: by NumPy's name, or ``bfloat16``.
        array: the elements; of bfloat16, its bits as uint16.
    """

    dtype: str
    array: NDArray[Any]


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name.
        about: texts by name.
    """

    tensors: dict[str, Stored]
    about: dict[str, str]


def write_tensors(path: Path, tensors: Mapping[str, Stored], about: Mapping[str, str]) -> None:
    """Write a file, whole or not at all.

    Raises:
        InputError: it can't be written.
    """
    header: dict[str, Any] = {}
    digest, end = hashlib.sha256(), 0
    arrays = [np.ascontiguousarray(one.array) for one in tensors.values()]
    for (name, one), array in zip(tensors.items(), arrays, strict=True):
        offsets = [end, end + array.nbytes]
        header[name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.array.shape),
            "data_offsets": offsets,
        }
        digest.update(_bytes_of(array))
        end = offsets[1]
    described = _described(header, about)
    header = {"__metadata__": {**about, _DIGEST: _with(digest, described)}, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in arrays:
                file.write(_bytes_of(array))
    except OSError as error:
        raise InputError(
            f"the file can't be written: {error.strerror or error}", where=path
        ) from error


def read_tensors(path: Path) -> TensorFile:
    """Read a file that `write_tensors` wrote.

    Raises:
        InputError: no such file, no safetensors file, or a damaged one.
    """
    if not path.is_file():
        raise InputError("there is no such file", where=path)
    require_whole(path)
    try:
        with open_plain(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            data = file.read()
        about = header.pop("__metadata__", {})
        tensors = {name: _stored(entry, data) for name, entry in header.items()}
    except OSError as error:
        raise InputError(
            f"the file can't be read: {error.strerror or error}", where=path
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path) from error
    texts = isinstance(about, dict) and all(isinstance(text, str) for text in about.values())
    given = about.pop(_DIGEST, None) if texts else None
    if given != _with(hashlib.sha256(data), _described(header, about if texts else {})):
        raise _damaged(path)
    return TensorFile(tensors, about)


def _stored(entry: Any, data: bytes) -> Stored:
    """One tensor of a file's data; a `ValueError` or `KeyError` where the entry is no such one."""
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    kind = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    whole = all(type(size) is int and size >= 0 for size in (*shape, begin, end))
    if not whole or not begin <= end <= len(data):
        raise ValueError("offsets")
    if math.prod(shape) * kind.itemsize != end - begin:
        raise ValueError("sizes")
    array = np.frombuffer(data, kind, math.prod(shape), begin).reshape(shape)
    if dtype == "bool" and (array.view(np.uint8) > 1).any():
        raise ValueError("bool")
    return Stored(dtype, array)


def _bytes_of(array: NDArray[Any]) -> Any:
    """A contiguous array's memory."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def _described(header: Mapping[str, Any], about: Mapping[str, str]) -> bytes:
    """All that the header says, in one order."""
    return json.dumps([header, dict(about)], sort_keys=True).encode()


def _with(data: Any, described: bytes) -> str:
    digest = data.copy()
    digest.update(described)
    found: str = digest.hexdigest()
    return found


def _damaged(path: Path) -> InputError:
    return InputError(
        "the file is damaged, or was not written by crossfuse",
        where=path,
        do="Encode the context again, and save it",
    )
