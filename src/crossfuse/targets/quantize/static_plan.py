"""To which grids the linear layers of a model round what they are given, chosen on calibration
data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.targets.onnxruntime import lower_ort_cpu
from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.grids import Grid, LayerGrids, Range, grid_over, joined, scaling
from crossfuse.targets.quantize.layers import LinearLayer, linear_layers, matrix
from crossfuse.targets.quantize.ranges import Seen, observed

__all__ = ["StaticPlan", "static_plan"]


@dataclass(frozen=True)
class StaticPlan:
    """Grids for the layers of a model.

    Attributes:
        qdq: products are written as such, between numbers that are quantised and dequantised, for
            an engine that joins these itself; otherwise as ONNX Runtime's own operators.
        layers: node's name → grids.
        weights: weights → grids of all that multiply by them, for layers of a stage that the whole
            graph has under other names.
        codes: that what layers are given is rounded to.
    """

    qdq: bool
    layers: Mapping[str, LayerGrids] = field(default_factory=dict)
    weights: Mapping[tuple[object, ...], LayerGrids] = field(default_factory=dict)
    codes: Codes = Codes.UINT8

    def of(self, layer: LinearLayer) -> LayerGrids | None:
        """A layer's grids; None where nothing was seen of it, or what is not finite."""
        return self.layers.get(layer.key) or self.weights.get(layer.weights_key)


def static_plan(
    model: ir.Model,
    keys: Iterable[str],
    points: Iterable[Mapping[str, NDArray[Any]]],
    *,
    qdq: bool,
    codes: Codes = Codes.UINT8,
) -> StaticPlan:
    """Grids for the layers with these keys.

    Args:
        model: the whole fused graph, in fp32.
        keys: names of its nodes.
        points: inputs.
        qdq, codes: as of `StaticPlan`.
    """
    chosen = set(keys)
    lowered = lower_ort_cpu(model).model
    layers = [layer for layer in linear_layers(lowered) if layer.key in chosen]
    sources = [layer.node.inputs[0] for layer in layers]
    if not layers:
        return StaticPlan(qdq, codes=codes)
    seen = observed(lowered, layers, points)
    together: dict[ir.Value | None, list[LinearLayer]] = {}
    for source, layer in zip(sources, layers, strict=True):
        together.setdefault(source, []).append(layer)
    given: dict[ir.Value | None, Grid] = {}
    by_key: dict[str, LayerGrids] = {}
    by_weights: dict[tuple[object, ...], Seen] = {}
    for source, layer, one in zip(sources, layers, seen, strict=True):
        if not one.given.known or not (one.made is None or one.made.known):
            continue
        if source not in given:
            given[source] = _given(one.given, together[source], codes)
        by_key[layer.key] = LayerGrids(given[source], _made(one, codes))
        other = by_weights.get(layer.weights_key)
        by_weights[layer.weights_key] = one if other is None else _joined(one, other)
    same = {layer.weights_key: layer for layer in layers}
    alone = {
        key: LayerGrids(_given(one.given, [same[key]], codes), _made(one, codes))
        for key, one in by_weights.items()
    }
    return StaticPlan(qdq, by_key, alone, codes)


def _given(seen: Range, layers: Sequence[LinearLayer], codes: Codes) -> Grid:
    """The grid of what these layers are given."""
    weights = [matrix(layer) for layer in layers if len(layer.shape) == 2]
    scaled = scaling(seen, weights, codes) if len(weights) == len(layers) else None
    return grid_over(seen, scaled, codes)


def _made(seen: Seen, codes: Codes) -> Grid | None:
    return None if seen.made is None else grid_over(seen.made, codes=codes)


def _joined(first: Seen, second: Seen) -> Seen:
    made: Range | None = None
    if first.made is not None and second.made is not None:
        made = joined(first.made, second.made)
    return Seen(joined(first.given, second.given), made)
