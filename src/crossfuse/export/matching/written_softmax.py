"""Weights that are divided by their sum: a softmax that was written out, or one that is masked and
normalised again.

`weights_of` reads exponentials, or the result of a softmax, and the masks that make some of them 0;
`sum_of` reads a sum over one axis; `is_sum_alone` tells whether a number beside the sum matters;
`underflowing_fills` reads what makes a sum 0 that a softmax's is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx_ir as ir

from crossfuse.export.matching.conditions import (
    Literal,
    hides_as_bias,
    is_binary,
    literals_of,
    same_value,
)
from crossfuse.export.matching.softmax_chain import WIDE, scalar_of
from crossfuse.graph.magnitudes import magnitudes_behind
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, rank_of

__all__ = [
    "Sum",
    "WeightMask",
    "Weights",
    "is_sum_alone",
    "producer",
    "reduction_of",
    "sum_of",
    "unconverted",
    "underflowing_fills",
    "weights_of",
    "without_shift",
]

_NOTHING = 1e-7
"""Beside a sum of at least 1 a number up to this one is nothing in float32."""

_UNDERFLOWS = -1e3
"""The exponential of a number up to this one is 0, in float64 too."""

_SMALL = 50.0
"""The exponential of a number of up to this size is none that a float32 sum loses."""

_SUMS = ("ReduceSum", "ReduceL1")


class WeightMask(NamedTuple):
    """Weights are 0 where the condition is nonzero (or, without ``hides``, zero)."""

    condition: ir.Value
    hides: bool


class Weights(NamedTuple):
    """Weights before they are divided by their sum: the exponentials' input, or the softmax's, the
    node that is either, and the masks that made some of them 0."""

    scores: ir.Value
    base: ir.Node
    masks: tuple[WeightMask, ...]


class Sum(NamedTuple):
    """A sum over one axis (counted from the end) that is kept with size 1, to which a number is
    added, or which it limits from below."""

    of: ir.Value
    axis: int
    added: float = 0.0
    limit: float = 0.0


def weights_of(value: ir.Value) -> Weights | None:
    """What weights are made of; None where they are no exponentials."""
    masks: list[WeightMask] = []
    current: ir.Value | None = value
    while (node := producer(current)) is not None:
        if node.op_type in ("Exp", "Softmax"):
            scores = node.inputs[0]
            return None if scores is None else Weights(scores, node, tuple(masks))
        step = _masked(node)
        if step is None:
            return None
        current, mask = step
        if mask is not None:
            masks.append(mask)
    return None


def _masked(node: ir.Node) -> tuple[ir.Value | None, WeightMask | None] | None:
    """The weights before one node, and the mask that the node is."""
    if _converts(node):
        return node.inputs[0], None
    if node.op_type == "Mul":
        for one, other in (node.inputs, tuple(reversed(node.inputs))):
            if other is not None and is_binary(other) and _no_larger(other, one):
                return one, WeightMask(other, hides=False)
    condition = node.inputs[0] if node.op_type == "Where" else None
    if condition is not None:
        then, otherwise = node.inputs[1:3]
        if scalar_of(then) == 0 and _no_larger(condition, otherwise):
            return otherwise, WeightMask(condition, hides=True)
        if scalar_of(otherwise) == 0 and _no_larger(condition, then):
            return then, WeightMask(condition, hides=False)
    return None


def _no_larger(mask: ir.Value, weights: ir.Value | None) -> bool:
    """Whether a mask has no axis that the weights lack."""
    if weights is None or mask.shape is None or weights.shape is None:
        return False
    pairs = zip(reversed(list(mask.shape)), reversed(list(weights.shape)), strict=False)
    return len(mask.shape) <= len(weights.shape) and all(a == 1 or a == b for a, b in pairs)


def sum_of(value: ir.Value | None) -> Sum | None:
    """The sum that a value is, with its axis kept; None where it is none."""
    plain = reduction_of(value, *_SUMS)
    if plain is not None:
        return plain
    node = producer(_kept(value))
    if node is None:
        return None
    if node.op_type in ("Add", "Max"):
        for one, other in (node.inputs, tuple(reversed(node.inputs))):
            number, total = scalar_of(other), sum_of(one)
            if number is not None and number >= 0 and total is not None:
                added = node.op_type == "Add"
                return total._replace(added=number) if added else total._replace(limit=number)
    if node.op_type == "Clip" and (len(node.inputs) < 3 or node.inputs[2] is None):
        number, total = scalar_of(node.inputs[1]), sum_of(node.inputs[0])
        return None if number is None or total is None else total._replace(limit=number)
    return None


def _kept(value: ir.Value | None) -> ir.Value | None:
    """The value before what repeats it along an axis, or converts it."""
    node = producer(value)
    while node is not None and (node.op_type == "Expand" or _converts(node)):
        value = node.inputs[0]
        node = producer(value)
    return value


def unconverted(value: ir.Value) -> ir.Value:
    """The value before conversions between float types."""
    node = producer(value)
    while node is not None and _converts(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = producer(value)
    return value


def _converts(node: ir.Node) -> bool:
    if node.op_type != "Cast":
        return node.op_type == "Identity"
    return ir.DataType(node.attributes["to"].as_int()).is_floating_point()


def reduction_of(value: ir.Value | None, *op_types: str) -> Sum | None:
    """What a value reduces and along which one axis, kept or put back; None of other operators."""
    node = producer(_kept(value))
    put_back = None
    if node is not None and node.op_type == "Unsqueeze":
        put_back, node = _one_axis(node, node.outputs[0]), producer(node.inputs[0])
        if put_back is None:
            return None
    if node is None or node.op_type not in op_types or node.inputs[0] is None:
        return None
    axis = _one_axis(node, node.inputs[0])
    keeps = bool(node.attributes.get_int("keepdims", 1))
    found = axis is not None and (keeps if put_back is None else not keeps and put_back == axis)
    return Sum(node.inputs[0], axis) if found and axis is not None else None


def _one_axis(node: ir.Node, of: ir.Value) -> int | None:
    """The one axis that a node's second input names, counted from the end of a value's."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if given is None else ir.convenience.get_const_tensor(given)
    rank = rank_of(of)
    if tensor is None or tensor.size != 1 or rank is None:
        return None
    axis = int(tensor.numpy().reshape(()))
    return axis if axis < 0 else axis - rank


