"""What the CUDA driver is asked directly, through ctypes: which GPUs there are, copies on one, the
order of streams.

It needs no package, so ONNX Runtime's arrays on a GPU can be handled where cuda-core is not
installed.
"""

from __future__ import annotations

import ctypes
import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from crossfuse.errors import BundleError, EngineError

__all__ = ["LEGACY_STREAM", "Driver", "Rows", "driver_version", "gpu_count", "gpu_uuid"]

LEGACY_STREAM = 1
"""Handle of CUDA's legacy default stream, in the driver's API and in DLPack."""

_DEVICE_MEMORY = 2
_DEVICE_ORDINAL = 9
_WITHOUT_TIMING = 2


def gpu_count() -> int:
    """NVIDIA GPUs that the driver sees (``CUDA_VISIBLE_DEVICES`` hides the others).

    Without a driver there are none.
    """
    cuda = _library()
    count = ctypes.c_int(0)
    return (
        count.value if cuda is not None and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    )


def driver_version() -> str:
    """The newest CUDA that the driver supports, ``13.0``; empty without a driver."""
    cuda = _library()
    version = ctypes.c_int(0)
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def gpu_uuid(index: int) -> str | None:
    """The identity of a GPU by its number in this process, as NVML and ``nvidia-smi`` write it.

    It is None where there is no such GPU.
    """
    cuda = _library()
    data = (ctypes.c_ubyte * 16)()
    device = ctypes.c_int(0)
    if (
        cuda is None
        or cuda.cuDeviceGet(ctypes.byref(device), index) != 0
        or cuda.cuDeviceGetUuid_v2(data, device) != 0
    ):
        return None
    return f"GPU-{uuid.UUID(bytes=bytes(data))}"


