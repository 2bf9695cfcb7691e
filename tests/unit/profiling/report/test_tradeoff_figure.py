"""Speed and error in one figure: where the dots are, and when there is none."""

from __future__ import annotations

from crossfuse.profiling.measure.sampling import Samples
from crossfuse.profiling.report.report import LatencyReport, Row
from crossfuse.profiling.report.tradeoff_figure import tradeoff_figure

SIZES = {"batch": 1}


def row(name: str, milliseconds: float, error: float | None) -> Row:
    samples = Samples(((int(milliseconds * 1e6),) * 3,) * 3)
    return Row(name, SIZES, samples, reference_error=error)


def figure(*rows: Row) -> dict[str, object] | None:
    report = LatencyReport("b", "m", "t", "p", "fp32", rows)
    return tradeoff_figure(report, SIZES, {one.name: i for i, one in enumerate(rows)})


def test_faster_is_left_and_more_exact_is_low() -> None:
    found = figure(
        row("crossfuse", 10, 1e-7), row("ort-int8", 4, 1e-2), row("encode", 3, None), row("x", 9, 0)
    )
    assert found is not None
    dots = {dot["name"]: dot for dot in found["dots"]}  # type: ignore[attr-defined]
    assert set(dots) == {"crossfuse", "ort-int8", "x"}, "one without an error has no place"
    assert dots["ort-int8"]["x"] < dots["x"]["x"] < dots["crossfuse"]["x"]
    assert dots["x"]["y"] < dots["crossfuse"]["y"] < dots["ort-int8"]["y"]
    assert dots["ort-int8"]["title"] == "ort-int8: 4 ms, error 1.0e-02"
    assert all(0 <= dot[axis] <= 100 for dot in dots.values() for axis in "xy")


def test_one_alone_is_no_figure() -> None:
    assert figure(row("crossfuse", 10, 1e-7), row("eager", 4, None)) is None
