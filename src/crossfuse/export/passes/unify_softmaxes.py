"""Write every softmax as ``Softmax``, so that attention has one form.

Rules:

1. ``exp(log_softmax(x))`` and ``exp(x − logsumexp(x))`` are a softmax, the latter also where the
logarithm of the sum is written out, with or without something that is subtracted first.
2. So is ``w / sum(w)`` where ``w`` is ``exp(x)`` or ``softmax(x)``: the sum over one axis cancels
   what multiplies all of it. What is subtracted from ``x`` and does not differ along the axis (a
   maximum) cancels as well.
3. Where ``w`` is 0 by a mask, the mask fills ``x`` with −inf.
4. A quotient behind the product with the values, ``(w v) / sum(w)``, is one in front of it.
5. A number added to the sum, or a limit below it, falls away where the sum can't come near it: it
   is 0, or at least 1, as behind a maximum that is subtracted and masks that ``x`` has as well.
6. A row of finite fills whose exponentials are all 0 is 0 / 0. Where NaN is replaced behind the
   quotient, such fills are −inf.
7. What replaces infinite probabilities (``nan_to_num``) falls away behind a softmax.

It must not fire where a sum is along another axis than a softmax before it; where the scores hold
fills so low that the logarithm of a sum is nothing beside them; where weights differ from their
sum's; where a number is added to a sum that may be as small; or on values that depend on no input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.matching.conditions import same_value
from crossfuse.export.matching.softmax_chain import active_values, scalar_of
from crossfuse.export.matching.written_softmax import (
    Sum,
    WeightMask,
    Weights,
    is_sum_alone,
    producer,
    reduction_of,
    sum_of,
    unconverted,
    underflowing_fills,
    weights_of,
    without_shift,
)
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.magnitudes import magnitudes_behind
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, rank_of

__all__ = ["UnifySoftmaxesPass"]

_ABSORBS = 1e10
"""A number beside which a logarithm loses digits that count, in float64 too."""


class UnifySoftmaxesPass(FusionPass):
    """Softmaxes written out → ``Softmax``."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        active = active_values(model.graph)
        modified = False
        for node in list(model.graph):
            if not is_onnx(node) or not any(v in active for v in node.inputs):
                continue
            made = _guarded(node) or _rewritten(node)
            modified |= made
        if modified:
            RemoveUnusedNodesPass()(model)
        return FusionResult(model, modified)


def _rewritten(node: ir.Node) -> bool:
    if node.op_type == "Exp":
        return _exponential_of_logarithm(node)
    if node.op_type == "Div":
        return _quotient(node, node.inputs[0], node.inputs[1])
    if node.op_type == "Mul":
        for one, other in (node.inputs, tuple(reversed(node.inputs))):
            inverse = other.producer() if other is not None else None
            if inverse is not None and inverse.op_type == "Reciprocal":
                return _quotient(node, one, inverse.inputs[0])
    return False


def _guarded(node: ir.Node) -> bool:
    """``Where(p is infinite, number, p)`` behind a softmax → ``p``."""
    if node.op_type != "Where" or scalar_of(node.inputs[1]) is None:
        return False
    both = node.inputs[0].producer() if node.inputs[0] is not None else None
    checks = [] if both is None or both.op_type != "And" else [producer(v) for v in both.inputs]
    infinite = next((c for c in checks if c is not None and c.op_type == "IsInf"), None)
    softmax = None if infinite is None else producer(infinite.inputs[0])
    kept = node.inputs[2]
    if softmax is None or softmax.op_type != "Softmax" or kept is None:
        return False
    GraphBuilder().replace(node, kept)
    return True


def _exponential_of_logarithm(node: ir.Node) -> bool:
    logarithm = producer(node.inputs[0])
    if logarithm is None:
        return False
    scores = logarithm.inputs[0]
    assert scores is not None
    if logarithm.op_type == "LogSoftmax":
        axis = logarithm.attributes.get_int("axis", -1)
        assert axis is not None
        return _write(node, scores, (), axis)
    if logarithm.op_type != "Sub":
        return False
    along = _axis_of_logarithm(logarithm.inputs[1], scores)
    if along is None or _may_absorb(scores):
        return False
    return _write(node, scores, (), along)


