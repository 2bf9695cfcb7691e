"""One stage on ONNX Runtime."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.cpu import exact_products
from crossfuse.core.onnx_runtime import onnxruntime
from crossfuse.core.processes import cpu_limit, keep_in_forks
from crossfuse.core.text import brief
from crossfuse.errors import BundleError, CrossfuseError, EngineError
from crossfuse.runtime.device_array import DeviceArray, DeviceMemory
from crossfuse.runtime.driver import Driver, gpu_count
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.refused_inputs import Takes, refused_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BROKEN_PASSES", "SLOW_FUSIONS", "OrtStage"]

SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Fusions whose kernels are slower on the CPU than what they replace: `benchmarks/cpu_fusions.py`
measures it."""

BROKEN_PASSES = ("QDQPropagationTransformer",)
"""Moves quantizers, and gives those that it makes the type of the result as int8, where another
pass then makes them uint8: such graphs are refused (ONNX Runtime 1.31, opsets from 21 on)."""


class OrtStage:
    """An ``onnxruntime.InferenceSession`` over one graph. Several threads may run it at once.

    With ``trace``, a folder, the engine's profiler writes there until `end_trace`; so does the
    optimizer: ``optimized.onnx`` is what is executed. ``takes`` is what a caller gives, for errors.
    """

    def __init__(
        self,
        graph: Path,
        provider: str,
        options: SessionOptions,
        *,
        alone: bool = True,
        trace: Path | None = None,
        takes: Takes | None = None,
    ) -> None:
        ort = onnxruntime()
        if provider not in ort.get_available_providers():
            raise BundleError(
                f"this ONNX Runtime has no {provider}",
                got=", ".join(ort.get_available_providers()),
                do="pip install 'crossfuse[gpu]' (onnxruntime-gpu), or load target 'ort-cpu'",
            )
        settings = _settings(ort, options, alone)
        if trace is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(trace / "trace")
            settings.optimized_model_filepath = str(trace / "optimized.onnx")
            settings.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "optimized.bin"
            )
        provider_options = dict(options.provider_options)
        if provider == "CUDAExecutionProvider":
            provider_options["device_id"] = str(options.device)
            if 0 < gpu_count() <= options.device:
                # ONNX Runtime would print that it goes on with the CPU.
                Driver(options.device)
            # ONNX Runtime would round fp32 products to TF32, which has the 10-bit mantissa of fp16.
            provider_options.setdefault("use_tf32", "0")
            # Each new shape of a convolution gets a new plan: by the heuristics that are meant to
            # be fast.
            provider_options.setdefault("cudnn_conv_algo_search", "HEURISTIC")
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
        on_cpu = provider == "CPUExecutionProvider"
        disabled = (*(SLOW_FUSIONS if on_cpu else ()), *BROKEN_PASSES)
        try:
            session = ort.InferenceSession(
                str(graph),
                settings,
                providers=[(provider, provider_options)],
                disabled_optimizers=list(disabled),
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"ONNX Runtime can't load the graph: {brief(error)}", where=graph
            ) from error
        if session.get_providers()[0] != provider:
            raise BundleError(
                f"{provider} can't be used here",
                where=graph.name,
                got=f"{session.get_providers()[0]} instead",
                do="Check the NVIDIA driver and the CUDA and cuDNN libraries, or load target "
                "'ort-cpu'",
            )
        self.provider = provider
        self.on_device = provider == "CUDAExecutionProvider"
        self.device = options.device
        self._takes = takes
        self._leaving: deque[tuple[list[Any], Any]] = deque()
        self.version: str = ort.__version__
        self._ort = ort
        self._session = session
        self._run_options = _run_options(ort, options, provider)
        keep_in_forks(self)
        self._outputs = [o.name for o in session.get_outputs()]
        self.boundary = (tuple(i.name for i in session.get_inputs()), tuple(self._outputs))
        # The C++ session takes the checked feeds directly; its Python wrapper would check them
        # again.
        self._run = session._sess.run

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the graph's order, for host arrays."""
        try:
            outputs: list[NDArray[Any]] = self._run(self._outputs, feeds, self._run_options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failure(error, feeds) from error
        return outputs

    def run_mixed(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs as host arrays, for any mix of host and device arrays."""
        return self.run_into(feeds, {}) if self.on_device else self.run(feeds)

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs on the session's device (`DeviceArray` on a GPU), for any mix of host and device
        arrays."""
        if not self.on_device:
            return self.run(feeds)
        return [self._ours(value) for value in self._run_with(feeds, dict.fromkeys(self._outputs))]

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, Any]) -> list[Any]:
        """Outputs as host arrays, but for those that are written into arrays that are there: on the
        GPU, or on the host where the session is, where they may be inputs, too."""
        outputs = self._run_with(feeds, kept)
        try:
            return [
                kept[n] if n in kept else v.numpy()
                for n, v in zip(self._outputs, outputs, strict=True)
            ]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failure(error, feeds) from error

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array on the GPU, its content undefined."""
        self._sweep()
        try:
            value = self._ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), _element(dtype), "cuda", self.device
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failure(error, {}) from error
        return self._ours(value)

    def coming(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array for what is enqueued on the one stream that its memory comes ``after``."""
        made = self.empty(shape, dtype)
        made.memory.after = frozenset({self.driver.stream})
        made.memory.readers |= made.memory.after
        return made

    @cached_property
    def driver(self) -> Driver:
        """For copies on the GPU, and the order of streams."""
        return Driver(self.device)

    def end_trace(self) -> Path:
        """Stop the engine's profiler and give the file of its events."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """ONNX Runtime releases its session with the last reference."""

    def _run_with(
        self, feeds: Mapping[str, Any], kept: Mapping[str, NDArray[Any] | DeviceArray | None]
    ) -> list[Any]:
        """Run on any inputs: outputs go to arrays that are there, to new memory on the GPU (None),
        or to the host."""
        self._sweep()
        try:
            binding = self._session.io_binding()
            self._bind_inputs(binding, feeds)
            for name in self._outputs:
                into = kept.get(name)
                if into is not None:
                    binding.bind_output(name, *_place_of(into, self.device))
                elif name in kept:
                    binding.bind_output(name, "cuda", self.device)
                else:
                    binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding, self._run_options)
            outputs: list[Any] = binding.get_outputs()
        except CrossfuseError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failure(error, feeds) from error
        return outputs

    def _bind_inputs(self, binding: Any, feeds: Mapping[str, Any]) -> None:
        waits = False
        for name, value in feeds.items():
            if isinstance(value, np.ndarray) and not self.on_device:
                binding.bind_cpu_input(name, value)
            elif isinstance(value, np.ndarray):
                array = value if value.flags.c_contiguous else np.ascontiguousarray(value)
                binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))
            elif value.nbytes:
                value.arrived()
                waits = waits or bool(value.memory.after)
                binding.bind_input(
                    name,
                    "cuda",
                    self.device,
                    _element(value.dtype),
                    list(value.shape),
                    value.pointer,
                )
            else:
                empty = self._ort.OrtValue.ortvalue_from_shape_and_type(
                    list(value.shape), _element(value.dtype), "cpu"
                )
                binding.bind_ortvalue_input(name, empty)
        if waits:
            # The provider has a stream of its own, which knows nothing of the producers'.
            binding.synchronize_inputs()

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> Any:
        """An ONNX Runtime binding with host arrays for outputs; `run_bound` executes it in
        place."""
        try:
            binding = self._session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    self._bind_inputs(binding, {name: value})
            for name, value in zip(self._outputs, outputs, strict=True):
                binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failure(error, feeds) from error
        return binding, dict(feeds)

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""
        try:
            self._session.run_with_iobinding(binding[0])
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._failure(error, binding[1]) from error

    def _ours(self, value: Any) -> DeviceArray:
        """A value on the GPU as an array; ONNX Runtime gets its memory back when nobody reads it
        any more."""
        memory = DeviceMemory(
            value.data_ptr(), self.device, value, place=self, release=self._release
        )
        return DeviceArray(memory, tuple(value.shape()), _DTYPES[value.data_type()])

    def _release(self, value: Any, readers: frozenset[int]) -> None:
        """ONNX Runtime would use the memory for the next run at once: it gets it when the readers'
        streams are here."""
        if readers:
            with suppress(CrossfuseError):
                self._leaving.append((self.driver.marks(readers), value))

    def _sweep(self) -> None:
        with suppress(IndexError, EngineError):
            for _ in range(len(self._leaving)):
                marks, value = self._leaving.popleft()
                if not self.driver.passed(marks):
                    self._leaving.append((marks, value))

    def _failure(self, error: Exception, feeds: Mapping[str, Any]) -> CrossfuseError:
        text = brief(error)
        if self.on_device and _ON_GPU.search(text):
            return EngineError(
                f"the engine failed on the GPU: {text}",
                do="Use smaller batches where memory is short, or check the GPU",
            )
        return refused_inputs(text, feeds, self._takes)


def _settings(ort: Any, options: SessionOptions, alone: bool) -> Any:
    """ONNX Runtime's own options."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised, not printed beside
    settings.intra_op_num_threads = options.threads or cpu_limit() or 0
    settings.inter_op_num_threads = options.inter_op_threads
    if options.inter_op_threads > 1:
        settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.memory_pattern
    entries = {"session.intra_op.allow_spinning": "1" if options.spin else "0"}
    if not exact_products():
        # Fast products of uint8 and int8 would saturate, and give wrong numbers. Asked for, ONNX
        # Runtime takes exact ones on CPUs with VNNI, too, at several times the cost.
        entries["session.x64quantprecision"] = "1"
    if not alone:
        # Each stage has a pool of threads: one that went on spinning after its run would take the
        # cores from the next.
        entries["session.force_spinning_stop"] = "1"
    for name, value in (entries | dict(options.config)).items():
        settings.add_session_config_entry(name, value)
    return settings


def _run_options(ort: Any, options: SessionOptions, provider: str) -> Any:
    """Of each run; None for the defaults."""
    if not options.give_back:
        return None
    chosen = ort.RunOptions()
    place = f"gpu:{options.device}" if provider == "CUDAExecutionProvider" else "cpu:0"
    chosen.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)
    return chosen


_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_ON_GPU = re.compile(
    r"cuda|cublas|cudnn|cufft|out of memory|failed to allocate|bad.?alloc", re.IGNORECASE
)


def _place_of(array: NDArray[Any] | DeviceArray, gpu: int) -> tuple[Any, ...]:
    """As `bind_output` takes it."""
    if isinstance(array, np.ndarray):
        return "cpu", 0, array.dtype, list(array.shape), array.ctypes.data
    return "cuda", gpu, _element(array.dtype), list(array.shape), array.pointer


def _element(dtype: str) -> Any:
    return _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
