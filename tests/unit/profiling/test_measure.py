"""Measuring, tested on clocks that tests turn, against distributions that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossfuse.cli import main
from crossfuse.core.tensors import CONTEXTS, Dim, TensorSpec
from crossfuse.errors import InputError
from crossfuse.profiling.gpu_counters import GpuMeter
from crossfuse.profiling.measure.inputs import inputs_at, parse_sweep, sweep_points
from crossfuse.profiling.measure.load import closed_loop, open_loop
from crossfuse.profiling.measure.sampling import Plan, Samples, sample, warm_up
from crossfuse.profiling.measure.statistics import paired_ratio, summarize
from crossfuse.profiling.report.compare import compare_rows
from crossfuse.profiling.report.report import LatencyReport, Row


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
    for got, q in (
        (summary.median.value, 0.5),
        (summary.p90, 0.9),
        (summary.p95, 0.95),
        (summary.p99, 0.99),
    ):
        assert got == pytest.approx(np.quantile(truth, q), rel=0.05)
    assert summary.mean == pytest.approx(truth.mean(), rel=0.05)
    assert summary.median.low < 0.010 < summary.median.high
    assert summary.median.high - summary.median.low < 0.0006


def test_stalls_show_in_p99_and_not_in_p50() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    call = clock.works(lambda: 0.5 if rng.random() < 0.02 else 0.010)
    summary = summarize(
        sample({"it": call}, Plan(rounds=10, seconds=5.0), clock=clock)["it"].rounds
    )
    assert summary.median.value == pytest.approx(0.010)
    assert summary.p90 == pytest.approx(0.010)
    assert summary.p99 == pytest.approx(0.5)


def test_drift_hits_all_and_cancels_in_the_ratio() -> None:
    """The machine becomes three times slower half way; one callable takes twice as long as the
    other throughout."""
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
    assert ratio.low > 1.9
    assert ratio.high < 2.1


def test_unstable_rounds_are_made_up_for_and_flagged() -> None:
    clock = Clock()
    call = clock.works(lambda: 0.05 if 5.05e9 <= clock.now < 6.0e9 else 0.01)
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
    warm_up(
        clock.works(lambda: float(restless.uniform(0.001, 1.0))),
        Plan(seconds=0.1, calls=1, warm_up_seconds=3),
        clock,
    )
    assert clock.now - before < 10e9


def test_open_loop_shows_queueing_and_omits_nothing() -> None:
    clock = Clock()
    idle = open_loop(clock.works(lambda: 0.010), 20, 10, clock=clock, sleep=clock.sleep)
    assert np.median(idle.latencies) < 0.013e9
    overloaded = open_loop(clock.works(lambda: 0.010), 200, 10, clock=clock, sleep=clock.sleep)
    late = np.asarray(overloaded.latencies)
    assert late[-1] > 8e9, (
        "twice as many arrive as can be served: the last waits as long as the backlog is"
    )
    assert np.all(np.diff(late[::100]) > 0)
    assert overloaded.throughput == pytest.approx(100, rel=0.02)
    # One stall of a second, at 50 requests a second: about fifty of them feel it, not one.
    stalled = [False]

    def once() -> float:
        first, stalled[0] = not stalled[0], True
        return 1.0 if first else 0.001

    felt = np.asarray(
        open_loop(clock.works(once), 50, 10, clock=clock, sleep=clock.sleep).latencies
    )
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


def report_row(
    seed: int, slower: float = 1.0, machine: float = 1.0, felt: float = 1.0, name: str = "crossfuse"
) -> Row:
    """A run on a noisy machine: two rounds in five are disturbed, by up to 40%, and calls take up
    to 20% longer than the least.

    The machine takes ``machine`` times as long throughout; the model feels so much of that.
    """
    rng = np.random.default_rng(seed)
    rounds, fixed = [], []
    for _ in range(12):
        here = 1 + rng.uniform(0, 0.4) * (rng.random() < 0.4)
        rounds.append(
            tuple(
                int(v)
                for v in 1e7 * slower * machine**felt * here * (1 + rng.exponential(0.05, 30))
            )
        )
        fixed.append(int(np.min(2e6 * machine * here * (1 + rng.exponential(0.05, 100)))))
    return Row(name, {"batch": 1}, Samples(tuple(rounds)), tuple(fixed))


def test_compare_does_not_cry_wolf_and_catches_15_percent() -> None:
    same = [compare_rows([report_row(2 * i)], [report_row(2 * i + 1)])[0] for i in range(40)]
    assert sum(change.regressed for change in same) <= 1
    assert sum(change.verdict == "not slower" for change in same) >= 38
    slower = [
        compare_rows([report_row(2 * i)], [report_row(2 * i + 1, 1.15)])[0] for i in range(40)
    ]
    assert sum(change.regressed for change in slower) >= 38


@pytest.mark.parametrize("felt", [0.0, 0.25, 0.5, 1.0])
def test_compare_on_a_machine_that_was_slower_throughout(felt: float) -> None:
    """The bundle is not blamed for it, whatever it felt, and a slowdown isn't hidden; it may be
    unknown."""
    later = [
        compare_rows([report_row(2 * i)], [report_row(2 * i + 1, 1.0, 1.12, felt)])[0]
        for i in range(20)
    ]
    assert not any(change.regressed for change in later)
    earlier = [
        compare_rows([report_row(2 * i, 1.0, 1.12, felt)], [report_row(2 * i + 1)])[0]
        for i in range(20)
    ]
    assert not any(change.regressed for change in earlier)
    assert all(
        change.ratio.low <= change.ratio.value <= change.ratio.high for change in (*later, *earlier)
    )
    both = [
        compare_rows([report_row(2 * i)], [report_row(2 * i + 1, 1.25, 1.12, felt)])[0]
        for i in range(20)
    ]
    assert sum(change.regressed for change in both) >= 19
    hidden = [
        compare_rows([report_row(2 * i, 1.0, 1.12, felt)], [report_row(2 * i + 1, 1.15)])[0]
        for i in range(20)
    ]
    assert all(change.verdict != "not slower" for change in hidden)


def test_baselines_are_compared_and_never_blamed() -> None:
    change = compare_rows([report_row(0, name="eager")], [report_row(1, 1.5, name="eager")])[0]
    assert change.ratio.value == pytest.approx(1.5, rel=0.05)
    assert (change.verdict, change.regressed) == ("rival", False)


@pytest.mark.parametrize(("spinning", "settled"), [(0.0, 0.02), (0.1, 0.12), (9.0, 0.5)])
def test_a_window_begins_when_other_threads_are_quiet(
    spinning: float, settled: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that spin after a call, as a pool's do, are waited for; those that never stop are not
    waited for long."""
    clock = Clock()
    started = []
    monkeypatch.setattr(
        "crossfuse.profiling.measure.sampling.time.perf_counter", lambda: clock.now * 1e-9
    )
    monkeypatch.setattr(
        "crossfuse.profiling.measure.sampling.time.process_time",
        lambda: min(clock.now * 1e-9, spinning),
    )
    monkeypatch.setattr("crossfuse.profiling.measure.sampling.time.sleep", clock.sleep)
    plan = Plan(rounds=1, seconds=0.0, calls=1, warm_up_seconds=0.0)
    sample({"it": lambda: started.append(clock.now * 1e-9)}, plan, clock=clock)
    assert started[0] == pytest.approx(settled, abs=0.021)


