"""Which GPU is meant, and what is measured on it, on machines without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fake_tensorrt as fake
from crossfuse.bundle.manifest import EngineInfo
from crossfuse.errors import InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.baselines import Baselines
from crossfuse.runtime import SessionOptions
from crossfuse.runtime.driver import gpu_count
from crossfuse.runtime.input_checks import is_on_device
from crossfuse.runtime.tensorrt_stage import TrtStage
from crossfuse.serve import load_engine


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ({}, 0),
        ({"device_id": 2}, 2),
        ({"provider_options": {"device_id": "3"}}, 3),
        ({"device_id": 1, "provider_options": {"device_id": 1}}, 1),
    ],
)
def test_a_gpu_is_told_by_its_number(given: dict[str, Any], device: int) -> None:
    assert SessionOptions(**given).device == device


@pytest.mark.parametrize(
    "given",
    [
        {"device_id": -1},
        {"provider_options": {"device_id": "first"}},
        {"device_id": 1, "provider_options": {"device_id": "2"}},
    ],
)
def test_numbers_that_mean_no_gpu_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="device_id"):
        SessionOptions(**given)


def test_servers_open_a_bundle_on_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the target: for TensorRT the number was lost among the options of ONNX Runtime's
    provider."""
    asked: list[SessionOptions] = []

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def load(path: Path, target: str, options: SessionOptions) -> Any:
        asked.append(options)
        raise Stop

    monkeypatch.setattr(load_engine, "load", load)
    monkeypatch.setattr(load_engine, "unreplaced", lambda path, work: work(SimpleNamespace()))
    monkeypatch.setattr(load_engine, "require_tried", lambda bundle, target, options: None)
    with pytest.raises(Stop):
        load_engine.open_engine("bundle", load_engine.EngineOptions(target="tensorrt", device=3))
    assert asked[0].device == 3
    assert not asked[0].provider_options


def test_compiled_kernels_belong_to_a_gpu_and_a_driver(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    import onnx_ir as ir

    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["n"])
    y = ir.node("Neg", [x])
    y.outputs[0].name, y.outputs[0].dtype = "y", ir.DataType.FLOAT
    ir.save(
        ir.Model(ir.Graph([x], y.outputs, nodes=[y], opset_imports={"": 20}), ir_version=9), graph
    )
    plan = fake.write_plan(tmp_path / "model.plan", graph, [{"x": ((1,), (1,), (9,))}])

    def kernels(**changes: str) -> Path:
        gpu = fake.Gpu()
        for name, value in changes.items():
            setattr(gpu, name, value)
        info = EngineInfo("tensorrt_rtx", fake.VERSION, (), (), request="r")
        return TrtStage(
            plan, "tensorrt-rtx", info, SessionOptions(), library=fake.Library(), gpu=gpu
        )._kernels

    assert kernels() == kernels()
    found = {
        kernels(),
        kernels(name="another"),
        kernels(driver_version="13.1"),
        kernels(capability="12.0"),
    }
    assert len(found) == 4


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU")
@pytest.mark.parametrize("name", ["onnx", "openvino", "openvino-f32"])
def test_what_can_not_use_the_gpu_is_no_baseline(name: str) -> None:
    """ONNX Runtime would go on without its provider, and the CPU be measured as if it were the
    GPU."""
    spec = zoo_spec("cross_modal_attention", "tiny")
    inputs = {n: t.numpy() for n, t in spec.sample(spec.example_sizes, 0).items()}
    with (
        Baselines(spec, "cuda") as baselines,
        pytest.raises(InputError, match=r"no CUDAExecutionProvider|openvino computes on CPUs"),
    ):
        baselines.make(name, inputs)


def test_what_is_on_a_device() -> None:
    class Interface:
        __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012 - as arrays have it

    class Pinned:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 3, 0

    class There(Pinned):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

    assert [is_on_device(v) for v in (np.zeros(1), Pinned(), There(), Interface(), 3.0)] == [
        False,
        False,
        True,
        True,
        False,
    ]
