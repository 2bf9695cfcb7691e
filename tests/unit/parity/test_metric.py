"""The user's own metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossfuse import InputError, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.export.sources.factory import function_of
from crossfuse.parity.metric import Metric, MetricOutcome, metric_name
from crossfuse.parity.session_check import reference_of

NAME = "cross_modal_attention"


def test_the_metric_gets_a_run_and_all_arrays(zoo_bundle: Callable[[str], Bundle]) -> None:
    bundle = zoo_bundle(NAME)
    point = reference_of(bundle).points[0]
    sets = ({**point.inputs, "labels": np.arange(3)},)
    seen: list[object] = []

    def distance(run, data) -> float:
        (one,) = data
        seen.append(one["labels"])
        outputs = run({name: array.astype(np.float64) for name, array in one.items()})
        assert run.session.target == "ort-cpu"
        errors = [np.abs(outputs[name] - truth).max() for name, truth in point.outputs.items()]
        return -float(max(errors))

    with runtime.load(bundle, "ort-cpu") as session:
        value = Metric("m.py:distance", distance, sets, 0.1).value(session)
        assert -1e-4 < value <= 0
        for bad, message in (
            (lambda *_: float("nan"), "gives no number"),
            (lambda *_: 1 / 0, "the metric raised ZeroDivisionError"),
            (lambda *_: "text", "the metric raised ValueError"),
            (lambda run, _: run({})[0], "the metric raised|input"),
        ):
            with pytest.raises(InputError, match=message):
                Metric("m.py:bad", bad, sets, 0.1).value(session)
    np.testing.assert_array_equal(seen[0], np.arange(3))


@pytest.mark.parametrize(
    ("value", "passed"), [(0.9, True), (0.89, True), (0.879, False), (2, True)]
)
def test_what_a_metric_may_drop(value: float, passed: bool) -> None:
    outcome = MetricOutcome("m.py:f", 0.9, value, 0.02)
    assert outcome.passed is passed
    assert outcome.to_json()["passed"] is passed
    assert "0.9 in fp32" in outcome.words


def test_functions_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "accuracy.py"
    file.write_text("def top1(run, data):\n    return 1.0\n\nvalue = 3\n")
    assert function_of(f"{file}:top1", "advice")(None, []) == 1.0
    assert metric_name(f"{file}:top1") == "accuracy.py:top1"
    for text, message in (
        (f"{file}:top2", "names no function.*top2"),
        (f"{file}:value", "names no function"),
        (str(file), "no function in it"),
        (f"{tmp_path}/gone.py:top1", "doesn't exist"),
        ("no.such.module:top1", "can't be imported"),
    ):
        with pytest.raises(InputError, match=message):
            function_of(text, "advice")
