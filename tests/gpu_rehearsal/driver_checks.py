"""Checks of `crossfuse.runtime` on the stand-in for CUDA's driver, with the real cuda-core and the
stand-in for TensorRT.

`test_runtime_on_standins.py` runs this file in a process of its own, where the stand-in is found.
Device memory is host memory there, so a check can look at it; and nothing happens on a stream
before somebody waits, so code that forgets to wait fails each time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_tensorrt as fake
from crossfuse.bundle.manifest import EngineInfo
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError, EngineError, InputError
from crossfuse.parity.reference import load_reference
from crossfuse.parity.session_check import check_session
from crossfuse.profiling.gpu_counters import GpuMeter
from crossfuse.profiling.measure.device_inputs import on_gpu
from crossfuse.runtime import SessionOptions, load
from crossfuse.runtime.device_array import DeviceArray, DeviceMemory, device_array
from crossfuse.runtime.dlpack import make_capsule, read_capsule
from crossfuse.runtime.driver import LEGACY_STREAM, Driver, driver_version, gpu_count, gpu_uuid
from crossfuse.runtime.gpu import Gpu
from crossfuse.runtime.session import Session
from crossfuse.runtime.tensorrt_stage import TrtStage
from crossfuse.serve.request_engine import Request, RequestEngine, UnexpectedError
from gpu_rehearsal.driver import Control

NO_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 700, 719
INFO = EngineInfo("tensorrt_rtx", fake.VERSION, ("8.9",), (), request="r")


@pytest.fixture(scope="module")
def control() -> Control:
    return Control()


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def stream(gpu: Gpu) -> Any:
    return gpu.stream()


def handle(stream: Any) -> int:
    return int(stream.handle)


def on(gpu: Gpu, array: np.ndarray) -> DeviceArray:
    return on_gpu({"x": array}, gpu)["x"]


def seen(pointer: int, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """What is in device memory now."""
    array = np.empty(shape, dtype)
    ctypes.memmove(array.ctypes.data, pointer, array.nbytes)
    return array


# ---- the stand-in itself ------------------------------------------------------------------------


def test_nothing_happens_before_somebody_waits(gpu: Gpu, stream: Any, control: Control) -> None:
    pinned = gpu.pinned(64)
    assert pinned is not None
    pinned[:] = 7
    buffer = gpu.allocate(64, stream)
    gpu.upload(pinned, buffer, stream)
    assert seen(int(buffer.handle), (64,), "uint8").tolist() == [0xAB] * 64
    assert control.pending(handle(stream)) == 1
    gpu.sync(stream)
    assert seen(int(buffer.handle), (64,), "uint8").tolist() == [7] * 64
    address = int(buffer.handle)
    del buffer
    gc.collect()
    assert seen(address, (64,), "uint8").tolist() == [7] * 64
    gpu.sync(stream)
    assert seen(address, (64,), "uint8").tolist() == [0xDD] * 64


# ---- failures of every call ---------------------------------------------------------------------

CALLS: dict[str, tuple[str, Callable[[Gpu, Any], Any]]] = {
    "cuStreamCreateWithPriority": ("make a stream", lambda gpu, stream: gpu.stream()),
    "cuMemAllocFromPoolAsync": ("allocate 64 bytes", lambda gpu, stream: gpu.allocate(64, stream)),
    "cuMemcpyAsync": (
        "copy to the GPU",
        lambda gpu, stream: gpu.upload(np.ones(4), gpu.allocate(32, stream), stream),
    ),
    "cuStreamSynchronize": ("finish its work", lambda gpu, stream: gpu.sync(stream)),
    "cuStreamBeginCapture_v2": (
        "capture a graph",
        lambda gpu, stream: gpu.capture(stream, lambda: None),
    ),
    "cuStreamEndCapture": (
        "capture a graph",
        lambda gpu, stream: gpu.capture(stream, lambda: None),
    ),
    "cuGraphInstantiateWithParams": (
        "capture a graph",
        lambda gpu, stream: gpu.capture(stream, lambda: None),
    ),
    "cuGraphLaunch": (
        "replay a graph",
        lambda gpu, stream: gpu.replay(gpu.capture(stream, lambda: None), stream),
    ),
    "cuMemcpy2DAsync_v2": (
        "copy on the GPU",
        lambda gpu, stream: on(gpu, np.ones((3, 2))).take([1], 0),
    ),
    "cuMemsetD8Async": ("fill memory", lambda gpu, stream: gpu.empty((3,), "float32").zero()),
    "cuMemcpyDtoHAsync_v2": ("copy from the GPU", lambda gpu, stream: on(gpu, np.ones(3)).numpy()),
    "cuMemcpyDtoDAsync_v2": (
        "copy on the GPU",
        lambda gpu, stream: gpu.driver.copy(*two(gpu), 8, handle(stream)),
    ),
    "cuEventRecord": (
        "order streams",
        lambda gpu, stream: gpu.driver.order(handle(stream), {LEGACY_STREAM}),
    ),
    "cuStreamWaitEvent": (
        "order streams",
        lambda gpu, stream: gpu.driver.order(handle(stream), {LEGACY_STREAM}),
    ),
    "cuCtxPushCurrent_v2": ("use the GPU", lambda gpu, stream: gpu.driver.marks({LEGACY_STREAM})),
}


def two(gpu: Gpu) -> tuple[int, int]:
    kept = on(gpu, np.ones(8)), on(gpu, np.ones(8))
    gpu.__dict__.setdefault("kept", []).extend(kept)
    return kept[0].pointer, kept[1].pointer


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("code", [NO_MEMORY, LAUNCH_FAILED])
def test_every_call_that_fails_is_one_paragraph_and_over(
    gpu: Gpu, stream: Any, control: Control, name: str, code: int
) -> None:
    doing, work = CALLS[name]
    with (
        control.failing(name, code),
        pytest.raises(EngineError, match=f"the GPU could not {doing}.*CUDA_ERROR") as caught,
    ):
        work(gpu, stream)
    assert "\n" not in str(caught.value)
    work(gpu, stream)
    gpu.sync(stream)


def test_a_gpu_that_can_not_be_used_is_one_paragraph(control: Control) -> None:
    with (
        control.failing("cuDevicePrimaryCtxRetain", 46),
        pytest.raises(EngineError, match="could not use the GPU"),
    ):
        Gpu()
    with pytest.raises(BundleError, match=r"no NVIDIA GPU.*device 7.*2 GPUs"):
        Gpu(7)
    with pytest.raises(BundleError, match=r"no such NVIDIA GPU.*device 2"):
        Driver(2)


# ---- capture ------------------------------------------------------------------------------------


def raising() -> None:
    raise ValueError("an exception of our own")


@pytest.mark.parametrize(
    "kind", ["exception", "engine error", "wait", "allocation that is forbidden", "interrupt"]
)
def test_a_capture_that_fails_is_over_on_its_own_thread(
    gpu: Gpu, stream: Any, control: Control, kind: str
) -> None:
    """The exception is still held here, so nothing is cleaned up by chance; another thread captures
    meanwhile."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    def refused() -> None:
        raise EngineError("refused")

    def forbidden() -> None:
        ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(ctypes.c_void_p()), 8)

    works: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
        "exception": (raising, EngineError),
        "engine error": (refused, EngineError),
        "wait": (stream.sync, EngineError),
        "allocation that is forbidden": (forbidden, EngineError),
        "interrupt": (interrupted, KeyboardInterrupt),
    }
    work, expected = works[kind]
    with pytest.raises(expected) as held:
        gpu.capture(stream, work)
    assert held.value is not None
    assert not control.is_capturing(handle(stream))
    buffer = gpu.allocate(16, stream)
    gpu.upload(np.arange(4, dtype=np.float32), buffer, stream)
    gpu.sync(stream)
    graph = gpu.capture(
        stream,
        lambda: gpu.driver.copy(int(buffer.handle) + 8, int(buffer.handle), 8, handle(stream)),
    )
    assert seen(int(buffer.handle), (4,)).tolist() == [0, 1, 2, 3], "a capture executes nothing"
    gpu.replay(graph, stream)
    gpu.sync(stream)
    assert seen(int(buffer.handle), (4,)).tolist() == [0, 1, 0, 1]


