"""Checks of `crossfuse.runtime` with ONNX Runtime's own CUDA provider, on the stand-ins for CUDA's
libraries and its driver.

`test_runtime_on_standins.py` runs this file in a process of its own. The provider partitions, binds
and copies; its kernels compute nothing, so shapes, places and orders are checked here, and no
values.
"""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError, EngineError, InputError
from crossfuse.parity.reference import load_reference
from crossfuse.profiling.measure.device_inputs import on_gpu
from crossfuse.runtime import Session, SessionOptions, load
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.driver import LEGACY_STREAM
from crossfuse.runtime.gpu import Gpu
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.serve.request_engine import Request, RequestEngine
from gpu_rehearsal.driver import Control


def bundle_of(name: str) -> Bundle:
    return open_bundle(os.environ[f"REHEARSAL_{name.upper()}"])


def sample(name: str) -> dict[str, np.ndarray]:
    return dict(load_reference(bundle_of(name).path / "reference.npz").points[0].inputs)


def opened(name: str, options: SessionOptions | None = None) -> Session:
    session = load(bundle_of(name).path, "ort-cuda", options)
    assert session.provider == "CUDAExecutionProvider"
    return session


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture(scope="module")
def session() -> Session:
    return opened("whole")


class Given:
    """Another library's array, with DLPack alone."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.shape = array, array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None) -> Any:
        assert stream == LEGACY_STREAM, "the provider has no stream that a producer could be told"
        return self.array.__dlpack__(stream=stream)


def check_outputs(got: dict[str, Any], session: Session, batch: int) -> None:
    for spec in session.outputs:
        array = got[spec.name]
        assert isinstance(array, DeviceArray)
        assert array.dtype == spec.dtype
        assert array.shape[0] == batch
        assert array.__dlpack_device__() == (2, 0)


def test_inputs_of_every_make(session: Session, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another library may still be computing is waited for; what is ours is there already."""
    waits: list[int] = []
    wait = ort.IOBinding.synchronize_inputs
    monkeypatch.setattr(
        ort.IOBinding, "synchronize_inputs", lambda binding: waits.append(1) or wait(binding)
    )
    inputs = sample("whole")
    placed = on_gpu(inputs, gpu)
    name, array = next(iter(inputs.items()))
    check_outputs(session.run(**placed), session, len(array))
    check_outputs(session.run(**{**inputs, name: placed[name]}), session, len(array))
    assert not waits
    check_outputs(session.run(**{**inputs, name: Given(placed[name])}), session, len(array))
    assert len(waits) == 1
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype, "cuda", 0)
    check_outputs(session.run(**{**placed, name: value}), session, len(array))
    outputs = session.run(**inputs)
    assert all(isinstance(output, np.ndarray) for output in outputs.values())
    with pytest.raises(TypeError, match="not copied to the host by itself"):
        np.asarray(next(iter(session.run(**placed).values())))


def test_what_does_not_fit_is_refused_by_name(session: Session, gpu: Gpu) -> None:
    inputs = sample("whole")
    placed = on_gpu(inputs, gpu)
    name = next(iter(inputs))
    for wrong in (np.float16, np.int32, np.bool_):
        other = on_gpu({name: inputs[name].astype(wrong)}, gpu)
        with pytest.raises(
            InputError,
            match=rf"wrong dtype \({name}\): got {np.dtype(wrong).name}, expected float32",
        ):
            session.run(**{**placed, **other})
    with pytest.raises(InputError, match="another GPU than the session"):
        session.run(**{**placed, **on_gpu({name: inputs[name]}, Gpu(1))})


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "int32", "int64", "bool", "bfloat16", "uint8"]
)
def test_arrays_of_every_dtype_are_made_and_given(session: Session, dtype: str) -> None:
    engine = session.engine("model")
    for shape in ((2, 3), (), (0, 4)):
        array = engine.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert "dltensor" in str(array.__dlpack__())
    assert engine.empty((4, 2), dtype).zero().dtype == dtype


def test_memory_is_kept_while_it_is_read(session: Session, gpu: Gpu) -> None:
    """ONNX Runtime would give an output's memory to the next run at once."""
    control, engine = Control(), session.engine("model")
    assert isinstance(engine, OrtStage)
    placed = on_gpu(sample("whole"), gpu)
    reader = gpu.stream()
    array = next(iter(session.run(**placed).values()))
    address = array.pointer
    capsule = array.__dlpack__(stream=int(reader.handle))
    read: list[int] = []
    control.enqueue(int(reader.handle), lambda: read.append(address))
    del array, capsule
    gc.collect()
    for _ in range(3):
        pointers = {output.pointer for output in session.run(**placed).values()}
        assert address not in pointers
        assert len(engine._leaving) == 1
        assert not read
    gpu.sync(reader)
    session.run(**placed)
    assert not engine._leaving


