"""Write powers of a number as exponentials, and their differences plainly, so that a softmax has
one base.

Rules:

1. ``Pow(b, x)`` of a positive number becomes ``Exp(log(b) · x)``: ``exp2`` is one of them.
2. A positive number that multiplies a difference in the exponent multiplies both sides of it:
``exp(k (x − m))`` becomes ``exp(k x − k m)``, and a maximum stands in front of the number again. A
number that comes to 1, as the logarithm of 2 beside that of e to the base 2, goes.

It must not fire on powers that go into no sum and no product of matrices, nor where the number
makes scores overflow that did not; nor on powers of 1, which are no exponentials.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.matching.softmax_chain import active_values, scalar_of
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.magnitudes import magnitudes_behind
from crossfuse.graph.op_classes import LAYOUT_OPS, is_onnx

__all__ = ["UnifyExponentialsPass"]

_ROUNDING = 1e-6
"""Factors this near to 1 are 1: logarithms written as numbers of float32."""

_WEIGHING = frozenset({"ReduceSum", "ReduceL1", "MatMul", "Einsum"})
_PASSED = LAYOUT_OPS | {"Cast", "Identity", "Where", "Mul", "Div", "Add", "Dropout", "Expand"}
_STEPS = 8
"""So many operators lie between a power and its sum or product."""

_LARGEST = float(np.finfo(np.float32).max)


class _Power(NamedTuple):
    """``exp(factor · exponent)``."""

    exponent: ir.Value
    factor: float


class _Times(NamedTuple):
    """``number · value``, of a positive number."""

    value: ir.Value
    number: float


class UnifyExponentialsPass(FusionPass):
    """Powers of a number → ``Exp``."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        active = active_values(model.graph)
        scaling = _Scaling()
        modified = False
        for node in list(model.graph):
            power = _power(node)
            if power is None or power.exponent not in active or not _weighs(node.outputs[0]):
                continue
            if _overflows(power) or (node.op_type == "Exp" and not _is_scaled(power.exponent)):
                continue
            out = node.outputs[0]
            exponent = scaling.scaled(power.exponent, power.factor)
            made = scaling.build.op("Exp", exponent, like=out, shape=out.shape)
            scaling.build.replace(node, made)
            modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return FusionResult(model, modified)


def _power(node: ir.Node) -> _Power | None:
    """What a node is the exponential of."""
    if not is_onnx(node, "Exp", "Pow"):
        return None
    exponent = node.inputs[-1]
    base = math.e if node.op_type == "Exp" else scalar_of(node.inputs[0])
    if exponent is None or base is None or base <= 0 or base == 1 or not math.isfinite(base):
        return None
    floating = exponent.dtype is not None and exponent.dtype.is_floating_point()
    wider = (exponent.shape is None) or exponent.shape != node.outputs[0].shape
    return _Power(exponent, math.log(base)) if floating and not wider else None


def _weighs(value: ir.Value, steps: int = _STEPS) -> bool:
    """Whether a value goes into a sum or a product of matrices."""
    users = [node for node, _ in value.uses() if is_onnx(node)]
    if any(node.op_type in _WEIGHING for node in users):
        return True
    further = [node for node in users if node.op_type in _PASSED and steps]
    return any(_weighs(node.outputs[0], steps - 1) for node in further)


def _overflows(power: _Power) -> bool:
    """Whether the factor may take a number beyond float32: the lowest one, that fills."""
    known = magnitudes_behind(power.exponent).largest
    return any(n * abs(power.factor) > _LARGEST for n in known if n <= _LARGEST)


def _is_scaled(exponent: ir.Value) -> bool:
    """Whether the exponent is a positive number times a difference."""
    times = _times(exponent)
    difference = times.value.producer() if times is not None else None
    return difference is not None and is_onnx(difference, "Sub")


def _times(value: ir.Value) -> _Times | None:
    """What a value is a positive number times of."""
    node = value.producer()
    if node is None or not is_onnx(node, "Mul", "Div"):
        return None
    sides = [tuple(node.inputs)]
    if node.op_type == "Mul":
        sides.append((node.inputs[1], node.inputs[0]))
    for one, other in sides:
        number = scalar_of(other)
        if one is not None and one.shape == value.shape and number is not None and number > 0:
            return _Times(one, 1 / number if node.op_type == "Div" else number)
    return None


class _Scaling:
    """Values times numbers, each made once."""

    def __init__(self) -> None:
        self.build = GraphBuilder()
        self._made: dict[tuple[ir.Value, float], ir.Value] = {}

    def scaled(self, value: ir.Value, factor: float) -> ir.Value:
        """A value times a number; a positive one goes to the inside of differences."""
        times = _times(value)
        if times is not None:
            return self.scaled(times.value, factor * times.number)
        if abs(factor - 1) < _ROUNDING:
            return value
        key = (value, round(factor, 12))
        if key not in self._made:
            self._made[key] = self._scale(value, factor)
        return self._made[key]

    def _scale(self, value: ir.Value, factor: float) -> ir.Value:
        node, build = value.producer(), self.build
        moving = ("Sub", "Neg", "ReduceMax") if factor > 0 else ("Sub", "Neg")
        if node is not None and is_onnx(node, *moving):
            sides = 2 if node.op_type == "Sub" else 1
            inputs = [self.scaled(v, factor) for v in node.inputs[:sides] if v is not None]
            given = {name: attribute.value for name, attribute in node.attributes.items()}
            operands = (*inputs, *node.inputs[sides:])
            return build.op(node.op_type, *operands, like=value, shape=value.shape, **given)
        assert value.dtype is not None
        number = build.constant(factor, value.dtype.numpy())
        return build.op("Mul", value, number, like=value, shape=value.shape)
