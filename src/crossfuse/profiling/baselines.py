"""What one would use otherwise, made from the model itself at the sizes to measure, each with its
library's own defaults.

================= ==========================================================================
``eager``         PyTorch, ``inference_mode``
``compile``       ``torch.compile``, default mode
``compile-max``   ``torch.compile``, ``max-autotune``, which captures CUDA graphs; on GPUs
``onnx``          ``torch.onnx.export``, in ONNX Runtime
``hf``            `transformers`' ``OnnxExporter`` with its fusions for ONNX Runtime; models
                  of that library
``openvino``      the plain export in OpenVINO, latency hint, in its default precision: bf16 on
                  processors that compute in it
``openvino-f32``  the same in fp32
``openvino-int8`` the plain export quantised by NNCF, calibrated on ``calibration`` or the inputs
                  measured
``eager-bf16``    PyTorch under ``torch.autocast`` in bf16
``ort-int8``      the plain export with its products quantised dynamically, int8, by ONNX
                  Runtime's ``quantize_dynamic``; on CPUs
``eager-fp16``    PyTorch in fp16; on GPUs
``tensorrt``      the plain export in TensorRT, run by Polygraphy; on GPUs
================= ==========================================================================

The exports are made for just the sizes measured: static shapes, where a bundle's are dynamic. Their
inputs and outputs are host arrays, as a session's; on a GPU that includes the copies.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.onnx_runtime import onnxruntime, require_onnxruntime
from crossfuse.core.openvino import openvino, require_openvino
from crossfuse.core.scratch import scratch_folder
from crossfuse.errors import InputError
from crossfuse.profiling.nncf_export import quantized_by_nncf
from crossfuse.profiling.plain_export import export_plainly

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["BASELINES", "Baselines"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[], Arrays]

_HF_OPSET = 23


class Baselines:
    """Makes the baselines of one model.

    A plain export is made once per sizes, for all that run it; close it to delete those.

    Args:
        spec: the model.
        device: ``cpu`` or ``cuda``.
        threads: inside one operator; None for each library's default.
        device_id: number of the GPU.
        kept: folder for the exports, which later calls with the same model find there; None for a
            temporary one.
        calibration: sets of inputs that ``openvino-int8`` is calibrated on; those measured where
            there are none.
    """

    def __init__(
        self,
        spec: ModelSpec,
        device: str = "cpu",
        threads: int | None = None,
        *,
        device_id: int = 0,
        kept: Path | None = None,
        calibration: Sequence[Arrays] = (),
    ) -> None:
        self._spec, self._device, self._threads, self._device_id = spec, device, threads, device_id
        self._open = ExitStack()
        self._scratch = self._open.enter_context(scratch_folder())
        self._folder, self._calibration = kept or self._scratch, calibration

    def __enter__(self) -> Baselines:
        import torch

        self._torch_threads = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import torch

        torch.set_num_threads(self._torch_threads)
        self._open.close()
        if self._device == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def make(self, name: str, inputs: Arrays) -> Run:
        """A function that runs the baseline on these inputs and gives its outputs by name.

        Raises:
            InputError: no baseline of that name, or one that can't be had here. Its library may
                raise anything else.
        """
        from crossfuse.export.capture.trace import quiet_exporter

        if name not in BASELINES:
            raise InputError(
                "there is no such baseline", got=repr(name), expected=", ".join(BASELINES)
            )
        with quiet_exporter():
            return BASELINES[name](self, inputs)

    def truth(self, inputs: Arrays) -> Arrays:
        """The model's own numbers on these inputs: in float64 where it runs in that, else in
        float32."""
        import torch

        from crossfuse.parity.eager_module import EagerModule

        given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        return EagerModule(self._spec, given).run(given).truth

    def _eager(self, inputs: Arrays) -> Run:
        return self._module(inputs, lambda module: module)

    def _compile(self, inputs: Arrays) -> Run:
        import torch

        return self._module(inputs, torch.compile)

    def _compile_max(self, inputs: Arrays) -> Run:
        import torch

        self._need_gpu("compile-max")
        return self._module(inputs, lambda module: torch.compile(module, mode="max-autotune"))

    def _eager_fp16(self, inputs: Arrays) -> Run:
        self._need_gpu("eager-fp16")
        halved = {
            name: array.astype(np.float16) if array.dtype.kind == "f" else array
            for name, array in inputs.items()
        }
        return self._module(halved, lambda module: module.half())

    def _eager_bf16(self, inputs: Arrays) -> Run:
        return self._module(inputs, lambda module: module, autocast=True)

    def _module(
        self, inputs: Arrays, prepared: Callable[[Any], Any], *, autocast: bool = False
    ) -> Run:
        import torch

        device = (
            torch.device("cpu")
            if self._device == "cpu"
            else torch.device(self._device, self._device_id)
        )
        # The exports go on reading the model on the CPU.
        module = prepared(
            self._spec.module
            if device.type == "cpu"
            else copy.deepcopy(self._spec.module).to(device)
        )
        given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}

        def run() -> Arrays:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=autocast),
            ):
                moved = {name: t.to(device) for name, t in given.items()}
                outputs = self._spec.run(moved, module)
            return {name: _array(tensor) for name, tensor in outputs.items()}

        return run

    def _onnx(self, inputs: Arrays) -> Run:
        return self._onnxruntime(*self._plain_export(inputs), inputs)

    def _hf(self, inputs: Arrays) -> Run:
        import torch
        from transformers import PreTrainedModel
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        if not isinstance(self._spec.module, PreTrainedModel):
            raise InputError("not a model of transformers", got=type(self._spec.module).__name__)
        given: dict[str, Any] = {
            name: torch.from_numpy(np.array(array)) for name, array in inputs.items()
        }
        config = OnnxConfig(
            dynamic=False,
            ort_fusions="cuda" if self._device == "cuda" else "cpu",
            opset_version=_HF_OPSET,
        )
        path = Path(tempfile.mkdtemp(dir=self._scratch)) / "hf.onnx"
        with redirect_stdout(io.StringIO()):
            exported = OnnxExporter().export(self._spec.module, given, config=config)
        OnnxExporter.save_program(exported.program, path)
        names = [str(value.name) for value in exported.program.graph.outputs]
        return self._onnxruntime(path, names, inputs)

    def _openvino(self, inputs: Arrays) -> Run:
        return self._compiled(*self._for_openvino(inputs), inputs, {})

    def _openvino_f32(self, inputs: Arrays) -> Run:
        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        return self._compiled(*self._for_openvino(inputs), inputs, precision)

    def _openvino_int8(self, inputs: Arrays) -> Run:
        path, names = self._for_openvino(inputs)
        quantized = quantized_by_nncf(path, self._calibration or [inputs])
        return self._compiled(quantized, names, inputs, {})

    def _for_openvino(self, inputs: Arrays) -> tuple[Path, list[str]]:
        require_openvino("the baseline openvino")
        if self._device != "cpu":
            raise InputError("openvino computes on CPUs and on Intel's GPUs", got=self._device)
        return self._plain_export(inputs)

    def _compiled(
        self, path: Path, names: list[str], inputs: Arrays, precision: Mapping[str, str]
    ) -> Run:
        """A file in OpenVINO."""
        core = openvino().Core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **precision}
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        request = compiled.create_infer_request()
        taken = {name for port in compiled.inputs for name in port.get_names()}
        feeds = {name: array for name, array in inputs.items() if name in taken}

        def run() -> Arrays:
            results = request.infer(feeds, share_inputs=True)
            return dict(zip(names, results.values(), strict=True))

        return run

    def _ort_int8(self, inputs: Arrays) -> Run:
        if self._device != "cpu":
            raise InputError("ort-int8 is a baseline on CPUs", got=self._device)
        require_onnxruntime("the baseline ort-int8")
        onnxruntime()
        tools = importlib.import_module("onnxruntime.quantization")
        path, names = self._plain_export(inputs)
        quantized = path.with_name("int8.onnx")
        if not quantized.exists():
            tools.quantize_dynamic(path, quantized, op_types_to_quantize=["MatMul"])
        return self._onnxruntime(quantized, names, inputs)

    def _tensorrt(self, inputs: Arrays) -> Run:
        self._need_gpu("tensorrt")
        from polygraphy.backend.trt import EngineFromNetwork, NetworkFromOnnxPath, TrtRunner

        path, names = self._plain_export(inputs)
        runner = TrtRunner(EngineFromNetwork(NetworkFromOnnxPath(str(path))))
        self._open.enter_context(runner)
        taken = runner.get_input_metadata()
        feeds = {name: array for name, array in inputs.items() if name in taken}

        def run() -> Arrays:
            results = runner.infer(feeds, check_inputs=False)
            return {name: results[name] for name in names}

        return run

    def _onnxruntime(self, path: Path, names: list[str], inputs: Arrays) -> Run:
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads or 0
        provider = "CUDAExecutionProvider" if self._device == "cuda" else "CPUExecutionProvider"
        settings = {"device_id": str(self._device_id)} if self._device == "cuda" else {}
        if self._device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        session = ort.InferenceSession(str(path), options, providers=[(provider, settings)])
        if session.get_providers()[0] != provider:
            # ONNX Runtime goes on without a provider that can't be had, and would be measured on
            # the CPU.
            raise InputError(
                f"ONNX Runtime has no {provider} here", got=f"{session.get_providers()[0]} instead"
            )
        taken = {i.name for i in session.get_inputs()}
        feeds = {name: array for name, array in inputs.items() if name in taken}
        return lambda: dict(zip(names, session.run(names, feeds), strict=True))

    def _plain_export(self, inputs: Arrays) -> tuple[Path, list[str]]:
        """``torch.onnx.export`` as it comes, and the names of the outputs.

        Our operator, where the model calls it, is exported as the scaled dot-product attention that
        it is in PyTorch.
        """
        sizes = {name: list(array.shape) for name, array in inputs.items()}
        folder = self._folder / hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
        path, about = folder / "plain.onnx", folder / "outputs.json"
        if not about.exists():
            folder.mkdir(parents=True, exist_ok=True)
            about.write_text(json.dumps(export_plainly(self._spec, inputs, path)))
        return path, json.loads(about.read_text())

    def _need_gpu(self, name: str) -> None:
        if self._device != "cuda":
            raise InputError(f"{name} is a baseline on GPUs", got=self._device)


def _array(tensor: Any) -> NDArray[Any]:
    """On the host; NumPy has no bfloat16."""
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = wide.detach().cpu().numpy()
    return array


BASELINES: dict[str, Callable[[Baselines, Arrays], Run]] = {
    "eager": Baselines._eager,
    "compile": Baselines._compile,
    "compile-max": Baselines._compile_max,
    "onnx": Baselines._onnx,
    "hf": Baselines._hf,
    "openvino": Baselines._openvino,
    "openvino-f32": Baselines._openvino_f32,
    "openvino-int8": Baselines._openvino_int8,
    "eager-bf16": Baselines._eager_bf16,
    "ort-int8": Baselines._ort_int8,
    "eager-fp16": Baselines._eager_fp16,
    "tensorrt": Baselines._tensorrt,
}
"""Name → how it is made."""
