"""One stage on ONNX Runtime, on the CPU: `tests/gpu_rehearsal` has the other device."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse.errors import BundleError, InputError
from crossfuse.runtime.onnxruntime_stage import BROKEN_PASSES, SLOW_FUSIONS, OrtStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import Stage
from named_graphs import CONTEXT, OUTPUT, QUERIES, make_inputs, write_graph
from onnx_building import INT64, Graph, normal

CPU = "CPUExecutionProvider"


def expected(inputs: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """The graph's formula, in float64."""
    import onnx
    from onnx import numpy_helper

    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0]).astype(np.float64)
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    made = np.tanh(wide[CONTEXT] @ weight) * wide["self"] + wide["inputs"]
    return np.asarray(made * wide["state"] + wide["file"])


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx")


def test_runs_what_the_graph_says(graph: Path) -> None:
    stage = OrtStage(graph, CPU, SessionOptions(threads=1))
    assert isinstance(stage, Stage)
    assert stage.boundary == ((CONTEXT, *QUERIES), (OUTPUT,))
    assert (stage.provider, stage.on_device) == (CPU, False)
    inputs = make_inputs(3)
    truth = expected(inputs, graph)
    for run in (stage.run, stage.run_mixed, stage.run_on_device, lambda f: stage.run_into(f, {})):
        (row,) = run(inputs)
        np.testing.assert_allclose(row, truth, atol=1e-5)


def test_a_binding_follows_its_arrays(graph: Path) -> None:
    stage = OrtStage(graph, CPU, SessionOptions(threads=1))
    inputs, row = make_inputs(2), np.empty((2, 4), np.float32)
    binding = stage.bind(inputs, [row])
    for seed in (1, 2):
        for name, array in make_inputs(2, seed).items():
            inputs[name][:] = array
        stage.run_bound(binding)
        np.testing.assert_allclose(row, expected(inputs, graph), atol=1e-5)


def test_rows_are_written_into_the_state_that_is_read(tmp_path: Path) -> None:
    graph = Graph()
    graph.input("state", ["n", 2])
    graph.input("at", ["k", 1], INT64)
    graph.input("rows", ["k", 2])
    graph.op("ReduceSum", graph.op("ScatterND", "state", "at", "rows", outputs=["next"]),
             outputs=["y"], keepdims=0)  # fmt: skip
    graph.output("next", ["n", 2])
    graph.output("y", [])
    stage = OrtStage(Path(graph.save(tmp_path / "g.onnx")), CPU, SessionOptions(threads=1))
    state, fixed = np.ones((4, 2), np.float32), np.full((1, 2), 5, np.float32)
    fixed.flags.writeable = False
    feeds = {"state": state, "at": np.array([[2]]), "rows": fixed}
    following, total = stage.run_into(feeds, {"next": state})
    assert following is state
    assert state.tolist() == [[1, 1], [1, 1], [5, 5], [1, 1]]
    assert float(total) == 16


def test_what_the_engine_refuses_is_bad_input(graph: Path) -> None:
    stage = OrtStage(graph, CPU, SessionOptions())
    for wrong in (
        {**make_inputs(2), "self": np.zeros((3, 4), np.float32)},
        {**make_inputs(2), "self": np.zeros((2, 4), np.int64)},
        {CONTEXT: np.zeros((2, 4), np.float32)},
    ):
        with pytest.raises(InputError, match="the engine refused the inputs"):
            stage.run(wrong)


def test_what_can_not_be_opened(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="this ONNX Runtime has no NoSuchProvider"):
        OrtStage(graph, "NoSuchProvider", SessionOptions())
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"ONNX Runtime can't load the graph.*broken\.onnx"):
        OrtStage(broken, CPU, SessionOptions())


