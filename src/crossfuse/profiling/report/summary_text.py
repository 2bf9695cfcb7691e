"""A report in words: what a reader should know first.

Nothing is called faster whose interval contains 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crossfuse.core.tensors import CONTEXTS, NEW_TOKENS
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.report.figures import short
from crossfuse.profiling.report.report import LatencyReport, Row

__all__ = ["common_sizes", "milliseconds", "sentences", "sizes_text"]


def milliseconds(seconds: float) -> str:
    """``93.1 ms``; microseconds below a tenth of one, seconds from ten thousand."""
    if seconds < 1e-4:
        return f"{short(seconds * 1e6)} µs"
    return f"{short(seconds)} s" if seconds >= 10 else f"{short(seconds * 1e3)} ms"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """``batch 1, text 20``; the number of contexts is left out where it is another dimension's, and
    the tokens of a step."""
    sizes = {name: size for name, size in sizes.items() if name != NEW_TOKENS}
    others = [size for name, size in sizes.items() if name != CONTEXTS]
    shown = {name: size for name, size in sizes.items() if name != CONTEXTS or size not in others}
    return ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in shown.items())


def common_sizes(
    points: Sequence[Mapping[str, int]],
) -> tuple[dict[str, int], list[dict[str, int]]]:
    """The sizes that all points share, and for each point the others."""
    common = {
        name: size
        for name, size in points[0].items()
        if all(point.get(name) == size for point in points)
    }
    return common, [
        {name: size for name, size in point.items() if name not in common} for point in points
    ]


def sentences(report: LatencyReport) -> list[str]:
    """The summary, a sentence each."""
    first = report.rows[0]
    own = first.summary
    assert own is not None
    said = [
        f"{report.model} answers in {milliseconds(own.median.value)} at {sizes_text(first.sizes)} "
        "(median; 95% interval "
        f"{milliseconds(own.median.low)} to {milliseconds(own.median.high)}), as {report.target} "
        f"in {report.precision} on "
        f"{report.environment.get('processor') or report.provider}, "
        f"{report.environment.get('cores')} cores."
    ]
    compared = [_compared(row) for row in report.at(first.sizes) if row.ratio is not None]
    if compared:
        said.append(f"Measured in the same rounds, {_listed(compared)}.")
    if report.break_even is not None:
        said.append(
            f"Encoding a context once pays from {report.break_even:.1f} queries per context on."
        )
    alone = next((one for one in report.generation if one.callers == 1), None)
    if alone is not None and alone.first_p50 is not None and alone.throughput is not None:
        said.append(
            f"It generates {short(alone.throughput)} tokens per second for one caller, the first "
            f"of them after {milliseconds(alone.first_p50)}."
        )
    if report.limits is not None and report.stages:
        nodes = [node for stage in report.stages for node in stage.nodes]
        core = sum(node.seconds for node in nodes if node.kind == "attention") / sum(
            node.seconds for node in nodes
        )
        said.append(
            f"It attains {attained(nodes, report.limits).fraction:.0%} of what this machine would "
            "allow for its work; the "
            f"attentions themselves take {core:.0%} of the time."
        )
    if report.parity is not None:
        verdict = "passed" if report.parity.get("passed") else "failed"
        said.append(
            f"Parity with eager {report.parity.get('reference_dtype')} {verdict} when the target "
            "was built."
        )
    return said


def _compared(row: Row) -> str:
    assert row.ratio is not None
    ratio = row.ratio
    if ratio.low <= 1 <= ratio.high:
        return f"{row.name} takes as long within the noise ({ratio.value:.2f}×)"
    return f"{row.name} takes {ratio.value:.2f}× as long"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
