"""Which lowering a target has: the built-in ones', an engine library's, or its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.target import TARGETS, EngineLibrary, Target
from crossfuse.errors import InputError
from crossfuse.ops.reference import attention_reference
from crossfuse.targets.lowering import Lowered
from crossfuse.targets.onnxruntime import lower_ort_cpu
from crossfuse.targets.portable import lower_portable
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.registry import (
    cpu_equivalent,
    cpu_equivalents,
    lower,
    lower_stages,
    lowering_of,
)
from graphs_for_tests import Case, run_model

CASE = Case(size=16, value_size=16, mask=True)


def opener(request: Any) -> None:
    raise AssertionError("nothing is opened here")


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


def test_every_built_in_target_has_a_lowering() -> None:
    model = CASE.model()
    before = [node.op_type for node in model.graph]
    for name, target in TARGETS.items():
        lowered = lower(model, name)
        assert isinstance(lowered, Lowered)
        assert set(lowered.kernels) | set(lowered.reasons) == {"site"}
        assert ("FusedAttention" in operators(lowered.model)) == target.portable
    assert [node.op_type for node in model.graph] == before


def test_a_target_with_an_engine_library_needs_no_code() -> None:
    mine = Target("mine", "", precisions=("fp16",), engine=EngineLibrary("mine_rt", ("mine",)))
    half = cast_graph(CASE.model(), "fp16").model
    lowered = lowering_of(mine).lower(half)
    assert lowered.kernels == {"site": "Attention"}
    inputs = CASE.inputs()
    (got,) = run_model(cpu_equivalent(half, mine), inputs)
    expected = attention_reference(**inputs, **CASE.attributes)
    np.testing.assert_allclose(got, expected, atol=5e-3)


def test_a_target_s_own_code_is_used_and_may_be_told_by_its_place() -> None:
    here = "crossfuse.targets.portable:lower_portable"
    for code in (lower_portable, here):
        mine = Target("mine", "", code, opener, precisions=("fp32", "fp16"))
        assert operators(lowering_of(mine).lower(CASE.model()).model) == {"FusedAttention"}
        stages = lower_stages({"context": CASE.model(), "query": CASE.model()}, mine)
        assert set(stages) == {"context", "query"}
        # Its own graph stands in for it, with the precision's roundings.
        inputs = CASE.inputs()
        exact = attention_reference(**inputs, **CASE.attributes)
        half = cast_graph(CASE.model(), "fp16").model
        (got,) = run_model(cpu_equivalent(half, mine), inputs)
        assert 1e-6 < float(np.abs(got - exact).max()) < 5e-3


def test_a_cpu_equivalent_of_its_own_stands_in() -> None:
    asked: list[set[str]] = []

    def written_out(model: ir.Model) -> ir.Model:
        asked.append(operators(model))
        return lower_ort_cpu(model).model

    mine = Target("mine", "", lower_portable, opener, cpu_equivalent=written_out)
    made = cpu_equivalents({"model": CASE.model()}, mine)["model"]
    assert asked == [{"FusedAttention"}]
    assert "Attention" in operators(made)


def test_whose_code_failed_is_said() -> None:
    def raises(model: ir.Model) -> Lowered:
        raise KeyError("no such layout")

    def gives_nothing(model: ir.Model) -> None:
        return None

    for code, message in (
        (raises, "the lowering of target 'mine' raised KeyError: 'no such layout'"),
        (gives_nothing, "the lowering of target 'mine' gives no lowered graph: got None"),
        ("no_such_module_at_all:lower", "the lowering of target 'mine' can't be imported"),
    ):
        mine = Target("mine", "", code, opener)
        with pytest.raises(InputError, match=message):
            lowering_of(mine).lower(CASE.model())
    broken = Target("mine", "", lower_portable, opener, cpu_equivalent=raises)
    with pytest.raises(InputError, match="the CPU equivalent of target 'mine' raised KeyError"):
        cpu_equivalent(CASE.model(), broken)