def test_inputs_at_any_size() -> None:
    specs = [
        TensorSpec("ids", "int64", ("batch", "text")),
        TensorSpec("x", "float32", ("2*batch", 3)),
    ]
    known = {
        "ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "x": np.arange(12, dtype=np.float32).reshape(4, 3),
    }
    made = inputs_at(specs, known, {"batch": 3, "text": 2})
    np.testing.assert_array_equal(made["ids"], [[1, 2], [4, 5], [1, 2]])
    assert made["x"].shape == (6, 3)
    dims = {"batch": Dim("batch", 1, 8), CONTEXTS: Dim(CONTEXTS, 1, 8)}
    points = sweep_points(parse_sweep(["batch=1,4"]), {"batch": 2, CONTEXTS: 2}, dims, "batch")
    assert points == [{"batch": 1, CONTEXTS: 1}, {"batch": 4, CONTEXTS: 4}]
    for texts, message in (
        (["batch"], "can't be read"),
        (["rows=1"], "unknown dimension"),
        (["batch=9"], "outside its range"),
    ):
        with pytest.raises(InputError, match=message):
            sweep_points(parse_sweep(texts), {"batch": 2}, dims, None)


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    files = []
    for name, row in (
        ("before", report_row(0)),
        ("same", report_row(1)),
        ("slower", report_row(2, 1.15)),
    ):
        files.append(tmp_path / f"{name}.json")
        report = LatencyReport("bundle", "model", "ort-cpu", "CPUExecutionProvider", "fp32", (row,))
        files[-1].write_text(json.dumps(report.to_json()))
    before, same, slower = map(str, files)

    def compare(after: str, *more: str) -> object:
        with pytest.raises(SystemExit) as stop:
            main(["profile", "--compare", before, after, *more])
        return stop.value.code

    assert compare(same) == 0
    assert compare(slower) == 1
    assert compare(slower, "--threshold", "0.5") == 0
    assert compare(str(tmp_path / "none.json")) == 2
    (tmp_path / "other.json").write_text("[1]")
    assert compare(str(tmp_path / "other.json")) == 2
    data = json.loads(Path(same).read_text())
    for rounds in ([[]], [[0]], [["x"]], [3]):
        data["rows"][0]["rounds_ns"] = rounds
        (tmp_path / "other.json").write_text(json.dumps(data))
        assert compare(str(tmp_path / "other.json")) == 2
    with pytest.raises(SystemExit) as stop:
        main(["profile"])
    assert stop.value.code == 2


def test_energy_is_what_the_gpu_counts() -> None:
    """A stand-in for NVML whose counter tells millijoules."""

    class Nvml:
        class NVMLError(Exception):
            pass

        def nvmlInit(self) -> None: ...  # noqa: N802

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
            return index

        def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:  # noqa: N802
            return 2500

        def nvmlDeviceGetMemoryInfo(self, device: int) -> object:  # noqa: N802
            return type("Memory", (), {"used": 1 << 30})

    class Old(Nvml):
        def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:  # noqa: N802
            raise self.NVMLError

    assert GpuMeter(Nvml()).joules() == 2.5
    assert GpuMeter(Nvml()).used_bytes() == 1 << 30
    assert GpuMeter(Old()).joules() is None
