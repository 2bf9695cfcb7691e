"""DLPack read and written through ctypes, so that every dtype works (bool and bfloat16 too) and
nothing but NumPy is needed.

A producer's capsule is left as it is and kept: its memory lives as long as the capsule does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CPU", "CUDA", "CUDA_HOST", "CUDA_MANAGED", "Foreign", "make_capsule", "read_capsule"]

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""DLPack's device types."""

_KINDS = {0: "int", 1: "uint", 2: "float"}
_BFLOAT, _BOOL = 4, 6
_CODES = {"int": 0, "uint": 1, "float": 2}


class _Tensor(ctypes.Structure):
    """``DLTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """``DLManagedTensor``."""

    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@dataclass(frozen=True)
class Foreign:
    """Another library's array: where it is, and what keeps it there."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device_kind: int
    device: int
    keeper: object


_api = ctypes.pythonapi
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", _api))
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)
_raw_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_hold = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", _api))
_drop = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("Py_DecRef", _api))

# A capsule's name must outlive it.
_PLAIN, _VERSIONED = ctypes.c_char_p(b"dltensor"), ctypes.c_char_p(b"dltensor_versioned")


def read_capsule(value: Any, stream: int) -> Foreign:
    """What an object with DLPack describes, ready for what is enqueued on a stream from now on.

    Raises:
        BufferError: a dtype that has no name here.
        Exception: whatever the producer raises.
    """
    capsule = _ask(value, stream)
    name = _get_name(capsule)
    if name == _VERSIONED.value:
        tensor = _Versioned.from_address(_get_pointer(capsule, name)).tensor
    elif name == _PLAIN.value:
        tensor = _Managed.from_address(_get_pointer(capsule, name)).tensor
    else:
        raise BufferError(f"a capsule {name!r} is no DLPack")
    shape = tuple(tensor.shape[i] for i in range(tensor.rank))
    strides = tuple(tensor.strides[i] for i in range(tensor.rank)) if tensor.strides else None
    pointer = (tensor.data or 0) + tensor.offset
    return Foreign(
        pointer, shape, strides, _name(tensor), tensor.device_kind, tensor.device, capsule
    )


def _ask(value: Any, stream: int) -> Any:
    """Producers older than DLPack 1.0 don't know a version, and a few no stream."""
    for options in ({"stream": stream, "max_version": (1, 0)}, {"stream": stream}, {}):
        try:
            return value.__dlpack__(**options)
        except TypeError as error:
            if not options or "unexpected keyword" not in str(error):
                raise
    raise AssertionError("the last try returns or raises")


def _name(tensor: Any) -> str:
    if tensor.lanes == 1:
        if tensor.code in _KINDS:
            return f"{_KINDS[tensor.code]}{tensor.bits}"
        if tensor.code == _BFLOAT and tensor.bits == 16:
            return "bfloat16"
        if tensor.code == _BOOL and tensor.bits == 8:
            return "bool"
    raise BufferError(
        f"a dtype that isn't known here: DLPack's code {tensor.code}, {tensor.bits} bits, "
        f"{tensor.lanes} lanes"
    )


class _Export:
    """Lives as long as a consumer holds the capsule's memory."""

    def __init__(self, managed: Any, sizes: Any, owner: object) -> None:
        self.managed, self.sizes, self.owner = managed, sizes, owner


def make_capsule(
    pointer: int, shape: tuple[int, ...], dtype: str, device: int, owner: object, *, versioned: bool
) -> Any:
    """A capsule of contiguous memory on a GPU, which keeps its owner until its consumer is done."""
    rank = len(shape)
    strides = [1] * rank
    for axis in reversed(range(rank - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    sizes = (ctypes.c_int64 * max(2 * rank, 1))(*shape, *strides)
    managed = _Versioned(major=1, minor=0) if versioned else _Managed()
    tensor = managed.tensor
    tensor.data, tensor.device_kind, tensor.device, tensor.rank = pointer, CUDA, device, rank
    tensor.code, tensor.bits, tensor.lanes = *_code(dtype), 1
    tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    tensor.strides = ctypes.cast(ctypes.addressof(sizes) + 8 * rank, ctypes.POINTER(ctypes.c_int64))
    export = _Export(managed, sizes, owner)
    managed.manager = id(export)
    managed.deleter = ctypes.cast(
        _delete_versioned if versioned else _delete_plain, ctypes.c_void_p
    ).value
    _hold(export)
    end = _end_versioned if versioned else _end_plain
    return _new(
        ctypes.addressof(managed),
        _VERSIONED if versioned else _PLAIN,
        ctypes.cast(end, ctypes.c_void_p),
    )


def _code(dtype: str) -> tuple[int, int]:
    if dtype == "bfloat16":
        return _BFLOAT, 16
    if dtype == "bool":
        return _BOOL, 8
    kind = dtype.rstrip("0123456789")
    return _CODES[kind], int(dtype.removeprefix(kind))


def _deleter(kind: Any) -> Any:
    def delete(address: int | None) -> None:
        if address:
            _drop(kind.from_address(address).manager)

    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(delete)


def _destructor(name: ctypes.c_char_p, delete: Callable[[int], None]) -> Any:
    """For capsules that nobody consumed: a consumer renames them."""

    def end(capsule: int) -> None:
        if _raw_valid(capsule, name):
            delete(_raw_pointer(capsule, name))

    return ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(end)


_delete_plain, _delete_versioned = _deleter(_Managed), _deleter(_Versioned)
_end_plain, _end_versioned = (
    _destructor(_PLAIN, _delete_plain),
    _destructor(_VERSIONED, _delete_versioned),
)
for _function in (_delete_plain, _delete_versioned, _end_plain, _end_versioned):
    # Consumers may call them while the interpreter shuts down.
    _hold(_function)
