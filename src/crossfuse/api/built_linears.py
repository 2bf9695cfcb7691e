"""The linear layers of a target's build: which there are, and what the engine made of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.core.linear_ledger import LinearLedger
from crossfuse.core.target import LOW_PRECISIONS, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.api.built_files import BuiltFiles
    from crossfuse.api.low_precision import LowPrecisionStages
    from crossfuse.parity.linear_check import LayerCost
    from crossfuse.targets.precision.stages import StageGraphs
    from crossfuse.targets.quantize.stages import PlannedLayer

__all__ = ["build_layers", "built_linears"]


def build_layers(
    target: Target,
    model: ir.Model,
    graphs: Mapping[str, ir.Model],
    precise: StageGraphs,
    low: LowPrecisionStages | None,
) -> Sequence[PlannedLayer]:
    """The linear layers of all stages; none of a target and precision that have no ledger of them.

    Args:
        target: that is built.
        model: the whole fused graph.
        graphs: its stages, in fp32.
        precise: the stages in the target's precision.
        low: in a low precision, its plan.
    """
    from crossfuse.targets.quantize.stages import float_layers, sites_of

    if low is not None:
        return low.layers
    return float_layers(graphs, sites_of(model), precise.kept) if target.compiles else ()


def built_linears(
    target: Target,
    precision: str,
    layers: Sequence[PlannedLayer],
    costs: Mapping[str, LayerCost],
    built: BuiltFiles,
    folder: Path,
) -> LinearLedger:
    """What the layers became in the engine's own graph. An engine that tells nothing has proven
    nothing: in a low precision its rows say so, and fail the build.

    Args:
        target: that was built.
        precision: that was asked for.
        layers: of all stages.
        costs: site → what keeping a layer in fp32 costs.
        built: what the build left.
        folder: where its files are.
    """
    from crossfuse.parity.linear_check import compiled, linear_ledger, listed, optimized

    told = not target.compiles or set(built.stages) <= set(built.linears)
    if not layers or not (told or precision in LOW_PRECISIONS):
        return LinearLedger()
    if target.engine is not None:
        verdict = listed(built.linears, target.provider)
    elif target.compiles:
        verdict = compiled(built.linears, precision, target.provider)
    else:
        verdict = optimized({stage: folder / file for stage, file in built.stages.items()})
    return linear_ledger(layers, costs, verdict)
