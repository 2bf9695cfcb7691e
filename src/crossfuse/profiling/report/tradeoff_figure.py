"""The report's figure of speed and error: what each library's time buys, at a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossfuse.profiling.report.figures import log_axis, percent_ticks
from crossfuse.profiling.report.report import LatencyReport
from crossfuse.profiling.report.summary_text import milliseconds

__all__ = ["tradeoff_figure"]

_LEAST = 1e-9
"""Errors below are drawn as this one: an axis of logarithms has no 0."""


def tradeoff_figure(
    report: LatencyReport, sizes: Mapping[str, int], colors: Mapping[str, int]
) -> dict[str, Any] | None:
    """Median time across, error against the model's own numbers upwards, both logarithmic; None
    where fewer than two callables have both."""
    found = [
        (row.name, row.summary.median.value, max(row.reference_error, _LEAST))
        for row in report.at(sizes)
        if row.summary is not None and row.reference_error is not None
    ]
    if len(found) < 2:
        return None
    times, errors = [1e3 * seconds for _, seconds, _ in found], [error for *_, error in found]
    x, y = log_axis(min(times), max(times)), log_axis(min(errors), max(errors))
    dots = [
        {
            "name": name,
            "color": colors[name],
            "x": x.at(1e3 * seconds),
            "y": y.at(error),
            "title": f"{name}: {milliseconds(seconds)}, error {error:.1e}",
        }
        for name, seconds, error in found
    ]
    ticks = [(y.at(value), f"{value:.0e}") for value, _ in y.ticks]
    return {"x": percent_ticks(x), "y": ticks, "dots": dots}
