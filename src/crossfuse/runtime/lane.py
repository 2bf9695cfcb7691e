"""`Lane`: one TensorRT execution context with its stream, its buffers and its CUDA graphs. For one thread at a time.

Host inputs go to buffers that are kept and grow; device inputs are read where they are. The first run of a shape executes
directly, the second is captured as a CUDA graph, later ones replay it: as long as neither buffers nor device inputs have moved.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.gpu import DeviceArray, item_size

if TYPE_CHECKING:
    import tensorrt as trt_types
    from numpy.typing import NDArray

__all__ = ["MAX_GRAPHS", "Lane"]

MAX_GRAPHS = 16
"""CUDA graphs that a lane keeps, one per shape; the least recently used goes first."""


class Lane:
    """Executes an engine.

    Args:
        trt: the library.
        engine: deserialized.
        config: TensorRT-RTX's runtime configuration, or None.
        gpu: memory and streams.
        boundary: names of inputs and outputs.
    """

    def __init__(
        self, trt: Any, engine: trt_types.ICudaEngine, config: Any, gpu: Any, boundary: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> None:
        gpu.use()
        self.gpu = gpu
        self.engine = engine
        self.inputs, self.outputs = boundary
        self.stream = gpu.stream()
        context = engine.create_execution_context() if config is None else engine.create_execution_context(config)
        if context is None:
            raise InputError(
                "the engine has no room for another execution context", do="Use fewer lanes (SessionOptions.lanes)"
            )
        self.context: trt_types.IExecutionContext = context
        self.dtypes = {name: _dtype(trt, engine.get_tensor_dtype(name)) for name in (*self.inputs, *self.outputs)}
        self._buffers: dict[str, tuple[Any, int]] = {}
        self._profile = 0
        self._seen: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs as new host arrays."""
        self.gpu.use()
        addresses, shapes, made, alive = self._buffered(feeds)
        self._launch(addresses, shapes)
        results = [np.empty(made[name], dtype=np.dtype(self.dtypes[name])) for name in self.outputs]
        for name, array in zip(self.outputs, results, strict=True):
            self.gpu.download(self._buffers[name][0], array, self.stream)
        self.stream.sync()
        del alive
        return results

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[DeviceArray]:
        """Outputs as new arrays on the device, ready to be read."""
        self.gpu.use()
        addresses, shapes, alive = self._take(feeds)
        made = self._prepare(shapes)
        arrays = []
        for name in self.outputs:
            size = math.prod(made[name]) * item_size(self.dtypes[name])
            arrays.append(DeviceArray(self.gpu.allocate(size, self.stream), made[name], self.dtypes[name]))
            addresses[name] = arrays[-1].pointer
        self._enqueue(addresses)
        self.stream.sync()
        del alive
        return arrays

    def time_layers(self, feeds: Mapping[str, Any], profiler: Any, runs: int) -> None:
        """Execute so many times without CUDA graphs, an ``IProfiler`` listening to every layer. It stays with the lane."""
        self.gpu.use()
        addresses, _, _, alive = self._buffered(feeds)
        self.context.profiler = profiler
        for _ in range(runs):
            self._enqueue(addresses)
            self.stream.sync()
        del alive

    def _buffered(
        self, feeds: Mapping[str, Any]
    ) -> tuple[dict[str, int], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], list[Any]]:
        """Addresses of inputs and outputs, the latter in kept buffers; shapes of the inputs and of the outputs."""
        addresses, shapes, alive = self._take(feeds)
        made = self._prepare(shapes)
        for name in self.outputs:
            addresses[name] = int(self._buffer(name, made[name]).handle)
        return addresses, shapes, made, alive

    def _take(self, feeds: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, tuple[int, ...]], list[Any]]:
        """Addresses and shapes of the inputs; host arrays are copied to their buffers."""
        addresses: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        alive: list[Any] = []
        for name in self.inputs:
            value = feeds[name]
            if isinstance(value, np.ndarray):
                shapes[name] = value.shape
                buffer = self._buffer(name, value.shape)
                array = np.ascontiguousarray(value)
                self.gpu.upload(array, buffer, self.stream)
                alive.append(array)
                addresses[name] = int(buffer.handle)
            else:
                addresses[name], shapes[name], kept = self.gpu.array(value, self.stream)
                alive.append(kept)
        return addresses, shapes, alive

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Any:
        size = math.prod(shape) * item_size(self.dtypes[name])
        held = self._buffers.get(name)
        if held is None or held[1] < size:
            # What was captured reads and writes the old place.
            self._seen.clear()
            held = self._buffers[name] = (self.gpu.allocate(size, self.stream), size)
        return held[0]

    def _prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Choose the profile, set the input shapes; the outputs' shapes."""
        profile = self._profile_for(shapes)
        if profile != self._profile:
            if not self.context.set_optimization_profile_async(profile, int(self.stream.handle)):
                raise InputError("the engine can't change to the profile of these shapes", got=profile)
            self.stream.sync()
            self._seen.clear()
            self._profile = profile
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise InputError("the engine refused the shape of an input", where=name, got=shape)
        unknown = self.context.infer_shapes()
        found = {name: _sizes(self.context.get_tensor_shape(name)) for name in self.outputs}
        if unknown or any(size < 0 for shape in found.values() for size in shape):
            raise InputError("the shapes of the engine's outputs depend on values", got=", ".join(unknown) or str(found))
        return found

    def _profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first profile that all shapes are in; the current one where it fits."""
        count = self.engine.num_optimization_profiles
        for profile in sorted(range(count), key=lambda i: i != self._profile):
            if all(self._within(name, shape, profile) for name, shape in shapes.items()):
                return int(profile)
        ranges = {n: [_sizes(s) for s in self.engine.get_tensor_profile_shape(n, 0)[::2]] for n in shapes}
        raise InputError(
            "the inputs' shapes are outside the engine's profiles",
            got=dict(shapes),
            expected=f"between {ranges}" + (f" (the first of {count} profiles)" if count > 1 else ""),
            do=Advice("Build the engine with {} that hold them", Said("--profile-shapes", "profile_shapes")),
        )

    def _within(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, profile)
        return all(a <= size <= b for a, size, b in zip(_sizes(low), shape, _sizes(high), strict=True))

    def _launch(self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Execute: directly at first, captured the second time, replayed from then on."""
        key = (self._profile, tuple(shapes.items()), tuple(addresses.items()))
        if key not in self._seen:
            self._enqueue(addresses)
            self._seen[key] = None
        else:
            if self._seen[key] is None:
                self._seen[key] = self.gpu.capture(self.stream, lambda: self._enqueue(addresses))
            self._seen.move_to_end(key)
            self._seen[key].launch(self.stream)
        while len(self._seen) > MAX_GRAPHS:
            self._seen.popitem(last=False)

    def _enqueue(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            self.context.set_tensor_address(name, address)
        if not self.context.execute_async_v3(int(self.stream.handle)):
            raise InputError(
                "the engine could not be executed", do="Check the inputs' values (token ids within the vocabulary)"
            )


def _sizes(dims: Any) -> tuple[int, ...]:
    """TensorRT's ``Dims`` are a sequence, which its stubs don't say."""
    return tuple(dims)


def _dtype(trt: Any, kind: Any) -> str:
    """NumPy's name of an engine's type; bfloat16 by its own."""
    return "bfloat16" if kind == trt.DataType.BF16 else np.dtype(trt.nptype(kind)).name