class _Rectangle(ctypes.Structure):
    """``CUDA_MEMCPY2D``."""

    _fields_ = (
        ("from_x", ctypes.c_size_t),
        ("from_y", ctypes.c_size_t),
        ("from_kind", ctypes.c_int),
        ("from_host", ctypes.c_void_p),
        ("from_device", ctypes.c_void_p),
        ("from_array", ctypes.c_void_p),
        ("from_pitch", ctypes.c_size_t),
        ("to_x", ctypes.c_size_t),
        ("to_y", ctypes.c_size_t),
        ("to_kind", ctypes.c_int),
        ("to_host", ctypes.c_void_p),
        ("to_device", ctypes.c_void_p),
        ("to_array", ctypes.c_void_p),
        ("to_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


@dataclass(frozen=True)
class Rows:
    """Rows of memory ``[outer, count, size bytes]``."""

    rows: Collection[int]
    outer: int
    count: int
    size: int


class Driver:
    """The driver's calls for one GPU. Safe to use from several threads.

    Args:
        index: of the GPU.

    Raises:
        BundleError: there is no such GPU.
        EngineError: the driver refuses.
    """

    def __init__(self, index: int) -> None:
        cuda = _library()
        count = gpu_count()
        if cuda is None or index >= count:
            raise BundleError(
                "there is no such NVIDIA GPU",
                where=f"device {index}",
                got=f"{count} GPUs that the driver sees",
                do="Check device_id and CUDA_VISIBLE_DEVICES, or load target 'ort-cpu'",
            )
        self.index = index
        self._cuda = cuda
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._lock = threading.Lock()
        self._call("use the GPU", "cuDevicePrimaryCtxRetain", ctypes.byref(self._context), index)

    @staticmethod
    def of_pointer(pointer: int) -> int:
        """The number of the GPU that memory belongs to; 0 where the driver doesn't know it."""
        cuda, device = _library(), ctypes.c_int(0)
        if cuda is not None:
            cuda.cuPointerGetAttribute(
                ctypes.byref(device), _DEVICE_ORDINAL, ctypes.c_void_p(pointer)
            )
        return max(device.value, 0)

    @property
    def stream(self) -> int:
        """This driver's own stream."""
        with self._current() as stream:
            return int(stream.value)

    def gather(self, to: int, source: int, part: Rows, stream: int | None = None) -> None:
        """Copy rows of ``[outer, count, size bytes]`` into new memory ``[outer, len(rows), size
        bytes]``: enqueued on a stream, or done on return without one."""
        with self._current() as own:
            on = own if stream is None else ctypes.c_void_p(stream)
            for place, row in enumerate(part.rows):
                rectangle = _Rectangle(
                    from_kind=_DEVICE_MEMORY,
                    from_device=source + row * part.size,
                    from_pitch=part.count * part.size,
                    to_kind=_DEVICE_MEMORY,
                    to_device=to + place * part.size,
                    to_pitch=len(part.rows) * part.size,
                    width=part.size,
                    height=part.outer,
                )
                self._call("copy on the GPU", "cuMemcpy2DAsync_v2", ctypes.byref(rectangle), on)
            if stream is None:
                self._call("copy on the GPU", "cuStreamSynchronize", own)

    def wait(self, streams: Collection[int]) -> None:
        """Wait until streams have done what they hold."""
        with self._current():
            for stream in streams:
                self._call("finish its work", "cuStreamSynchronize", ctypes.c_void_p(stream))

    def zero(self, to: int, size: int) -> None:
        """Fill memory with zeros; done on return."""
        with self._current() as stream:
            self._call(
                "fill memory",
                "cuMemsetD8Async",
                ctypes.c_void_p(to),
                0,
                ctypes.c_size_t(size),
                stream,
            )
            self._call("fill memory", "cuStreamSynchronize", stream)

    def upload(self, to: int, array: NDArray[Any]) -> None:
        """Copy a contiguous host array to the GPU; done on return."""
        with self._current() as stream:
            source = ctypes.c_void_p(array.ctypes.data)
            self._call(
                "copy to the GPU",
                "cuMemcpyHtoDAsync_v2",
                ctypes.c_void_p(to),
                source,
                ctypes.c_size_t(array.nbytes),
                stream,
            )
            self._call("copy to the GPU", "cuStreamSynchronize", stream)

    def download(self, source: int, array: NDArray[Any]) -> None:
        """Copy from the GPU to a contiguous host array; done on return."""
        with self._current() as stream:
            to = ctypes.c_void_p(array.ctypes.data)
            size = ctypes.c_size_t(array.nbytes)
            self._call(
                "copy from the GPU",
                "cuMemcpyDtoHAsync_v2",
                to,
                ctypes.c_void_p(source),
                size,
                stream,
            )
            self._call("copy from the GPU", "cuStreamSynchronize", stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy on the GPU."""
        with self._current():
            sizes = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size)
            self._call("copy on the GPU", "cuMemcpyDtoDAsync_v2", *sizes, ctypes.c_void_p(stream))

    def order(self, stream: int, after: Collection[int]) -> None:
        """Let what is enqueued on a stream from now on wait for what other streams hold now."""
        with self._current():
            for mark in self._marks(after):
                try:
                    self._call(
                        "order streams", "cuStreamWaitEvent", ctypes.c_void_p(stream), mark, 0
                    )
                finally:
                    self._cuda.cuEventDestroy_v2(mark)

    def marks(self, streams: Collection[int]) -> list[Any]:
        """What the streams hold now, to be asked by `passed`."""
        with self._current():
            return list(self._marks(streams))

    def passed(self, marks: list[Any]) -> bool:
        """Whether the streams have done what they held; the marks are gone then."""
        with self._current():
            while marks:
                if self._cuda.cuEventQuery(marks[-1]) == _NOT_READY:
                    return False
                self._cuda.cuEventDestroy_v2(marks.pop())
        return True

    def _marks(self, streams: Collection[int]) -> Iterator[Any]:
        for stream in streams:
            mark = ctypes.c_void_p()
            self._call("order streams", "cuEventCreate", ctypes.byref(mark), _WITHOUT_TIMING)
            try:
                self._call("order streams", "cuEventRecord", mark, ctypes.c_void_p(stream))
            except EngineError:
                self._cuda.cuEventDestroy_v2(mark)
                raise
            yield mark

    @contextmanager
    def _current(self) -> Iterator[Any]:
        """The GPU is the calling thread's, and this driver's own stream is given."""
        self._call("use the GPU", "cuCtxPushCurrent_v2", self._context)
        try:
            with self._lock:
                if not self._stream:
                    self._call("make a stream", "cuStreamCreate", ctypes.byref(self._stream), 1)
            yield self._stream
        finally:
            self._cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _call(self, doing: str, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorName(code, ctypes.byref(text))
            known = text.value.decode() if text.value else f"error {code}"
            raise EngineError(
                f"the GPU could not {doing}",
                where=f"device {self.index}",
                got=f"{known} from {name}",
            )


_NOT_READY = 600


def _library() -> Any:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda: Any = ctypes.CDLL(name)
            if cuda.cuInit(0) == 0:
                return cuda
        except (OSError, AttributeError):
            # No driver, or a library that only has its name.
            continue
    return None
