"""DLPack through ctypes: NumPy and PyTorch are read as they are, and what we give is read back."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from crossfuse.runtime.dlpack import CPU, CUDA, make_capsule, read_capsule

DTYPES = ("bool", "int8", "int64", "uint8", "float16", "float32", "float64")


class OnHost:
    """NumPy's array as a library gives it that knows no stream."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_arrays_are_read(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)[:, ::2]
    found = read_capsule(OnHost(array), -1)
    assert (found.dtype, found.shape, found.device_kind) == (dtype, (3, 2), CPU)
    assert found.strides == (4, 2)
    assert found.pointer == array.ctypes.data


def test_what_numpy_lacks_is_read_too() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16)[2:]
    found = read_capsule(tensor, -1)
    assert (found.dtype, found.shape, found.pointer) == ("bfloat16", (4,), tensor.data_ptr())


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(BufferError, match="64 bits"):
        read_capsule(OnHost(np.zeros(2, np.complex64)), -1)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_capsules_are_read_as_they_were_made(dtype: str, versioned: bool) -> None:
    class Given:
        def __dlpack__(self, stream: int) -> Any:
            assert stream == 7
            return make_capsule(4096, (2, 3, 5), dtype, 1, self, versioned=versioned)

    found = read_capsule(Given(), 7)
    assert (found.pointer, found.shape, found.strides) == (4096, (2, 3, 5), (15, 5, 1))
    assert (found.dtype, found.device_kind, found.device) == (dtype, CUDA, 1)


@pytest.mark.slow
@pytest.mark.parametrize("versioned", [False, True])
def test_a_capsule_that_nobody_takes_lets_its_owner_go(versioned: bool) -> None:
    class Owner:
        pass

    owner = Owner()
    alive = weakref.ref(owner)
    capsule = make_capsule(1, (2,), "float32", 0, owner, versioned=versioned)
    del owner
    gc.collect()
    assert alive() is not None, "a capsule keeps its owner"
    del capsule
    gc.collect()
    assert alive() is None


def test_errors_of_a_producer_are_its_own() -> None:
    class Broken:
        def __dlpack__(self, **options: object) -> object:
            raise TypeError("the array requires grad")

    with pytest.raises(TypeError, match="requires grad"):
        read_capsule(Broken(), -1)

    class NoCapsule:
        def __dlpack__(self, **options: object) -> object:
            new = ctypes.pythonapi.PyCapsule_New
            new.restype, new.argtypes = (
                ctypes.py_object,
                (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
            )
            return new(1, b"something else", None)

    with pytest.raises(BufferError, match="something else"):
        read_capsule(NoCapsule(), -1)
