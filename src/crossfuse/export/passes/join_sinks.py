"""Sinks that are computed apart from the softmax → columns beside the scores, cut off behind it.

``softmax([s, z])`` without its last column is ``eˢ / (Σ eˢ + eᶻ)``, and ``softmax(s)`` times
``sigmoid(logsumexp(s) − z)``. So the fusion needs to know one form of a sink, a column that is
joined to the scores.

Rules:

1. ``Exp(s − m) / (ReduceSum(Exp(s − m)) + Exp(z − m))`` over one axis, whatever is subtracted on
   both sides, becomes the softmax of ``s`` with ``z`` beside it. So does ``Exp(s) /
   (ReduceSum(Exp(s)) + c)`` for a number: ``z`` is its logarithm.
2. A product of softmax and values that is multiplied by ``Sigmoid(ReduceLogSumExp(s) − z)`` becomes
   the product of the softmax of ``s`` with ``z`` beside it.

It must not fire on a number in the denominator that only keeps it from 0 (10⁻⁴ or less), nor on
sums that keep no axis of size 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.matching.softmax_chain import scalar_of
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dims_of, rank_of

__all__ = ["JoinSinksPass"]

_SINK = 1e-4
"""A number in the denominator above this one takes a share of the weight."""


class _Found(NamedTuple):
    """Scores, their axis, and what stands beside them: a value of one column, or a number."""

    scores: ir.Value
    axis: int
    logits: ir.Value | float


class JoinSinksPass(FusionPass):
    """Sinks in the denominator, or in a factor behind, → columns beside the scores."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        modified = False
        for node in list(model.graph):
            modified |= (is_onnx(node, "Div") and _denominator(node)) or (
                is_onnx(node, "Mul") and _factor(node)
            )
        if modified:
            RemoveUnusedNodesPass()(model)
        return FusionResult(model, modified)


def _denominator(node: ir.Node) -> bool:
    found = _summed(node)
    if found is None:
        return False
    build = GraphBuilder()
    build.replace(node, _softmax(build, found, node.outputs[0]))
    return True


def _factor(node: ir.Node) -> bool:
    for product, gate in ((0, 1), (1, 0)):
        values, factor = (_producer(node.inputs[i]) for i in (product, gate))
        if values is None or factor is None:
            continue
        softmax = _producer(values.inputs[0]) if is_onnx(values, "MatMul") else None
        if softmax is None or not is_onnx(softmax, "Softmax") or not is_onnx(factor, "Sigmoid"):
            continue
        found = _of_logsumexp(softmax, factor)
        if found is None or len(values.outputs[0].uses()) != 1:
            continue
        build = GraphBuilder()
        weights = _softmax(build, found, softmax.outputs[0])
        result = build.op("MatMul", weights, values.inputs[1], like=node.outputs[0])
        build.replace(node, result)
        return True
    return False


def _summed(node: ir.Node) -> _Found | None:
    """``e / (Σ e + c)``."""
    powers = node.inputs[0]
    exponential, total = _producer(powers), _producer(node.inputs[1])
    if not _is(exponential, "Exp") or not _is(total, "Add"):
        return None
    assert exponential is not None
    assert total is not None
    for place in (0, 1):
        summing, beside = _producer(total.inputs[place]), total.inputs[1 - place]
        if not _is(summing, "ReduceSum") or summing is None or summing.inputs[0] is not powers:
            continue
        axis = _only_axis(summing)
        scores = exponential.inputs[0]
        if axis is None or scores is None or beside is None:
            continue
        number = scalar_of(beside)
        if number is not None:
            return _Found(scores, axis, math.log(number)) if number > _SINK else None
        sink = _producer(beside)
        if _is(sink, "Exp") and sink is not None and sink.inputs[0] is not None:
            return _unshifted(scores, axis, sink.inputs[0])
    return None


