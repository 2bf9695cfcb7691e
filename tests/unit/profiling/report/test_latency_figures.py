"""Places in the figures of latencies are those of the numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from crossfuse.profiling.report.latency_figures import point_figure, sweep_figures
from unit.profiling.test_page import a_report

COLORS = {row.name: i for i, row in enumerate(a_report().rows[:8])}


def test_a_lane_for_each_that_ran_and_a_reason_for_each_that_did_not() -> None:
    report = a_report()
    figure = point_figure(report, report.points[0], COLORS)
    assert [lane["name"] for lane in figure["lanes"]] == [
        "crossfuse",
        "crossfuse encode",
        "crossfuse query",
        "eager",
        "compile",
        "onnx",
        "openvino",
    ]
    assert figure["failed"] == [("hf", "not a model of transformers")]
    for lane in figure["lanes"]:
        assert 0 <= lane["p50"] < lane["p99"] <= 100
        assert lane["rounds"] == 8
    slower = {lane["name"]: lane["p50"] for lane in figure["lanes"]}
    assert slower["crossfuse encode"] < slower["crossfuse"] < slower["compile"] < slower["eager"]


def test_ratios_stand_to_the_right_of_one_where_baselines_are_slower() -> None:
    report = a_report()
    ratios = point_figure(report, report.points[0], COLORS)["ratios"]
    assert ratios is not None
    marks = {mark["name"]: mark for mark in ratios["marks"]}
    assert [mark["name"] for mark in ratios["marks"]][-1] == "eager", "the slowest is the last"
    assert marks["eager"]["low"] > ratios["one"]
    assert all(mark["low"] <= mark["at"] <= mark["high"] for mark in marks.values())
    alone = replace(report, rows=report.rows[:3])
    assert point_figure(alone, alone.points[0], COLORS)["ratios"] is None


def test_a_sweep_is_a_curve_over_what_varied() -> None:
    (figure,) = sweep_figures(a_report(), COLORS)
    assert figure["dimension"] == "batch", "contexts vary with it, and are no figure of their own"
    assert [label for _, label in figure["x"]] == ["1", "4", "16"]
    own = next(curve for curve in figure["curves"] if curve["name"] == "crossfuse")
    places = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", own["line"])]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True), "up is slower"
    single = replace(a_report(), rows=a_report().rows[:8])
    assert sweep_figures(single, COLORS) == []


def test_points_share_one_measure() -> None:
    report = a_report()
    figure = point_figure(report, report.points[0], COLORS)
    places = [at for at, _ in figure["axis"]]
    assert places == sorted(places)
    assert min(places) == pytest.approx(0, abs=15)
