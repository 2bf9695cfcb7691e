"""Measuring, tested on clocks that tests turn, against distributions that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import crossfuse
from crossfuse.bundle.store import Bundle
from crossfuse.cli import app
from crossfuse.errors import InputError
from crossfuse.profile.compare import compare_reports, compare_rows
from crossfuse.profile.inputs import inputs_at, parse_sweep, sweep_points
from crossfuse.profile.load import closed_loop, open_loop
from crossfuse.profile.report import Row
from crossfuse.profile.sampling import Plan, Samples, sample, warm_up
from crossfuse.profile.statistics import paired_ratio, summarize
from crossfuse.specs import CONTEXTS, Dim, TensorSpec


class Clock:
    """Time passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def works(self, delays: Callable[[], float]) -> Callable[[], None]:
        return lambda: self.sleep(delays())


def test_a_known_distribution_is_measured() -> None:
    """Log-normal delays around 10 ms: all percentiles within 5% of the distribution's own."""
    clock, rng = Clock(), np.random.default_rng(0)
    call = clock.works(lambda: float(rng.lognormal(np.log(0.010), 0.3)))
    taken = sample({"it": call}, Plan(rounds=20, seconds=3.0), clock=clock)["it"]
    summary = summarize(taken.rounds)
    truth = np.random.default_rng(1).lognormal(np.log(0.010), 0.3, 1_000_000)
    for got, q in ((summary.median.value, 0.5), (summary.p90, 0.9), (summary.p95, 0.95), (summary.p99, 0.99)):
        assert got == pytest.approx(np.quantile(truth, q), rel=0.05)
    assert summary.mean == pytest.approx(truth.mean(), rel=0.05)
    assert summary.median.low < 0.010 < summary.median.high
    assert summary.median.high - summary.median.low < 0.0006


def test_stalls_show_in_p99_and_not_in_p50() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    call = clock.works(lambda: 0.5 if rng.random() < 0.02 else 0.010)
    summary = summarize(sample({"it": call}, Plan(rounds=10, seconds=5.0), clock=clock)["it"].rounds)
    assert summary.median.value == pytest.approx(0.010)
    assert summary.p90 == pytest.approx(0.010)
    assert summary.p99 == pytest.approx(0.5)


def test_drift_hits_all_and_cancels_in_the_ratio() -> None:
    """The machine becomes three times slower half way; one callable takes twice as long as the other throughout."""
    clock = Clock()
    slow = [1.0]

    def work(seconds: float) -> Callable[[], None]:
        def call() -> None:
            slow[0] = 3.0 if clock.now > 20e9 else 1.0
            clock.sleep(seconds * slow[0])

        return call

    taken = sample({"a": work(0.01), "b": work(0.02)}, Plan(rounds=20, seconds=1.0), clock=clock)
    ratio = paired_ratio(taken["b"].rounds, taken["a"].rounds)
    assert ratio.value == pytest.approx(2.0, rel=0.02)
    assert ratio.low > 1.5
    assert ratio.high < 2.5


def test_unstable_rounds_are_made_up_for_and_flagged() -> None:
    clock = Clock()
    call = clock.works(lambda: 0.05 if 5.0e9 <= clock.now < 5.9e9 else 0.01)
    taken = sample({"it": call}, Plan(rounds=8, seconds=1.0, warm_up_seconds=2), clock=clock)["it"]
    assert len(taken.unstable) == 1
    assert len(taken.rounds) == 9
    assert max(taken.rounds[taken.unstable[0]]) == 50_000_000, "what was flagged is kept"


def test_warm_up_waits_until_it_is_steady() -> None:
    clock = Clock()
    left = [40]

    def call() -> None:
        left[0] -= 1
        clock.sleep(0.01 + 0.002 * max(left[0], 0))

    warm_up(call, Plan(seconds=0.1, warm_up_seconds=100), clock)
    assert left[0] < 8
    restless = np.random.default_rng(0)
    before = clock.now
    warm_up(clock.works(lambda: float(restless.uniform(0.001, 1.0))), Plan(seconds=0.1, calls=1, warm_up_seconds=3), clock)
    assert clock.now - before < 10e9


def test_open_loop_shows_queueing_and_omits_nothing() -> None:
    clock = Clock()
    idle = open_loop(clock.works(lambda: 0.010), 20, 10, clock=clock, sleep=clock.sleep)
    assert np.median(idle.latencies) < 0.013e9
    overloaded = open_loop(clock.works(lambda: 0.010), 200, 10, clock=clock, sleep=clock.sleep)
    late = np.asarray(overloaded.latencies)
    assert late[-1] > 8e9, "twice as many arrive as can be served: the last waits as long as the backlog is"
    assert np.all(np.diff(late[::100]) > 0)
    assert overloaded.throughput == pytest.approx(100, rel=0.02)
    # One stall of a second, at 50 requests a second: about fifty of them feel it, not one.
    stalled = [False]

    def once() -> float:
        first, stalled[0] = not stalled[0], True
        return 1.0 if first else 0.001

    felt = np.asarray(open_loop(clock.works(once), 50, 10, clock=clock, sleep=clock.sleep).latencies)
    assert 30 < np.sum(felt > 0.1e9) < 70


