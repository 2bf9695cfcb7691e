"""What activations do: their largest magnitudes, and how far a half-precision graph's are from the
fp32 graph's.

Statistics are computed inside the graph, next to the values, so that no activation is kept: one run
per set of inputs, memory as in any run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.onnxruntime import lower_ort_cpu

__all__ = ["deviations", "peaks"]

_TWIN = "half/"


def peaks(model: ir.Model, points: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """The largest magnitude of each fp32 value that a node of the fused graph computes, over all
    inputs; inf with NaN."""
    names = _computed_floats(model)
    lowered = lower_ort_cpu(model).model
    present = _by_name(lowered)
    watched = [name for name in names if name in present]
    statistics = [_peak(lowered.graph, present[name]) for name in watched]
    return _largest(lowered, watched, statistics, points)


def deviations(
    model: ir.Model, candidate: ir.Model, points: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, float]:
    """The largest error of each value of a candidate against the fp32 graph's, relative to the
    value's largest magnitude.

    Args:
        model: the fused graph.
        candidate: the same graph, simulated in half precision: values keep their names.
        points: inputs.
    """
    lowered, twin = lower_ort_cpu(model).model, lower_ort_cpu(candidate).model
    names = _computed_floats(model)
    truth, rounded = _by_name(lowered), _by_name(twin)
    _join(lowered, twin)
    watched = [name for name in names if name in truth and name in rounded]
    graph = lowered.graph
    statistics = []
    for name in watched:
        error = _node(graph, "Sub", rounded[name], truth[name])
        scale = _node(graph, "Add", _peak(graph, truth[name]), _scalar(graph, 1e-30))
        statistics.append(_node(graph, "Div", _peak(graph, error), scale))
    return _largest(lowered, watched, statistics, points)


def _computed_floats(model: ir.Model) -> list[str]:
    """Names of the fp32 values that nodes compute."""
    return [
        output.name or ""
        for node in model.graph
        if node.op_type != "Constant"
        for output in node.outputs
        if output.dtype == ir.DataType.FLOAT
    ]


def _by_name(model: ir.Model) -> dict[str, ir.Value]:
    return {o.name or "": o for node in model.graph for o in node.outputs}


def _join(model: ir.Model, twin: ir.Model) -> None:
    """Move another graph's nodes into this one, reading the same inputs."""
    inputs = {value.name: value for value in model.graph.inputs}
    other = twin.graph
    for value in list(other.inputs):
        value.replace_all_uses_with(inputs[value.name])
    for value in list(other.initializers.values()):
        copy = ir.Value(
            name=f"{_TWIN}{value.name}",
            type=value.type,
            shape=value.shape,
            const_value=value.const_value,
        )
        model.graph.register_initializer(copy)
        value.replace_all_uses_with(copy)
    other.outputs.clear()
    nodes = list(other)
    other.remove(nodes)
    for node in nodes:
        node.name = f"{_TWIN}{node.name}"
        for output in node.outputs:
            output.name = f"{_TWIN}{output.name}"
    model.graph.extend(nodes)
    for domain, version in twin.graph.opset_imports.items():
        model.graph.opset_imports.setdefault(domain, version)


def _peak(graph: ir.Graph, value: ir.Value) -> ir.Value:
    return _node(graph, "ReduceMax", _node(graph, "Abs", value), keepdims=0)


def _scalar(graph: ir.Graph, number: float) -> ir.Value:
    return _node(graph, "Constant", value=ir.tensor(np.array(number, np.float32)))


def _node(graph: ir.Graph, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
    node = ir.node(op, list(inputs), attributes=attributes or None)
    graph.append(node)
    return node.outputs[0]


def _largest(
    model: ir.Model,
    names: list[str],
    statistics: list[ir.Value],
    points: Iterable[Mapping[str, NDArray[Any]]],
) -> dict[str, float]:
    """The largest number that each statistic reaches over all points, by the name it is of."""
    model.graph.outputs.clear()
    for i, statistic in enumerate(statistics):
        statistic.name = f"statistic/{i}"
        statistic.type, statistic.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        model.graph.outputs.append(statistic)
    found = dict.fromkeys(names, 0.0)
    for inputs in points:
        given = {value.name for value in model.graph.inputs}
        results = run_once(model.clone(), {k: v for k, v in inputs.items() if k in given})
        for name, result in zip(names, results, strict=True):
            number = float(result)
            found[name] = float("inf") if np.isnan(number) else max(found[name], number)
    return found
