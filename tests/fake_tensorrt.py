"""Stand-ins for TensorRT (ONNX Runtime is the engine) and for a GPU (host memory is its memory).

They behave as the real ones where it matters. Nothing that is enqueued on a stream happens before
the stream is synchronised. Memory that was freed on a stream is overwritten when the stream gets
there. Addresses are refused by their alignment, shapes by their profile. An execution whose shapes
are new can't be captured, nor can what `Engine.capturable` forbids; a captured graph replays
exactly the addresses and shapes that it was captured with. Failures of each kind can be ordered.

`tests/gpu_rehearsal` runs the same library on the real `Gpu` over a stand-in for the driver.
"""

from __future__ import annotations

import ctypes
import json
import threading
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from crossfuse.errors import EngineError
from crossfuse.runtime.device_array import DeviceArray, DeviceMemory, item_size
from crossfuse.runtime.driver import Rows
from crossfuse.runtime.onnxruntime_stage import SLOW_FUSIONS

VERSION = "1.7.1.116"
SCRATCH = 1024
_ALIGNMENT = 256
_TYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
}


def write_plan(
    path: Path, graph: Path, profiles: list[dict[str, tuple[tuple[int, ...], ...]]]
) -> Path:
    """An engine file of the stand-in."""
    path.write_text(json.dumps({"graph": str(graph), "profiles": profiles}))
    return path


class Stream:
    """Holds what was enqueued until somebody waits."""

    known: ClassVar[weakref.WeakValueDictionary[int, Stream]] = weakref.WeakValueDictionary()

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.spoiled = False
        self.handle = id(self)
        Stream.known[self.handle] = self

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.capturing is None else self.capturing).append(work)

    def run(self) -> None:
        while self.queue:
            self.queue.pop(0)()


def enqueue(stream: int, work: Callable[[], None]) -> None:
    """How the library hands work to a stream of `Gpu`."""
    Stream.known[stream].add(work)


def is_capturing(stream: int) -> bool:
    return Stream.known[stream].capturing is not None


