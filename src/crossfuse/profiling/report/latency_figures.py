"""The report's figures of latencies: distributions and ratios at a point, curves along a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossfuse.core.tensors import CONTEXTS
from crossfuse.profiling.report.figures import (
    Axis,
    density,
    linear_axis,
    log_axis,
    path,
    percent_ticks,
    short,
)
from crossfuse.profiling.report.report import LatencyReport, Row
from crossfuse.profiling.report.summary_text import sizes_text
from crossfuse.profiling.report.tradeoff_figure import tradeoff_figure

__all__ = ["point_figure", "sweep_figures"]


def point_figure(
    report: LatencyReport, sizes: Mapping[str, int], colors: Mapping[str, int]
) -> dict[str, Any]:
    """Distributions and ratios at one point."""
    rows = report.at(sizes)
    sampled = [row for row in rows if row.summary is not None and row.samples is not None]
    everything = [s.summary for s in sampled if s.summary is not None]
    low, high = min(s.minimum for s in everything) * 1e3, max(s.p99 for s in everything) * 1e3
    axis = log_axis(low, high) if high > 4 * low else linear_axis(low, high)
    return {
        "sizes": sizes_text(sizes),
        "axis": percent_ticks(axis),
        "lanes": [_lane(row, axis, colors[row.name]) for row in sampled],
        "failed": [(row.name, row.failure) for row in rows if row.failure is not None],
        "ratios": _ratios(rows, colors),
        "tradeoff": tradeoff_figure(report, sizes, colors),
    }


def _lane(row: Row, axis: Axis, color: int) -> dict[str, Any]:
    assert row.samples is not None
    assert row.summary is not None
    summary = row.summary
    return {
        "name": row.name,
        "color": color,
        "path": density([ns * 1e-6 for r in row.samples.rounds for ns in r], axis),
        "p50": axis.at(summary.median.value * 1e3),
        "p99": axis.at(summary.p99 * 1e3),
        "summary": summary,
        "unstable": len(row.samples.unstable),
        "rounds": len(row.samples.rounds),
        "row": row,
    }


def _ratios(rows: Sequence[Row], colors: Mapping[str, int]) -> dict[str, Any] | None:
    """Baselines' times over ours, with intervals."""
    baselines = [(row.name, row.ratio, row.distance) for row in rows if row.ratio is not None]
    if not baselines:
        return None
    axis = log_axis(
        min(0.9, *(r.low for _, r, _ in baselines)), max(1.2, *(r.high for _, r, _ in baselines))
    )
    marks = [
        {
            "name": name,
            "color": colors[name],
            "low": axis.at(ratio.low),
            "at": axis.at(ratio.value),
            "high": axis.at(ratio.high),
            "ratio": ratio,
            "error": error,
        }
        for name, ratio, error in sorted(baselines, key=lambda item: item[1].value)
    ]
    return {"axis": percent_ticks(axis), "one": axis.at(1.0), "marks": marks}


def sweep_figures(report: LatencyReport, colors: Mapping[str, int]) -> list[dict[str, Any]]:
    """A figure for each dimension that was swept, the others as at the first point."""
    points = report.points
    varied = [name for name in points[0] if len({point[name] for point in points}) > 1]
    if len(varied) > 1 and CONTEXTS in varied:
        varied.remove(CONTEXTS)
    figures = []
    for name in varied:
        others = [other for other in varied if other != name]
        along = [
            point for point in points if all(point[other] == points[0][other] for other in others)
        ]
        figures.append(_sweep(report, name, along, colors))
    return figures


def _sweep(
    report: LatencyReport, name: str, points: Sequence[Mapping[str, int]], colors: Mapping[str, int]
) -> dict[str, Any]:
    found: dict[str, list[tuple[int, Any]]] = {}
    for point in points:
        for row in report.at(point):
            if row.summary is not None:
                found.setdefault(row.name, []).append((point[name], row.summary.median))
    medians = [m for curve in found.values() for _, m in curve]
    across = log_axis(min(point[name] for point in points), max(point[name] for point in points))
    x = Axis(across.low, across.high, True, tuple((p[name], str(p[name])) for p in points))
    y = log_axis(min(m.low for m in medians) * 1e3, max(m.high for m in medians) * 1e3)
    curves = []
    for curve_name, curve in found.items():
        upper = [(x.at(size), 100 - y.at(m.high * 1e3)) for size, m in curve]
        lower = [(x.at(size), 100 - y.at(m.low * 1e3)) for size, m in curve]
        middle = [(x.at(size), 100 - y.at(m.value * 1e3)) for size, m in curve]
        curves.append(
            {
                "name": curve_name,
                "color": colors[curve_name],
                "line": path(middle),
                "band": path([*upper, *reversed(lower)], closed=True),
                "dots": [
                    (*place, f"{curve_name}: {short(m.value * 1e3)} ms")
                    for place, (_, m) in zip(middle, curve, strict=True)
                ],
            }
        )
    return {"dimension": name, "x": percent_ticks(x), "y": percent_ticks(y), "curves": curves}
