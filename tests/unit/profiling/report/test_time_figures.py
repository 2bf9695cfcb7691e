"""Figures of where the time goes add up to the time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crossfuse.profiling.explain.attribution import NodeTime, StageTimes
from crossfuse.profiling.explain.machine import Limits
from crossfuse.profiling.report.time_figures import KIND_ORDER, roof_figure, stage_figure
from unit.profiling.test_page import a_report


def node(name: str, kind: str, module: str, seconds: float, site: str | None = None) -> NodeTime:
    return NodeTime(name, kind, kind, module, site, seconds, 2_000_000, 1000)


NODES = (
    node("a", "GEMM", "layers.0.query", 0.3),
    node("b", "GEMM", "layers.1.query", 0.1),
    node("c", "attention", "layers.0.attention", 0.2, site="layers.0.attention"),
    node("d", "copy", "", 0.1),
)
STAGE = StageTimes("model", 1.0, NODES, 20)


def test_bars_are_modules_of_repeated_layers_together() -> None:
    figure = stage_figure(replace(a_report(), limits=None), STAGE)
    bars = {bar["name"]: bar for bar in figure["bars"]}
    assert list(bars) == [
        "layers.*.query",
        "layers.*.attention",
        "the model itself",
        "between nodes",
    ]
    assert bars["layers.*.query"]["seconds"] == pytest.approx(0.4)
    assert sum(bar["share"] for bar in bars.values()) == pytest.approx(1.0)
    ((color, width),) = bars["layers.*.query"]["parts"]
    assert KIND_ORDER[color] == "GEMM"
    assert width == 100, "the longest bar is whole"
    ((_, width),) = bars["layers.*.attention"]["parts"]
    assert width == pytest.approx(50)


def test_attentions_are_listed_with_their_share_of_the_roof() -> None:
    report = replace(a_report(), limits=Limits(1e9, 1e9, (1, 1, 1)))
    (site,) = stage_figure(report, STAGE)["sites"]
    assert (site["site"], site["share"]) == ("layers.0.attention", pytest.approx(0.2))
    assert site["under"].fraction == pytest.approx(2e6 / 1e9 / 0.2)


def test_many_modules_end_in_one_bar() -> None:
    nodes = tuple(node(f"n{i}", "norm", f"module_{chr(97 + i)}", 0.01 * (i + 1)) for i in range(20))
    figure = stage_figure(a_report(), StageTimes("model", 3.0, nodes, 1))
    names = [bar["name"] for bar in figure["bars"]]
    assert names[0] == "module_t"
    assert names[-2:] == ["6 other modules", "between nodes"]
    assert sum(bar["seconds"] for bar in figure["bars"]) == pytest.approx(3.0)


def test_dots_are_below_the_roof() -> None:
    report = replace(a_report(), stages=(STAGE,), limits=Limits(1e9, 1e9, (1, 1, 1)))
    figure = roof_figure(report)
    assert figure is not None
    assert len(figure["dots"]) == 2, "copies compute nothing"
    assert {kind for kind, _ in figure["kinds"]} == {"GEMM", "attention"}
    assert all(0 <= dot["x"] <= 100 and 0 <= dot["y"] <= 100 for dot in figure["dots"])
    assert "1% of the roof" in figure["dots"][0]["title"]
    assert roof_figure(replace(report, limits=None)) is None
    assert roof_figure(replace(report, stages=())) is None
