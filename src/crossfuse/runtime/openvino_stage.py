"""One stage on OpenVINO.

The graph's file is read by OpenVINO's front end for ONNX and compiled for the processor at hand, in
the types that the graph has. Nothing else is opened than that file and the weights beside
it, which the loader has checked. Compiled models of bundles are kept in the user's cache, in a
folder for the content of the stage's files.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.cpu import exact_products
from crossfuse.core.files import user_cache
from crossfuse.core.openvino import openvino
from crossfuse.core.openvino_linears import WIDE_FLOATS, mark_linears
from crossfuse.core.openvino_nodes import ExecutedNode, executed_nodes, mark_attentions
from crossfuse.core.processes import cpu_limit, keep_in_forks
from crossfuse.core.scratch import scratch_folder
from crossfuse.core.text import brief
from crossfuse.errors import BundleError
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.refused_inputs import refused_inputs
from crossfuse.runtime.stage import HostStage, StageRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.core.linear_ledger import Became

__all__ = ["DEVICE", "OpenVinoStage"]

DEVICE = "device_type"
"""The provider option that names OpenVINO's device; the others are properties of its own."""

_CACHE = "CACHE_DIR"
_FLOATS = "INFERENCE_PRECISION_HINT"
_INTEGERS = ("int8", "mixed-int8")
_CAPABILITIES = {
    **{"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"},
    **dict.fromkeys(_INTEGERS, "INT8"),
}
"""Precision → what a device that computes in it says."""


