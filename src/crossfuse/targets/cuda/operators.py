"""Operators that ONNX Runtime's CUDA provider has no kernel for (`missing`), written in others that
have one.

Otherwise they would go to the CPU, with copies both ways:

==========================  ===========================================================================================
``MaxPool``                 maxima of strided slices, axis by axis; without ceil mode and indices
``InstanceNormalization``   moments over the positions, in the input's type
``GroupNormalization``      moments over each group
``Elu``, ``Celu``, ``Selu`` ``max(x, 0) + α·(exp(min(x, 0)/α′) − 1)``
``ThresholdedRelu``         ``Where``
``Mean``                    ``Sum`` times a constant
``Sinh``, ``Cosh``, ``Tan`` by ``Exp``; ``Sin`` over ``Cos``
``Dropout``                 nothing: it is the identity here
==========================  ===========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

__all__ = ["replace_operators"]


def replace_operators(model: ir.Model) -> None:
    """Write operators without a CUDA kernel in others that have one, in place."""
    # From opset 21 on, scale and shift are per channel, before per group.
    per_channel = model.graph.opset_imports.get("", 0) >= 21
    forms: dict[str, Callable[[Tape, ir.Node], ir.Value | None]] = {
        **_FORMS,
        "GroupNormalization": partial(_group_norm, per_channel=per_channel),
    }
    for node in list(model.graph):
        form = forms.get(node.op_type) if node.domain == "" else None
        if form is None:
            continue
        tape = Tape()
        made = form(tape, node)
        if made is None:
            continue
        for new in tape.nodes:
            new.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, tape.nodes)
        old = node.outputs[0]
        replaced = node.inputs[0] is made
        if not replaced:
            made.type, made.shape, made.name = old.type, old.shape, old.name
        elif old.is_graph_output():
            made = tape.op("Identity", [made])
            made.type, made.shape, made.name = old.type, old.shape, old.name
            model.graph.insert_before(node, [tape.nodes[-1]])
        old.name = None
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _number(tape: Tape, node: ir.Node, number: float) -> ir.Value:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return tape.op(
        "Constant",
        [],
        attributes={"value": ir.tensor(np.array(number, (dtype or ir.DataType.FLOAT).numpy()))},
    )


def _ints(tape: Tape, *values: int) -> ir.Value:
    return tape.op("Constant", [], attributes={"value": ir.tensor(np.array(values, np.int64))})


def _exponential(
    tape: Tape, node: ir.Node, alpha: float, inner: float, gamma: float = 1.0
) -> ir.Value:
    """``γ·(max(x, 0) + α·(exp(min(x, 0)/inner) − 1))``."""
    x, zero = node.inputs[0], _number(tape, node, 0)
    below = tape.op("Min", [x, zero])
    if inner != 1:
        below = tape.op("Div", [below, _number(tape, node, inner)])
    bent = tape.op("Sub", [tape.op("Exp", [below]), _number(tape, node, 1)])
    if alpha != 1:
        bent = tape.op("Mul", [bent, _number(tape, node, alpha)])
    whole = tape.op("Add", [tape.op("Max", [x, zero]), bent])
    return whole if gamma == 1 else tape.op("Mul", [whole, _number(tape, node, gamma)])


def _elu(tape: Tape, node: ir.Node) -> ir.Value:
    return _exponential(tape, node, node.attributes.get_float("alpha", 1.0), 1.0)


def _celu(tape: Tape, node: ir.Node) -> ir.Value:
    alpha = node.attributes.get_float("alpha", 1.0)
    return _exponential(tape, node, alpha, alpha)


def _selu(tape: Tape, node: ir.Node) -> ir.Value:
    alpha, gamma = (
        node.attributes.get_float("alpha", 1.6732632),
        node.attributes.get_float("gamma", 1.0507010),
    )
    return _exponential(tape, node, alpha, 1.0, gamma)


def _thresholded(tape: Tape, node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    beyond = tape.op("Greater", [x, _number(tape, node, node.attributes.get_float("alpha", 1.0))])
    return tape.op("Where", [beyond, x, _number(tape, node, 0)])


def _mean(tape: Tape, node: ir.Node) -> ir.Value:
    return tape.op(
        "Mul", [tape.op("Sum", list(node.inputs)), _number(tape, node, 1 / len(node.inputs))]
    )


def _hyperbolic(sign: int) -> Callable[[Tape, ir.Node], ir.Value]:
    def form(tape: Tape, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        ends = [tape.op("Exp", [x]), tape.op("Exp", [tape.op("Neg", [x])])]
        return tape.op(
            "Mul", [tape.op("Add" if sign > 0 else "Sub", ends), _number(tape, node, 0.5)]
        )

    return form


def _tan(tape: Tape, node: ir.Node) -> ir.Value:
    return tape.op("Div", [tape.op("Sin", [node.inputs[0]]), tape.op("Cos", [node.inputs[0]])])


def _dropout(tape: Tape, node: ir.Node) -> ir.Value | None:
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    return None if mask is not None and mask.uses() else node.inputs[0]


def _instance_norm(tape: Tape, node: ir.Node) -> ir.Value | None:
    x, scale, shift = node.inputs[:3]
    if x is None or x.shape is None or len(x.shape) < 3:
        return None
    normal = _normal(tape, node, x, range(2, len(x.shape)))
    return _scaled(tape, normal, scale, shift, len(x.shape) - 2)


def _group_norm(tape: Tape, node: ir.Node, *, per_channel: bool) -> ir.Value | None:
    x, scale, shift = node.inputs[:3]
    if x is None or x.shape is None:
        return None
    groups = tape.op("Reshape", [x, _ints(tape, 0, node.attributes["num_groups"].as_int(), -1)])
    normal = _normal(tape, node, groups, (2,))
    if not per_channel:
        normal = _scaled(tape, normal, scale, shift, 1)
    whole = tape.op("Reshape", [normal, tape.op("Shape", [x])])
    return _scaled(tape, whole, scale, shift, len(x.shape) - 2) if per_channel else whole


def _normal(tape: Tape, node: ir.Node, x: ir.Value, over: Iterable[int]) -> ir.Value:
    """``(x − mean) / sqrt(variance + ε)`` over axes."""
    axes = _ints(tape, *over)
    centred = tape.op("Sub", [x, tape.op("ReduceMean", [x, axes], attributes={"keepdims": 1})])
    variance = tape.op(
        "ReduceMean", [tape.op("Mul", [centred, centred]), axes], attributes={"keepdims": 1}
    )
    epsilon = _number(tape, node, node.attributes.get_float("epsilon", 1e-5))
    return tape.op("Div", [centred, tape.op("Sqrt", [tape.op("Add", [variance, epsilon])])])


def _scaled(
    tape: Tape, x: ir.Value, scale: ir.Value | None, shift: ir.Value | None, behind: int
) -> ir.Value:
    """Times a scale and plus a shift along axis 1, which has so many axes behind it."""
    column = _ints(tape, -1, *[1] * behind)
    scaled = tape.op("Mul", [x, tape.op("Reshape", [scale, column])])
    return tape.op("Add", [scaled, tape.op("Reshape", [shift, column])])


def _max_pool(tape: Tape, node: ir.Node) -> ir.Value | None:
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
        around = _ints(tape, 0, 0, *pads[:rank], 0, 0, *pads[rank:])
        x = tape.op("Pad", [x, around, _number(tape, node, -np.inf)])
    for i in range(rank):
        axis, reach = i + 2, dilations[i] * (kernel[i] - 1)
        length = tape.op("Shape", [x], attributes={"start": axis, "end": axis + 1})
        parts = []
        for step in range(0, reach + 1, dilations[i]):
            end = tape.op("Sub", [length, _ints(tape, reach - step)])
            parts.append(
                tape.op(
                    "Slice", [x, _ints(tape, step), end, _ints(tape, axis), _ints(tape, strides[i])]
                )
            )
        x = parts[0] if len(parts) == 1 else tape.op("Max", parts)
    return x if x is not node.inputs[0] else tape.op("Identity", [x])


_FORMS: Mapping[str, Callable[[Tape, ir.Node], ir.Value | None]] = {
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
