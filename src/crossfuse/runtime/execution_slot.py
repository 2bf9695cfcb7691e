"""`ExecutionSlot`: one TensorRT execution context with its stream, buffers and CUDA graphs.

For one thread at a time.

Host arrays go through page-locked memory to buffers that are kept and grow; device inputs are read
where they are. A first run of a shape executes directly; the second, too, and is captured as a CUDA
graph behind that; later ones replay it, as long as neither buffers nor device inputs have moved. A
shape that can't be captured is executed directly from then on. TensorRT-RTX captures by itself.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.errors import Advice, EngineError, InputError, Said
from crossfuse.runtime.device_array import DeviceArray, item_size

if TYPE_CHECKING:
    import tensorrt as trt_types
    from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "MAX_GRAPHS", "ExecutionSlot"]

MAX_GRAPHS = 16
"""CUDA graphs that a slot keeps, one per shape; the least recently used goes first."""

ALIGNMENT = 256
"""TensorRT takes no address that isn't a multiple of this."""

_MAX_PINNED = 1 << 26
_DIRECT = object()


class _Buffer(NamedTuple):
    """Device memory that a tensor is copied through, and its bytes."""

    memory: Any
    size: int


class ExecutionSlot:
    """Executes an engine.

    Args:
        trt: the library.
        engine: deserialized.
        config: TensorRT-RTX's runtime configuration, of this slot alone, or None.
        gpu: memory and streams.
        boundary: names of inputs and outputs.
        captures: whether the slot makes CUDA graphs; not where the library does.

    Raises:
        EngineError: no room for the slot, or whatever the GPU or the library refuses later on; the
            slot is as it was then.
    """

    def __init__(
        self,
        trt: Any,
        engine: trt_types.ICudaEngine,
        config: Any,
        gpu: Any,
        boundary: tuple[tuple[str, ...], tuple[str, ...]],
        *,
        captures: bool = True,
    ) -> None:
        gpu.use()
        self.gpu = gpu
        self.engine = engine
        self.inputs, self.outputs = boundary
        self.stream = gpu.stream()
        self._captures = captures
        settings = () if config is None else (config,)
        context = engine.create_execution_context(*settings)
        if context is None:
            raise EngineError(
                "the engine has no room for another execution context",
                do="Use fewer lanes (SessionOptions.lanes)",
            )
        self.context: trt_types.IExecutionContext = context
        if config is not None:
            # The configuration says that the context's memory is ours: with memory of its own it
            # could not be captured.
            size = int(engine.device_memory_size_v2)
            self._scratch = gpu.allocate(size, self.stream)
            context.set_device_memory(int(self._scratch.handle), size)
        self.dtypes = {
            name: _dtype(trt, engine.get_tensor_dtype(name))
            for name in (*self.inputs, *self.outputs)
        }
        self._buffers: dict[str, _Buffer] = {}
        self._pinned: dict[str, NDArray[np.uint8] | None] = {}
        self._profile = 0
        self._seen: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs as new host arrays."""
        return self.run_into(feeds, {})

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, DeviceArray]) -> list[Any]:
        """Outputs as new host arrays, but for some that are written into arrays on the device."""
        with self._settled():
            addresses, shapes = self._take(feeds)
            made = self._prepare(shapes)
            for name in self.outputs:
                if name in kept and kept[name].shape != made[name]:
                    raise InputError(
                        "an output has another shape",
                        where=name,
                        got=made[name],
                        expected=kept[name].shape,
                    )
                addresses[name] = (
                    kept[name].pointer
                    if name in kept
                    else int(self._buffer(name, made[name]).handle)
                )
            self._launch(addresses, shapes)
            results = [
                kept[name] if name in kept else self._fetch(name, made[name])
                for name in self.outputs
            ]
            self.gpu.sync(self.stream)
            return [result() if callable(result) else result for result in results]

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[DeviceArray]:
        """Outputs as new arrays on the device, ready to be read."""
        with self._settled():
            addresses, shapes = self._take(feeds)
            made = self._prepare(shapes)
            arrays = [
                self.gpu.array(made[name], self.dtypes[name], self.stream) for name in self.outputs
            ]
            pointers = {n: a.pointer for n, a in zip(self.outputs, arrays, strict=True)}
            self._enqueue({**addresses, **pointers})
            self.gpu.sync(self.stream)
            return arrays

    def time_layers(self, feeds: Mapping[str, Any], profiler: Any, runs: int) -> None:
        """Execute without CUDA graphs, an ``IProfiler`` listening, which stays with the slot."""
        with self._settled():
            addresses, shapes = self._take(feeds)
            made = self._prepare(shapes)
            for name in self.outputs:
                addresses[name] = int(self._buffer(name, made[name]).handle)
            self.context.profiler = profiler
            for _ in range(runs):
                self._enqueue(addresses)
                self.gpu.sync(self.stream)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """When this is left, by an error too, nothing of the caller's is read or written."""
        self.gpu.use()
        try:
            yield
        except EngineError:
            self._seen.clear()
            with suppress(EngineError):
                self.gpu.sync(self.stream)
            raise
        except BaseException:
            self.gpu.sync(self.stream)
            raise

    def _take(self, feeds: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        """Addresses and shapes of the inputs.

        What can't be read where it is, is copied to buffers.
        """
        addresses: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        arrays = (feeds[name] for name in self.inputs)
        after = {s for a in arrays if not isinstance(a, np.ndarray) for s in a.memory.after}
        if after:
            self.gpu.driver.order(int(self.stream.handle), after)
        for name in self.inputs:
            value = feeds[name]
            shapes[name] = tuple(value.shape)
            if isinstance(value, np.ndarray):
                buffer = self._buffer(name, value.shape)
                self.gpu.upload(self._staged(name, value), buffer, self.stream)
                addresses[name] = int(buffer.handle)
                continue
            addresses[name] = value.pointer
            if not value.nbytes or value.pointer % ALIGNMENT:
                addresses[name] = int(self._buffer(name, value.shape).handle)
                if value.nbytes:
                    self.gpu.driver.copy(
                        addresses[name], value.pointer, value.nbytes, int(self.stream.handle)
                    )
        return addresses, shapes

    def _staged(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The array in page-locked memory, where there is some: its copy needs no stop."""
        pinned = self._page_locked(name, array.nbytes)
        if pinned is None:
            return array if array.flags.c_contiguous else np.ascontiguousarray(array)
        staged: NDArray[Any] = pinned[: array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(staged, array)
        return staged

    def _fetch(self, name: str, shape: tuple[int, ...]) -> Callable[[], NDArray[Any]]:
        """Enqueue the copy of an output; the function gives it once the stream is done."""
        result = np.empty(shape, dtype=np.dtype(self.dtypes[name]))
        pinned = self._page_locked(name, result.nbytes)
        buffer = self._buffers[name].memory
        if pinned is None:
            self.gpu.download(buffer, result, self.stream)
            return lambda: result
        staged = pinned[: result.nbytes].view(result.dtype).reshape(shape)
        self.gpu.download(buffer, staged, self.stream)

        def finished() -> NDArray[Any]:
            np.copyto(result, staged)
            return result

        return finished

    def _page_locked(self, name: str, size: int) -> NDArray[np.uint8] | None:
        if not size or size > _MAX_PINNED:
            return None
        if name not in self._pinned or (
            (pinned := self._pinned[name]) is not None and pinned.nbytes < size
        ):
            self._pinned[name] = self.gpu.pinned(size)
        return self._pinned[name]

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Any:
        size = math.prod(shape) * item_size(self.dtypes[name])
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            # What was captured reads and writes the old place.
            self._seen.clear()
            memory = self.gpu.allocate(size, self.stream)
            buffer = self._buffers[name] = _Buffer(memory, size)
        return buffer.memory

    def _prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Choose the profile, set the input shapes; the outputs' shapes."""
        profile = self._profile_for(shapes)
        if profile != self._profile:
            if not self.context.set_optimization_profile_async(profile, int(self.stream.handle)):
                raise InputError(
                    "the engine can't change to the profile of these shapes", got=profile
                )
            self.gpu.sync(self.stream)
            self._seen.clear()
            self._profile = profile
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise InputError("the engine refused the shape of an input", where=name, got=shape)
        unknown = self.context.infer_shapes()
        found = {name: _sizes(self.context.get_tensor_shape(name)) for name in self.outputs}
        if unknown or any(size < 0 for shape in found.values() for size in shape):
            raise InputError(
                "the shapes of the engine's outputs depend on values",
                got=", ".join(unknown) or str(found),
            )
        return found

    def _profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first profile that all shapes are in; the current one where it fits."""
        count = self.engine.num_optimization_profiles
        for profile in sorted(range(count), key=lambda i: i != self._profile):
            if all(self._within(name, shape, profile) for name, shape in shapes.items()):
                return int(profile)
        ranges = {
            n: [_sizes(s) for s in self.engine.get_tensor_profile_shape(n, 0)[::2]] for n in shapes
        }
        raise InputError(
            "the inputs' shapes are outside the engine's profiles",
            got=dict(shapes),
            expected=f"between {ranges}"
            + (f" (the first of {count} profiles)" if count > 1 else ""),
            do=Advice(
                "Build the engine with {} that hold them",
                Said("--profile-shapes", "profile_shapes"),
            ),
        )

    def _within(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, profile)
        return all(
            a <= size <= b for a, size, b in zip(_sizes(low), shape, _sizes(high), strict=True)
        )

    def _launch(self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Execute: directly twice, captured behind the second time, replayed from then on."""
        if not self._captures:
            self._enqueue(addresses)
            return
        key = (self._profile, tuple(shapes.items()), tuple(addresses.items()))
        graph = self._seen.get(key)
        if graph is not None and graph is not _DIRECT:
            try:
                self.gpu.replay(graph, self.stream)
            except EngineError:
                self._seen[key] = _DIRECT
                self._enqueue(addresses)
        else:
            self._enqueue(addresses)
            # Shapes that were set since take effect with an execution: it has to be one that isn't
            # captured.
            self._seen[key] = None if key not in self._seen else graph or self._captured(addresses)
        self._seen.move_to_end(key)
        while len(self._seen) > MAX_GRAPHS:
            self._seen.popitem(last=False)

    def _captured(self, addresses: Mapping[str, int]) -> Any:
        """A CUDA graph of an execution, or that there can be none."""
        asked = getattr(self.context, "is_stream_capturable", None)
        if asked is not None and not asked(int(self.stream.handle)):
            return _DIRECT
        try:
            return self.gpu.capture(self.stream, lambda: self._enqueue(addresses))
        except EngineError:
            return _DIRECT

    def _enqueue(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not self.context.set_tensor_address(name, address):
                raise EngineError(
                    "the engine refused the address of a tensor",
                    where=name,
                    got=f"{address:#x}",
                    expected=f"memory of this GPU, a multiple of {ALIGNMENT}",
                )
        if not self.context.execute_async_v3(int(self.stream.handle)):
            raise EngineError(
                "the engine could not be executed",
                do="Check the inputs' values (token ids within the vocabulary) and the GPU's free "
                "memory",
            )


def _sizes(dims: Any) -> tuple[int, ...]:
    """TensorRT's ``Dims`` are a sequence, which its stubs don't say."""
    return tuple(dims)


def _dtype(trt: Any, kind: Any) -> str:
    """NumPy's name of an engine's type; bfloat16 by its own."""
    return "bfloat16" if kind == trt.DataType.BF16 else np.dtype(trt.nptype(kind)).name