class OpenVinoStage(HostStage):
    """An ``openvino.CompiledModel`` over one graph. Several threads may run it at once.

    Args:
        request: what to open.
        trace: let OpenVINO time its nodes, for `node_times`.

    Raises:
        BundleError: OpenVINO is not installed, can't read or compile the graph, or the device does
            not compute in the precision.
    """

    def __init__(self, request: StageRequest, *, trace: bool = False) -> None:
        ov = openvino()
        self.request = request
        device, properties = _properties(request)
        core = ov.Core()
        _require_device(core, device, request)
        if trace:
            properties["PERF_COUNT"] = "YES"
        about = (ov.get_version(), device, core.get_property(device, "FULL_DEVICE_NAME"))
        try:
            model = core.read_model(str(request.graph))
            if _in_bf16(model, core, device, request):
                properties[_FLOATS] = "bf16"
            self._marked, self._linears = mark_attentions(model), mark_linears(model)
            with _kept(request.key, (*about, *sorted(properties.items()))) as cache:
                self._compiled = core.compile_model(model, device, {**cache, **properties})
        except Exception as error:  # OpenVINO's exceptions have no common base
            raise BundleError(
                f"OpenVINO can't load the graph: {brief(error)}", where=request.graph.name
            ) from error
        taken, given = request.boundary or ((), ())
        self._inputs = _named(self._compiled.inputs, taken)
        self._outputs = _named(self._compiled.outputs, given)
        super().__init__(request.target.provider, tuple(self._inputs), tuple(self._outputs))
        self.version: str = ov.get_version()
        self._tensor = ov.Tensor
        self._idle: deque[Any] = deque()
        keep_in_forks(self)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the boundary's order, for host arrays."""
        return self._infer(feeds)[0]

    def attentions(self, outputs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """What the attentions became in the execution graph: site → kernel and its type; and site →
        why it is in parts, for the others.

        Args:
            outputs: site → name of its result in the graph.
        """
        return self._marked.kernels(self._nodes(), outputs)

    def linears(self, results: Collection[str]) -> dict[str, Became]:
        """What linear layers became in the execution graph, by the names of their results."""
        return self._linears.became(self._nodes(), results)

    def executed(self) -> dict[str, tuple[str, ...]]:
        """Names of the executed nodes → names of the operators that each came from, as they were
        before any was marked."""
        original = self._linears.original
        return {node.name: tuple(map(original, node.origins)) for node in self._nodes()}

    def sites(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """Names of the executed nodes that compute a whole attention → its site; ``outputs`` as of
        `attentions`."""
        return self._marked.sites(self._nodes(), outputs)

    def node_times(self, feeds: Mapping[str, NDArray[Any]]) -> list[tuple[str, str, str, float]]:
        """Name, kind, implementation and seconds of the executed nodes, of one run; with
        ``trace``."""
        return [
            (one.node_name, one.node_type, one.exec_type, one.real_time.total_seconds())
            for one in self._infer(feeds)[1].profiling_info
        ]

    def _nodes(self) -> list[ExecutedNode]:
        return executed_nodes(self._compiled.get_runtime_model())

    def close(self) -> None:
        """OpenVINO releases its model with the last reference."""
        self._idle.clear()

    def _infer(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[list[NDArray[Any]], Any]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            given = {
                port: self._tensor_over(np.asarray(feeds[name]))
                for name, port in self._inputs.items()
            }
            found = request.infer(given, share_inputs=True)
            outputs = [np.asarray(found[port]) for port in self._outputs.values()]
        except Exception as error:  # OpenVINO's exceptions have no common base
            raise refused_inputs(brief(error), feeds, self.request.takes) from error
        self._idle.append(request)
        return outputs, request

    def _tensor_over(self, array: NDArray[Any]) -> Any:
        """A tensor over the array's memory, which OpenVINO only reads; a copy where it can't be
        shared."""
        if not array.nbytes or not array.ndim or not array.flags.c_contiguous:
            return self._tensor(np.array(array, order="C"), shared_memory=False)
        if not array.flags.writeable:
            # A context's arrays are read-only, and OpenVINO would copy those at every query.
            memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
            array = np.frombuffer(memoryview(memory), array.dtype).reshape(array.shape)
        return self._tensor(array, shared_memory=True)


def _properties(request: StageRequest) -> tuple[str, dict[str, Any]]:
    """The device, and OpenVINO's properties for it."""
    options: SessionOptions = request.options
    given = dict(options.provider_options)
    device = given.pop(DEVICE, "CPU")
    # "dynamic" keeps the graph's types: otherwise fp32 would become bf16 where that is faster, and
    # what the graph keeps in fp32 with it.
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        _FLOATS: "dynamic",
    }
    threads = options.threads or cpu_limit()
    if device == "CPU":
        if threads is not None:
            # Every process would pin them to the same first cores.
            properties |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        if options.streams > 1:
            properties["NUM_STREAMS"] = options.streams
    return device, {**properties, **given}


def _in_bf16(model: Any, core: Any, device: str, request: StageRequest) -> bool:
    """Whether a graph in integers or bf16 lets the device compute all its floats in bf16, and it
    does."""
    asked = ["framework", WIDE_FLOATS]
    if request.precision not in (*_INTEGERS, "bf16") or _FLOATS in request.options.provider_options:
        return False
    if not model.has_rt_info(asked) or model.get_rt_info(asked).astype(str) != "bf16":
        return False
    return _CAPABILITIES["bf16"] in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def _require_device(core: Any, device: str, request: StageRequest) -> None:
    """There is such a device, and it computes in the precision."""
    known = list(core.available_devices)
    if not any(device == name or device == name.partition(".")[0] for name in known):
        raise BundleError(
            f"OpenVINO has no device {device!r} here",
            got=", ".join(known) or "none",
            do="Leave the provider option device_type out, for the CPU",
        )
    if request.precision not in _CAPABILITIES:
        raise BundleError(
            "OpenVINO executes no graphs in this precision",
            got=repr(request.precision),
            expected=", ".join(_CAPABILITIES),
        )
    found = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[request.precision] not in found:
        raise BundleError(
            f"this processor does not compute in {request.precision}",
            where=f"OpenVINO's device {device}",
            got=", ".join(found),
            do="Build the target in fp32, or load target 'ort-cpu'",
        )
    if device == "CPU" and request.precision in _INTEGERS and not exact_products():
        raise BundleError(
            "this processor's fast products of bytes saturate, and OpenVINO has no exact ones",
            got="x86-64 without VNNI or AMX",
            do="Load target 'ort-cpu', which asks for exact products, or build this one in fp32",
        )


@contextmanager
def _kept(key: str, about: Sequence[object]) -> Iterator[dict[str, str]]:
    """Where OpenVINO keeps what it compiles, or finds it: a folder of its own for the content of
    the files and all else that decides. OpenVINO tells models apart by less than that.

    A new one is made aside, and takes its place when the model is compiled: what a killed process
    left half written is never read, and the next compilation removes it.
    """
    if not key:
        yield {}
        return
    digest = hashlib.sha256(repr((key, *about)).encode()).hexdigest()
    folder = user_cache() / "openvino" / digest
    if folder.is_dir():
        yield {_CACHE: str(folder)}
        return
    with ExitStack() as stack:
        aside = None
        with suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = stack.enter_context(scratch_folder(folder.parent)) / digest
            made.mkdir()
            aside = made
        yield {} if aside is None else {_CACHE: str(aside)}
        if aside is not None:
            with suppress(OSError):
                aside.rename(folder)


def _named(ports: Any, expected: tuple[str, ...]) -> dict[str, Any]:
    """Ports by name, in the expected order; a tensor that is handed on as it is has the names of
    both ends."""
    found = {name: port for name in expected for port in ports if name in port.get_names()}
    if len(found) == len(expected) == len(ports):
        return found
    return {port.get_any_name(): port for port in ports}
