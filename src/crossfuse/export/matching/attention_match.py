"""What a written-out attention computes, read off its nodes.

The question: given a softmax with a product of matrices before and behind it (a `SoftmaxChain`), is
it ``softmax(scale · query keyᵀ + mask) value``, and if so, of which operands? The nodes do not say
so directly. Heads may be merged into the batch, keys may stand on the left, and the axes may have
any order, as in ``einsum("blhd,bshd->blsh")``. So no shape is compared with a template. Instead
every axis is a group of *factors* (`axes`), and the factors are followed:

1. **The first product.** Both operands get factors. Those of the contracted axis are the head size,
   those that both operands share are the batch, and what is left on either side are the query rows
   and the keys; which is which is not known yet.
2. **The scores.** Each node up to the softmax moves the factors, or computes something that an
   attention has: a scale, a bias, a mask (`score_arithmetic`). Anything else is refused.
3. **The softmax.** The side whose factors it runs over are the keys; the other side are the rows.
   Where it runs over any other group of factors, this is no attention.
4. **The second product.** It must sum over the keys' factors. Those that remain on its other
   operand are the size of the values.
5. **The gates.** What multiplies the probabilities becomes a mask, or goes to the values or to the
   result (`gates`).
6. **The masks.** What hides keys must do so wherever it is used (`fills`), and a tensor that
   multiplies the scores must not differ from key to key.

`match_attention` returns an `AttentionMatch` with a group of factors per role, whatever order they
came in; `axis_roles` then tells heads from batch, and `LayoutBuilder` brings the operands into the
operator's order. A refusal is a `Mismatch`, whose text becomes the ledger's reason.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from crossfuse.export.matching.axes import (
    Axes,
    Axis,
    FactoredValue,
    all_factors,
    axes_of,
    factors,
    size_of,
)
from crossfuse.export.matching.fills import require_hiding_fills
from crossfuse.export.matching.gates import Gate, pass_gate, place_gates, without_known_masks
from crossfuse.export.matching.score_arithmetic import Scores, absorb
from crossfuse.export.matching.sinks import Sink, cut, require_no_gate
from crossfuse.export.matching.softmax_chain import ChainNode, Mismatch, SoftmaxChain
from crossfuse.export.matching.terms import Multiplier, Term

__all__ = ["AttentionMatch", "match_attention"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionMatch:
    """An attention: ``softmax(scale · ∏ multipliers · query keyᵀ + terms) value``.

    Attributes:
        query, key, value: operands of the two products, with axes such as ``[batch…, rows, size]``
            in any order.
        batch, rows, keys, size, value_size: the factors of each role.
        output: axes of the second product's result.
        scale: a number on the product of queries and keys.
        multipliers: tensors that multiply or divide that product, constant along the keys.
        terms: biases and masks, in order: a mask replaces what was before it.
        value_gates, result_gates: what multiplies the values, and the result.
        between: values between the two products' operands and the result, with their axes.
        sink: columns beside the keys that have no key.
        weighed: the factors of what the values are summed over: the keys, and the sinks where these
            have values.
    """

    query: FactoredValue
    key: FactoredValue
    value: FactoredValue
    batch: Axis
    rows: Axis
    keys: Axis
    size: Axis
    value_size: Axis
    output: Axes
    scale: float
    multipliers: tuple[Multiplier, ...]
    terms: tuple[Term, ...]
    value_gates: tuple[Gate, ...]
    result_gates: tuple[Gate, ...]
    between: tuple[FactoredValue, ...]
    sink: Sink | None
    weighed: Axis


class _Side(NamedTuple):
    """One operand of the first product, and the factors that it alone has."""

    operand: FactoredValue
    own: Axis


class _FirstProduct(NamedTuple):
    """The product of queries and keys, whichever is on the left."""

    left: _Side
    right: _Side
    batch: Axis
    size: Axis
    axes: Axes


class _RowsAndKeys(NamedTuple):
    """The two sides of the first product, told apart by the softmax."""

    rows: _Side
    keys: _Side


class _SecondProduct(NamedTuple):
    """The product of probabilities and values: the values, the factors of their size, those of the
    batch and of the query rows, and the axes of the result."""

    value: FactoredValue
    value_size: Axis
    batch: Axis
    rows: Axis
    axes: Axes


def match_attention(chain: SoftmaxChain) -> AttentionMatch:
    """Follow the factors through a chain.

    Raises:
        Mismatch: something in it is no attention, or can't be told.
    """
    product = _first_product(chain.scores)
    scores = Scores(product.axes)
    between = [FactoredValue(chain.scores.outputs[0], scores.axes)]
    for link in chain.before:
        scores = absorb(link, scores)
        between.append(FactoredValue(link.node.outputs[0], scores.axes))
    sink, normalised = scores.sink, _softmax_axis(chain.softmax, scores.axes)
    if sink is not None and normalised != factors(sink.both):
        raise Mismatch("its scores are joined with others along another axis than the keys'")
    rows, keys = _rows_and_keys(product, normalised if sink is None else factors(sink.keys))
    axes = scores.axes
    between.append(FactoredValue(chain.softmax.outputs[0], axes))
    weighed = factors(keys.own if sink is None else sink.both)
    gates: list[Gate] = []
    for link in chain.after:
        if link.node.op_type == "Slice":
            axes, weighed = cut(link.node, axes, sink), factors(keys.own)
        else:
            axes, gate = pass_gate(link, axes)
            gates += [gate] if gate is not None else []
        between.append(FactoredValue(link.node.outputs[0], axes))
    second = _second_product(chain.values, axes, product.batch, rows.own, weighed)
    if sink is not None:
        gates = without_known_masks(scores.terms[: sink.before], gates, sink.lowest)
        require_no_gate(sink, [gate.operand for gate in gates])
    require_hiding_fills(scores.terms if sink is None else (*scores.terms, *sink.terms))
    placed = place_gates(scores.terms, gates, second.rows, keys.own)
    _require_constant_along(keys.own, scores.multipliers)
    rows_by_keys = (size_of(rows.own).dim, size_of(keys.own).dim)
    _log.debug("%s is an attention of %s rows over %s keys", chain.softmax.name, *rows_by_keys)
    return AttentionMatch(
        query=rows.operand,
        key=keys.operand,
        value=second.value,
        batch=second.batch,
        rows=second.rows,
        keys=factors(keys.own),
        size=factors(product.size),
        value_size=factors(second.value_size),
        output=second.axes,
        scale=scores.scale,
        multipliers=scores.multipliers,
        terms=placed.terms,
        value_gates=placed.on_values,
        result_gates=placed.on_result,
        between=tuple(between),
        sink=sink,
        weighed=weighed,
    )


def _with_axes(value: ir.Value | None) -> FactoredValue:
    axes = axes_of(value) if value is not None else None
    if value is None or axes is None or len(axes) < 2:
        raise Mismatch("the rank of one of its operands is unknown")
    return FactoredValue(value, axes)


def _first_product(product: ir.Node) -> _FirstProduct:
    """Give both operands common factors where the product makes their axes one."""
    left, right = (_with_axes(value) for value in product.inputs[:2])
    batch = _common_batch(left.axes, right.axes)
    # A size that is a number says more than a symbol that is equal to it.
    size = right.axes[-2] if size_of(right.axes[-2]).static is not None else left.axes[-1]
    rows, columns = left.axes[-2], right.axes[-1]
    return _FirstProduct(
        _Side(FactoredValue(left.value, (*_shared(left.axes, batch), rows, size)), rows),
        _Side(FactoredValue(right.value, (*_shared(right.axes, batch), size, columns)), columns),
        tuple(factor for axis in batch for factor in axis),
        size,
        (*batch, rows, columns),
    )


def _common_batch(left: Axes, right: Axes) -> Axes:
    """The batch axes of a product: those of the operand that has them, of known size first."""
    batch: list[Axis] = []
    for axis in range(-max(len(left), len(right)), -2):
        sides = [side[axis] for side in (left, right) if -axis <= len(side) and side[axis]]
        known = [side for side in sides if size_of(side).static is not None]
        batch.append(next(iter(known or sides), ()))
    return tuple(batch)


def _shared(axes: Axes, batch: Axes) -> Axes:
    """An operand's own batch axes with the product's factors; one of size 1 stays so."""
    count = len(axes) - 2
    own, common = axes[:count], batch[len(batch) - count :]
    return tuple(theirs if ours else ours for ours, theirs in zip(own, common, strict=True))


def _softmax_axis(node: ir.Node, axes: Axes) -> Axis:
    axis = node.attributes.get_int("axis", -1)
    assert axis is not None
    return factors(axes[axis])


def _rows_and_keys(product: _FirstProduct, softmax: Axis) -> _RowsAndKeys:
    """The side that the softmax runs over are the keys."""
    if set(softmax) == set(factors(product.right.own)):
        return _RowsAndKeys(product.left, product.right)
    if set(softmax) == set(factors(product.left.own)):
        return _RowsAndKeys(product.right, product.left)
    raise Mismatch("its softmax is over another axis than the keys'")


def _second_product(
    link: ChainNode, axes: Axes, batch: Axis, rows: Axis, keys: Axis
) -> _SecondProduct:
    """Read the product of the probabilities, which have these axes, with the values.

    ``batch`` and ``rows`` are the first product's. What keys lack may be on either: heads of
    queries that share one head of keys are rows to one product and batch to the other.
    """
    values = _with_axes(link.node.inputs[1 - link.operand])
    on_left = link.operand == 0
    contracted, kept = (axes[-1], axes[-2]) if on_left else (axes[-2], axes[-1])
    if set(factors(contracted)) != set(factors(keys)):
        raise Mismatch(
            "its softmax is over another axis than the one that the product with the values sums "
            "over"
        )
    of_both = [factor for factor in factors(rows) if factor in factors(kept)]
    if not of_both and factors(rows):
        raise Mismatch("its query rows can't be told from its batch")
    of_values = [factor for factor in factors(rows) if factor not in of_both]
    common = _batch_of_scores(axes, values.axes)
    size = values.axes[-1 if on_left else -2]
    own = (contracted, size) if on_left else (size, contracted)
    return _SecondProduct(
        FactoredValue(values.value, (*_shared(values.axes, common), *own)),
        size,
        (*factors(batch), *of_values),
        tuple(of_both),
        (*common, *((kept, size) if on_left else (size, kept))),
    )


def _batch_of_scores(scores: Axes, values: Axes) -> Axes:
    """The batch axes of the second product, all of them the scores'."""
    batch: list[Axis] = []
    for axis in range(-max(len(scores), len(values)), -2):
        ours = scores[axis] if -axis <= len(scores) else ()
        if not ours and -axis <= len(values) and values[axis]:
            raise Mismatch("its values have batch axes that its scores lack")
        batch.append(ours)
    return tuple(batch)


def _require_constant_along(keys: Axis, multipliers: tuple[Multiplier, ...]) -> None:
    for multiplier in multipliers:
        if set(all_factors(multiplier.operand.axes)) & set(factors(keys)):
            raise Mismatch("its scores are multiplied by a tensor that differs from key to key")
