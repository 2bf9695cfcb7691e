"""A target's stages with their linear layers in integers: which stay in fp32, and what that
costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from crossfuse.api.arguments import Progress
from crossfuse.api.build_options import BuildOptions
from crossfuse.api.calibration import CalibrationData
from crossfuse.core.target import Target
from crossfuse.errors import ParityError
from crossfuse.parity.linear_check import LayerCost
from crossfuse.parity.metric import Metric, metric_name
from crossfuse.parity.target_check import ParityCheck
from crossfuse.targets.precision.activation_stats import peaks
from crossfuse.targets.precision.islands import node_key
from crossfuse.targets.precision.mixed_search import overflowing
from crossfuse.targets.precision.stages import StageGraphs
from crossfuse.targets.quantize.codes import codes_of
from crossfuse.targets.quantize.half_products import half_products
from crossfuse.targets.quantize.half_rest import half_rest
from crossfuse.targets.quantize.layer_search import most_sensitive, search_layers
from crossfuse.targets.quantize.layer_times import seconds_saved
from crossfuse.targets.quantize.rewrite import DYNAMIC, WHOLE, Form, RoundedWeights
from crossfuse.targets.quantize.row_plan import RowPlan, row_plan
from crossfuse.targets.quantize.rules import quantizable
from crossfuse.targets.quantize.sensitivity import Sensitivity, sensitivities
from crossfuse.targets.quantize.stages import (
    PlannedLayer,
    QuantizedStages,
    quantize_stages,
    sites_of,
)
from crossfuse.targets.quantize.static_plan import StaticPlan, static_plan

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LowPrecisionStages", "metric_of", "quantized"]


@dataclass(frozen=True)
class LowPrecisionStages:
    """What a build in low precision goes on with.

    Attributes:
        check: with the user's metric, where one was given.
        precise: the stages' graphs.
        layers: their linear layers.
        costs: site → what keeping it in fp32 costs, of those that a search kept.
        calibration: what was chosen on, in words.
        measure: what integers do to each layer, the most sensitive first.
    """

    check: ParityCheck
    precise: StageGraphs
    layers: tuple[PlannedLayer, ...]
    costs: Mapping[str, LayerCost]
    calibration: str
    measure: Callable[[], Sequence[Sensitivity]]

    def name_layers(self, error: ParityError) -> None:
        """Add the layers to which integers do most to an error."""
        named = most_sensitive(self.measure())
        if named:
            error.got = f"{error.got}; of the layers {self.check.precision} changes most: {named}"


def quantized(
    model: ir.Model,
    check: ParityCheck,
    target: Target,
    options: BuildOptions,
    data: CalibrationData,
    progress: Progress,
) -> LowPrecisionStages:
    """The stages in the check's precision, of `LOW_PRECISIONS`.

    Args:
        model: the whole fused graph.
        check: of parity, without a metric.
        target: that is built.
        options: the metric, and how far it may drop.
        data: what is chosen on.
        progress: told what begins.

    Raises:
        InputError: a metric that can't be used.
        ParityError: a search finds no layers with which the build passes.
    """
    static = _static(model, check.precision, options, data, target)
    chooses_rows = check.precision != "int4" and not target.joins_quantized
    searches = check.precision == "mixed-int8"
    uses_data = options.metric is not None or searches or static is not None or chooses_rows
    if uses_data:
        progress(f"{check.precision}: chosen on {data.words}")
    if options.metric is not None:
        progress(f"{options.metric} in fp32")
        check = check.with_metric(metric_of(options, data))
    sites, made = sites_of(model), RoundedWeights()
    form = Form(4, blocks=True) if check.precision == "int4" else WHOLE
    measured: list[Sensitivity] = []
    rows = RowPlan()
    if chooses_rows:
        progress(f"{check.precision}: which layers are rounded row by row")
        whole = sensitivities(model, data.points, WHOLE, made, static)
        rows, ranked = row_plan(whole, sensitivities(model, data.points, DYNAMIC, made))
        measured.extend(ranked)

    def measure() -> Sequence[Sensitivity]:
        if not measured:
            measured.extend(sensitivities(model, data.points, form, made, static))
        return measured

    in_target = _in_target(model, target, data, progress)

    def build(keep: Mapping[str, str]) -> QuantizedStages:
        return quantize_stages(
            check.stages.graphs,
            check.precision,
            sites,
            keep=keep,
            made=made,
            static=static,
            rows=rows,
        )

    kept: list[Sensitivity] = []
    if searches:
        kept = search_layers(
            measure,
            lambda keep: check.passes_on(target, in_target(build(keep).graphs).graphs),
            progress,
        )
    reasons = {
        one.layer.key: f"int8 gives its results a relative error of {one.worst:.2g}" for one in kept
    }
    stages = build(reasons)
    precise = in_target(stages.graphs)
    return LowPrecisionStages(
        check,
        precise if target.symmetric else replace(precise, kept=reasons),
        stages.layers,
        _costs(kept, seconds_saved(kept, form, static)),
        data.words if uses_data else "",
        measure,
    )


def _static(
    model: ir.Model, precision: str, options: BuildOptions, data: CalibrationData, target: Target
) -> StaticPlan | None:
    """Grids chosen before: where the target's engine joins quantised and dequantised numbers by
    itself, always; otherwise on data of the user's."""
    if precision == "int4" or not (target.joins_quantized or options.calibrate):
        return None
    codes = codes_of(target, precision)
    keys = [layer.key for layer in quantizable(model, codes)]
    return static_plan(model, keys, data.points, qdq=target.joins_quantized, codes=codes)


def _in_target(
    model: ir.Model, target: Target, data: CalibrationData, progress: Progress
) -> Callable[[Mapping[str, ir.Model]], StageGraphs]:
    """Quantised stages → with the rest of them in what the target computes it in."""
    if not target.symmetric:
        return half_products if target.joins_quantized else StageGraphs
    progress(f"{target.name}: ranges of activations")
    wide = overflowing(model, peaks(model, data.points))
    own = {node_key(node) for node in model.graph}
    return lambda graphs: half_rest(graphs, target, wide, own)


def _costs(kept: Sequence[Sensitivity], seconds: Mapping[str, float]) -> dict[str, LayerCost]:
    return {
        one.layer.site: LayerCost(
            one.worst if np.isfinite(one.worst) else None, seconds.get(one.layer.site)
        )
        for one in kept
    }


def metric_of(options: BuildOptions, data: CalibrationData) -> Metric:
    """The metric that the options name, whose value in fp32 is not known yet.

    Raises:
        InputError: there is no such function.
    """
    from crossfuse.export.sources.factory import function_of

    assert options.metric is not None
    assert options.max_drop is not None
    function = function_of(options.metric, _A_METRIC)
    return Metric(metric_name(options.metric), function, data.sets, options.max_drop)


_A_METRIC = "A metric is a function of (run, data) that returns a number, larger is better"
