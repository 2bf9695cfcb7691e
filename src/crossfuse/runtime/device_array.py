"""`DeviceArray`: an array in a GPU's memory, our own or another library's, and who may still be
reading it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.foreign import cause_of
from crossfuse.errors import InputError
from crossfuse.runtime.dlpack import CUDA, CUDA_MANAGED, Foreign, make_capsule, read_capsule
from crossfuse.runtime.driver import LEGACY_STREAM, Driver, Rows

__all__ = ["DeviceArray", "DeviceMemory", "Place", "device_array", "item_size"]


def item_size(dtype: str) -> int:
    """Bytes of one element; bfloat16, which NumPy lacks, too."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class Place(Protocol):
    """Where arrays on a GPU come from."""

    @property
    def driver(self) -> Driver:
        """Copies on that GPU."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array, its content undefined."""

    def coming(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array for what is enqueued on the one stream that its memory comes ``after``."""


class DeviceMemory:
    """Memory on a GPU, and the streams on which other libraries read it.

    Args:
        pointer: address on the device.
        device: number of the GPU.
        owner: what keeps the memory.
        place: where more of it comes from; None for another library's.
        release: is called once, when nothing refers to the memory, with the owner and the readers'
            streams: it must give the memory back behind what those hold by then.
        after: streams that must have come so far before the content is there; empty for content
            that is.
    """

    def __init__(
        self,
        pointer: int,
        device: int,
        owner: object,
        *,
        place: Place | None = None,
        release: Callable[[Any, frozenset[int]], None] | None = None,
        after: frozenset[int] = frozenset(),
    ) -> None:
        self.pointer = pointer
        self.device = device
        self.place = place
        self.after = after
        self.readers: set[int] = set()
        self._owner = owner
        self._release = release

    def __del__(self) -> None:
        release, self._release = getattr(self, "_release", None), None
        if release is not None:
            release(self._owner, frozenset(self.readers))


class DeviceArray:
    """A contiguous array in a GPU's memory.

    It speaks DLPack and, for NumPy's dtypes, the CUDA array interface. The data is ready, or a
    taker's stream is made to wait for it.

    Who takes it through DLPack tells its stream. The memory is given back when neither this array
    nor what was made of it exists any more, behind everything that the takers' streams hold by
    then; so a PyTorch tensor made of it may be dropped while kernels that read it are still queued
    on the stream on which it was taken. The CUDA array interface tells no stream: CUDA's default
    stream counts as the reader.

    Attributes:
        shape, dtype: of the array; ``bfloat16`` for a dtype that NumPy lacks.
        memory: where it is.
    """

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...], dtype: str) -> None:
        self.memory = memory
        self.shape = shape
        self.dtype = dtype

    @property
    def pointer(self) -> int:
        """Address on the device."""
        return self.memory.pointer

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * item_size(self.dtype)

    def __repr__(self) -> str:
        return f"<crossfuse DeviceArray {self.dtype}{list(self.shape)} on GPU {self.memory.device}>"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("the CUDA array interface has no bfloat16")
        self.arrived()
        self.memory.readers.add(LEGACY_STREAM)
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
        }

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(
                f"the array is on {self.__dlpack_device__()}, and can't be given on {dl_device}"
            )
        if copy:
            raise BufferError("the array is given as it is, not copied")
        place = self.memory.place
        if self.memory.after and place is not None and stream is not None and stream > 0:
            place.driver.order(stream, self.memory.after)
        else:
            self.arrived()
        self.memory.readers.add(stream if stream is not None and stream > 0 else LEGACY_STREAM)
        versioned = max_version is not None and max_version[0] >= 1
        return make_capsule(
            self.pointer,
            self.shape,
            self.dtype,
            self.memory.device,
            self.memory,
            versioned=versioned,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.memory.device

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise TypeError("an array on a GPU is not copied to the host by itself: call numpy()")

    def numpy(self) -> NDArray[Any]:
        """A copy in host memory.

        Raises:
            InputError: bfloat16, which NumPy lacks.
        """
        if self.dtype == "bfloat16":
            raise InputError(
                "NumPy has no bfloat16",
                got=self,
                do="Take the array through DLPack, for example with PyTorch",
            )
        return self.bits()

    def bits(self) -> NDArray[Any]:
        """A copy in host memory; of bfloat16, its bits as uint16."""
        kind = np.uint16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        host: NDArray[Any] = np.empty(self.shape, kind)
        if host.nbytes:
            self.arrived()
            self._place().driver.download(self.pointer, host)
        return host

    def write(self, bits: NDArray[Any]) -> DeviceArray:
        """The array itself, with this content, as `bits` gives it."""
        if self.nbytes:
            self.arrived()
            self._place().driver.upload(self.pointer, np.ascontiguousarray(bits))
        return self

    def take(self, indices: Sequence[int], axis: int) -> DeviceArray:
        """The parts at these positions of an axis, in this order, in new memory on the GPU."""
        self.arrived()
        taken = self._place().empty(self._shape_of(indices, axis), self.dtype)
        self._gather(taken, indices, axis, None)
        return taken

    def select(self, indices: Sequence[int], axis: int) -> DeviceArray:
        """As `take`, of an array that nobody writes to: nothing waits for the copies. The new
        memory comes ``after`` the stream that makes them, and so does all that reads it."""
        made = self._place().coming(self._shape_of(indices, axis), self.dtype)
        (stream,) = made.memory.after
        if self.memory.after - made.memory.after:
            self._place().driver.order(stream, self.memory.after - made.memory.after)
        self.memory.readers.add(stream)
        self._gather(made, indices, axis, stream)
        return made

    def _shape_of(self, indices: Sequence[int], axis: int) -> tuple[int, ...]:
        return (*self.shape[:axis], len(indices), *self.shape[axis + 1 :])

    def _gather(
        self, into: DeviceArray, indices: Sequence[int], axis: int, stream: int | None
    ) -> None:
        size = math.prod(self.shape[axis + 1 :]) * item_size(self.dtype)
        if into.nbytes:
            count, outer = self.shape[axis], math.prod(self.shape[:axis])
            part = Rows([i % count for i in indices], outer=outer, count=count, size=size)
            self._place().driver.gather(into.pointer, self.pointer, part, stream)

    def arrived(self) -> None:
        """Wait until the content is there."""
        if self.memory.after and self.memory.place is not None:
            self.memory.place.driver.wait(self.memory.after)
            self.memory.after = frozenset()

    def zero(self) -> DeviceArray:
        """The array itself, filled with zeros."""
        if self.nbytes:
            self.arrived()
            self._place().driver.zero(self.pointer, self.nbytes)
        return self

    def put(self, at: int, source: DeviceArray | None, index: int = 0, axis: int = 0) -> None:
        """Write at one position of an axis, in place, what ``source`` on the same GPU, whose other
        axes are as long, has at its position ``index``; zeros where there is none."""
        size = math.prod(self.shape[axis + 1 :]) * item_size(self.dtype)
        driver = self._place().driver
        for outer in range(math.prod(self.shape[:axis]) if size else 0):
            to = self.pointer + (outer * self.shape[axis] + at) * size
            if source is None:
                driver.zero(to, size)
            else:
                of = source.pointer + (outer * source.shape[axis] + index) * size
                driver.gather(to, of, Rows([0], outer=1, count=1, size=size), None)

    def _place(self) -> Place:
        if self.memory.place is None:
            raise InputError("another library's array can't be handled here", got=self)
        return self.memory.place


def device_array(value: Any, device: int, where: str) -> DeviceArray:
    """An input on a GPU as it is there, ready for what is enqueued on a stream that waits for its
    ``memory.after``.

    Args:
        value: a `DeviceArray`, or anything with DLPack or the CUDA array interface.
        device: number of the GPU that will read it.
        where: the input's name, for errors.

    Raises:
        InputError: an array of another GPU, one that is not contiguous, or one that can't be read.
    """
    if isinstance(value, DeviceArray):
        array = value
    else:
        try:
            found = _foreign(value)
        except InputError:
            raise
        except Exception as error:  # a producer may raise anything
            raise InputError(
                f"a device array can't be read: {cause_of(error)}", where=where
            ) from error
        if found.device_kind not in (CUDA, CUDA_MANAGED):
            raise InputError(
                "an array on this kind of device can't be used",
                where=where,
                got=f"DLPack's device type {found.device_kind}",
                expected="memory of the host or of an NVIDIA GPU",
            )
        _check_contiguous(found, where)
        memory = DeviceMemory(found.pointer, found.device, found.keeper, after=_after(value))
        array = DeviceArray(memory, found.shape, _dtype(value, found.dtype))
    if array.memory.device != device:
        raise InputError(
            "an input is on another GPU than the session",
            where=where,
            got=f"device {array.memory.device}",
            expected=f"device {device}",
            do="Copy it there, or load the bundle with SessionOptions(device_id=...)",
        )
    return array


def _foreign(value: Any) -> Foreign:
    if hasattr(value, "__dlpack__"):
        return read_capsule(value, LEGACY_STREAM)
    interface = value.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    if interface.get("mask") is not None or dtype.hasobject or dtype.byteorder == ">":
        raise BufferError(f"a masked array, or one of dtype {interface['typestr']}")
    strides = interface.get("strides")
    counted = None if strides is None else tuple(stride // dtype.itemsize for stride in strides)
    if strides is not None and any(stride % dtype.itemsize for stride in strides):
        raise BufferError(f"strides {strides} that are no multiples of the elements' size")
    driver = Driver.of_pointer(interface["data"][0]) if interface["data"][0] else 0
    return Foreign(
        interface["data"][0], tuple(interface["shape"]), counted, dtype.name, CUDA, driver, value
    )


def _after(value: Any) -> frozenset[int]:
    """DLPack's producers made the default stream wait for them.

    The CUDA array interface names a stream, or none.
    """
    if hasattr(value, "__dlpack__"):
        return frozenset({LEGACY_STREAM})
    stream = value.__cuda_array_interface__.get("stream")
    return frozenset() if stream is None else frozenset({int(stream)})


def _dtype(value: Any, dtype: str) -> str:
    """ONNX Runtime's values give bool away as uint8, and say so apart."""
    data_type = getattr(value, "data_type", None)
    return (
        "bool"
        if dtype == "uint8" and callable(data_type) and data_type() == "tensor(bool)"
        else dtype
    )


def _check_contiguous(found: Foreign, where: str) -> None:
    """Axes of one element, and empty arrays, may have any strides."""
    if found.strides is None or 0 in found.shape:
        return
    expected = 1
    for size, stride in zip(reversed(found.shape), reversed(found.strides), strict=True):
        if size != 1 and stride != expected:
            raise InputError(
                "a device array must be contiguous",
                where=where,
                got=f"strides {found.strides}",
                do="Make it contiguous first",
            )
        expected *= size
