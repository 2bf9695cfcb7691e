"""A stand-in for TensorRT and for a GPU: host memory as device memory, ONNX Runtime as the engine.

It keeps the rules that matter: addresses and shapes are set before an execution, a captured graph replays exactly the addresses
and shapes it was captured with, shapes outside a profile are refused.
"""

from __future__ import annotations

import ctypes
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from crossfuse.runtime.ort import SLOW_FUSIONS

VERSION = "1.7.1.116"
_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(float16)": "float16"}


def write_plan(path: Path, graph: Path, profiles: list[dict[str, tuple[tuple[int, ...], ...]]]) -> Path:
    """An engine file of the stand-in."""
    path.write_text(json.dumps({"graph": str(graph), "profiles": profiles}))
    return path


class Buffer:
    def __init__(self, size: int) -> None:
        self.memory = np.full(size, 0xAB, np.uint8)

    @property
    def handle(self) -> int:
        return self.memory.ctypes.data


class Stream:
    handle = 7

    def __init__(self) -> None:
        self.capturing: list[Any] | None = None
        self.pending = 0

    def sync(self) -> None:
        self.pending = 0


class Gpu:
    """Counts what it does."""

    name = "stand-in"

    def __init__(self, capability: str = "8.9") -> None:
        self.capability = capability
        self.allocated = 0
        self.uploads = 0
        self.captured = 0
        self.replayed = 0
        self.lock = threading.Lock()

    def use(self) -> None:
        pass

    def stream(self) -> Stream:
        return Stream()

    def allocate(self, size: int, stream: Stream) -> Buffer:
        with self.lock:
            self.allocated += 1
        return Buffer(max(size, 1))

    def upload(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        with self.lock:
            self.uploads += 1
        ctypes.memmove(buffer.handle, array.ctypes.data, array.nbytes)

    def download(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        ctypes.memmove(array.ctypes.data, buffer.handle, array.nbytes)

    def capture(self, stream: Stream, work: Any) -> Any:
        self.captured += 1
        stream.capturing = []
        work()
        recorded, stream.capturing = stream.capturing, None

        def launch(stream: Stream) -> None:
            self.replayed += 1
            for replay in recorded:
                replay()

        return SimpleNamespace(launch=launch)

    def array(self, value: Any, stream: Stream) -> tuple[int, tuple[int, ...], Any]:
        return value.pointer, value.shape, value


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.running = threading.Lock()
        self.stream: Stream | None = None
        self.profiler: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
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
        return tuple(self.engine.compute({n: np.zeros(s, self.engine.dtypes[n]) for n, s in self.shapes.items()})[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.running.acquire(blocking=False), "one context was executed by two threads at once"
        try:
            addresses, shapes = dict(self.addresses), dict(self.shapes)
            self.engine.executed += 1
            recording = self.engine.recording(self)
            if self.profiler is not None:
                assert recording is None, "a profiler and a capture at once"
                for layer in self.engine.layers:
                    self.profiler.report_layer_time(layer["Name"], layer["ms"])
            if recording is not None:
                recording.append(lambda: self._compute(addresses, shapes))
            else:
                self._compute(addresses, shapes)
        finally:
            self.running.release()
        return True

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
    def __init__(self, data: dict[str, Any]) -> None:
        self.session = ort.InferenceSession(
            data["graph"], providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS)
        )
        self.profiles = data["profiles"]
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        self.dtypes = {e.name: _TYPES[e.type] for e in ends}
        self.num_io_tensors = len(ends)
        self.num_optimization_profiles = len(self.profiles)
        self.contexts: list[Context] = []
        self.executed = 0
        self.streams: dict[int, Stream] = {}
        self.layers: list[dict[str, Any]] = []

    def compute(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))

    def recording(self, context: Context) -> list[Any] | None:
        return None if context.stream is None else context.stream.capturing

    def get_tensor_name(self, i: int) -> str:
        return [*self.inputs, *self.outputs][i]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.dtypes[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.profiles[profile][name]

    def create_runtime_config(self) -> Any:
        kept: dict[str, Any] = {}
        cache = SimpleNamespace(deserialize=lambda data: kept.update(given=data), serialize=lambda: b"kernels", kept=kept)
        return SimpleNamespace(
            create_runtime_cache=lambda: cache, set_runtime_cache=lambda c: None, get_runtime_cache=lambda: cache, kept=kept
        )

    def create_engine_inspector(self) -> Any:
        told = [{key: value for key, value in layer.items() if key != "ms"} for layer in self.layers]
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": told, "Bindings": []}))

    def create_execution_context(self, config: Any = None) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Library:
    """The module ``tensorrt_rtx``."""

    __version__ = VERSION
    IRuntimeCache = object
    IProfiler = object
    LayerInformationFormat = SimpleNamespace(JSON="json")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    DataType = SimpleNamespace(BF16="bf16")

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.refuses = False

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
            self.engines.append(Engine(json.loads(data)))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize, engine_host_code_allowed=False)
