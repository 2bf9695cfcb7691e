"""What is said of inputs that pass the session's checks and that an engine refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossfuse.bundle.manifest import StageSpec
from crossfuse.core.target import TARGETS
from crossfuse.core.tensors import POSITION, Dim, TensorSpec
from crossfuse.errors import CrossfuseError, EngineError, InputError
from crossfuse.runtime.load import SessionSpec, _takes, open_session
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.refused_inputs import Takes, refused_inputs
from onnx_building import INT64, Graph

X = TensorSpec("x", "float32", ("batch", "n", 4))
Y = TensorSpec("y", "float32", ("batch", "2*m", 4))
IDS = TensorSpec("ids", "int64", ("batch", "n"))
DIMS = {"batch": Dim("batch", 1, 8), "n": Dim("n", 1, 64), "m": Dim("m")}


def session_of(graph: Graph, spec: SessionSpec, path: Path) -> object:
    graph.save(path)
    target = TARGETS["ort-cpu"]
    return open_session(target, {"model": path}, spec, SessionOptions(threads=1))


def refused(graph: Graph, inputs: dict[str, np.ndarray], path: Path) -> CrossfuseError:
    """The error of a session over the graph, whose ranges allow the inputs."""
    specs = tuple(spec for spec in (X, Y, IDS) if spec.name in inputs)
    out = TensorSpec("out", "float32", ("batch", "n", 4))
    spec = SessionSpec({"model": StageSpec(specs, (out,))}, DIMS)
    with (
        session_of(graph, spec, path) as session,  # type: ignore[attr-defined]
        pytest.raises(CrossfuseError) as caught,
    ):
        session.run(inputs)
    return caught.value


def test_sizes_that_do_not_fit_each_other(tmp_path: Path) -> None:
    graph = Graph()
    graph.input("x", ["batch", "n", 4])
    graph.input("y", ["batch", "m2", 4])
    graph.op("Add", "x", "y", outputs=["out"])
    graph.output("out", ["batch", "n", 4])
    x, y = np.zeros((2, 3, 4), np.float32), np.zeros((2, 10, 4), np.float32)
    error = refused(graph, {"x": x, "y": y}, tmp_path / "g.onnx")
    assert isinstance(error, InputError)
    assert error.got == "x: float32[2, 3, 4], y: float32[2, 10, 4]"
    assert str(error.expected) == (
        "x: float32[batch, n, 4], y: float32[batch, 2*m, 4] (batch=1..8, n=1..64, m=1..∞)"
    )
    assert "one name for dimensions that have to be equal: ModelSpec(dynamic=...)" in str(error)
    assert "vocabulary" not in str(error)


def test_a_table_that_is_too_short_for_a_size(tmp_path: Path) -> None:
    graph = Graph()
    graph.input("ids", ["batch", "n"], INT64)
    graph.op("Gather", graph.weight(np.zeros((6, 4), np.float32)), "ids", outputs=["out"], axis=0)
    graph.output("out", ["batch", "n", 4])
    error = refused(graph, {"ids": np.full((1, 2), 6)}, tmp_path / "g.onnx")
    assert "an index that is outside its table" in str(error)
    assert (error.got, isinstance(error, InputError)) == ("ids: int64[1, 2]", True)


def test_memory_that_ran_out_is_not_the_inputs_fault() -> None:
    error = refused_inputs(
        "Failed to allocate memory for requested buffer of size 1", {"x": np.zeros((2, 3, 4))}
    )
    assert isinstance(error, EngineError)
    assert (error.got, error.do) == ("x: float64[2, 3, 4]", "Give fewer or smaller inputs at once")


def test_what_a_caller_did_not_give_is_not_told() -> None:
    feeds = {"x": np.zeros((1, 2, 4), np.float32), "attention.key": np.zeros((1, 2, 4))}
    error = refused_inputs("no", feeds, Takes((X,), DIMS), who="the graph", where="mine.npz")
    assert (error.got, error.where) == ("x: float32[1, 2, 4]", "mine.npz")
    bare = refused_inputs("no", {})
    assert (bare.got, bare.expected) == ("no input", None)


def test_a_stage_knows_what_callers_give_it(tmp_path: Path) -> None:
    """Not what the context's stage made, nor the state and places of a step."""
    key = TensorSpec("key", "float32", ("batch", "m", 4))
    state = TensorSpec("state:k", "float32", ("batch", "n", 4))
    place = TensorSpec(POSITION, "int64", ("batch", 1))
    stages = {
        "context": StageSpec((Y,), (key,)),
        "query": StageSpec((X, key), ()),
        "step": StageSpec((IDS, key, state, place), ()),
    }
    spec = SessionSpec(stages, DIMS)
    given = {name: _takes(spec, stage).inputs for name, stage in stages.items()}
    assert given == {"context": (Y,), "query": (X,), "step": (IDS,)}
