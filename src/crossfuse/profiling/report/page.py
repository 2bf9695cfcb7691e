"""A latency report as one page that needs nothing else: no network, no script, light and dark, wide
and narrow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crossfuse.core.tensors import CONTEXTS
from crossfuse.core.terminal import shown
from crossfuse.errors import PackageError
from crossfuse.profiling.explain.attribution import NodeTime, StageTimes, group
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.explain.work import KINDS
from crossfuse.profiling.report.figures import Axis, density, linear_axis, log_axis, path, short
from crossfuse.profiling.report.report import OURS, LatencyReport, Row
from crossfuse.profiling.report.summary_text import milliseconds, sentences, sizes_text

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["render"]

_MOST_MODULES = 14
_KINDS = (*KINDS, "other")
_PHASES = (
    ("process", "process start"),
    ("imports", "import"),
    ("load", "load"),
    ("first_result", "first result"),
)


def require_html() -> None:
    """Raise :class:`PackageError` where `jinja2`, which makes the page, is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise PackageError(
            f"the HTML report needs jinja2: {error}",
            do="Install it: pip install 'crossfuse[report]'",
        ) from error


def render(report: LatencyReport) -> str:
    """The page's HTML.

    Raises:
        PackageError: `jinja2` is not installed.
    """
    require_html()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("crossfuse.profiling.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(short=short, ms=milliseconds, breakable=_breakable)
    colors = {name: i for i, name in enumerate(dict.fromkeys(row.name for row in report.rows))}
    return environment.get_template("report.html.j2").render(
        report=report,
        summary=sentences(report),
        tiles=_tiles(report),
        points=[_point(report, sizes, colors) for sizes in report.points],
        sweeps=_sweeps(report, colors),
        stages=[_stage(report, stage) for stage in report.stages],
        kinds=[(kind, i) for i, kind in enumerate(_KINDS)],
        roof=_roof(report),
        cold=_cold(report),
        load=_load(report),
        environment={k: _plain(v) for k, v in report.environment.items() if v is not None},
        ours=OURS,
    )


def _tiles(report: LatencyReport) -> list[tuple[str, str, str]]:
    """Value, unit, what it is."""
    own = report.rows[0].summary
    assert own is not None
    tiles = [
        (short(own.median.value * 1e3), "ms", "median"),
        (short(own.p99 * 1e3), "ms", "99th percentile"),
    ]
    rivals = [row for row in report.at(report.rows[0].sizes) if row.ratio is not None]
    if rivals:
        best = min(rivals, key=lambda row: row.ratio.value if row.ratio else math.inf)
        assert best.ratio is not None
        tiles.append((f"{best.ratio.value:.2f}", "×", f"{best.name}'s time, the fastest rival's"))
    if report.cold_start is not None:
        tiles.append((short(report.cold_start.total), "s", "from process start to first result"))
    if report.limits is not None and report.stages:
        nodes = [node for stage in report.stages for node in stage.nodes]
        tiles.append(
            (f"{attained(nodes, report.limits).fraction:.0%}", "", "of what the machine attains")
        )
    fused = sum(1 for row in report.ledger if row["fused"].get(report.target))
    if report.ledger:
        tiles.append((f"{fused}/{len(report.ledger)}", "", "attentions fused"))
    return tiles


def _point(
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
        "axis": _ticks(axis),
        "lanes": [_lane(row, axis, colors[row.name]) for row in sampled],
        "failed": [(row.name, row.failure) for row in rows if row.failure is not None],
        "ratios": _ratios(rows, colors),
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
    """Rivals' times over ours, with intervals."""
    rivals = [(row.name, row.ratio, row.error) for row in rows if row.ratio is not None]
    if not rivals:
        return None
    axis = log_axis(
        min(0.9, *(r.low for _, r, _ in rivals)), max(1.2, *(r.high for _, r, _ in rivals))
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
        for name, ratio, error in sorted(rivals, key=lambda item: item[1].value)
    ]
    return {"axis": _ticks(axis), "one": axis.at(1.0), "marks": marks}


def _sweeps(report: LatencyReport, colors: Mapping[str, int]) -> list[dict[str, Any]]:
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
    return {"dimension": name, "x": _ticks(x), "y": _ticks(y), "curves": curves}


def _stage(report: LatencyReport, stage: StageTimes) -> dict[str, Any]:
    """Time by module and kind, and by attention."""
    groups = group(stage.nodes, "module")
    shown, rest = (
        groups[:_MOST_MODULES],
        [node for _, nodes in groups[_MOST_MODULES:] for node in nodes],
    )
    bars = [_bar(name or "the model itself", nodes) for name, nodes in shown]
    if rest:
        bars.append(_bar(f"{len(groups) - len(shown)} other modules", rest))
    bars.append(
        {
            "name": "between nodes",
            "seconds": max(stage.between, 0.0),
            "parts": [(len(_KINDS), max(stage.between, 0.0))],
        }
    )
    longest = max(bar["seconds"] for bar in bars)
    for bar in bars:
        bar["parts"] = [(i, round(100 * seconds / longest, 3)) for i, seconds in bar["parts"]]
        bar["share"] = bar["seconds"] / stage.seconds
    sites = []
    for site, nodes in group([node for node in stage.nodes if node.site is not None], "site"):
        seconds = sum(node.seconds for node in nodes)
        under = None if report.limits is None else attained(nodes, report.limits)
        sites.append(
            {
                "site": site,
                "op": nodes[0].op,
                "seconds": seconds,
                "share": seconds / stage.seconds,
                "under": under,
            }
        )
    kinds = [
        (name, sum(node.seconds for node in nodes) / stage.seconds)
        for name, nodes in group(stage.nodes, "kind")
    ]
    kinds = [(name, share) for name, share in kinds if share >= 0.01]
    return {
        "name": stage.stage,
        "seconds": stage.seconds,
        "bars": bars,
        "sites": sites,
        "kinds": kinds,
        "under": None if report.limits is None else attained(stage.nodes, report.limits),
    }


def _bar(name: str, nodes: Sequence[NodeTime]) -> dict[str, Any]:
    by_kind = {kind: sum(node.seconds for node in found) for kind, found in group(nodes, "kind")}
    parts = [(_KINDS.index(kind), by_kind[kind]) for kind in _KINDS if kind in by_kind]
    return {"name": name, "seconds": sum(by_kind.values()), "parts": parts}


def _roof(report: LatencyReport) -> dict[str, Any] | None:
    """Groups of nodes that compute, below what the machine attains."""
    limits = report.limits
    if limits is None or not report.stages:
        return None
    total = sum(stage.seconds for stage in report.stages)
    dots = []
    for stage in report.stages:
        for kind in ("GEMM", "convolution", "attention"):
            for name, nodes in group([node for node in stage.nodes if node.kind == kind], "module"):
                under = attained(nodes, limits)
                if under.flops and under.seconds > 0.002 * total:
                    dots.append((kind, f"{stage.stage}: {name or 'the model itself'}", under))
    if not dots:
        return None
    ridge = limits.flops / limits.bandwidth
    x = log_axis(
        min(ridge / 4, *(u.intensity for *_, u in dots)),
        max(ridge * 4, *(u.intensity for *_, u in dots)),
    )
    rates = [u.rate / 1e9 for *_, u in dots]
    peak = limits.flops / 1e9
    y = log_axis(min(peak / 8, *rates), max(peak * 1.3, *rates))
    corner = (x.at(ridge), 100 - y.at(peak))
    left = y.low / peak * ridge
    slope = (x.at(left), 100.0) if left > x.low else (0.0, 100 - y.at(peak * x.low / ridge))
    return {
        "x": _ticks(x),
        "y": _ticks(y),
        "line": path([slope, corner, (100, 100 - y.at(peak))]),
        "area": path(
            [slope, corner, (100, 100 - y.at(peak)), (100, 100), (slope[0], 100)], closed=True
        ),
        "limits": limits,
        "dots": [
            {
                "x": x.at(under.intensity),
                "y": 100 - y.at(under.rate / 1e9),
                "size": round(8 + 22 * math.sqrt(under.seconds / total), 1),
                "color": _KINDS.index(kind),
                "title": f"{name}, {kind}: {short(under.rate / 1e9)} GFLOP/s, "
                f"{short(under.intensity)} FLOP per byte, "
                f"{under.fraction:.0%} of the roof",
            }
            for kind, name, under in sorted(dots, key=lambda dot: -dot[2].seconds)
        ],
        "kinds": [
            (kind, _KINDS.index(kind))
            for kind in ("GEMM", "convolution", "attention")
            if any(d[0] == kind for d in dots)
        ],
    }


def _cold(report: LatencyReport) -> list[tuple[int, str, float, float]]:
    """Color, phase, seconds and percent of the total."""
    cold = report.cold_start
    if cold is None:
        return []
    return [
        (i, name, getattr(cold, key), 100 * getattr(cold, key) / cold.total)
        for i, (key, name) in enumerate(_PHASES)
    ]


def _load(report: LatencyReport) -> list[dict[str, Any]]:
    return [
        {
            "what": f"{result.level:g} callers at once"
            if result.kind == "closed"
            else f"{result.level:g} arrivals per second",
            "throughput": result.throughput,
            "count": len(result.latencies),
            **{f"p{round(q * 100)}": result.percentile(q) for q in (0.5, 0.9, 0.99)},
        }
        for result in report.load
    ]


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    return [(axis.at(value), label) for value, label in axis.ticks]


def _breakable(path: str) -> Markup:
    """A module's path that may be broken behind dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(shown(path)))))


def _shown(value: Any) -> Any:
    """What stands in the page: text whose marks that reorder or hide are shown; the template then
    escapes it."""
    return shown(value) if type(value) is str else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
