"""What `crossfuse profile` shows: a latency report, and the changes between two."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from crossfuse.commands.output import Output, styled
from crossfuse.profiling.explain.attribution import StageTimes, group
from crossfuse.profiling.explain.machine import Limits
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.measure.coldstart import ColdStart
from crossfuse.profiling.measure.generation import GenerationTimes
from crossfuse.profiling.measure.load import LoadResult
from crossfuse.profiling.report.compare import Change
from crossfuse.profiling.report.report import LatencyReport, Row
from crossfuse.profiling.report.summary_text import common_sizes, milliseconds, sizes_text

__all__ = ["show_changes", "show_latency"]

_PLAIN = ("p50", "95% interval", "p90", "p99")
_COMPARED = ("× crossfuse", "95% interval", "error")
_LEAST_SHARE = 0.01
"""Of a stage's time, for an operator to be named."""


def show_latency(output: Output, report: LatencyReport) -> None:
    """A latency report: a table of rows, and lines for the rest."""
    common, swept = common_sizes(report.points)
    output.heading(
        f"Latency of {report.target} ({report.precision}) on {report.provider}, "
        f"{sizes_text(common)}"
    )
    output.console.print(_table(report, swept))
    if any(row.samples and row.samples.unstable for row in report.rows):
        output.line("* some rounds were unstable; more were run, and none was dropped")
    for row in report.rows:
        if row.failure is not None:
            output.warning(f"{row.name} at {sizes_text(row.sizes)} did not run: {row.failure}")
    for stage in report.stages:
        output.line(_stage_text(stage, report.limits))
    for result in report.load:
        output.line(_load_text(result))
    for times in report.generation:
        if times.failure is None:
            output.line(_generation_text(times))
        else:
            output.warning(f"generating for {times.callers} at once did not run: {times.failure}")
    if report.break_even is not None:
        output.line(f"encoding a context once pays from {report.break_even:.1f} queries on")
    if report.cold_start is not None:
        output.line(_cold_start_text(report.cold_start))


def _table(report: LatencyReport, swept: Sequence[dict[str, int]]) -> Table:
    table = Table()
    columns = list(_PLAIN)
    if any(row.ratio is not None for row in report.rows):
        columns += _COMPARED
    sweeps = any(swept)
    for column in (*["at"] * sweeps, "what", *columns):
        is_text = column in ("at", "what")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for point, own in zip(report.points, swept, strict=True):
        for i, row in enumerate(report.at(point)):
            where = [sizes_text(own) if i == 0 else ""] * sweeps
            table.add_row(*where, row.name, *_cells(row)[: len(columns)])
        table.add_section()
    return table


def _cells(row: Row) -> list[str | Text]:
    """A row's numbers, in the order of all columns."""
    summary, ratio = row.summary, row.ratio
    if summary is None:
        return [styled("failed", "red")]
    unstable = " *" if row.samples and row.samples.unstable else ""
    compared = (
        ["", ""]
        if ratio is None
        else [f"{ratio.value:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"]
    )
    return [
        f"{milliseconds(summary.median.value)}{unstable}",
        f"{milliseconds(summary.median.low)} to {milliseconds(summary.median.high)}",
        milliseconds(summary.p90),
        milliseconds(summary.p99),
        *compared,
        "" if row.distance is None else f"{row.distance:.1e}",
    ]


def _stage_text(stage: StageTimes, limits: Limits | None) -> str:
    """Where a stage's time goes, and what it attains."""
    shares = [
        (kind, sum(node.seconds for node in nodes) / stage.seconds)
        for kind, nodes in group(stage.nodes, "kind")
    ]
    text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares if share >= _LEAST_SHARE)
    roof = ""
    if limits is not None:
        roof = f"; {attained(stage.nodes, limits).fraction:.0%} of the roofline"
    return f"{stage.stage}: {milliseconds(stage.seconds)}, of it {text}{roof}"


def _load_text(result: LoadResult) -> str:
    closed = result.kind == "closed"
    what = f"{result.level:g} {'callers' if closed else 'arrivals per second'}"
    median, last = (milliseconds(result.percentile(q)) for q in (0.5, 0.99))
    return f"{what}: {result.throughput:.3g} answers per second, p50 {median}, p99 {last}"


def _generation_text(times: GenerationTimes) -> str:
    who = "1 caller" if times.callers == 1 else f"{times.callers} callers"
    first, first_last, token, token_last = (
        "–" if seconds is None else milliseconds(seconds)
        for seconds in (times.first_p50, times.first_p95, times.token_p50, times.token_p95)
    )
    return (
        f"generating, {who}: first token {first} (p95 {first_last}) behind a prompt of "
        f"{times.prompt}, {token} per further token (p95 {token_last}), "
        f"{times.throughput or 0:.3g} tokens per second"
    )


def _cold_start_text(cold: ColdStart) -> str:
    phases = (
        ("process", cold.process),
        ("import", cold.imports),
        ("load", cold.load),
        ("first result", cold.first_result),
    )
    parts = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in phases)
    return (
        f"cold start: {milliseconds(cold.total)} ({parts}), peak {cold.peak_bytes / 1e6:.0f} MB, "
        f"medians of {cold.runs} processes"
    )


def show_changes(output: Output, changes: Sequence[Change]) -> None:
    """Changes between two reports as a table."""
    table = Table()
    for column in ("what", "sizes", "after / before", "95% interval", "machine", ""):
        table.add_column(column)
    for change in changes:
        ratio = change.ratio
        table.add_row(
            change.name,
            ", ".join(f"{name}={size}" for name, size in change.sizes.items()),
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            "–" if change.machine is None else f"{change.machine:.3f}",
            styled(change.verdict, "bold red" if change.regressed else ""),
        )
    output.console.print(table)
    output.line(
        "Ratios of least times; 'machine' is that of fixed work, which is taken out as far as a "
        "model may feel it."
    )
