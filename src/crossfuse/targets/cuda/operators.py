"""Operators that ONNX Runtime's CUDA provider has no kernel for (`missing`), written in others that
have one.

Otherwise they would go to the CPU, with copies both ways:

==========================  ================================================================
``MaxPool``                 maxima of strided slices, axis by axis; without ceil mode and indices
``InstanceNormalization``   moments over the positions, in the input's type
``GroupNormalization``      moments over each group
``Elu``, ``Celu``, ``Selu`` ``max(x, 0) + α·(exp(min(x, 0)/α′) − 1)``
``ThresholdedRelu``         ``Where``
``Mean``                    ``Sum`` times a constant
``Sinh``, ``Cosh``, ``Tan`` by ``Exp``; ``Sin`` over ``Cos``
``Dropout``                 nothing: it is the identity here
==========================  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from crossfuse.graph.builder import GraphBuilder

__all__ = ["replace_operators"]


def replace_operators(model: ir.Model) -> None:
    """Write operators without a CUDA kernel in others that have one, in place."""
    # From opset 21 on, scale and shift are per channel, before per group.
    per_channel = model.graph.opset_imports.get("", 0) >= 21
    forms: dict[str, Callable[[GraphBuilder, ir.Node], ir.Value | None]] = {
        **_FORMS,
        "GroupNormalization": partial(_group_norm, per_channel=per_channel),
    }
    for node in list(model.graph):
        form = forms.get(node.op_type) if node.domain == "" else None
        if form is None:
            continue
        build = GraphBuilder()
        made = form(build, node)
        if made is not None:
            build.replace(node, made)


def _number(build: GraphBuilder, node: ir.Node, number: float) -> ir.Value:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return build.constant(number, (dtype or ir.DataType.FLOAT).numpy())


def _exponential(
    build: GraphBuilder, node: ir.Node, alpha: float, inner: float, gamma: float = 1.0
) -> ir.Value:
    """``γ·(max(x, 0) + α·(exp(min(x, 0)/inner) − 1))``."""
    x, zero = node.inputs[0], _number(build, node, 0)
    below = build.op("Min", x, zero)
    if inner != 1:
        below = build.op("Div", below, _number(build, node, inner))
    bent = build.op("Sub", build.op("Exp", below), _number(build, node, 1))
    if alpha != 1:
        bent = build.op("Mul", bent, _number(build, node, alpha))
    whole = build.op("Add", build.op("Max", x, zero), bent)
    return whole if gamma == 1 else build.op("Mul", whole, _number(build, node, gamma))


def _elu(build: GraphBuilder, node: ir.Node) -> ir.Value:
    return _exponential(build, node, node.attributes.get_float("alpha", 1.0), 1.0)


def _celu(build: GraphBuilder, node: ir.Node) -> ir.Value:
    alpha = node.attributes.get_float("alpha", 1.0)
    return _exponential(build, node, alpha, alpha)


def _selu(build: GraphBuilder, node: ir.Node) -> ir.Value:
    alpha, gamma = (
        node.attributes.get_float("alpha", 1.6732632),
        node.attributes.get_float("gamma", 1.0507010),
    )
    return _exponential(build, node, alpha, 1.0, gamma)


def _thresholded(build: GraphBuilder, node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    beyond = build.op("Greater", x, _number(build, node, node.attributes.get_float("alpha", 1.0)))
    return build.op("Where", beyond, x, _number(build, node, 0))


def _mean(build: GraphBuilder, node: ir.Node) -> ir.Value:
    return build.op(
        "Mul", build.op("Sum", *node.inputs), _number(build, node, 1 / len(node.inputs))
    )


def _hyperbolic(sign: int) -> Callable[[GraphBuilder, ir.Node], ir.Value]:
    def form(build: GraphBuilder, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        ends = [build.op("Exp", x), build.op("Exp", build.op("Neg", x))]
        return build.op(
            "Mul", build.op("Add" if sign > 0 else "Sub", *ends), _number(build, node, 0.5)
        )

    return form


def _tan(build: GraphBuilder, node: ir.Node) -> ir.Value:
    return build.op("Div", build.op("Sin", node.inputs[0]), build.op("Cos", node.inputs[0]))


def _dropout(build: GraphBuilder, node: ir.Node) -> ir.Value | None:
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    used = mask is not None and (mask.uses() or mask.is_graph_output())
    return None if used else node.inputs[0]


def _instance_norm(build: GraphBuilder, node: ir.Node) -> ir.Value | None:
    x, scale, shift = node.inputs[:3]
    if x is None or x.shape is None or len(x.shape) < 3:
        return None
    normal = _normal(build, node, x, range(2, len(x.shape)))
    return _scaled(build, normal, scale, shift, len(x.shape) - 2)


def _group_norm(build: GraphBuilder, node: ir.Node, *, per_channel: bool) -> ir.Value | None:
    x, scale, shift = node.inputs[:3]
    if x is None or x.shape is None:
        return None
    groups = build.op("Reshape", x, build.ints(0, node.attributes["num_groups"].as_int(), -1))
    normal = _normal(build, node, groups, (2,))
    if not per_channel:
        normal = _scaled(build, normal, scale, shift, 1)
    whole = build.op("Reshape", normal, build.op("Shape", x))
    return _scaled(build, whole, scale, shift, len(x.shape) - 2) if per_channel else whole


def _normal(build: GraphBuilder, node: ir.Node, x: ir.Value, over: Iterable[int]) -> ir.Value:
    """``(x − mean) / sqrt(variance + ε)`` over axes."""
    axes = build.ints(*over)
    centred = build.op("Sub", x, build.op("ReduceMean", x, axes, keepdims=1))
    variance = build.op("ReduceMean", build.op("Mul", centred, centred), axes, keepdims=1)
    epsilon = _number(build, node, node.attributes.get_float("epsilon", 1e-5))
    return build.op("Div", centred, build.op("Sqrt", build.op("Add", variance, epsilon)))


def _scaled(
    build: GraphBuilder, x: ir.Value, scale: ir.Value | None, shift: ir.Value | None, behind: int
) -> ir.Value:
    """Times a scale and plus a shift along axis 1, which has so many axes behind it."""
    column = build.ints(-1, *[1] * behind)
    scaled = build.op("Mul", x, build.op("Reshape", scale, column))
    return build.op("Add", scaled, build.op("Reshape", shift, column))


def _max_pool(build: GraphBuilder, node: ir.Node) -> ir.Value | None:
    x, attributes = node.inputs[0], node.attributes
    kernel = attributes["kernel_shape"].as_ints()
    rank = len(kernel)
    strides = attributes.get_ints("strides") or [1] * rank
    dilations = attributes.get_ints("dilations") or [1] * rank
    pads = attributes.get_ints("pads") or [0] * (2 * rank)
    automatic = attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    rounds_up = "ceil_mode" in attributes and attributes["ceil_mode"].as_int() == 1
    if len(node.outputs) > 1 or automatic or rounds_up:
        return None
    if any(pads):
        around = build.ints(0, 0, *pads[:rank], 0, 0, *pads[rank:])
        x = build.op("Pad", x, around, _number(build, node, -np.inf))
    for i in range(rank):
        axis, reach = i + 2, dilations[i] * (kernel[i] - 1)
        length = build.op("Shape", x, start=axis, end=axis + 1)
        parts = []
        for step in range(0, reach + 1, dilations[i]):
            end = build.op("Sub", length, build.ints(reach - step))
            parts.append(
                build.op(
                    "Slice", x, build.ints(step), end, build.ints(axis), build.ints(strides[i])
                )
            )
        x = parts[0] if len(parts) == 1 else build.op("Max", *parts)
    return x if x is not node.inputs[0] else build.op("Identity", x)


_FORMS: Mapping[str, Callable[[GraphBuilder, ir.Node], ir.Value | None]] = {
    "MaxPool": _max_pool,
    "InstanceNormalization": _instance_norm,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded,
    "Mean": _mean,
    "Sinh": _hyperbolic(-1),
    "Cosh": _hyperbolic(1),
    "Tan": _tan,
    "Dropout": _dropout,
}
