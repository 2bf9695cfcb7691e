"""A latency report as one page that needs nothing else: no network, no script, light and dark, wide
and narrow."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from crossfuse.core.terminal import shown
from crossfuse.errors import PackageError
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.report.figures import short
from crossfuse.profiling.report.latency_figures import point_figure, sweep_figures
from crossfuse.profiling.report.report import OURS, LatencyReport
from crossfuse.profiling.report.summary_text import milliseconds, sentences
from crossfuse.profiling.report.time_figures import KIND_ORDER, roof_figure, stage_figure

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["render", "require_html"]

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
        points=[point_figure(report, sizes, colors) for sizes in report.points],
        sweeps=sweep_figures(report, colors),
        stages=[stage_figure(report, stage) for stage in report.stages],
        kinds=[(kind, i) for i, kind in enumerate(KIND_ORDER)],
        roof=roof_figure(report),
        cold=_cold(report),
        load=_load(report),
        generation=[times for times in report.generation if times.failure is None],
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
    baselines = [row for row in report.at(report.rows[0].sizes) if row.ratio is not None]
    if baselines:
        best = min(baselines, key=lambda row: row.ratio.value if row.ratio else math.inf)
        assert best.ratio is not None
        tiles.append(
            (f"{best.ratio.value:.2f}", "×", f"{best.name}'s time, the fastest baseline's")
        )
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


class _Phase(NamedTuple):
    """A part of a cold start; ``percent`` is of the whole."""

    color: int
    name: str
    seconds: float
    percent: float


def _cold(report: LatencyReport) -> list[_Phase]:
    """The phases of a cold start, none where it was not measured."""
    cold = report.cold_start
    if cold is None:
        return []
    return [
        _Phase(i, name, getattr(cold, key), 100 * getattr(cold, key) / cold.total)
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


def _breakable(path: str) -> Markup:
    """A module's path that may be broken behind dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(shown(path)))))


def _shown(value: Any) -> Any:
    """What stands in the page: text whose marks that reorder or hide are shown.

    The template then escapes it.
    """
    return shown(value) if type(value) is str else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
