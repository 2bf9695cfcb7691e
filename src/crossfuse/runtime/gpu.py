"""A GPU's memory, streams and graphs, through cuda-core; and arrays in its memory."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import BundleError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DeviceArray", "Gpu", "gpu_count", "item_size"]

_CONTIGUOUS = "a device array must be contiguous"


def gpu_count() -> int:
    """NVIDIA GPUs that the driver sees; 0 without a driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def item_size(dtype: str) -> int:
    """Bytes of one element; bfloat16, which NumPy lacks, too."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class DeviceArray:
    """An array in a GPU's memory; speaks DLPack and, for NumPy's dtypes, the CUDA array interface. The data is ready.

    Attributes:
        shape, dtype: of the array; ``bfloat16`` for a dtype that NumPy lacks.
    """

    def __init__(self, buffer: Any, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.dtype = dtype
        self._buffer = buffer

    @property
    def pointer(self) -> int:
        """Address on the device."""
        return int(self._buffer.handle)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * item_size(self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("the CUDA array interface has no bfloat16")
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
        }

    def __dlpack__(self, **options: Any) -> Any:
        return self._view().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._view().__dlpack_device__()
        return int(kind), int(index)

    def _view(self) -> Any:
        from cuda.core.utils import StridedMemoryView

        if self.dtype == "bfloat16":
            raise BufferError("an array of bfloat16 can't be given away: NumPy has no such dtype")
        return StridedMemoryView.from_buffer(self._buffer, self.shape, dtype=np.dtype(self.dtype))


class Gpu:
    """One GPU.

    Args:
        index: of the device.

    Raises:
        BundleError: no driver, no GPU of that index, or no cuda-core.
    """

    def __init__(self, index: int = 0) -> None:
        if gpu_count() <= index:
            raise BundleError(
                "there is no NVIDIA GPU to execute the engine",
                got=f"{gpu_count()} GPUs that the driver sees",
                do="Load target 'ort-cpu', or check the NVIDIA driver (nvidia-smi)",
            )
        try:
            from cuda.core import Device
        except ImportError as error:
            raise BundleError(
                f"executing engines needs cuda-core: {error}", do="pip install 'crossfuse[rtx]' or 'crossfuse[gpu]'"
            ) from error
        self._device = Device(index)
        self._device.set_current()
        self.capability = ".".join(str(part) for part in self._device.compute_capability)
        self.name = str(self._device.name)

    def use(self) -> None:
        """Make the device current in the calling thread."""
        self._device.set_current()

    def stream(self) -> Any:
        """A new stream."""
        return self._device.create_stream()

    def allocate(self, size: int, stream: Any) -> Any:
        """Device memory of so many bytes, one at least."""
        return self._device.allocate(max(size, 1), stream=stream)

    def upload(self, array: NDArray[Any], buffer: Any, stream: Any) -> None:
        """Copy a contiguous host array to the start of a buffer."""
        if array.nbytes:
            self._at(buffer, array.nbytes).copy_from(self._host(array), stream=stream)

    def download(self, buffer: Any, array: NDArray[Any], stream: Any) -> None:
        """Copy the start of a buffer to a contiguous host array; it is there when the stream is done."""
        if array.nbytes:
            self._at(buffer, array.nbytes).copy_to(self._host(array), stream=stream)

    def capture(self, stream: Any, work: Any) -> Any:
        """A CUDA graph of what ``work`` enqueues on the stream."""
        builder = stream.create_graph_builder()
        builder.begin_building("thread_local")
        work()
        return builder.end_building().complete()

    def array(self, value: Any, stream: Any) -> tuple[int, tuple[int, ...], Any]:
        """Address, shape, and what keeps the memory alive, of an array with DLPack or the CUDA array interface.

        Raises:
            InputError: it is not contiguous, or can't be read.
        """
        if isinstance(value, DeviceArray):
            return value.pointer, value.shape, value
        from cuda.core.utils import StridedMemoryView

        try:
            view = StridedMemoryView.from_any_interface(value, stream_ptr=int(stream.handle))
        except (BufferError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(f"a device array can't be read: {error}") from error
        shape = tuple(view.shape)
        expected: list[int] = []
        size = 1
        for extent in reversed(shape):
            expected.insert(0, size)
            size *= extent
        if view.strides is not None and tuple(view.strides) != tuple(expected):
            raise InputError(_CONTIGUOUS, got=f"strides {tuple(view.strides)}", do="Make it contiguous first")
        return int(view.ptr), shape, view

    @staticmethod
    def _at(buffer: Any, size: int) -> Any:
        from cuda.core import Buffer

        return Buffer.from_handle(int(buffer.handle), size, owner=buffer)

    @staticmethod
    def _host(array: NDArray[Any]) -> Any:
        from cuda.core import Buffer

        return Buffer.from_handle(array.ctypes.data, array.nbytes, owner=array)
