"""One stage on a library with TensorRT's API: its full runtime, or a lean one for engines that were
built for it."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.bundle.manifest import EngineInfo
from crossfuse.core.folders import user_cache
from crossfuse.core.plugins import is_installed
from crossfuse.core.target import EngineLibrary, Target, require_target
from crossfuse.core.tensorrt_layers import Layer, read_inspection
from crossfuse.errors import Advice, BundleError, EngineError, Said
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.execution_slot import ExecutionSlot
from crossfuse.runtime.gpu import Gpu
from crossfuse.runtime.options import SessionOptions

if TYPE_CHECKING:
    import tensorrt as trt_types
    from numpy.typing import NDArray

__all__ = ["TrtStage", "build_command", "check_version"]

_LOG = logging.getLogger(__name__)


class TrtStage:
    """An engine with as many slots (execution contexts with streams and buffers) as calls may run
    at once.

    Several threads may run it; those beyond the slots wait.

    Args:
        plan: the engine's file, verified.
        target: name of one whose artifacts are engines.
        engine: what the manifest says about it.
        options: of the session.
        library, gpu: instead of the installed runtime and the GPU that the options name.

    Raises:
        BundleError: no GPU or no runtime, or one that the engine was not built for.
    """

    on_device = True

    def __init__(
        self,
        plan: Path,
        target: str,
        engine: EngineInfo,
        options: SessionOptions,
        *,
        library: Any = None,
        gpu: Any = None,
    ) -> None:
        if options.provider is not None:
            raise BundleError(
                "an engine can't be executed by another provider",
                got=options.provider,
                do="Leave it out",
            )
        known = require_target(target)
        trt = library or _import(known, engine)
        self.gpu = gpu or Gpu(options.device)
        self.device: int = self.gpu.index
        _check_gpu(self.gpu, engine, known)
        self.provider = known.provider
        self.version = str(trt.__version__)
        runtime: trt_types.Runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        if engine.lean:
            runtime.engine_host_code_allowed = True
        self._trt = trt
        self._runtime = runtime
        engine_or_none: trt_types.ICudaEngine | None = runtime.deserialize_cuda_engine(
            plan.read_bytes()
        )
        if engine_or_none is None:
            raise BundleError(
                f"{self.provider} {self.version} refuses the engine",
                where=plan.name,
                got=f"built by {engine.library} {engine.version}",
                do=Advice("Build it again on this machine: {}", build_command(target)),
            )
        self._engine = engine_or_none
        self._kernels = (
            user_cache() / "kernels" / f"{plan.name}-{self._kernels_key(plan, engine)}.bin"
        )
        self._cache = self._runtime_cache()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = tuple(
            n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT
        )
        self.boundary = (inputs, tuple(n for n in names if n not in inputs))
        self._free = threading.BoundedSemaphore(options.lanes)
        self._lock = threading.Lock()
        self._idle: list[ExecutionSlot] = []

    def run(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs in the engine's order as host arrays, for any mix of host and device arrays."""
        outputs: list[NDArray[Any]] = self._with_slot(lambda slot: slot.run(feeds))
        return outputs

    def run_mixed(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """As `run`."""
        return self.run(feeds)

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[DeviceArray]:
        """Outputs as `DeviceArray`, which stay on the GPU."""
        arrays: list[DeviceArray] = self._with_slot(lambda slot: slot.run_on_device(feeds))
        return arrays

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, DeviceArray]) -> list[Any]:
        """Outputs as host arrays, but for those that are written into arrays on the GPU."""
        outputs: list[Any] = self._with_slot(lambda slot: slot.run_into(feeds, kept))
        return outputs

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array on the GPU, its content undefined."""
        array: DeviceArray = self.gpu.empty(shape, dtype)
        return array

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> Any:
        """Inputs and outputs for `run_bound`."""
        return dict(feeds), list(outputs)

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""
        feeds, outputs = binding
        for kept, made in zip(outputs, self.run(feeds), strict=True):
            np.copyto(kept, made)

    @property
    def times_layers(self) -> bool:
        """Whether the library can time layers: a lean runtime may not."""
        return hasattr(self._trt, "IProfiler") and hasattr(self._engine, "create_engine_inspector")

    def time_layers(
        self, feeds: Mapping[str, Any], runs: int
    ) -> tuple[list[tuple[str, float]], dict[str, Layer]]:
        """Seconds of every layer in every run, in the order of execution, and what the layers are.

        The library's own profiler times them on the GPU, in a slot of its own and without CUDA
        graphs, after two runs that it doesn't see.
        """
        times: list[tuple[str, float]] = []

        class Listener(self._trt.IProfiler):  # type: ignore[misc, name-defined]  # the library's class, known when it is here
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.append((layer_name, float(ms) * 1e-3))

        slot = self._new_slot(captures=False)
        for _ in range(2):
            slot.run(feeds)
        slot.time_layers(feeds, Listener(), runs)
        inspector = self._engine.create_engine_inspector()
        return times, read_inspection(
            inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        )

    def close(self) -> None:
        """Keep the kernels that were compiled here for the next process."""
        if self._cache is None:
            return
        with suppress(OSError):
            self._kernels.parent.mkdir(parents=True, exist_ok=True)
            aside = self._kernels.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            aside.write_bytes(bytes(self._cache.serialize()))
            aside.replace(self._kernels)

    def _with_slot(self, work: Any) -> Any:
        with self._free:
            with self._lock:
                slot = self._idle.pop() if self._idle else None
            if slot is None:
                slot = self._new_slot()
            result = None
            try:
                result = work(slot)
            except EngineError:
                # What made the GPU fail may have left the slot's context or stream unusable: the
                # next call makes another.
                raise
            except BaseException:
                self._give_back(slot)
                raise
            self._give_back(slot)
            return result

    def _give_back(self, slot: ExecutionSlot) -> None:
        with self._lock:
            self._idle.append(slot)

    def _new_slot(self, *, captures: bool = True) -> ExecutionSlot:
        config = self._runtime_config(captures)
        own = config is not None and hasattr(config, "cuda_graph_strategy")
        return ExecutionSlot(
            self._trt, self._engine, config, self.gpu, self.boundary, captures=captures and not own
        )

    def _runtime_config(self, captures: bool) -> Any:
        """TensorRT-RTX's, one for each context: it captures CUDA graphs by itself, in our memory.
        None for TensorRT."""
        if self._cache is None:
            return None
        config: Any = self._engine.create_runtime_config()
        config.set_runtime_cache(self._cache)
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if hasattr(config, "cuda_graph_strategy"):
            strategies = self._trt.CudaGraphStrategy
            config.cuda_graph_strategy = (
                strategies.WHOLE_GRAPH_CAPTURE if captures else strategies.DISABLED
            )
        return config

    def _runtime_cache(self) -> Any:
        """Kernels that TensorRT-RTX compiled here before, for all slots; they are kept beside the
        user's other caches."""
        if not hasattr(self._trt, "IRuntimeCache"):
            return None
        config: Any = self._engine.create_runtime_config()
        cache: Any = config.create_runtime_cache()
        if self._kernels.is_file():
            # The library refuses kernels of another GPU, driver or version by its result.
            cache.deserialize(self._kernels.read_bytes())
        return cache

    def _kernels_key(self, plan: Path, engine: EngineInfo) -> str:
        """Kernels belong to an engine, a GPU and a driver: machines that share a cache folder don't
        take each other's place."""
        built = engine.request or str(plan.stat().st_size)
        gpu = (self.gpu.name, self.gpu.capability, self.gpu.driver_version)
        return hashlib.sha256("\0".join((built, *gpu, self.version)).encode()).hexdigest()[:24]


