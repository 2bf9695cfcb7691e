"""A GPU's memory, streams and graphs, through cuda-core."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import BundleError, CrossfuseError, EngineError
from crossfuse.runtime.device_array import DeviceArray, DeviceMemory, item_size
from crossfuse.runtime.driver import Driver, driver_version, gpu_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DeviceArray", "Gpu", "gpu_count"]


class Gpu:
    """One GPU.

    Args:
        index: of the device, among those that ``CUDA_VISIBLE_DEVICES`` leaves visible.

    Every method raises :class:`EngineError` for what the driver refuses.

    Raises:
        BundleError: no driver, no GPU of that index, or no cuda-core.
    """

    def __init__(self, index: int = 0) -> None:
        if gpu_count() <= index:
            raise BundleError(
                "there is no NVIDIA GPU to execute the engine",
                where=f"device {index}" if index else None,
                got=f"{gpu_count()} GPUs that the driver sees",
                do="Load target 'ort-cpu', or check the NVIDIA driver (nvidia-smi)",
            )
        try:
            from cuda.core import Device
        except ImportError as error:
            raise BundleError(
                f"executing engines needs cuda-core: {error}",
                do="pip install 'crossfuse[rtx]' or 'crossfuse[gpu]'",
            ) from error
        self.index = index
        self.driver = Driver(index)
        with self._asked("be used"):
            self._device = Device(index)
            self._device.set_current()
            self.capability = ".".join(str(part) for part in self._device.compute_capability)
            self.name = str(self._device.name)
            # Arrays that were given away are freed on a stream of their own, behind their readers.
            self._releasing = self._device.create_stream()
            # Selections are copied on one, too: who reads them waits on the GPU.
            self._selecting = self._device.create_stream()
        self.driver_version = driver_version()

    def use(self) -> None:
        """Make the device current in the calling thread."""
        with self._asked("be used"):
            self._device.set_current()

    def stream(self) -> Any:
        """A new stream."""
        with self._asked("make a stream"):
            return self._device.create_stream()

    def sync(self, stream: Any) -> None:
        """Wait until a stream has done what it holds."""
        with self._asked("finish its work"):
            stream.sync()

    def allocate(self, size: int, stream: Any) -> Any:
        """Device memory of so many bytes, one at least, freed on the stream."""
        with self._asked(
            f"allocate {size} bytes", "Use smaller batches, or fewer lanes (SessionOptions.lanes)"
        ):
            return self._device.allocate(max(size, 1), stream=stream)

    def array(self, shape: tuple[int, ...], dtype: str, stream: Any) -> DeviceArray:
        """A new array to be given away, for work on the stream.

        See `DeviceArray` for when it is freed.
        """
        buffer = self.allocate(math.prod(shape) * item_size(dtype), stream)
        memory = DeviceMemory(
            int(buffer.handle), self.index, buffer, place=self, release=self._release
        )
        return DeviceArray(memory, shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array, its content undefined."""
        self.use()
        made = self.array(shape, dtype, self._releasing)
        self.sync(self._releasing)
        return made

    def coming(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array for what is enqueued on the one stream that its memory comes ``after``."""
        self.use()
        made = self.array(shape, dtype, self._selecting)
        made.memory.after = frozenset({int(self._selecting.handle)})
        made.memory.readers |= made.memory.after
        return made

    def pinned(self, size: int) -> NDArray[np.uint8] | None:
        """Page-locked host memory, which copies reach without a stop.

        None where there is none left.
        """
        from cuda.core import LegacyPinnedMemoryResource

        try:
            buffer = LegacyPinnedMemoryResource().allocate(size)
        except Exception:  # noqa: BLE001 -- pageable memory does, too
            return None
        memory: Any = (ctypes.c_uint8 * size).from_address(int(buffer.handle))
        memory.owner = buffer  # lives as long as the array's base
        return np.asarray(memory)

    def upload(self, array: NDArray[Any], buffer: Any, stream: Any) -> None:
        """Copy a contiguous host array to the start of a buffer."""
        if array.nbytes:
            with self._asked("copy to the GPU"):
                self._at(buffer, array.nbytes).copy_from(self._host(array), stream=stream)

    def download(self, buffer: Any, array: NDArray[Any], stream: Any) -> None:
        """Copy the start of a buffer to a contiguous host array.

        It is there when the stream is done.
        """
        if array.nbytes:
            with self._asked("copy from the GPU"):
                self._at(buffer, array.nbytes).copy_to(self._host(array), stream=stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """A CUDA graph of what ``work`` enqueues on the stream.

        Whatever goes wrong, the capture is over when this returns.
        """
        with self._asked("capture a graph"):
            builder = stream.create_graph_builder()
            try:
                builder.begin_building("thread_local")
                work()
                return builder.end_building().complete()
            except BaseException:
                # A capture is ended by the thread that began it. One that was spoiled can't be
                # ended, only closed.
                with suppress(Exception):
                    builder.end_building()
                raise
            finally:
                with suppress(Exception):
                    builder.close()

    def replay(self, graph: Any, stream: Any) -> None:
        """Enqueue a captured graph."""
        with self._asked("replay a graph"):
            graph.launch(stream)

    def _release(self, buffer: Any, readers: frozenset[int]) -> None:
        with suppress(Exception):
            self.driver.order(int(self._releasing.handle), readers)
        with suppress(Exception):
            buffer.close(self._releasing)

    @contextmanager
    def _asked(self, doing: str, do: str | None = None) -> Iterator[None]:
        try:
            yield
        except CrossfuseError:
            raise
        except Exception as error:  # cuda-core's errors have no public base
            text = " ".join(str(error).split())
            raise EngineError(
                f"the GPU could not {doing}: {text}", where=f"device {self.index}", do=do
            ) from error

    @staticmethod
    def _at(buffer: Any, size: int) -> Any:
        from cuda.core import Buffer

        return Buffer.from_handle(int(buffer.handle), size, owner=buffer)

    @staticmethod
    def _host(array: NDArray[Any]) -> Any:
        from cuda.core import Buffer

        return Buffer.from_handle(array.ctypes.data, array.nbytes, owner=array)