# ---- DLPack -------------------------------------------------------------------------------------


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool", "bfloat16"],
)
def test_arrays_are_given_and_taken_in_every_dtype(gpu: Gpu, dtype: str, versioned: bool) -> None:
    from cuda.core.utils import StridedMemoryView

    for shape in ((3, 4), (), (0, 5), (1, 7, 1)):
        array = gpu.empty(shape, dtype)
        assert array.__dlpack_device__() == (2, 0)
        capsule = array.__dlpack__(stream=1, max_version=(1, 0) if versioned else None)
        assert ("versioned" in str(capsule)) == versioned
        again = device_array(Given(array), 0, "x")
        assert (again.pointer, again.shape, again.dtype) == (array.pointer, shape, dtype)
        view = StridedMemoryView.from_dlpack(array, stream_ptr=handle(gpu.stream()))
        assert (view.ptr, tuple(view.shape), view.dtype.name, view.device_id) == (
            array.pointer,
            shape,
            dtype,
            0,
        )
    assert all(
        gpu.empty((2,), "float32").__cuda_array_interface__[k] is not None
        for k in ("shape", "typestr", "data")
    )


class Given:
    """Another library's array: only DLPack, at a place of its memory, as it would say it."""

    def __init__(self, array: DeviceArray, *, stream: int | None = None, **changes: Any) -> None:
        self.array, self.changes, self.own = array, changes, stream
        self.asked: list[Any] = []
        self.shape = array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.changes.get("device", self.array.__dlpack_device__())

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        self.asked.append(stream)
        if self.own is not None:
            # As PyTorch does: the consumer's stream waits for ours.
            self.array._place().driver.order(stream, {self.own})
        capsule = self.array.__dlpack__(stream=stream, max_version=max_version)
        name = b"dltensor_versioned" if "versioned" in str(capsule) else b"dltensor"
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )(capsule, name)
        from crossfuse.runtime import dlpack

        tensor = (
            (dlpack._Versioned if b"versioned" in name else dlpack._Managed)
            .from_address(pointer)
            .tensor
        )
        for i, stride in enumerate(self.changes.get("strides", ())):
            tensor.strides[i] = stride
        tensor.offset = self.changes.get("offset", 0)
        tensor.device_kind, tensor.device = self.__dlpack_device__()
        if "code" in self.changes:
            tensor.code, tensor.bits, tensor.lanes = self.changes["code"]
        return capsule


