"""The builder's calls, on a library that keeps what it is told: `test_build_engine` has the real
one."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crossfuse.targets.tensorrt.libraries import LIBRARY_VARIABLE, PROGRESS

pytest.importorskip("polygraphy", reason="Polygraphy is not installed")
BUILDER = "crossfuse.targets.tensorrt.builder"
LISTING = (
    "Layers:\n"
    "Name: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: site]\n"
)


class Logger:
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        pass


class ProgressMonitor:
    def __init__(self) -> None:
        pass


class Config:
    def __init__(self) -> None:
        self.flags = {"TF32", "REQUIRE_USER_ALLOCATION"}

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)


class Builder:
    """Refuses as often as it is told to."""

    refusals: tuple[str, ...] = ()

    def __init__(self, log: Any) -> None:
        self.log = log
        self.tried: list[set[str]] = []

    def create_network(self, flags: int) -> Any:
        return SimpleNamespace(flags=flags)

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        self.tried.append(set(config.flags))
        self.log.log(Logger.Severity.INFO, LISTING)
        if len(self.tried) <= len(self.refusals):
            self.log.log(Logger.Severity.ERROR, self.refusals[len(self.tried) - 1])
            return None
        self.log.log(Logger.Severity.INFO, "something else")
        return b"plan"


class Parser:
    accepts = True
    num_errors = 1

    def __init__(self, network: Any, log: Any) -> None:
        self.network = network

    def parse_from_file(self, file: str) -> bool:
        return self.accepts

    def get_error(self, i: int) -> Any:
        return SimpleNamespace(node_name=lambda: "node 3", desc=lambda: "no such operator")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The builder on the stand-in; `Config` in place of Polygraphy's, which the real library
    makes."""
    library = ModuleType("library_stand_in")
    flags = SimpleNamespace(TF32="TF32", REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION")
    vars(library).update(
        __version__="9.9", ILogger=Logger, IProgressMonitor=ProgressMonitor, Builder=Builder,
        OnnxParser=Parser, NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=3),
        BuilderFlag=flags,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.setenv(LIBRARY_VARIABLE, library.__name__)
    monkeypatch.setattr(Builder, "refusals", ())
    monkeypatch.setattr(Parser, "accepts", True)
    sys.modules.pop(BUILDER, None)
    builder = importlib.import_module(BUILDER)
    monkeypatch.setattr(builder, "_config", lambda *_: Config())
    yield builder
    sys.modules.pop(BUILDER, None)


def job(folder: Path) -> dict[str, Any]:
    return {"name": "model", "graph": "model.onnx", "plan": str(folder / "plan"), "profiles": []}


def test_layers_come_from_the_builder_s_messages(module: Any, tmp_path: Path) -> None:
    result = module.build(job(tmp_path), {})
    (layer,) = result["layers"]
    assert (layer["kernel"], layer["kind"], layer["nodes"]) == ("_gemm_mha_v2", "kgen", ("site",))
    assert result["errors"] == []
    assert (tmp_path / "plan").read_bytes() == b"plan"
    assert module.library_version() == "9.9"


def test_a_graph_that_can_not_be_parsed(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parser, "accepts", False)
    result = module.build(job(tmp_path), {})
    assert result["parse_errors"] == [{"node": "node 3", "text": "no such operator"}]
    assert "layers" not in result


def test_a_refusal_is_what_the_builder_said(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "refusals", ("no kernel",))
    assert module.build(job(tmp_path), {}) == {"errors": ["no kernel"]}
    assert not (tmp_path / "plan").exists()


def test_shapes_that_depend_on_values_are_built_without_their_owner_s_memory(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[set[str]] = []

    class Kept(Builder):
        refusals = ("can't keep REQUIRE_USER_ALLOCATION",)

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            plan = super().build_serialized_network(network, config)
            tried.append(set(config.flags))
            return plan

    monkeypatch.setattr(module.trt, "Builder", Kept)
    result = module.build(job(tmp_path), {})
    assert tried == [{"TF32", "REQUIRE_USER_ALLOCATION"}, {"TF32"}]
    # One listing: the refused build's layers are not the engine's.
    assert len(result["layers"]) == 1
    assert result["errors"] == []


def test_progress_is_a_line_now_and_then(
    module: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1, 0.7, 0.8, 1.3])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monitor = module._Monitor("query")
    monitor.phase_start("tactics", None, 40)
    assert all(monitor.step_complete("tactics", step) for step in (5, 6, 7))
    lines = [
        json.loads(line.removeprefix(PROGRESS)) for line in capsys.readouterr().out.splitlines()
    ]
    assert lines == [
        {"engine": "query", "phase": "tactics", "step": step, "steps": 40} for step in (5, 7)
    ]
