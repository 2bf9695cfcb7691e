"""What a target is, told in one place: the built-in ones, and what others may bring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from crossfuse.core.missing_kernels import CUDA_WITHOUT_BF16, TENSORRT_WITHOUT_BF16
from crossfuse.core.target import (
    CPU_TARGET,
    PRECISIONS,
    TARGETS,
    EngineLibrary,
    Target,
    register_target,
    require_precision,
    require_target,
)
from crossfuse.errors import InputError


@pytest.fixture(autouse=True)
def _own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered here, other tests don't see."""
    monkeypatch.setattr(TARGETS, "_registered", {})


def code(*_: Any) -> None:
    raise AssertionError("a description runs no code")


def test_the_built_in_ones() -> None:
    by_rank = sorted(TARGETS.values(), key=lambda target: -target.rank)
    names = ["tensorrt", "tensorrt-rtx", "ort-cuda", "ort-cpu", "openvino", "onnx"]
    assert [target.name for target in by_rank] == names
    assert {t.name for t in by_rank if t.needs_gpu} == {"ort-cuda", "tensorrt", "tensorrt-rtx"}
    assert {t.name for t in by_rank if t.engine} == {"tensorrt", "tensorrt-rtx"}
    assert [t.name for t in by_rank if t.builds_for_this_gpu] == ["tensorrt"]
    assert [t.name for t in by_rank if t.portable] == ["onnx"]
    assert [t.name for t in by_rank if t.simulates] == [CPU_TARGET]
    assert {t.name for t in by_rank if t.artifact_on_cpu} == {"ort-cuda", "ort-cpu", "onnx"}
    assert TARGETS["ort-cuda"].without_bf16 == CUDA_WITHOUT_BF16
    assert TARGETS["tensorrt"].without_bf16 == TENSORRT_WITHOUT_BF16


def test_a_cpu_has_what_executes_the_others_in_their_place() -> None:
    cpu = require_target(CPU_TARGET)
    assert cpu.artifact_on_cpu
    assert not cpu.needs_gpu
    assert cpu.provider == "CPUExecutionProvider"


def test_file_names_are_told_apart_by_target_and_stage() -> None:
    stages = ("model", "context", "query", "step")
    files = [target.file(stage) for target in TARGETS.values() for stage in stages]
    weights = [target.weights_file(stage) for target in TARGETS.values() for stage in stages]
    assert len({*files, *weights}) == len(files) + len(weights)
    assert TARGETS["onnx"].file("model") == "model.onnx"
    assert TARGETS["ort-cuda"].file("query") == "query.ort-cuda.onnx"
    assert TARGETS["tensorrt-rtx"].file("model") == "model.tensorrt-rtx.plan"
    assert TARGETS["ort-cpu"].weights_file("model") == "weights.ort-cpu.bin"


@pytest.mark.parametrize("name", ["", "Mine", "a/b", "a.b", "-a", "a b", "ä", 3, "a\n"])
def test_names_become_part_of_file_names(name: Any) -> None:
    with pytest.raises(InputError, match="a target's name becomes part of file names"):
        Target(name, "")


@pytest.mark.parametrize("precisions", [(), ("int3",), ("fp32", "float16"), "fp32"])
def test_precisions_are_those_that_there_are(precisions: Any) -> None:
    with pytest.raises(InputError, match="precisions that can't be"):
        Target("mine", "", precisions=precisions)


def test_what_is_missing_is_named() -> None:
    here = Target("mine", "", requires=("numpy", ("no_such_module_at_all", "math_", "json")))
    assert here.missing() is None
    absent = Target("mine", "", requires=("numpy", ("no_such_a", "no_such_b")))
    assert absent.missing() == "no_such_a or no_such_b"
    engine = Target("mine", "", engine=EngineLibrary("no_such_c", (), lean_module="json"))
    assert engine.missing() is None
    assert Target("mine", "", engine=EngineLibrary("no_such_c", ())).missing() == "no_such_c"


def test_unknown_ones_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"unknown target: got 'ort-gpu'.*Did you mean 'ort-cpu'"):
        require_target("ort-gpu")
    for name in (None, 3, ["ort-cpu"]):
        with pytest.raises(InputError, match="unknown target"):
            require_target(name)  # type: ignore[arg-type]


def test_a_precision_is_the_target_s_first_where_none_is_given() -> None:
    assert require_precision(None, TARGETS["ort-cpu"]) == "fp32"
    assert require_precision(None, TARGETS["tensorrt"]) == "fp16"
    taken = {p for target in TARGETS.values() for p in target.precisions}
    assert taken == set(PRECISIONS), "none of them is nobody's"
    for name in ("tensorrt", "tensorrt-rtx"):
        for precision in ("int8", "mixed-int8", "fp8"):
            assert require_precision(precision, TARGETS[name]) == precision
    with pytest.raises(InputError, match="target 'onnx' can't be built in this precision"):
        require_precision("fp16", TARGETS["onnx"])


def test_what_is_registered_must_work_and_be_told_apart() -> None:
    for target, message in (
        ("text", "what is offered is no target"),
        (Target("mine-1", "", lowering=code), "a lowering and an opener"),
        (Target("mine-1", "", opener=code), "a lowering and an opener"),
        (Target("mine-1", "", code, code, suffix=".onnx"), "a suffix that begins with .mine-1."),
        (replace(TARGETS["ort-cpu"], lowering=code, opener=code), "is built in"),
    ):
        with pytest.raises(InputError, match=message):
            register_target(target)  # type: ignore[arg-type]
        assert "mine-1" not in TARGETS


def test_registered_ones_are_known_and_come_last() -> None:
    mine = Target("mine-2", "for this test", code, code)
    register_target(mine)
    register_target(Target("mine-2", "for this test", code, code))
    assert require_target("mine-2") == mine
    assert (mine.provider, mine.precisions, mine.file("step")) == (
        "mine-2",
        ("fp32",),
        "step.mine-2.onnx",
    )
    assert mine.rank < min(target.rank for target in TARGETS.values() if target != mine)
    with pytest.raises(InputError, match="registered already"):
        register_target(replace(mine, summary="another"))
