"""What linear layers are given, and what convolutions give, over calibration data: smallest and
largest numbers, computed inside the graph, so that no activation is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.targets.cpu_run import opened
from crossfuse.targets.quantize.grids import Range, joined
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer

__all__ = ["Seen", "observed", "relu_behind"]


@dataclass(frozen=True)
class Seen:
    """What was seen of a layer.

    Attributes:
        given: what it is given: per channel of products, of the whole for convolutions.
        made: of a convolution, what it gives, behind its Relu where it has one.
    """

    given: Range
    made: Range | None = None


def observed(
    model: ir.Model, layers: Sequence[LinearLayer], points: Iterable[Mapping[str, NDArray[Any]]]
) -> list[Seen]:
    """What was seen of each layer, over all inputs.

    Args:
        model: lowered for the CPU; it is changed.
        layers: of it.
        points: inputs.
    """
    watch = _Watch(model.graph)
    asked = [(watch.of(_source(layer), _axis(layer)), _made(watch, layer)) for layer in layers]
    watch.finish()
    found: list[Range] = []
    given = {value.name for value in model.graph.inputs}
    with opened(model) as run:
        for inputs in points:
            results = run({name: array for name, array in inputs.items() if name in given})
            pairs = [
                Range(*map(np.asarray, pair))
                for pair in zip(results[::2], results[1::2], strict=True)
            ]
            found = list(map(joined, found, pairs)) if found else pairs
    return [
        Seen(found[first], None if second is None else found[second]) for first, second in asked
    ]


def relu_behind(layer: LinearLayer) -> ir.Node | None:
    """The Relu that alone is given a layer's results."""
    result = layer.node.outputs[0]
    users = list(result.uses())
    if result.is_graph_output() or len(users) != 1:
        return None
    user = users[0].node
    return user if is_onnx(user, "Relu") and user.graph is layer.node.graph else None


class _Watch:
    """Makes the least and largest numbers of values the outputs of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._build = graph, GraphBuilder()
        self._numbers: dict[tuple[ir.Value, bool], int] = {}
        self._outputs: list[ir.Value] = []

    def of(self, value: ir.Value, channels: bool) -> int:
        """The number of a value's range; per channel of the last axis, or of the whole."""
        rank = None if value.shape is None else len(value.shape)
        channels = channels and rank is not None
        key = (value, channels)
        if key not in self._numbers:
            self._numbers[key] = len(self._outputs) // 2
            for op in ("ReduceMin", "ReduceMax"):
                axes = None
                if channels and rank is not None:
                    axes = self._build.constant(list(range(rank - 1)), np.int64)
                one = self._build.op(
                    op, value, axes, keepdims=0, noop_with_empty_axes=int(channels)
                )
                one.name = f"range/{len(self._outputs)}"
                one.type = ir.TensorType(ir.DataType.FLOAT)
                one.shape = ir.Shape([None] if channels else [])
                self._outputs.append(one)
        return self._numbers[key]

    def finish(self) -> None:
        self._build.append_to(self._graph)
        self._graph.outputs[:] = self._outputs


def _source(layer: LinearLayer) -> ir.Value:
    source = layer.node.inputs[0]
    assert source is not None
    return source


def _axis(layer: LinearLayer) -> bool:
    """Whether channels of its last axis are told apart: those of a product of two axes."""
    return layer.node.op_type not in CONVOLUTIONS and len(layer.shape) == 2


def _made(watch: _Watch, layer: LinearLayer) -> int | None:
    if layer.node.op_type not in CONVOLUTIONS:
        return None
    relu = relu_behind(layer)
    return watch.of((layer.node if relu is None else relu).outputs[0], channels=False)
