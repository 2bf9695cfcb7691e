"""One stage on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import BundleError, InputError
from crossfuse.foreign import brief
from crossfuse.onnx_runtime import onnxruntime
from crossfuse.runtime.options import SessionOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SLOW_FUSIONS", "OrtStage"]

SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Fusions whose kernels are slower on the CPU than what they replace: `benchmarks/cpu_fusions.py` measures it."""


class OrtStage:
    """An ``onnxruntime.InferenceSession`` over one graph. Several threads may run it at once.

    With ``trace``, a folder, the engine's profiler writes there until `end_trace`; so does the optimizer: ``optimized.onnx`` is
    what is executed.
    """

    def __init__(
        self, graph: Path, provider: str, options: SessionOptions, *, alone: bool = True, trace: Path | None = None
    ) -> None:
        ort = onnxruntime()
        if provider not in ort.get_available_providers():
            raise BundleError(
                f"this ONNX Runtime has no {provider}",
                got=", ".join(ort.get_available_providers()),
                do="pip install 'crossfuse[gpu]' (onnxruntime-gpu), or load target 'ort-cpu'",
            )
        settings = ort.SessionOptions()
        settings.log_severity_level = 4  # what fails is raised, not printed beside
        settings.intra_op_num_threads = options.threads or 0
        settings.inter_op_num_threads = options.inter_op_threads
        if options.inter_op_threads > 1:
            settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
        if not alone:
            # Each stage has a pool of threads: one that went on spinning after its run would take the cores from the next.
            settings.add_session_config_entry("session.force_spinning_stop", "1")
        if trace is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(trace / "trace")
            settings.optimized_model_filepath = str(trace / "optimized.onnx")
            settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
        provider_options = dict(options.provider_options)
        if provider == "CUDAExecutionProvider":
            # ONNX Runtime would round fp32 products to TF32, which has the 10-bit mantissa of fp16.
            provider_options.setdefault("use_tf32", "0")
            # Each new shape of a convolution gets a new plan: by the heuristics that are meant to be fast.
            provider_options.setdefault("cudnn_conv_algo_search", "HEURISTIC")
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
        disabled = SLOW_FUSIONS if provider == "CPUExecutionProvider" else ()
        try:
            session = ort.InferenceSession(
                str(graph), settings, providers=[(provider, provider_options)], disabled_optimizers=list(disabled)
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(f"ONNX Runtime can't load the graph: {brief(error)}", where=graph) from error
        if session.get_providers()[0] != provider:
            raise BundleError(
                f"{provider} can't be used here",
                where=graph.name,
                got=f"{session.get_providers()[0]} instead",
                do="Check the NVIDIA driver and the CUDA and cuDNN libraries, or load target 'ort-cpu'",
            )
        self.provider = provider
        self.on_device = provider == "CUDAExecutionProvider"
        self.version: str = ort.__version__
        self._ort = ort
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]
        self.boundary = (tuple(i.name for i in session.get_inputs()), tuple(self._outputs))
        # The C++ session takes the checked feeds directly; its Python wrapper would check them again.
        self._run = session._sess.run

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the graph's order, for host arrays."""
        try:
            outputs: list[NDArray[Any]] = self._run(self._outputs, feeds, None)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _refused(error) from error
        return outputs

    def run_mixed(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs as host arrays, for any mix of host and device arrays."""
        return [value.numpy() for value in self._run_with(feeds, "cpu")] if self.on_device else self.run(feeds)

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs as ``OrtValue`` (which speaks DLPack) on the session's device, for any mix of host and device arrays."""
        return self._run_with(feeds, "cuda" if self.on_device else "cpu")

    def end_trace(self) -> Path:
        """Stop the engine's profiler and give the file of its events."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """ONNX Runtime releases its session with the last reference."""

    def _run_with(self, feeds: Mapping[str, Any], outputs_on: str) -> list[Any]:
        try:
            binding = self._session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, self._ort.OrtValue):
                    ort_value = value
                elif isinstance(value, np.ndarray):
                    ort_value = self._ort.OrtValue.ortvalue_from_numpy(value)
                else:
                    ort_value = self._ort.OrtValue.from_dlpack(value)
                binding.bind_ortvalue_input(name, ort_value)
            for name in self._outputs:
                binding.bind_output(name, outputs_on)
            self._session.run_with_iobinding(binding)
            outputs: list[Any] = binding.get_outputs()
        except Exception as error:  # ONNX Runtime's exceptions have no common base, and DLPack's can be any
            raise _refused(error) from error
        return outputs

    def bind(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> Any:
        """An ONNX Runtime binding of host arrays; `run_bound` executes it in place."""
        try:
            binding = self._session.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name, value in zip(self._outputs, outputs, strict=True):
                binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _refused(error) from error
        return binding

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _refused(error) from error


def _refused(error: Exception) -> InputError:
    return InputError(
        f"the engine refused the inputs: {brief(error)}",
        do="Check their values (token ids within the vocabulary, masks of zeros and ones)",
    )
