"""The ledger of linear layers of a target, read from the graph that ONNX Runtime executes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.core.linear_ledger import FP32, LinearLedger, LinearRow
from crossfuse.core.target import CPU_TARGET, require_target
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.options import SessionOptions

if TYPE_CHECKING:
    from crossfuse.targets.quantize.engine_graph import Became, EngineGraph
    from crossfuse.targets.quantize.stages import PlannedLayer

__all__ = ["LayerCost", "engine_graph", "linear_ledger"]


@dataclass(frozen=True)
class LayerCost:
    """What keeping a layer in fp32 costs.

    Attributes:
        error: that int8 would give its results, relative RMS; None where that is not finite.
        seconds: that int8 would save per run; None where it was not measured.
    """

    error: float | None
    seconds: float | None


def linear_ledger(
    paths: Mapping[str, Path],
    layers: Sequence[PlannedLayer],
    costs: Mapping[str, LayerCost],
) -> LinearLedger:
    """What the layers became, one row per site.

    Args:
        paths: the target's graphs by stage.
        layers: of all stages.
        costs: site → what keeping it costs, of those that a search kept.
    """
    engines = {stage: engine_graph(path) for stage, path in paths.items()}
    by_site: dict[str, list[PlannedLayer]] = {}
    for layer in layers:
        by_site.setdefault(layer.site, []).append(layer)
    return LinearLedger(tuple(_row(same, engines, costs) for same in by_site.values()))


def engine_graph(path: Path) -> EngineGraph:
    """A graph as ONNX Runtime's CPU provider optimises it, with a session's own settings."""
    import onnx_ir as ir

    from crossfuse.targets.quantize.engine_graph import EngineGraph

    with tempfile.TemporaryDirectory() as folder:
        provider = require_target(CPU_TARGET).provider
        stage = OrtStage(path, provider, SessionOptions(), trace=Path(folder))
        stage.end_trace()
        return EngineGraph(ir.load(Path(folder) / "optimized.onnx"))


def _row(
    same: Sequence[PlannedLayer],
    engines: Mapping[str, EngineGraph],
    costs: Mapping[str, LayerCost],
) -> LinearRow:
    """One site's row, of all stages that it is in."""
    first = same[0]
    found = {layer.stage: _became(layer, engines[layer.stage]) for layer in same}
    words = list(dict.fromkeys(one.words for one in found.values()))
    reasons = dict.fromkeys(one.reason for one in found.values() if one.reason)
    cost = costs.get(first.site, LayerCost(None, None))
    return LinearRow(
        first.site,
        first.operator,
        first.shape,
        words[0]
        if len(words) == 1
        else "; ".join(f"{stage}: {one.words}" for stage, one in found.items()),
        "; ".join(reasons),
        asked=any(layer.refusal is None or layer.refusal.asked for layer in same),
        error=cost.error,
        seconds=cost.seconds,
    )


def _became(layer: PlannedLayer, engine: EngineGraph) -> Became:
    from crossfuse.targets.quantize.engine_graph import Became

    if layer.weights is None:
        return Became(FP32, "" if layer.refusal is None else layer.refusal.reason)
    return engine.became(layer.weights)
