"""Parity of a target before it is in a bundle, and of one that can't run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from crossfuse import InputError
from crossfuse.api.fused_graph import FusedStages, fused_stages
from crossfuse.bundle.store import Bundle
from crossfuse.core.target import TARGETS
from crossfuse.parity.metric import Metric
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.session_check import reference_of
from crossfuse.parity.target_check import ParityCheck, check_on_cpu
from crossfuse.targets.precision.stages import half_stages

NAME = "cross_modal_attention"


@pytest.fixture(scope="module")
def parts(zoo_bundle: Callable[[str], Bundle]) -> tuple[Bundle, FusedStages, ReferenceSet]:
    bundle = zoo_bundle(NAME)
    return bundle, fused_stages(bundle), reference_of(bundle)


def other_numbers(reference: ReferenceSet) -> ReferenceSet:
    points = tuple(
        replace(point, outputs={name: array + 0.1 for name, array in point.outputs.items()})
        for point in reference.points
    )
    return replace(reference, points=points)


def test_a_target_that_cannot_run_here(parts: tuple[Bundle, FusedStages, ReferenceSet]) -> None:
    bundle, fused, reference = parts
    report = check_on_cpu(bundle.manifest, "ort-cuda", fused.stages, reference)
    assert report.passed
    assert report.target == "ort-cuda"
    assert report.executed_on == "CPUExecutionProvider, fp32 simulated"
    wrong = other_numbers(reference)
    assert not check_on_cpu(bundle.manifest, "ort-cuda", fused.stages, wrong).passed
    with pytest.raises(InputError, match="no such target: got 'tensorrt'"):
        check_on_cpu(bundle.manifest, "tensorrt", fused.stages, reference)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_rounded_not_computed_in_fp32(
    precision: str, parts: tuple[Bundle, FusedStages, ReferenceSet]
) -> None:
    _, fused, reference = parts
    graphs = half_stages(fused.stages.graphs, precision)
    errors = {}
    for name, given in ((precision, graphs), ("fp32", replace(graphs, graphs=fused.stages.graphs))):
        check = ParityCheck(fused.stages, reference, name)
        report = check.checked_on_cpu(TARGETS["ort-cuda"], given)
        assert report.passed
        errors[name] = max(output.max_abs for output in report.outputs.values())
    assert errors[precision] > 20 * errors["fp32"]


def test_a_search_asks_whether_graphs_pass(
    parts: tuple[Bundle, FusedStages, ReferenceSet],
) -> None:
    _, fused, reference = parts
    graphs = fused.stages.graphs
    assert ParityCheck(fused.stages, reference, "fp32").passes(graphs)
    assert not ParityCheck(fused.stages, other_numbers(reference), "fp32").passes(graphs)
    rounded = half_stages(graphs, "bf16").graphs
    assert ParityCheck(fused.stages, reference, "bf16").passes(rounded)
    assert not ParityCheck(fused.stages, reference, "fp32").passes(rounded)


def test_a_metric_generates_by_the_bundles_settings(
    parts: tuple[Bundle, FusedStages, ReferenceSet],
) -> None:
    _, fused, reference = parts
    settings = {"eos_token_id": 3, "max_length": 7}
    seen: list[dict[str, object]] = []

    def metric(run, _) -> float:
        seen.append(dict(run.session.generation))
        return 1.0

    check = ParityCheck(fused.stages, reference, "int8", generation=settings)
    judged = check.with_metric(Metric("m.py:metric", metric, (), 0.1)).metric
    assert judged is not None
    assert judged.fp32 == 1.0
    assert seen == [settings]


def test_an_engine_that_compiles_graphs_runs_the_trials_itself(
    parts: tuple[Bundle, FusedStages, ReferenceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fused, reference = parts
    graphs = fused.stages.graphs
    right, wrong = (
        ParityCheck(fused.stages, one, "fp32") for one in (reference, other_numbers(reference))
    )
    monkeypatch.setattr(ParityCheck, "passes", lambda *_: pytest.fail("ONNX Runtime was asked"))
    assert right.passes_on(TARGETS["openvino"], graphs)
    assert not wrong.passes_on(TARGETS["openvino"], graphs)
    with pytest.raises(pytest.fail.Exception, match="ONNX Runtime was asked"):
        right.passes_on(TARGETS["ort-cpu"], graphs)
