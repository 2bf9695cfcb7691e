"""The ledger of linear layers of a target, read from the graph that its engine executes: as ONNX
Runtime's optimiser leaves it, as an engine that compiles graphs tells, or as a builder lists it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.core.linear_ledger import (
    FLOATS,
    FP32,
    UNKNOWN,
    Became,
    LinearLedger,
    LinearRow,
    kept_in,
)
from crossfuse.core.scratch import scratch_folder
from crossfuse.core.target import CPU_TARGET, require_target
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.options import SessionOptions

if TYPE_CHECKING:
    from crossfuse.targets.quantize.engine_graph import EngineGraph
    from crossfuse.targets.quantize.stages import PlannedLayer

__all__ = ["LayerCost", "compiled", "engine_graph", "linear_ledger", "listed", "optimized"]

Verdict = Callable[["PlannedLayer"], Became]
"""What a layer of a stage became."""


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
    layers: Sequence[PlannedLayer], costs: Mapping[str, LayerCost], verdict: Verdict
) -> LinearLedger:
    """What the layers became, one row per site.

    Args:
        layers: of all stages.
        costs: site → what keeping it costs, of those that a search kept.
        verdict: of the engine.
    """
    by_site: dict[str, list[PlannedLayer]] = {}
    for layer in layers:
        by_site.setdefault(layer.site, []).append(layer)
    return LinearLedger(tuple(_row(same, verdict, costs) for same in by_site.values()))


def optimized(paths: Mapping[str, Path]) -> Verdict:
    """What ONNX Runtime makes of a target's graphs, by stage; they are read here."""
    engines = {stage: engine_graph(path) for stage, path in paths.items()}

    def verdict(layer: PlannedLayer) -> Became:
        if layer.weights is None:
            return Became(FP32, "" if layer.refusal is None else layer.refusal.reason)
        return engines[layer.stage].became(layer.weights)

    return verdict


def compiled(found: Mapping[str, Mapping[str, Became]], precision: str, provider: str) -> Verdict:
    """What an engine that compiles graphs tells.

    Args:
        found: by stage, and name of the result.
        precision: that was asked for.
        provider: the engine's name.
    """

    def verdict(layer: PlannedLayer) -> Became:
        told = found.get(layer.stage, {}).get(layer.result)
        if told is None and layer.refusal is not None:
            return Became(FP32, layer.refusal.reason)
        if told is None:
            return Became(UNKNOWN, f"{provider} tells of no node for it")
        if precision == "fp32":
            return told
        if layer.refusal is not None:
            return Became(FP32 if told.words == "fp32" else told.words, layer.refusal.reason)
        if told.words != "fp32":
            return told
        return Became(FP32, f"{provider} computes it in fp32 on this machine")

    return verdict


def listed(found: Mapping[str, Mapping[str, Became]], provider: str) -> Verdict:
    """What the layers of built engines are, by stage and name of the product.

    Args:
        found: of the layers that an engine tells of.
        provider: the engine's name.
    """

    def verdict(layer: PlannedLayer) -> Became:
        told = found.get(layer.stage, {}).get(layer.key)
        refused = "" if layer.refusal is None else layer.refusal.reason
        if told is None:
            return Became(UNKNOWN, refused or f"no layer of {provider}'s engine tells of it")
        if refused:
            return Became(kept_in(told.words) if told.words in FLOATS else told.words, refused)
        if told.words in FLOATS:
            why = f"{provider} joins no product of its codes, and computes it in {told.words}"
            return Became(kept_in(told.words), why)
        return told

    return verdict


def engine_graph(path: Path) -> EngineGraph:
    """A graph as ONNX Runtime's CPU provider optimises it, with a session's own settings."""
    import onnx_ir as ir

    from crossfuse.targets.quantize.engine_graph import EngineGraph

    with scratch_folder() as folder:
        provider = require_target(CPU_TARGET).provider
        stage = OrtStage(path, provider, SessionOptions(), trace=folder)
        stage.end_trace()
        return EngineGraph(ir.load(folder / "optimized.onnx"))


def _row(
    same: Sequence[PlannedLayer],
    verdict: Verdict,
    costs: Mapping[str, LayerCost],
) -> LinearRow:
    """One site's row, of all stages that it is in."""
    first = same[0]
    found = {layer.stage: verdict(layer) for layer in same}
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
        asked=any(
            layer.weights is not None or (layer.refusal is not None and layer.refusal.asked)
            for layer in same
        ),
        error=cost.error,
        seconds=cost.seconds,
    )
