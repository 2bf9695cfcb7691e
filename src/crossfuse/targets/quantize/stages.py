"""The graphs of a bundle's stages with their linear layers in integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from crossfuse.core.openvino_linears import WIDE_FLOATS
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer, linear_layers
from crossfuse.targets.quantize.rewrite import DYNAMIC, WHOLE, Form, RoundedWeights, rewrite
from crossfuse.targets.quantize.row_plan import RowPlan
from crossfuse.targets.quantize.rules import Refusal, deciding_nodes, refusal_of
from crossfuse.targets.quantize.static_plan import StaticPlan

__all__ = [
    "PlannedLayer",
    "QuantizedStages",
    "float_layers",
    "quantize_stages",
    "sites_of",
]

_UNSEEN = "the calibration data gives it nothing, or numbers that are not finite"
_FEW_ROWS = "step"
"""The stage whose products have few rows."""


@dataclass(frozen=True)
class PlannedLayer:
    """A linear layer of a stage, and what it is to become.

    Attributes:
        key: the node's name in the fused graph.
        site: in the ledger.
        operator: of the fused graph.
        shape: of its weights there.
        stage: which it is of.
        weights: name of the initializer with its integers; None where it stays in fp32.
        refusal: why it stays.
        result: name of its result in the stage's graph.
    """

    key: str
    site: str
    operator: str
    shape: tuple[int, ...]
    stage: str
    weights: str | None = None
    refusal: Refusal | None = None
    result: str = ""


@dataclass(frozen=True)
class QuantizedStages:
    """Stage graphs, and their linear layers in the order of execution."""

    graphs: Mapping[str, ir.Model]
    layers: tuple[PlannedLayer, ...] = field(default=())


def quantize_stages(
    graphs: Mapping[str, ir.Model],
    precision: str,
    sites: Mapping[str, str],
    *,
    keep: Mapping[str, str] | None = None,
    made: RoundedWeights | None = None,
    static: StaticPlan | None = None,
    rows: RowPlan | None = None,
) -> QuantizedStages:
    """Copies of the stages with integer products.

    Args:
        graphs: fused, in fp32.
        precision: of `LOW_PRECISIONS`.
        sites: names of nodes → sites, of the whole graph (`sites_of`).
        keep: names of nodes that stay in fp32 → why.
        made: integers of earlier calls.
        static: grids chosen before; None to round where it runs.
        rows: layers that round row by row where it runs, whatever the others do.
    """
    keep, made = keep or {}, made or RoundedWeights()
    found: dict[str, ir.Model] = {}
    planned: list[PlannedLayer] = []
    for stage, graph in graphs.items():
        model = graph.clone()
        layers, deciding = linear_layers(model, sites), deciding_nodes(model)
        if static is not None and static.qdq and not deciding:
            model.metadata_props[WIDE_FLOATS] = "bf16"
        refusals = _refusals(layers, deciding, keep, static)
        chosen = [
            (layer, _form(layer, precision, stage, (static, rows or RowPlan())))
            for layer in layers
            if layer.site not in refusals
        ]
        about = [_planned(layer, stage) for layer in layers]
        names = rewrite(model, chosen, made)
        planned += [
            replace(one, weights=names.get(one.site), refusal=refusals.get(one.site))
            for one in about
        ]
        found[stage] = model
    return QuantizedStages(found, tuple(planned))


def float_layers(
    graphs: Mapping[str, ir.Model], sites: Mapping[str, str], kept: Mapping[str, str]
) -> tuple[PlannedLayer, ...]:
    """The linear layers of stages none of which becomes integers.

    Args:
        graphs: fused, in fp32.
        sites: as of `quantize_stages`.
        kept: names of nodes that stay in fp32 → why.
    """
    return tuple(
        replace(planned, refusal=Refusal(kept[layer.key], asked=False))
        if layer.key in kept
        else planned
        for stage, graph in graphs.items()
        for layer in linear_layers(graph, sites)
        for planned in (_planned(layer, stage),)
    )


def _planned(layer: LinearLayer, stage: str) -> PlannedLayer:
    result = layer.node.outputs[0].name or ""
    return PlannedLayer(
        layer.key, layer.site, layer.node.op_type, layer.shape, stage, result=result
    )


def sites_of(model: ir.Model) -> dict[str, str]:
    """Names of nodes → sites, of the linear layers of a whole fused graph."""
    return {layer.key: layer.site for layer in linear_layers(model)}


def _refusals(
    layers: list[LinearLayer],
    deciding: Collection[ir.Node],
    keep: Mapping[str, str],
    static: StaticPlan | None,
) -> dict[str, Refusal]:
    found = {}
    for layer in layers:
        refusal = refusal_of(layer, deciding, None if static is None else static.codes)
        if refusal is None and layer.key in keep:
            refusal = Refusal(keep[layer.key], asked=False)
        if refusal is None and static is not None and static.of(layer) is None:
            refusal = Refusal(_UNSEEN, asked=True)
        if refusal is not None:
            found[layer.site] = refusal
    return found


def _form(
    layer: LinearLayer, precision: str, stage: str, plans: tuple[StaticPlan | None, RowPlan]
) -> Form:
    static, rows = plans
    if precision == "int4":
        return Form(4, blocks=True)
    qdq = static is not None and static.qdq
    product = layer.node.op_type not in CONVOLUTIONS
    if product and stage == _FEW_ROWS and not qdq:
        return Form(8, blocks=True)
    if product and rows.takes(layer):
        return DYNAMIC
    return WHOLE if static is None else Form(grids=static.of(layer), qdq=qdq)
