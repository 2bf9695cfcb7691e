"""What is shown of a latency report: every number that is in it, nothing that isn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from crossfuse.commands.latency_table import show_changes, show_latency
from crossfuse.commands.output import Output
from crossfuse.profiling.explain.attribution import NodeTime, StageTimes
from crossfuse.profiling.measure.coldstart import ColdStart
from crossfuse.profiling.measure.generation import GenerationTimes
from crossfuse.profiling.measure.load import LoadResult
from crossfuse.profiling.measure.sampling import Samples
from crossfuse.profiling.measure.statistics import Interval
from crossfuse.profiling.report.compare import Change
from crossfuse.profiling.report.report import LatencyReport
from unit.profiling.test_page import a_report


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[LatencyReport], tuple[str, str]]:
    def call(report: LatencyReport) -> tuple[str, str]:
        show_latency(Output(as_json=False), report)
        got = capsys.readouterr()
        return " ".join(got.out.split()), " ".join(got.err.split())

    return call


def test_rows_at_every_point(shown: Callable[[LatencyReport], tuple[str, str]]) -> None:
    report = a_report()
    out, err = shown(report)
    assert f"Latency of {report.target} ({report.precision}) on {report.provider}" in out
    for column in ("at", "what", "p50", "95% interval", "p90", "p99", "× crossfuse", "error"):
        assert f"┃ {column} " in out
    assert out.count("│ eager │") == 3
    assert out.count("│ failed │") == 3
    assert err.count("did not run: not a model of transformers") == 3
    assert "* some rounds were unstable" in out


def test_a_single_point_without_rivals(shown: Callable[[LatencyReport], tuple[str, str]]) -> None:
    whole = a_report()
    row = replace(whole.rows[0], samples=Samples(((2_000_000,) * 9,) * 8, ()))
    nodes = (
        NodeTime("n", "MatMul", "GEMM", "m", None, 0.75e-3, 0, 0),
        NodeTime("o", "Add", "element-wise", "m", None, 0.2e-3, 0, 0),
        NodeTime("p", "Cast", "copy", "m", None, 0.001e-3, 0, 0),
    )
    report = replace(
        whole,
        rows=(row,),
        stages=(StageTimes("model", 1e-3, nodes, 4),),
        limits=None,
        load=(
            LoadResult("closed", 4.0, (1_000_000, 3_000_000), 1300.0),
            LoadResult("open", 50.0, (1_000_000,), 50.0),
        ),
        cold_start=ColdStart(0.01, 0.02, 0.03, 0.04, 0.1, 50_000_000, 5),
        break_even=2.5,
    )
    out, err = shown(report)
    assert err == ""
    assert "× crossfuse" not in out
    assert "┃ at ┃" not in out
    assert "│ crossfuse │ 2 ms │ 2 ms to 2 ms │ 2 ms │ 2 ms │" in out
    assert "unstable" not in out
    assert "model: 1 ms, of it GEMM 75%, element-wise 20%" in out
    assert "copy" not in out
    assert "roofline" not in out
    assert "4 callers: 1.3e+03 answers per second, p50 2 ms" in out
    assert "50 arrivals per second: 50 answers per second, p50 1 ms, p99 1 ms" in out
    assert "pays from 2.5 queries on" in out
    assert "cold start: 100 ms (process 10 ms, import 20 ms, load 30 ms, first result 40 ms)" in out
    assert "peak 50 MB, medians of 5 processes" in out


def test_generation(shown: Callable[[LatencyReport], tuple[str, str]]) -> None:
    """A line for each number of callers; what did not run says why."""
    times = (
        GenerationTimes(1, 4, 8, (20_000_000,), (3_000_000, 5_000_000), 250.0),
        GenerationTimes(8, 4, 1, (40_000_000,), (), 900.0),
        GenerationTimes(3, 4, 8, failure="its sequences can't stand side by side"),
    )
    out, err = shown(replace(a_report(), generation=times))
    assert (
        "generating, 1 caller: first token 20 ms (p95 20 ms) behind a prompt of 4, 4 ms per "
        "further token (p95 4.9 ms), 250 tokens per second"
    ) in out
    assert "generating, 8 callers: first token 40 ms" in out
    assert "– per further token (p95 –), 900 tokens per second" in out
    assert "generating for 3 at once did not run: its sequences can't stand side by side" in err
    assert "generating" not in shown(replace(a_report(), generation=()))[0]


def test_changes(capsys: pytest.CaptureFixture[str]) -> None:
    changes = [
        Change("crossfuse", {"batch": 1}, Interval(1.25, 1.2, 1.3), 1.01, "slower"),
        Change("eager", {"batch": 1}, Interval(1.0, 0.9, 1.1), None, "rival"),
    ]
    show_changes(Output(as_json=False), changes)
    out = " ".join(capsys.readouterr().out.split())
    assert "crossfuse │ batch=1 │ 1.250 │ 1.200 to 1.300 │ 1.010 │ slower" in out
    assert "eager │ batch=1 │ 1.000 │ 0.900 to 1.100 │ – │ rival" in out