def test_closed_loop_counts_every_answer() -> None:
    clock = Clock()
    result = closed_loop(clock.works(lambda: 0.010), 1, 1.0, clock=clock)
    assert result.throughput == pytest.approx(100, rel=0.02)
    many = closed_loop(lambda: sum(range(100)), 4, 0.05)
    assert len(many.latencies) > 4

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        closed_loop(fails, 3, 1.0)


def report_row(seed: int, slower: float = 1.0) -> Row:
    """A run on a noisy machine: its speed differs by 20% from run to run, by 3% from round to round, and calls by 5%."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.9, 1.1)
    rounds, machine = [], []
    for _ in range(12):
        here = speed * rng.normal(1, 0.03)
        rounds.append(tuple(int(v) for v in 1e7 * slower * here * rng.normal(1, 0.05, 30)))
        machine.append(tuple(int(v) for v in 2e6 * here * rng.normal(1, 0.05, 100)))
    return Row("crossfuse", {"batch": 1}, Samples(tuple(rounds)), Samples(tuple(machine)))


def test_compare_does_not_cry_wolf_and_catches_15_percent() -> None:
    same = [compare_rows([report_row(2 * i)], [report_row(2 * i + 1)])[0] for i in range(40)]
    assert sum(change.regressed for change in same) <= 1
    slower = [compare_rows([report_row(2 * i)], [report_row(2 * i + 1, 1.15)])[0] for i in range(40)]
    assert sum(change.regressed for change in slower) >= 39


def test_inputs_at_any_size() -> None:
    specs = [TensorSpec("ids", "int64", ("batch", "text")), TensorSpec("x", "float32", ("2*batch", 3))]
    known = {"ids": np.array([[1, 2, 3], [4, 5, 6]]), "x": np.arange(12, dtype=np.float32).reshape(4, 3)}
    made = inputs_at(specs, known, {"batch": 3, "text": 2})
    np.testing.assert_array_equal(made["ids"], [[1, 2], [4, 5], [1, 2]])
    assert made["x"].shape == (6, 3)
    dims = {"batch": Dim("batch", 1, 8), CONTEXTS: Dim(CONTEXTS, 1, 8)}
    points = sweep_points(parse_sweep(["batch=1,4"]), {"batch": 2, CONTEXTS: 2}, dims, "batch")
    assert points == [{"batch": 1, CONTEXTS: 1}, {"batch": 4, CONTEXTS: 4}]
    for texts, message in (
        (["batch"], "can't be read"),
        (["rows=1"], "unknown dimensions"),
        (["batch=9"], "outside its range"),
    ):
        with pytest.raises(InputError, match=message):
            sweep_points(parse_sweep(texts), {"batch": 2}, dims, None)


def test_command_line(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    path = str(zoo_bundle("cross_modal_attention").path)
    fast = ["--rounds", "3", "--seconds", "0.01", "--cold-starts", "1", "--target", "ort-cpu"]
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for out in (first, second):
        result = CliRunner().invoke(
            app, ["profile", path, "--against", "eager,onnx", "--sweep", "batch=1,3", *fast, "-o", str(out), "--json"]
        )
        assert result.exit_code == 0, result.output
    data = json.loads(first.read_text())
    names = [(row["name"], row["sizes"]["batch"]) for row in data["rows"]]
    assert names == [(name, batch) for batch in (1, 3) for name in ("crossfuse", "eager", "onnx")]
    for row in data["rows"]:
        assert row["failure"] is None, row
        assert 0 < row["latency"]["min"] <= row["latency"]["p50"] <= row["latency"]["p99"]
        if row["name"] != "crossfuse":
            assert row["error"] < 1e-5, "a rival computes the same"
            assert row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
    cold = data["cold_start"]
    assert cold["total"] == pytest.approx(sum(cold[k] for k in ("process", "imports", "load", "first_result")))
    compared = CliRunner().invoke(app, ["profile", "--compare", str(first), str(second), "--threshold", "1000"])
    assert compared.exit_code == 0
    slower = json.loads(first.read_text())
    for row in slower["rows"]:
        row["rounds_ns"] = [[10 * ns for ns in r] for r in row["rounds_ns"]]
    second.write_text(json.dumps(slower))
    assert any(change.regressed for change in compare_reports(first, second))
    assert CliRunner().invoke(app, ["profile", "--compare", str(first), str(second)]).exit_code == 1


def test_a_rival_that_fails_is_a_row(tmp_path: Path) -> None:
    from crossfuse.models.registry import zoo_spec

    bundle = crossfuse.export(zoo_spec("cross_modal_attention", "tiny"), tmp_path / "bundle")
    report = crossfuse.profile(bundle.path, against=["eager"], plan=Plan(rounds=3, seconds=0.01), cold_starts=0)
    failed = report.rows[-1]
    assert failed.name == "eager"
    assert "give its source" in str(failed.failure)
    with pytest.raises(InputError, match="no such rival"):
        crossfuse.profile(bundle.path, against=["tpu"])


def test_split_bundles_are_measured_by_stage(tmp_path: Path) -> None:
    bundle = crossfuse.export("qformer", tmp_path / "bundle", size="tiny")
    report = crossfuse.profile(bundle.path, plan=Plan(rounds=3, seconds=0.01), cold_starts=0)
    assert [row.name for row in report.rows] == ["crossfuse", "crossfuse encode", "crossfuse query"]
