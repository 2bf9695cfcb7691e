"""What int8 does to the results of each linear layer, all layers in one run per set of inputs.

Beside each layer of the fp32 graph stands its integer product, which is given the same numbers. The
graph compares the two where they are, so that no activation is kept. Errors of layers before don't
reach those behind: what a layer adds by itself is measured. Where a few rows are far larger than
the rest, what happens to the rest does not show in the whole: so rows are measured one by one, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.graph.builder import GraphBuilder
from crossfuse.targets.cpu_run import opened
from crossfuse.targets.onnxruntime import lower_ort_cpu
from crossfuse.targets.precision.simulate import write_out_fp8
from crossfuse.targets.quantize.layers import LinearLayer, linear_layers
from crossfuse.targets.quantize.rewrite import MICROSOFT, Form, IntegerProducts, RoundedWeights
from crossfuse.targets.quantize.rules import quantizable
from crossfuse.targets.quantize.static_plan import StaticPlan

__all__ = ["Sensitivity", "sensitivities"]

_STATISTICS = 4
_SMALLEST_ROW = 1e-8
"""Rows below this share of the mean squared row count as that large."""


@dataclass(frozen=True)
class Sensitivity:
    """What integers do to a layer.

    Attributes:
        layer: of the lowered graph.
        error: RMS error of its results relative to their RMS, the largest over all inputs.
        rows: how many rows it was given at the first inputs.
        row_error: the same of single rows, RMS over the rows of the last axis.
    """

    layer: LinearLayer
    error: float
    rows: int
    row_error: float = 0.0

    @property
    def worst(self) -> float:
        """The larger of the two errors."""
        return max(self.error, self.row_error)


def sensitivities(
    model: ir.Model,
    points: Iterable[Mapping[str, NDArray[Any]]],
    form: Form,
    made: RoundedWeights,
    static: StaticPlan | None = None,
) -> list[Sensitivity]:
    """All layers that may be quantised, the most sensitive first.

    Args:
        model: the whole fused graph, in fp32.
        points: inputs.
        form: how the layers are quantised.
        made: integers of earlier calls.
        static: grids for what layers are given, in place of the form.
    """
    found = quantizable(model, None if static is None else static.codes)
    chosen = {
        layer.key: layer.site for layer in found if static is None or static.of(layer) is not None
    }
    lowered = lower_ort_cpu(model).model
    layers = [layer for layer in linear_layers(lowered, chosen) if layer.key in chosen]
    if not layers:
        return []
    forms = [form if static is None else Form(grids=static.of(one), qdq=True) for one in layers]
    _watch(lowered, list(zip(layers, forms, strict=True)), made)
    errors, by_row, rows = ([0.0] * len(layers) for _ in range(3))
    given = {value.name for value in lowered.graph.inputs}
    with opened(lowered) as run:
        for number, inputs in enumerate(points):
            results = run({name: array for name, array in inputs.items() if name in given})
            for i, layer in enumerate(layers):
                wrong, right, row, size = (
                    float(one) for one in results[i * _STATISTICS :][:_STATISTICS]
                )
                errors[i] = max(errors[i], _relative(wrong, right))
                by_row[i] = max(by_row[i], _relative(row if wrong else 0.0, 1.0))
                if number == 0:
                    rows[i] = size // max(layer.shape[_inner(layer)], 1)
    measured = [
        Sensitivity(layer, error, int(count), row)
        for layer, error, count, row in zip(layers, errors, rows, by_row, strict=True)
    ]
    return sorted(measured, key=lambda one: -one.worst)


def _watch(
    model: ir.Model, layers: Iterable[tuple[LinearLayer, Form]], made: RoundedWeights
) -> None:
    """Make four numbers per layer the graph's outputs: the squared error, the squared results, the
    mean over rows of the one by the other, and how many numbers it is given."""
    graph, build = model.graph, GraphBuilder()
    products = IntegerProducts(graph, made)
    outputs: list[ir.Value] = []
    for layer, form in layers:
        result, source = layer.node.outputs[0], layer.node.inputs[0]
        assert source is not None
        product = products.of(build, layer, form)
        error = build.op("Sub", product.result, result)
        for value, dtype in (
            (build.op("ReduceSumSquare", error, keepdims=0), ir.DataType.FLOAT),
            (build.op("ReduceSumSquare", result, keepdims=0), ir.DataType.FLOAT),
            (_by_row(build, error, result), ir.DataType.FLOAT),
            (build.op("Size", source), ir.DataType.INT64),
        ):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape([])
            value.name = f"statistic/{len(outputs)}"
            outputs.append(value)
    for number, node in enumerate(build.nodes):
        node.name = f"beside/{number}"
    build.append_to(graph)
    graph.outputs[:] = outputs
    write_out_fp8(graph)
    graph.opset_imports.setdefault(MICROSOFT, 1)


def _by_row(build: GraphBuilder, error: ir.Value, result: ir.Value) -> ir.Value:
    """The mean over rows of the squared error by the squared results."""
    last = build.ints(-1)
    wrong, right = (build.op("ReduceSumSquare", one, last, keepdims=0) for one in (error, result))
    smallest = build.constant(_SMALLEST_ROW, np.float32)
    least = build.op("Mul", build.op("ReduceMean", right, keepdims=0), smallest)
    return build.op("ReduceMean", build.op("Div", wrong, build.op("Max", right, least)), keepdims=0)


def _relative(wrong: float, right: float) -> float:
    """NaN counts as the worst; results that are all 0 have no error if int8 gives 0, too."""
    if wrong == 0:
        return 0.0
    ratio = (wrong / right) ** 0.5 if right > 0 else float("inf")
    return ratio if ratio == ratio else float("inf")


def _inner(layer: LinearLayer) -> int:
    """The axis of the weights that is summed over."""
    attributes = layer.node.attributes
    return -1 if layer.node.op_type == "Gemm" and attributes.get_int("transB", 0) != 0 else -2