@pytest.mark.parametrize("alone", [True, False])
def test_options_reach_the_engine(
    graph: Path, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    seen: dict[str, Any] = {}
    real = onnxruntime.InferenceSession

    def opened(path: str, settings: Any, **kwargs: Any) -> Any:
        seen.update(kwargs, settings=settings)
        return real(path, settings, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    options = SessionOptions(threads=3, inter_op_threads=2, spin=False)
    OrtStage(graph, CPU, options, alone=alone)
    settings = seen["settings"]
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (3, 2)
    assert settings.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    entry = settings.get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == "0"
    if alone:
        with pytest.raises(RuntimeError):
            entry("session.force_spinning_stop")
    else:
        assert entry("session.force_spinning_stop") == "1"
    assert seen["disabled_optimizers"] == [*SLOW_FUSIONS, *BROKEN_PASSES]


def test_signed_quantizers_behind_layout(tmp_path: Path) -> None:
    """ONNX Runtime moves these in front of the transposition, and then refuses its own graph."""
    g = Graph()
    g.input("x", ["n", 3, 4])
    given = [g.weight(np.float32(0.05)), g.weight(np.int8(0))]
    turned = g.op("Reshape", g.op("Transpose", "x", perm=[0, 2, 1]), g.ints(-1, 12))
    rounded = g.op("DequantizeLinear", g.op("QuantizeLinear", turned, *given), *given)
    weight = np.random.default_rng(0).integers(-127, 128, (12, 5)).astype(np.int8)
    stored = g.op("DequantizeLinear", g.weight(weight), *given)
    g.op("MatMul", rounded, stored, outputs=["y"])
    g.output("y", ["n", 5])
    stage = OrtStage(Path(g.save(tmp_path / "g.onnx", 23, 11)), CPU, SessionOptions(threads=1))
    x = normal(2, 3, 4)
    (got,) = stage.run({"x": x})
    steps = np.clip(np.rint(x.transpose(0, 2, 1).reshape(2, 12) / 0.05), -128, 127)
    np.testing.assert_allclose(got, steps * 0.05 @ (weight * 0.05), atol=1e-4)


def test_a_trace_says_what_ran(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    folder.mkdir()
    stage = OrtStage(graph, CPU, SessionOptions(threads=1), trace=folder)
    stage.run(make_inputs(2))
    events = json.loads(stage.end_trace().read_text())
    names = [event["name"] for event in events if event.get("cat") == "Node"]
    assert any("Tanh" in event.get("args", {}).get("op_name", "") for event in events), names
    assert (folder / "optimized.onnx").is_file()


def test_memory_and_configuration_reach_the_engine(graph: Path) -> None:
    inputs = make_inputs(3)
    truth = expected(inputs, graph)
    options = SessionOptions(
        threads=1,
        arena=False,
        memory_pattern=False,
        config={"session.set_denormal_as_zero": "1", "session.intra_op.allow_spinning": "0"},
    )
    settings = OrtStage(graph, CPU, options)._session.get_session_options()
    assert not settings.enable_cpu_mem_arena
    assert not settings.enable_mem_pattern
    assert settings.get_session_config_entry("session.set_denormal_as_zero") == "1"
    for chosen in (options, SessionOptions(threads=1, give_back=True)):
        (row,) = OrtStage(graph, CPU, chosen).run(inputs)
        np.testing.assert_allclose(row, truth, atol=1e-5)


def test_a_quota_is_the_default_of_threads(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfuse.runtime.onnxruntime_stage.cpu_limit", lambda: 1)

    def threads(options: SessionOptions) -> int:
        return int(
            OrtStage(graph, CPU, options)._session.get_session_options().intra_op_num_threads
        )

    assert threads(SessionOptions()) == 1
    assert threads(SessionOptions(threads=2)) == 2


def test_a_forks_child_ends_although_its_engine_came_along(graph: Path) -> None:
    """Its release would look for threads that stayed behind, and end the process."""
    stage = OrtStage(graph, CPU, SessionOptions(threads=4))
    stage.run(make_inputs(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        del stage
        gc.collect()
        os._exit(7)
    until = time.monotonic() + 30
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended
    assert os.waitstatus_to_exitcode(status) == 7