class Buffer:
    """Memory that is freed on its stream."""

    def __init__(self, size: int, stream: Stream | None, freed: list[np.ndarray]) -> None:
        memory = np.full(size + _ALIGNMENT, 0xAB, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self.memory = memory[start : start + size]
        self.handle = self.memory.ctypes.data
        self.stream = stream
        self._freed = freed

    def __del__(self) -> None:
        self._freed.append(self.memory)
        memory = self.memory
        if self.stream is not None:
            self.stream.add(lambda: memory.fill(0xDD))


class Driver:
    """Copies that are done on return, as those of the real one."""

    def __init__(self) -> None:
        self.index = 0
        self.ordered: list[tuple[int, frozenset[int]]] = []

    def gather(self, to: int, source: int, part: Rows, stream: int | None = None) -> None:
        size, many = part.size, len(part.rows)
        for i in range(part.outer):
            for place, row in enumerate(part.rows):
                begin = source + (i * part.count + row) * size
                ctypes.memmove(to + (i * many + place) * size, begin, size)

    def zero(self, to: int, size: int) -> None:
        ctypes.memset(to, 0, size)

    def upload(self, to: int, array: np.ndarray) -> None:
        ctypes.memmove(to, array.ctypes.data, array.nbytes)

    def download(self, source: int, array: np.ndarray) -> None:
        ctypes.memmove(array.ctypes.data, source, array.nbytes)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        enqueue(stream, lambda: ctypes.memmove(to, source, size))

    def order(self, stream: int, after: Collection[int]) -> None:
        self.ordered.append((stream, frozenset(after)))


class Gpu:
    """Counts what it does; ``fails`` maps a method's name to how many of its next calls fail."""

    name = "stand-in"
    index = 0
    driver_version = "13.0"

    def __init__(self, capability: str = "8.9") -> None:
        self.capability = capability
        self.allocated = 0
        self.uploads = 0
        self.captured = 0
        self.replayed = 0
        self.has_pinned = True
        self.fails: dict[str, int] = {}
        self.driver = Driver()
        self.freed: list[np.ndarray] = []
        self.lock = threading.Lock()
        self._releasing = Stream()
        self._pinned: set[int] = set()

    def use(self) -> None:
        pass

    def stream(self) -> Stream:
        return Stream()

    def sync(self, stream: Stream) -> None:
        if stream.capturing is not None:
            stream.spoiled = True
            raise EngineError(
                "the GPU could not finish its work: operation not permitted when stream is "
                "capturing"
            )
        stream.run()
        self._check("sync")

    def allocate(self, size: int, stream: Stream) -> Buffer:
        self._check("allocate")
        with self.lock:
            self.allocated += 1
        return Buffer(max(size, 1), stream, self.freed)

    def array(self, shape: tuple[int, ...], dtype: str, stream: Stream) -> DeviceArray:
        buffer = self.allocate(int(np.prod(shape)) * item_size(dtype), stream)

        def release(owner: Buffer, readers: frozenset[int]) -> None:
            self.driver.order(self._releasing.handle, readers)
            owner.stream = self._releasing

        return DeviceArray(
            DeviceMemory(buffer.handle, self.index, buffer, place=self, release=release),
            shape,
            dtype,
        )

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return self.array(shape, dtype, self._releasing)

    def coming(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        made = self.array(shape, dtype, self._releasing)
        made.memory.after = frozenset({self._releasing.handle})
        return made

    def pinned(self, size: int) -> np.ndarray | None:
        if not self.has_pinned:
            return None
        memory = np.full(size, 0xAB, np.uint8)
        self._pinned.add(memory.ctypes.data)
        return memory

    def upload(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        self._check("upload")
        with self.lock:
            self.uploads += 1
        self._copy(buffer.handle, array.ctypes.data, array, stream)

    def download(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        self._check("download")
        self._copy(array.ctypes.data, buffer.handle, array, stream)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Any:
        self._check("capture")
        stream.capturing, stream.spoiled = [], False
        try:
            work()
            if stream.spoiled:
                raise EngineError("the GPU could not capture a graph: the capture was invalidated")
            self.captured += 1
            return stream.capturing
        finally:
            stream.capturing = None

    def replay(self, graph: list[Callable[[], None]], stream: Stream) -> None:
        self._check("replay")
        self.replayed += 1
        for work in graph:
            stream.add(work)

    def _copy(self, to: int, source: int, host: np.ndarray, stream: Stream) -> None:
        stream.add(lambda: ctypes.memmove(to, source, host.nbytes))
        if host.ctypes.data not in self._pinned:
            stream.run()

    def _check(self, name: str) -> None:
        if self.fails.get(name):
            self.fails[name] -= 1
            raise EngineError(f"the GPU could not {name}: CUDA_ERROR_OUT_OF_MEMORY")


class Context:
    """``IExecutionContext``."""

    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine = engine
        self.config = config
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.settled: object = None
        self.scratch = None if config is not None and config.strategy == "user" else (1, SCRATCH)
        self.running = threading.Lock()
        self.profiler: Any = None
        if engine.library.rtx:
            self.is_stream_capturable = lambda stream: engine.capturable

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        self.shapes = {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile][name]
        if not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(
            self.engine.compute(
                {n: np.zeros(s, self.engine.dtypes[n]) for n, s in self.shapes.items()}
            )[name].shape
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address == 0 or address % _ALIGNMENT or name in self.engine.refuses:
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.running.acquire(blocking=False), (
            "one context was executed by two threads at once"
        )
        try:
            addresses, shapes = dict(self.addresses), dict(self.shapes)
            capturing = self.engine.library.is_capturing(stream)
            ready = self.scratch is not None and self.scratch[0] and self.scratch[1] >= SCRATCH
            if not ready or addresses.keys() != self.engine.dtypes.keys() or self._fails(capturing):
                return False
            state = (self.profile, tuple(shapes.items()))
            if capturing and (not self.engine.capturable or state != self.settled):
                return False
            self.settled = state
            self.engine.executed += 1
            if self.profiler is not None:
                assert not capturing, "a profiler and a capture at once"
                for layer in self.engine.layers:
                    self.profiler.report_layer_time(layer["Name"], layer["ms"])
            self.engine.library.enqueue(stream, lambda: self._compute(addresses, shapes))
        finally:
            self.running.release()
        return True

    def _fails(self, capturing: bool) -> bool:
        kind = "capture" if capturing else "execute"
        if self.engine.fails.get(kind):
            self.engine.fails[kind] -= 1
            return True
        return False

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {}
        for name, shape in shapes.items():
            array = np.empty(shape, self.engine.dtypes[name])
            ctypes.memmove(array.ctypes.data, addresses[name], array.nbytes)
            feeds[name] = array
        for name, result in self.engine.compute(feeds).items():
            kept = np.ascontiguousarray(result)
            ctypes.memmove(addresses[name], kept.ctypes.data, kept.nbytes)


class Engine:
    """``ICudaEngine``; ``fails`` maps ``execute`` or ``capture`` to how many of the next fail."""

    device_memory_size_v2 = SCRATCH

    def __init__(self, data: dict[str, Any], library: Library) -> None:
        self.library = library
        self.session = ort.InferenceSession(
            data["graph"],
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(SLOW_FUSIONS),
        )
        self.profiles = data["profiles"]
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        self.dtypes = {e.name: _TYPES[e.type] for e in ends}
        self.num_io_tensors = len(ends)
        self.num_optimization_profiles = len(self.profiles)
        self.contexts: list[Context] = []
        self.most_contexts = 1 << 30
        self.executed = 0
        self.capturable = True
        self.fails: dict[str, int] = {}
        self.refuses: set[str] = set()
        self.layers: list[dict[str, Any]] = []
        self.caches: list[SimpleNamespace] = []

    def compute(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))

    def get_tensor_name(self, i: int) -> str:
        return [*self.inputs, *self.outputs][i]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.dtypes[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.profiles[profile][name]

    def create_runtime_config(self) -> Any:
        def make_cache() -> SimpleNamespace:
            kept: dict[str, Any] = {}
            cache = SimpleNamespace(
                deserialize=lambda data: kept.update(given=data),
                serialize=lambda: b"kernels",
                kept=kept,
            )
            self.caches.append(cache)
            return cache

        config = SimpleNamespace(strategy="static", cuda_graph_strategy="disabled", cache=None)
        config.create_runtime_cache = make_cache
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(
            config, "strategy", strategy
        )
        return config

    def create_engine_inspector(self) -> Any:
        told = [
            {key: value for key, value in layer.items() if key != "ms"} for layer in self.layers
        ]
        return SimpleNamespace(
            get_engine_information=lambda form: json.dumps({"Layers": told, "Bindings": []})
        )

    def create_execution_context(self, config: Any = None) -> Context | None:
        if len(self.contexts) >= self.most_contexts:
            return None
        assert config is None or all(config is not context.config for context in self.contexts), (
            "one configuration per context"
        )
        self.contexts.append(Context(self, config))
        return self.contexts[-1]


class Library:
    """The module ``tensorrt_rtx``, or ``tensorrt``.

    Args:
        rtx: which.
        enqueue, is_capturing: of the GPU's streams, by handle.
    """

    __version__ = VERSION
    IProfiler = object
    LayerInformationFormat = SimpleNamespace(JSON="json")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    DataType = SimpleNamespace(BF16="bf16")

    def __init__(
        self,
        *,
        rtx: bool = True,
        enqueue: Callable[[int, Callable[[], None]], None] = enqueue,
        is_capturing: Callable[[int], bool] = is_capturing,
    ) -> None:
        self.rtx = rtx
        self.enqueue = enqueue
        self.is_capturing = is_capturing
        self.engines: list[Engine] = []
        self.refuses = False
        if rtx:
            self.IRuntimeCache = object
            self.CudaGraphStrategy = SimpleNamespace(
                DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole"
            )
            self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None:
            pass

    @staticmethod
    def nptype(kind: str) -> str:
        return kind

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        def deserialize(data: bytes) -> Engine | None:
            if self.refuses:
                return None
            self.engines.append(Engine(json.loads(data), self))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize, engine_host_code_allowed=False)