def without_shift(weights: Weights, axis: int) -> ir.Value:
    """The scores before a number was subtracted that all along the axis share."""
    node = producer(weights.scores)
    if weights.base.op_type == "Exp" and node is not None and node.op_type == "Sub":
        before, shift = node.inputs
        if before is not None and shift is not None and _is_flat(before, shift, axis):
            return before
    return weights.scores


def _is_flat(scores: ir.Value, shift: ir.Value, axis: int) -> bool:
    rank, of_shift = rank_of(scores), rank_of(shift)
    if rank is None or of_shift is None or of_shift > rank:
        return False
    return -axis > of_shift or dim_of(shift, axis) == 1


def is_sum_alone(weights: Weights, total: Sum) -> bool:
    """Whether the quotient is a softmax along the sum's axis: what is added to the sum, or limits
    it, changes nothing, and a softmax before it is along the same axis."""
    if weights.base.op_type == "Softmax" and not _is_along(weights, total):
        return False
    if not total.added and not total.limit:
        return True
    if total.added > _NOTHING or total.limit > 1:
        return False
    softmax = weights.base.op_type == "Softmax"
    scores = weights.scores if softmax else _before_maximum(weights.scores, total.axis)
    if scores is None:
        return False
    known = _filled(scores)
    own = [part for mask in weights.masks for part in literals_of(mask.condition, mask.hides)]
    return all(any(part.same_as(other) for other in known) for part in own)


def _is_along(weights: Weights, total: Sum) -> bool:
    axis, rank = weights.base.attributes.get_int("axis", -1), rank_of(weights.scores)
    return axis is not None and rank is not None and axis % rank == total.axis % rank


def underflowing_fills(weights: Weights, axis: int) -> tuple[WeightMask, ...] | None:
    """Masks of the finite fills whose exponentials are 0: a row of them has the sum 0, where a
    softmax, which subtracts the maximum, averages. None where there may be others, in places that
    are not read.

    Where the maximum is subtracted, there is none.
    """
    if weights.base.op_type != "Exp" or _before_maximum(weights.scores, axis) is not None:
        return ()
    masks: list[WeightMask] = []
    current = weights.scores
    while (node := producer(current)) is not None and node.op_type == "Where":
        numbers = [scalar_of(v) for v in node.inputs[1:]]
        filled = next((i for i, n in enumerate(numbers) if n is not None and n <= _UNDERFLOWS), 2)
        condition, kept = node.inputs[0], node.inputs[2 - filled]
        if filled == 2 or condition is None or kept is None:
            break
        if numbers[filled] != -math.inf:
            masks.append(WeightMask(condition, hides=filled == 0))
        current = kept
    behind = magnitudes_behind(current)
    other = behind.outside or any(_SMALL < n < math.inf for n in behind.largest)
    return None if other else tuple(masks)


def _before_maximum(value: ir.Value, axis: int) -> ir.Value | None:
    """The scores of which the maximum was subtracted."""
    node = producer(value)
    if node is None or node.op_type != "Sub":
        return None
    scores, shift = node.inputs
    largest = reduction_of(shift, "ReduceMax")
    found = largest is not None and largest.axis == axis and same_value(largest.of, scores)
    return scores if found else None


def _filled(scores: ir.Value) -> list[Literal]:
    """What hides in the scores, as far as nothing moved their axes since."""
    found: list[Literal] = []
    current: ir.Value | None = scores
    while (node := producer(current)) is not None:
        if node.op_type == "Where" and node.inputs[0] is not None:
            numbers = [scalar_of(v) for v in node.inputs[1:]]
            filled = next((i for i, n in enumerate(numbers) if n is not None and n <= -WIDE), None)
            if filled is None:
                break
            found += literals_of(node.inputs[0], filled == 0)
            current = node.inputs[2 - filled]
        elif node.op_type == "Add":
            biases = [hides_as_bias(v, 1.0) if v is not None else () for v in node.inputs]
            low = 0 if biases[0] else 1
            if not biases[low]:
                break
            found += biases[low]
            current = node.inputs[1 - low]
        else:
            break
    return found


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value, where it is one of ONNX's own."""
    node = None if value is None else value.producer()
    return node if node is not None and is_onnx(node) else None