def _unshifted(scores: ir.Value, axis: int, logits: ir.Value) -> _Found | None:
    """What is subtracted from both falls away."""
    shifted, sink = _producer(scores), _producer(logits)
    own = shifted.inputs[1] if shifted is not None and _is(shifted, "Sub") else None
    if own is not None and shifted is not None and sink is not None:
        if _is(sink, "Neg") and sink.inputs[0] is own:
            return _column(shifted.inputs[0], axis, 0.0)
        if _is(sink, "Sub") and sink.inputs[1] is own:
            number = scalar_of(sink.inputs[0])
            return _column(shifted.inputs[0], axis, sink.inputs[0] if number is None else number)
    return _column(scores, axis, logits)


def _of_logsumexp(softmax: ir.Node, factor: ir.Node) -> _Found | None:
    """``Sigmoid(LSE(s) − z)`` of the scores that the softmax is over."""
    scores, difference = softmax.inputs[0], factor.inputs[0]
    taken = _producer(difference)
    logits: ir.Value | float | None = 0.0
    if _is(taken, "Sub") and taken is not None:
        difference, logits = taken.inputs
        taken = _producer(difference)
    summing = _producer(taken.inputs[0]) if _is(taken, "Unsqueeze") and taken else taken
    if not _is(summing, "ReduceLogSumExp") or summing is None or summing.inputs[0] is not scores:
        return None
    rank = rank_of(scores)
    axis = _only_axis(summing, keeps=summing is taken)
    if rank is None or axis is None or rank_of(difference) != rank:
        return None
    if softmax.attributes.get_int("axis", -1) not in (axis, axis - rank) or axis != rank - 1:
        return None
    return _column(scores, axis, logits)


def _column(scores: ir.Value | None, axis: int, logits: ir.Value | float | None) -> _Found | None:
    """The logits where they are a column beside the scores: of one element along the axis."""
    if scores is None or logits is None:
        return None
    if isinstance(logits, float):
        return _Found(scores, axis, logits)
    rank, dims = rank_of(scores), dims_of(logits)
    if rank is None or dims is None or len(dims) > rank:
        return None
    place = axis - (rank - len(dims))
    return _Found(scores, axis, logits) if place < 0 or dims[place] == 1 else None


def _softmax(build: GraphBuilder, found: _Found, like: ir.Value) -> ir.Value:
    """The softmax over scores and sink, without the sink's column."""
    scores, axis, logits = found
    dims, dtype = dims_of(scores), scores.dtype
    assert dims is not None
    assert dtype is not None
    if isinstance(logits, ir.Value):
        value = _of_rank(build, logits, len(dims))
    else:
        value = build.constant(np.full([1] * len(dims), logits), dtype.numpy())
    sizes = [build.size(scores, place) for place in range(len(dims))]
    sizes[axis] = build.ints(1)
    shape = [*dims[:axis], 1, *dims[axis + 1 :]]
    column = build.op("Expand", value, build.concat(*sizes), like=scores, shape=shape)
    size = dims[axis]
    both = size + 1 if isinstance(size, int) else f"({size}) + 1"
    whole = [*dims[:axis], both, *dims[axis + 1 :]]
    joined = build.op("Concat", scores, column, like=scores, shape=whole, axis=axis)
    weights = build.op("Softmax", joined, like=scores, shape=whole, axis=axis)
    start, end, on = build.ints(0), build.ints(-1), build.ints(axis)
    return build.op("Slice", weights, start, end, on, like=like, shape=dims)


def _of_rank(build: GraphBuilder, value: ir.Value, rank: int) -> ir.Value:
    """The value with axes of size 1 in front."""
    dims = dims_of(value)
    assert dims is not None
    missing = rank - len(dims)
    if not missing:
        return value
    axes = build.ints(*range(missing))
    return build.op("Unsqueeze", value, axes, like=value, shape=[*[1] * missing, *dims])


def _only_axis(node: ir.Node, *, keeps: bool = True) -> int | None:
    """The one axis that a reduction is over, counted from the front."""
    rank = rank_of(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = ir.convenience.get_const_tensor(given) if given is not None else None
    if rank is None or tensor is None or tensor.size != 1:
        return None
    if bool(node.attributes.get_int("keepdims", 1)) != keeps:
        return None
    return int(np.asarray(tensor.numpy()).reshape(-1)[0]) % rank


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and is_onnx(node, op_type)