def _import(target: Target, engine: EngineInfo) -> Any:
    """The installed module that executes the target's engines."""
    library = _library_of(target)
    modules = [m for m in library.runtimes if engine.lean or m != library.lean_module]
    module = next((m for m in modules if is_installed(m)), None)
    if module is None:
        raise BundleError(
            f"target {target.name!r} needs {' or '.join(modules)}, which is not installed",
            do=target.install,
        )
    found: Any = importlib.import_module(module)
    _LOG.debug("%s executes the engines of target %s", module, target.name)
    check_version(str(found.__version__), engine, target.name)
    return found


def _library_of(target: Target) -> EngineLibrary:
    if target.engine is None:
        raise BundleError("the target has no engines", got=repr(target.name))
    return target.engine


def check_version(installed: str, engine: EngineInfo, target: str) -> None:
    """Raise :class:`BundleError` if an engine was built by a version whose engines the installed
    one can't execute."""
    same_major = installed.split(".")[0] == engine.version.split(".")[0]
    newer = _numbers(installed) >= _numbers(engine.version)
    if installed == engine.version or (engine.lean and same_major and newer):
        return
    raise BundleError(
        f"the engine was built by another version of {require_target(target).provider}",
        got=f"{engine.version}; installed is {installed}",
        do=Advice(
            "Build it again here ({}), or install {}",
            build_command(target),
            f"{engine.library} {engine.version}",
        ),
    )


def build_command(target: str, capability: str | None = None) -> Said:
    """How a target is built, for advice."""
    flags = "" if capability is None else f" --sm {capability}"
    argument = "" if capability is None else f", compute_capabilities=[{capability!r}]"
    return Said(
        f"crossfuse build BUNDLE --target {target}{flags}",
        f"crossfuse.build(BUNDLE, {target!r}{argument})",
    )


def _check_gpu(gpu: Any, engine: EngineInfo, target: Target) -> None:
    if engine.compute_capabilities and gpu.capability not in engine.compute_capabilities:
        raise BundleError(
            "the engine was not built for this GPU",
            got=f"{gpu.name}, compute capability {gpu.capability}",
            expected=", ".join(engine.compute_capabilities),
            do=Advice(
                "Build it for this GPU: {}",
                build_command(target.name, None if target.builds_for_this_gpu else gpu.capability),
            ),
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