class Interface:
    """Another library's array: only the CUDA array interface."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.array = array
        self.shape = changes.get("shape", array.shape)
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_capsules_that_nobody_takes_give_the_memory_back(gpu: Gpu) -> None:
    for versioned in (False, True):
        array = gpu.empty((4,), "float32")
        gone = []
        array.memory._release = lambda owner, readers, gone=gone: gone.append(readers)
        capsule = make_capsule(array.pointer, (4,), "float32", 0, array.memory, versioned=versioned)
        del array
        gc.collect()
        assert not gone
        del capsule
        gc.collect()
        assert gone == [frozenset()]


def test_what_can_not_be_read_is_said(gpu: Gpu) -> None:
    array = on(gpu, np.ones((2, 3), np.float32))

    class Raises(Given):
        def __dlpack__(self, **options: Any) -> Any:
            raise RuntimeError("it requires a gradient")

    class Old(Given):
        def __dlpack__(self) -> Any:
            return self.array.__dlpack__()

    assert device_array(Old(array), 0, "x").pointer == array.pointer
    for value, message in (
        (Raises(array), "can't be read: RuntimeError: it requires a gradient"),
        (Given(array, strides=(1, 2)), r"contiguous \(x\): got strides \(1, 2\)"),
        (Given(array, code=(5, 64, 1)), "dtype that isn't known here"),
        (Given(array, code=(2, 32, 4)), "dtype that isn't known here"),
        (Given(array, device=(10, 0)), "kind of device"),
        (Given(array, device=(2, 1)), r"another GPU than the session.*device 1, expected device 0"),
        (Interface(array, strides=(4, 8)), "contiguous"),
        (Interface(array, strides=(14, 4)), "no multiples"),
        (Interface(array, mask=array), "masked"),
        (Interface(array, typestr=">f4"), "masked array, or one of dtype >f4"),
    ):
        with pytest.raises(InputError, match=message):
            device_array(value, 0, "x")


# ---- arrays that were given away ----------------------------------------------------------------


@pytest.mark.parametrize("readers", [1, 2])
def test_an_output_is_freed_behind_those_who_read_it(
    gpu: Gpu, control: Control, readers: int
) -> None:
    """As PyTorch does it: a tensor made of the output is dropped while kernels that read it are
    still queued."""
    streams = [gpu.stream() for _ in range(readers)]
    array = on(gpu, np.arange(8, dtype=np.float32))
    copies = [np.zeros(8, np.float32) for _ in streams]
    address = array.pointer
    for stream, copy in zip(streams, copies, strict=True):
        capsule = array.__dlpack__(stream=handle(stream))
        control.enqueue(
            handle(stream), lambda copy=copy: ctypes.memmove(copy.ctypes.data, address, 32) and None
        )
        del capsule
    del array
    gc.collect()
    others = [gpu.empty((8,), "float32").zero() for _ in range(4)]
    gpu.sync(gpu._releasing)
    assert seen(address, (8,), "uint32").tolist() == [0xDDDDDDDD] * 8, "it is free"
    for stream, copy in zip(streams, copies, strict=True):
        gpu.sync(stream)
        assert copy.tolist() == list(range(8)), "and was read before"
    assert len(others) == 4


def test_a_reader_whose_stream_is_gone_harms_nobody(gpu: Gpu) -> None:
    stream = gpu.stream()
    array = on(gpu, np.ones(3))
    array.__dlpack__(stream=handle(stream))
    stream.close()
    del array
    gc.collect()
    gpu.sync(gpu._releasing)
    assert on(gpu, np.ones(3)).numpy().tolist() == [1, 1, 1]


# ---- sessions -----------------------------------------------------------------------------------


def ranges(bundle: Bundle, stage: str) -> dict[str, Any]:
    found = {}
    for spec in bundle.manifest.stages[stage].inputs:
        low = tuple(0 if isinstance(d, str) else d for d in spec.shape)
        high = tuple(64 if isinstance(d, str) else d for d in spec.shape)
        found[spec.name] = (low, low, high)
    return found


class Opened:
    """A bundle's session on the stand-ins."""

    def __init__(
        self, bundle: Bundle, folder: Path, control: Control, *, rtx: bool, options: SessionOptions
    ) -> None:
        self.libraries: dict[str, fake.Library] = {}
        stages = {}
        for name, file in bundle.target("ort-cpu").stages.items():
            self.libraries[name] = fake.Library(
                rtx=rtx, enqueue=control.enqueue, is_capturing=control.is_capturing
            )
            plan = fake.write_plan(
                folder / f"{name}.plan", bundle.path / file, [ranges(bundle, name)]
            )
            target = "tensorrt-rtx" if rtx else "tensorrt"
            stages[name] = TrtStage(plan, target, INFO, options, library=self.libraries[name])
        manifest = bundle.manifest
        self.session = Session(
            target,
            manifest.stages,
            manifest.dims,
            stages,
            shared_batch=manifest.shared_batch,
            decode=manifest.decode,
        )
        self.stages = stages

    def engine(self, name: str = "model") -> fake.Engine:
        return self.libraries[name].engines[0]


