"""What a linear layer that stays in fp32 costs: its time, and that of the integer product which
would stand in its place, each alone, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from crossfuse.targets.cpu_run import opened
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer, linear_layers
from crossfuse.targets.quantize.rewrite import Form, RoundedWeights, rewrite
from crossfuse.targets.quantize.sensitivity import Sensitivity
from crossfuse.targets.quantize.static_plan import StaticPlan

__all__ = ["MOST_LAYERS", "seconds_saved"]

MOST_LAYERS = 32
"""Of more layers, the first ones are measured."""

_ROUNDS = 7
_NODE = "layer"


def seconds_saved(
    kept: Sequence[Sensitivity], form: Form, static: StaticPlan | None = None
) -> dict[str, float]:
    """Site → seconds per run that the form would have saved at the first calibration inputs;
    negative where fp32 is faster. Convolutions, and layers for another engine than ONNX Runtime,
    are not measured.

    Args:
        kept: layers with the rows that each was given.
        form: how they would have been quantised.
        static: grids for what they are given, in place of the form.
    """
    if static is not None and static.qdq:
        return {}
    products = [one for one in kept if one.layer.node.op_type not in CONVOLUTIONS]
    return {
        one.layer.site: _saved(
            one.layer, one.rows, form if static is None else Form(grids=static.of(one.layer))
        )
        for one in products[:MOST_LAYERS]
    }


def _saved(layer: LinearLayer, rows: int, form: Form) -> float:
    plain = _alone(layer)
    integers = plain.clone()
    rewrite(integers, [(one, form) for one in linear_layers(integers)], RoundedWeights())
    inner = plain.graph.inputs[0].shape
    assert inner is not None
    width = inner[-1]
    assert isinstance(width, int)
    lead = layer.shape[:-2] if layer.node.op_type == "MatMul" else ()
    rows = max(rows // int(np.prod(lead, dtype=np.int64)), 1)
    x = np.random.default_rng(0).standard_normal((*lead, rows, width)).astype(np.float32)
    with opened(plain) as wide, opened(integers) as narrow:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_ROUNDS):
            for run, found in zip((wide, narrow), times, strict=True):
                start = time.perf_counter()
                run({"x": x})
                found.append(time.perf_counter() - start)
    return statistics.median(times[0]) - statistics.median(times[1])


def _alone(layer: LinearLayer) -> ir.Model:
    """A graph of the layer and nothing else; of a Gemm the product, without its bias."""
    assert layer.tensor is not None
    node = layer.node
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    size, columns = layer.shape[-1:-3:-1] if transposed else layer.shape[-2:]
    lead = layer.shape[:-2]
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([*lead, "rows", size])
    )
    array = layer.tensor.numpy()
    array = np.ascontiguousarray(array.T) if transposed else array
    weights = ir.Value(
        name="w",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name="w"),
    )
    product = ir.node("MatMul", [x, weights], name=_NODE)
    y = product.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    y.shape = ir.Shape([*lead, "rows", columns])
    graph = ir.Graph(
        [x], [y], nodes=[product], initializers=[weights], opset_imports={"": 23}, name="alone"
    )
    return ir.Model(graph, ir_version=10)
