"""What holds nothing is answered without an engine, by shape; what holds something goes to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossfuse.bundle.manifest import StageSpec
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.empty_stage import EmptyStage, executing, for_empty
from crossfuse.runtime.session import Session
from crossfuse.runtime.stage import HostStage, Stage

SPEC = StageSpec(
    (TensorSpec("x", "float32", ("batch", "2*tokens", 3)), TensorSpec("ids", "int64", ("batch",))),
    (
        TensorSpec("states", "float16", ("batch", "tokens + 1", 3)),
        TensorSpec("hidden", "float32", ("batch", "2*tokens")),
    ),
)
DIMS = {"batch": Dim("batch", 0), "tokens": Dim("tokens", 0, 8)}


class Engine(HostStage):
    """Takes nothing empty, as fused kernels do."""

    def __init__(self) -> None:
        super().__init__("numpy", ["x", "ids"], ["states", "hidden"])
        self.calls = 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.calls += 1
        x = feeds["x"]
        if not x.size:
            raise InputError("nothing can't be computed")
        tokens = x.shape[1] // 2
        return [np.ones((x.shape[0], tokens + 1, 3), np.float16), x.sum(-1)]


def feeds(batch: int, tokens: int) -> dict[str, NDArray[Any]]:
    return {"x": np.ones((batch, 2 * tokens, 3), np.float32), "ids": np.ones(batch, np.int64)}


def test_nothing_is_asked_about_nothing() -> None:
    engine = Engine()
    stage = for_empty(engine, SPEC, DIMS)
    assert isinstance(stage, Stage)
    assert executing(stage) is engine
    for run in (stage.run, stage.run_mixed, stage.run_on_device, lambda f: stage.run_into(f, {})):
        states, hidden = run(feeds(0, 2))
        assert (states.shape, states.dtype) == ((0, 3, 3), np.float16)
        assert (hidden.shape, hidden.dtype) == ((0, 4), np.float32)
        states, hidden = run(feeds(2, 3))
        np.testing.assert_array_equal(hidden, np.full((2, 6), 3))
    assert engine.calls == 4
    with pytest.raises(InputError, match="nothing can't"):
        stage.run(feeds(2, 0))  # the states have one token: that is something


def test_a_binding_of_nothing() -> None:
    engine = Engine()
    stage = EmptyStage(engine, SPEC)
    outputs = [np.empty((0, 3, 3), np.float16), np.empty((0, 4), np.float32)]
    stage.run_bound(stage.bind(feeds(0, 2), outputs))
    assert engine.calls == 0
    outputs = [np.empty((1, 3, 3), np.float16), np.empty((1, 4), np.float32)]
    stage.run_bound(stage.bind(feeds(1, 2), outputs))
    assert outputs[1].tolist() == [[3, 3, 3, 3]]


def test_ranges_that_begin_at_one_cost_nothing() -> None:
    engine = Engine()
    assert for_empty(engine, SPEC, {"batch": Dim("batch")}) is engine


def test_a_session_shows_what_executes() -> None:
    engine = Engine()
    stages = {"model": for_empty(engine, SPEC, DIMS)}
    with Session("onnx", {"model": SPEC}, DIMS, stages) as session:
        assert session.engine("model") is engine
        assert session.run(feeds(0, 1))["hidden"].shape == (0, 2)