def test_errors_of_the_gpu_and_of_the_inputs(
    session: Session, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = session.engine("model")
    assert isinstance(engine, OrtStage)
    inputs = sample("whole")
    placed = on_gpu(inputs, gpu)
    binding = session.bind(**inputs)
    calls = {
        "run_on_device": lambda: session.run(**placed),
        "run_mixed": lambda: engine.run_mixed(placed),
        "run_bound": binding.run,
    }
    kinds = {
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0": EngineError,
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED": EngineError,
        "BFCArena: Failed to allocate memory for requested buffer of size 12": EngineError,
        "Non-zero status code returned while running Gather node: indices element out of data "
        "bounds": InputError,
    }
    for text, kind in kinds.items():

        def fail(*arguments: Any, text: str = text) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(engine._session, "run_with_iobinding", fail)
        for name, call in calls.items():
            with pytest.raises(kind, match=text[:20]) as caught:
                call()
            assert "\n" not in str(caught.value), name
    monkeypatch.undo()
    for call in calls.values():
        call()


def test_memory_that_can_not_be_had_is_one_paragraph(gpu: Gpu) -> None:
    engine = opened("whole").engine("model")
    with pytest.raises(EngineError, match="failed on the GPU"):
        engine.empty((1 << 50,), "float32")


def test_contexts_are_selected_and_asked_on_the_device(gpu: Gpu) -> None:
    session = opened("split")
    names = {spec.name for spec in session.stages["context"].inputs}
    inputs = sample("split")
    queries = {n: a for n, a in inputs.items() if n not in names}
    context = session.encode(**{n: inputs[n] for n in names})
    for tensor in context.tensors.values():
        assert isinstance(tensor, DeviceArray)
        content = np.random.default_rng(0).standard_normal(tensor.shape).astype(tensor.dtype)
        tensor.memory.place.driver.upload(tensor.pointer, content)
    picked = context.select([1, 1, 0])
    for spec in picked.specs:
        whole, part = context.tensors[spec.name].numpy(), picked.tensors[spec.name].numpy()
        axis = spec.shape.index(context.batch) if context.batch in spec.shape else None
        np.testing.assert_array_equal(
            part, whole if axis is None else np.take(whole, [1, 1, 0], axis=axis)
        )
    asked = {n: np.concatenate([a[:1]] * 3) for n, a in queries.items()}
    assert all(isinstance(a, np.ndarray) for a in session.query(picked, **asked).values())
    check_outputs(session.query(picked, **on_gpu(asked, gpu)), session, 3)


def test_servers_open_a_split_bundle() -> None:
    engine = RequestEngine(opened("split"))
    inputs = sample("split")
    engine.prove_merging(inputs)
    (answer,) = engine.answer([Request(inputs)])
    assert isinstance(answer, dict)


def test_decoding_stays_on_the_device() -> None:
    session = opened("decode")
    inputs = sample("decode")
    names = {spec.name for spec in session.stages["context"].inputs}
    state = session.start(session.encode(**{n: inputs[n] for n in names}), 4)
    places = [
        {name: a.pointer for name, a in arrays.items()}
        for arrays in (state.memory.tensors, state.memory._other)
    ]
    for i in range(6):
        outputs = session.step(state, np.array([4, 5, 6, 7]))
        assert {a.dtype.name for a in outputs.values()} == {"float32"}
        assert {n: a.pointer for n, a in state.memory.tensors.items()} == places[(i + 1) % 2], (
            "two sets, in turn"
        )
    state.reorder([3, 3, 0, 1])
    session.step(state, np.array([4, 5, 6, 7]))
    state.rewind(2)
    session.step(state, np.array([4, 5, 6, 7]))
    assert state.position == 3


def test_a_gpu_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match=r"no such NVIDIA GPU \(device 7\): got 2 GPUs"):
        opened("whole", SessionOptions(device_id=7))
    assert "EP Error" not in capfd.readouterr().out


def test_the_gpu_that_was_asked_for() -> None:
    cudart = ctypes.CDLL("libcudart.so.13")
    count = ctypes.c_int(0)
    cudart.cudaGetDeviceCount(ctypes.byref(count))
    if count.value < 2:
        pytest.skip("the stand-ins have one GPU")
    inputs = sample("whole")
    for options in (
        SessionOptions(device_id=1),
        SessionOptions(provider_options={"device_id": "1"}),
    ):
        session = opened("whole", options)
        outputs = session.run(**on_gpu(inputs, Gpu(1)))
        assert {output.__dlpack_device__() for output in outputs.values()} == {(2, 1)}
        with pytest.raises(InputError, match="device 0, expected device 1"):
            session.run(**on_gpu(inputs, Gpu(0)))