@pytest.fixture
def opened(tmp_path: Path, control: Control) -> Callable[..., Opened]:
    def make(name: str, *, rtx: bool = False, options: SessionOptions | None = None) -> Opened:
        bundle = bundle_of(name)
        return Opened(bundle, tmp_path, control, rtx=rtx, options=options or SessionOptions())

    return make


def bundle_of(name: str) -> Bundle:
    return open_bundle(os.environ[f"REHEARSAL_{name.upper()}"])


def sample(name: str) -> dict[str, np.ndarray]:
    return dict(load_reference(bundle_of(name).path / "reference.npz").points[0].inputs)


def on_cpu(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with load(bundle_of(name).path, "ort-cpu") as session:
        return session.run(**inputs)


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    inputs = sample("whole")
    return inputs, on_cpu("whole", inputs)


def agree(got: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        found = got[name].numpy() if isinstance(got[name], DeviceArray) else got[name]
        np.testing.assert_array_equal(found, array, err_msg=name)


@pytest.mark.parametrize("rtx", [False, True])
def test_host_and_device_arrays_give_the_same(opened: Any, whole: Any, gpu: Gpu, rtx: bool) -> None:
    inputs, expected = whole
    made = opened("whole", rtx=rtx)
    for _ in range(4):
        agree(made.session.run(**inputs), expected)
    agree(made.session.run(**on_gpu(inputs, gpu)), expected)
    placed = on_gpu(inputs, gpu)
    for name in inputs:
        agree(made.session.run(**{**inputs, name: placed[name]}), expected)
    config = made.engine().contexts[0].config
    assert (config is None) != rtx
    if rtx:
        assert (config.cuda_graph_strategy, config.strategy) == ("whole", "user")


FAULTS = [
    ("cuMemAllocFromPoolAsync", NO_MEMORY),
    ("cuMemcpyAsync", LAUNCH_FAILED),
    ("cuStreamSynchronize", ILLEGAL_ADDRESS),
    ("cuStreamCreateWithPriority", NO_MEMORY),
]


@pytest.mark.parametrize(("name", "code"), FAULTS)
def test_a_run_in_which_a_call_fails_is_one_paragraph_and_the_next_one_right(
    opened: Any, whole: Any, control: Control, name: str, code: int
) -> None:
    """The failing call is each of those that a run makes, one after the other."""
    inputs, expected = whole
    failed = 0
    for after in range(40):
        made = opened("whole", options=SessionOptions(lanes=1))
        caught = None
        with control.failing(name, code, after=after):
            try:
                agree(made.session.run(**inputs), expected)
                agree(made.session.run(**inputs), expected)
            except EngineError as error:
                caught = str(error)
        if caught is None:
            break
        failed += 1
        assert "CUDA_ERROR" in caught
        assert "\n" not in caught
        for _ in range(4):
            agree(made.session.run(**inputs), expected)
    assert failed


@pytest.mark.parametrize("refused", ["execution", "shape"])
def test_nothing_is_read_any_more_after_an_error(
    opened: Any, whole: Any, gpu: Gpu, control: Control, refused: str
) -> None:
    """The caller may free its arrays then; a copy of a misaligned one was enqueued already."""
    inputs, _ = whole
    made = opened("whole", options=SessionOptions(lanes=1))
    made.session.run(**inputs)
    (slot,) = made.stages["model"]._idle
    name, array = next(iter(inputs.items()))
    moved = on(gpu, np.concatenate([np.zeros(1, np.float32), array.reshape(-1)]))
    value = Given(DeviceArray(moved.memory, array.shape, "float32"), offset=4)
    engine = made.engine()
    if refused == "execution":
        engine.fails = {"execute": 1}
    else:
        engine.profiles = [
            {n: (low, low, tuple(0 for _ in high)) for n, (low, _, high) in p.items()}
            for p in engine.profiles
        ]
    with pytest.raises((EngineError, InputError)):
        made.session.run(**{**inputs, name: value})
    assert control.pending(handle(slot.stream)) == 0


@pytest.mark.parametrize(
    "name",
    [
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithParams",
        "cuGraphLaunch",
        "library",
        "asked",
    ],
)
def test_what_can_not_be_captured_is_executed(
    opened: Any, whole: Any, control: Control, name: str
) -> None:
    inputs, expected = whole
    made = opened("whole")
    engine = made.engine()
    engine.fails = {"capture": 1} if name == "library" else {}
    if name == "asked":
        made.libraries["model"].rtx = True
        engine.capturable = False
    with control.failing(name, 719 if name != "cuStreamEndCapture" else 901, times=1):
        for _ in range(5):
            agree(made.session.run(**inputs), expected)
    assert engine.executed >= 5 - (name not in ("library", "asked")), "executed directly each time"
    shorter = {n: a[:1] for n, a in inputs.items()}
    wanted = on_cpu("whole", shorter)
    replayed = control.calls("cuGraphLaunch")
    for _ in range(4):
        agree(made.session.run(**shorter), wanted)
    assert name == "asked" or control.calls("cuGraphLaunch") == replayed + 2, (
        "other shapes are captured as before"
    )


def test_shapes_that_take_turns_are_captured_rightly(
    opened: Any, whole: Any, control: Control
) -> None:
    """A shape is set anew between its runs; the library then wants an execution before a
    capture."""
    inputs, expected = whole
    shorter = {n: a[:1] for n, a in inputs.items()}
    wanted = on_cpu("whole", shorter)
    made = opened("whole")
    launched = control.calls("cuGraphLaunch")
    for _ in range(4):
        agree(made.session.run(**inputs), expected)
        agree(made.session.run(**shorter), wanted)
    assert control.calls("cuGraphLaunch") == launched + 4


def test_executions_and_addresses_that_are_refused_say_so(opened: Any, whole: Any) -> None:
    inputs, expected = whole
    made = opened("whole", options=SessionOptions(lanes=1))
    engine = made.engine()
    engine.fails = {"execute": 1}
    with pytest.raises(EngineError, match="could not be executed"):
        made.session.run(**inputs)
    agree(made.session.run(**inputs), expected)
    engine.refuses = {engine.inputs[0]}
    with pytest.raises(
        EngineError, match=rf"refused the address.*{engine.inputs[0]}.*multiple of 256"
    ):
        made.session.run(**inputs)
    engine.refuses = set()
    agree(made.session.run(**inputs), expected)
    engine.most_contexts = 0
    made.stages["model"]._idle.clear()
    with pytest.raises(EngineError, match="no room for another execution context"):
        made.session.run(**inputs)


def test_device_inputs_are_checked_by_name(opened: Any, whole: Any, gpu: Gpu) -> None:
    """The dtype of what is read, not of what was meant: int32 for int64 would be read beyond its
    end."""
    inputs, _ = whole
    made = opened("whole")
    name = next(iter(inputs))
    placed = on_gpu(inputs, gpu)
    for wrong in (np.float16, np.float64, np.int32, np.bool_):
        with pytest.raises(
            InputError,
            match=rf"wrong dtype \({name}\): got {np.dtype(wrong).name}, expected float32",
        ):
            made.session.run(**{**placed, name: on(gpu, inputs[name].astype(wrong))})
    bf16 = DeviceArray(placed[name].memory, placed[name].shape, "bfloat16")
    with pytest.raises(InputError, match="got bfloat16, expected float32"):
        made.session.run(**{**placed, name: Given(bf16)})
    with pytest.raises(InputError, match="wrong rank"):
        made.session.run(**{**placed, name: on(gpu, inputs[name][0])})
    with pytest.raises(InputError, match="wrong dtype.*expected float32"):
        made.session.run(**{**placed, name: inputs[name].astype(np.float64)})
    with pytest.raises(InputError, match="another GPU"):
        made.session.run(**{**placed, name: on(Gpu(1), inputs[name])})
    with (
        load(bundle_of("whole").path, "ort-cpu") as session,
        pytest.raises(InputError, match=rf"on a GPU.*{name}"),
    ):
        session.run(**{**inputs, name: placed[name]})


def test_indices_in_host_memory_are_checked_beside_device_arrays(opened: Any, gpu: Gpu) -> None:
    """Those on the GPU are not: they would have to be copied to be seen."""
    made = opened("split")
    first, queries = parts(bundle_of("split"), sample("split"))
    placed = on_gpu(first, gpu)
    beyond = {**queries, "input_ids": queries["input_ids"] + 99}
    with pytest.raises(InputError, match=r"outside its table \(input_ids\[0, 0\]\).*at most 98"):
        made.session.run({**placed, **beyond})
    masks = on_gpu({"attention_mask": queries["attention_mask"]}, gpu)
    context = made.session.encode(placed)
    with pytest.raises(InputError, match="outside its table"):
        made.session.query(context, {**beyond, **masks})
    ids = np.zeros((len(context), 0), np.int64)
    agree(made.session.query(context, {**queries, **masks}), on_cpu("split", {**first, **queries}))
    with pytest.raises(InputError, match="text"):
        made.session.query(context, {**masks, "input_ids": ids})


def test_device_inputs_of_every_make_are_read_rightly(opened: Any, whole: Any, gpu: Gpu) -> None:
    inputs, expected = whole
    made = opened("whole")
    name = next(iter(inputs))
    array = inputs[name]
    moved = on(gpu, np.concatenate([np.zeros(1, np.float32), array.reshape(-1)]))
    strides = [s // 4 for s in array.strides]
    makers: dict[str, Any] = {
        "DLPack": Given(on(gpu, array)),
        "managed memory": Given(on(gpu, array), device=(13, 0)),
        "misaligned": Given(DeviceArray(moved.memory, array.shape, "float32"), offset=4),
        "the CUDA array interface": Interface(on(gpu, array)),
        "with a stream": Interface(on(gpu, array), stream=2),
        "version 2": Interface(on(gpu, array), version=2),
        "misaligned interface": Interface(
            moved, shape=array.shape, data=(moved.pointer + 4, False)
        ),
    }
    for label, value in makers.items():
        for _ in range(3):
            got = made.session.run(**{**inputs, name: value})
            assert all(isinstance(output, DeviceArray) for output in got.values()), label
            agree(got, expected)
    one = {n: a[:1] for n, a in inputs.items()}
    odd = Given(on(gpu, one[name]), strides=[9999, *strides[1:]])
    agree(made.session.run(**{**one, name: odd}), on_cpu("whole", one))


def test_what_a_producer_still_computes_is_waited_for(
    opened: Any, whole: Any, gpu: Gpu, control: Control
) -> None:
    inputs, expected = whole
    made = opened("whole")
    name = next(iter(inputs))
    for interface in (False, True):
        producer = gpu.stream()
        array = on(gpu, np.zeros_like(inputs[name]))
        address, content = array.pointer, inputs[name]
        control.enqueue(
            handle(producer),
            lambda a=address, c=content: ctypes.memmove(a, c.ctypes.data, c.nbytes) and None,
        )
        value = (
            Interface(array, stream=handle(producer))
            if interface
            else Given(array, stream=handle(producer))
        )
        agree(made.session.run(**{**inputs, name: value}), expected)
        assert interface or value.asked == [LEGACY_STREAM]


def test_pageable_memory_does_where_there_is_no_other(
    opened: Any, whole: Any, control: Control
) -> None:
    inputs, expected = whole
    made = opened("whole")
    with control.failing("cuMemAllocHost_v2", NO_MEMORY, times=-1):
        for _ in range(4):
            agree(made.session.run(**inputs), expected)


def test_outputs_of_a_session_stay_while_they_are_read(
    opened: Any, whole: Any, gpu: Gpu, control: Control
) -> None:
    inputs, expected = whole
    made = opened("whole", options=SessionOptions(lanes=1))
    placed = on_gpu(inputs, gpu)
    reader = gpu.stream()
    outputs = made.session.run(**placed)
    name, array = next(iter(outputs.items()))
    copy = np.zeros(array.shape, array.dtype)
    address = array.pointer
    capsule = array.__dlpack__(stream=handle(reader))
    control.enqueue(
        handle(reader), lambda: ctypes.memmove(copy.ctypes.data, address, copy.nbytes) and None
    )
    del outputs, array, capsule
    gc.collect()
    for _ in range(3):
        agree(made.session.run(**placed), expected)
    gpu.sync(gpu._releasing)
    gpu.sync(reader)
    np.testing.assert_array_equal(copy, expected[name])


def test_lanes_of_several_threads(opened: Any, whole: Any) -> None:
    inputs, expected = whole
    made = opened("whole", options=SessionOptions(lanes=3))
    wrong: list[str] = []

    def work() -> None:
        try:
            for _ in range(5):
                agree(made.session.run(**inputs), expected)
        except Exception as error:  # noqa: BLE001 -- a case that fails is a result, and others go on
            wrong.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def parts(
    bundle: Bundle, inputs: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    names = {spec.name for spec in bundle.manifest.stages["context"].inputs}
    return {n: a for n, a in inputs.items() if n in names}, {
        n: a for n, a in inputs.items() if n not in names
    }


@pytest.mark.parametrize("rtx", [False, True])
def test_contexts_are_selected_on_the_device(opened: Any, rtx: bool) -> None:
    bundle = bundle_of("split")
    made = opened("split", rtx=rtx)
    first, queries = parts(bundle, sample("split"))
    with load(bundle.path, "ort-cpu") as session:
        whole = session.encode(**first)
        context = made.session.encode(**first)
        for picks in ([0], [1, 0, 1], [-1]):
            expected, got = whole.select(picks), context.select(picks)
            assert (got.count, got.nbytes, got.sizes) == (
                expected.count,
                expected.nbytes,
                expected.sizes,
            )
            agree(dict(got.tensors), {n: np.asarray(a) for n, a in expected.tensors.items()})
            asked = {n: np.concatenate([a[:1]] * len(picks)) for n, a in queries.items()}
            agree(made.session.query(got, **asked), session.query(expected, **asked))
        with pytest.raises(InputError, match="out of range"):
            context.select([99])


def test_a_selection_waits_for_nobody_and_is_waited_for(opened: Any, control: Control) -> None:
    """It is enqueued on a stream of its own; whoever reads it comes behind: the session's streams,
    another library's, the host, a selection of it."""
    bundle = bundle_of("split")
    made = opened("split")
    first, queries = parts(bundle, sample("split"))
    with load(bundle.path, "ort-cpu") as session:
        whole = session.encode(**first)
        context = made.session.encode(**first)
        gpu = made.stages["context"].gpu
        selecting = handle(gpu._selecting)
        asked = {n: np.concatenate([a[:1]] * 3) for n, a in queries.items()}
        expected = session.query(whole.select([1, 0, 1]), **asked)
        once = {n: a[:1] for n, a in queries.items()}
        waited = control.calls("cuStreamSynchronize")
        chosen = context.select([1, 0, 1])
        again = chosen.select([2, 1, 0])
        assert control.calls("cuStreamSynchronize") == waited
        assert control.pending(selecting) > 0, "nothing is copied yet"
        del context
        gc.collect()
        agree(made.session.query(again, **asked), expected)
        agree(made.session.query(chosen, **asked), expected)
        spec = next(s for s in chosen.specs if chosen.batch in s.shape)
        taken = made.session.encode(**first).select([1]).tensors[spec.name]
        reader = gpu.stream()
        copy = np.zeros(taken.shape, taken.dtype)
        capsule = taken.__dlpack__(stream=handle(reader))
        address = taken.pointer
        control.enqueue(
            handle(reader), lambda: ctypes.memmove(copy.ctypes.data, address, copy.nbytes) and None
        )
        gpu.sync(reader)
        axis = spec.shape.index(chosen.batch)
        truth = np.take(np.asarray(whole.tensors[spec.name]), [1], axis)
        np.testing.assert_array_equal(copy, truth)
        del capsule, taken
        on_host = made.session.encode(**first).select([1]).tensors[spec.name]
        np.testing.assert_array_equal(on_host.numpy(), truth)
        placed = made.session.encode(**first).select([0])
        agree(
            made.session.query(placed, **on_gpu(once, gpu)),
            session.query(whole.select([0]), **once),
        )


def test_servers_open_bundles_with_a_batch_of_contexts(opened: Any, control: Control) -> None:
    inputs = sample("split")
    engine = RequestEngine(opened("split").session)
    engine.prove_merging(inputs)
    (answer,) = engine.answer([Request(inputs)])
    assert isinstance(answer, dict)
    agree(answer, on_cpu("split", inputs))
    with control.failing("cuStreamSynchronize", LAUNCH_FAILED):
        (failed,) = engine.answer([Request(inputs)])
    assert isinstance(failed, UnexpectedError)
    assert isinstance(failed.__cause__, EngineError)
    (answer,) = engine.answer([Request(inputs)])
    agree(answer, on_cpu("split", inputs))


@pytest.mark.parametrize("rtx", [False, True])
def test_decoding_keeps_its_state_on_the_device(opened: Any, control: Control, rtx: bool) -> None:
    bundle = bundle_of("decode")
    made = opened("decode", rtx=rtx)
    first, _ = parts(bundle, sample("decode"))
    ids = np.random.default_rng(0).integers(3, 90, (4, 12))
    with load(bundle.path, "ort-cpu") as session:
        expected_state = session.start(session.encode(**first), 4)
        state = made.session.start(made.session.encode(**first), 4)
        assert all(isinstance(a, DeviceArray) for a in state.memory.tensors.values())
        assert state.nbytes == 2 * expected_state.nbytes
        for i in range(8):
            agree(
                dict(made.session.step(state, ids[:, i])),
                dict(session.step(expected_state, ids[:, i])),
            )
        for each in (state, expected_state):
            each.reorder([2, 0, 0, 3])
        agree(
            dict(made.session.step(state, ids[:, 8])), dict(session.step(expected_state, ids[:, 8]))
        )
        for each in (state, expected_state):
            each.rewind(3)
        for i in range(9, 12):
            agree(
                dict(made.session.step(state, ids[:, i])),
                dict(session.step(expected_state, ids[:, i])),
            )
        with control.failing("cuStreamSynchronize", LAUNCH_FAILED), pytest.raises(EngineError):
            made.session.step(state, ids[:, 0])
        assert state.position == expected_state.position
        agree(
            dict(made.session.step(state, ids[:, 0])), dict(session.step(expected_state, ids[:, 0]))
        )
        with (
            control.failing("cuMemcpy2DAsync_v2", LAUNCH_FAILED, after=1),
            pytest.raises(EngineError),
        ):
            state.reorder([1, 1, 2, 3])
        agree(
            dict(made.session.step(state, ids[:, 1])), dict(session.step(expected_state, ids[:, 1]))
        )


def test_steps_are_checked_on_gpus_too(opened: Any) -> None:
    bundle = bundle_of("decode")
    report = check_session(
        opened("decode").session, load_reference(bundle.path / "reference.npz"), "fp32"
    )
    assert report.passed
    assert any("step by step" in name for name in report.outputs)


# ---- several GPUs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [SessionOptions(device_id=1), SessionOptions(provider_options={"device_id": "1"})]
)
def test_everything_is_on_the_gpu_that_was_asked_for(
    opened: Any, whole: Any, options: SessionOptions
) -> None:
    inputs, expected = whole
    made = opened("whole", options=options)
    agree(made.session.run(**inputs), expected)
    other = Gpu(1)
    outputs = made.session.run(**on_gpu(inputs, other))
    agree(outputs, expected)
    for output in outputs.values():
        assert output.__dlpack_device__() == (2, 1)
        assert Driver.of_pointer(output.pointer) == 1
    slot = made.stages["model"]._idle[0]
    assert {Driver.of_pointer(int(buffer.handle)) for buffer, _ in slot._buffers.values()} == {1}
    with pytest.raises(InputError, match="another GPU.*device 0, expected device 1"):
        made.session.run(**on_gpu(inputs, Gpu(0)))
    agree(opened("whole").session.run(**on_gpu(inputs, Gpu(0))), expected)


def test_gpus_are_told_apart_by_identity() -> None:
    assert gpu_count() == 2
    assert driver_version() == "13.0"
    assert gpu_uuid(0) == "GPU-10101010-1010-1010-1010-101010101010"
    assert gpu_uuid(1) == "GPU-11111111-1111-1111-1111-111111111111"
    assert gpu_uuid(2) is None
    asked: list[str] = []

    class Nvml:
        NVMLError = ValueError

        @staticmethod
        def nvmlInit() -> None:  # noqa: N802 - NVML's name
            pass

        @staticmethod
        def nvmlDeviceGetHandleByUUID(identity: str) -> str:  # noqa: N802 - NVML's name
            asked.append(identity)
            if identity.endswith("11"):
                raise ValueError("a part of a GPU")
            return identity

        @staticmethod
        def nvmlDeviceGetTotalEnergyConsumption(device: str) -> int:  # noqa: N802 - NVML's name
            return 2500

    assert GpuMeter(Nvml, device=0).joules() == 2.5
    assert GpuMeter(Nvml, device=1).joules() is None
    assert asked == [gpu_uuid(0), gpu_uuid(1)]


@pytest.fixture(autouse=True)
def _nothing_left(control: Control) -> Iterator[None]:
    yield
    gc.collect()
    control._cuda.rehearsal_heal()


def test_memory_and_readers_of_foreign_arrays(gpu: Gpu) -> None:
    """Another library's array has no place of ours, so nothing is made beside it."""
    array = device_array(Given(on(gpu, np.ones((2, 2), np.float32))), 0, "x")
    assert array.memory.after == {LEGACY_STREAM}
    for work in (array.numpy, array.zero, lambda: array.take([0], 0)):
        with pytest.raises(InputError, match="another library's"):
            work()
    assert isinstance(array.memory, DeviceMemory)
    assert read_capsule(array, LEGACY_STREAM).pointer == array.pointer
