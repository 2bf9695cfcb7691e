"""The report's figures of where the time goes: modules, kinds and attentions of a stage, and the
roof that the machine sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crossfuse.profiling.explain.attribution import NodeTime, StageTimes, group
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.explain.work import KINDS
from crossfuse.profiling.report.figures import log_axis, path, percent_ticks, short
from crossfuse.profiling.report.report import LatencyReport

__all__ = ["KIND_ORDER", "roof_figure", "stage_figure"]

KIND_ORDER = (*KINDS, "other")
"""Kinds of nodes in the order of their colors."""

_MOST_MODULES = 14


def stage_figure(report: LatencyReport, stage: StageTimes) -> dict[str, Any]:
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
            "parts": [(len(KIND_ORDER), max(stage.between, 0.0))],
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
    parts = [(KIND_ORDER.index(kind), by_kind[kind]) for kind in KIND_ORDER if kind in by_kind]
    return {"name": name, "seconds": sum(by_kind.values()), "parts": parts}


def roof_figure(report: LatencyReport) -> dict[str, Any] | None:
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
        "x": percent_ticks(x),
        "y": percent_ticks(y),
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
                "color": KIND_ORDER.index(kind),
                "title": f"{name}, {kind}: {short(under.rate / 1e9)} GFLOP/s, "
                f"{short(under.intensity)} FLOP per byte, "
                f"{under.fraction:.0%} of the roof",
            }
            for kind, name, under in sorted(dots, key=lambda dot: -dot[2].seconds)
        ],
        "kinds": [
            (kind, KIND_ORDER.index(kind))
            for kind in ("GEMM", "convolution", "attention")
            if any(d[0] == kind for d in dots)
        ],
    }