def _axis_of_logarithm(value: ir.Value | None, scores: ir.Value) -> int | None:
    """The axis along which a value is the logarithm of the sum of the scores' exponentials."""
    total = reduction_of(value, "ReduceLogSumExp")
    if total is not None:
        return total.axis if same_value(total.of, scores) else None
    node = producer(value)
    if node is None or node.op_type not in ("Log", "Add"):
        return None
    if node.op_type == "Log":
        found = _sum_of_exponentials(node)
        return found[1] if found is not None and same_value(found[0], scores) else None
    for shift, logarithm in (node.inputs, tuple(reversed(node.inputs))):
        found = _sum_of_exponentials(producer(logarithm))
        shifted = None if found is None else producer(found[0])
        if found is None or shifted is None or shifted.op_type != "Sub":
            continue
        flat = dim_of(shift, found[1]) == 1 if rank_of(shift) == rank_of(scores) else False
        if flat and same_value(shifted.inputs[0], scores) and same_value(shifted.inputs[1], shift):
            return found[1]
    return None


def _sum_of_exponentials(logarithm: ir.Node | None) -> tuple[ir.Value, int] | None:
    """What the exponentials are of in the logarithm of their sum, and the sum's axis."""
    if logarithm is None or logarithm.op_type != "Log":
        return None
    total = reduction_of(logarithm.inputs[0], "ReduceSum", "ReduceL1")
    exponential = None if total is None else producer(total.of)
    if total is None or exponential is None or exponential.op_type != "Exp":
        return None
    exponent = exponential.inputs[0]
    return None if exponent is None else (exponent, total.axis)


def _may_absorb(scores: ir.Value) -> bool:
    """Whether a row of fills may be so low that the logarithm of its sum is nothing beside it."""
    behind = magnitudes_behind(scores)
    return behind.outside or any(_ABSORBS <= n < math.inf for n in behind.largest)


def _quotient(node: ir.Node, above: ir.Value | None, below: ir.Value | None) -> bool:
    total = sum_of(below)
    if total is None or above is None:
        return False
    if same_value(unconverted(above), unconverted(total.of)):
        weights = weights_of(above)
        if weights is None or not is_sum_alone(weights, total):
            return False
        masks = _masks(weights, total.axis, node)
        if masks is None:
            return False
        return _write(node, without_shift(weights, total.axis), masks, total.axis)
    return _quotient_of_product(node, above, total)


def _quotient_of_product(node: ir.Node, above: ir.Value, total: Sum) -> bool:
    """``(w v) / sum(w)`` → ``softmax v``."""
    product = producer(above)
    if product is None or product.op_type != "MatMul" or total.axis != -1:
        return False
    left, values = product.inputs
    weights = weights_of(left) if left is not None and same_value(left, total.of) else None
    if weights is None or not is_sum_alone(weights, total):
        return False
    masks = _masks(weights, -1, node)
    if masks is None:
        return False
    build = GraphBuilder()
    softmax = _softmax(build, without_shift(weights, -1), masks, -1)
    out = node.outputs[0]
    build.replace(node, build.op("MatMul", softmax, values, like=out, shape=out.shape))
    return True


def _masks(weights: Weights, axis: int, quotient: ir.Node) -> tuple[WeightMask, ...] | None:
    """What the softmax is masked by; None where that can't be read."""
    if not _is_nan_replaced(quotient):
        return weights.masks
    underflowing = underflowing_fills(weights, axis)
    return None if underflowing is None else (*weights.masks, *underflowing)


def _is_nan_replaced(quotient: ir.Node) -> bool:
    """Whether NaN is asked for between a quotient and the next product."""
    seen, pending = {quotient}, [quotient]
    while pending:
        users = {user for v in pending.pop().outputs for user, _ in v.uses()}
        if any(user.op_type == "IsNaN" for user in users):
            return True
        new = [user for user in users if user.op_type != "MatMul" and user not in seen]
        seen.update(new)
        pending += new
    return False


def _write(node: ir.Node, scores: ir.Value, masks: Sequence[WeightMask], axis: int) -> bool:
    build = GraphBuilder()
    build.replace(node, _softmax(build, scores, masks, axis))
    return True


def _softmax(
    build: GraphBuilder, scores: ir.Value, masks: Sequence[WeightMask], axis: int
) -> ir.Value:
    assert scores.dtype is not None
    for mask in masks:
        condition = mask.condition
        if condition.dtype != ir.DataType.BOOL:
            condition = build.op("Cast", condition, shape=condition.shape, to=ir.DataType.BOOL)
            condition.type = ir.TensorType(ir.DataType.BOOL)
        hidden = build.constant(-np.inf, scores.dtype.numpy())
        order = (hidden, scores) if mask.hides else (scores, hidden)
        scores = build.op("Where", condition, *order, like=scores, shape=scores.shape)
    return build.op("Softmax", scores, like=scores, shape=scores.shape, axis=axis)
