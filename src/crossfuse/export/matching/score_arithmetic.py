"""What is computed on the scores between the product of queries and keys and the softmax, as a
scale, multipliers and terms.

`absorb` takes one node of the chain and what is known of the scores before it, and returns what is
known behind it. An operator that no attention has raises `Mismatch` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from crossfuse.export.matching.axes import (
    LAYOUT_OPS,
    Axes,
    Axis,
    FactoredValue,
    axes_of,
    factors,
    follow_layout,
)
from crossfuse.export.matching.conditions import is_binary, literals_of, low_bias
from crossfuse.export.matching.fills import may_hide
from crossfuse.export.matching.sinks import Sink, joined, padded
from crossfuse.export.matching.softmax_chain import WIDE, ChainNode, Mismatch, scalar_of
from crossfuse.export.matching.terms import Multiplier, Term

__all__ = ["Scores", "absorb", "beside", "pass_through"]


@dataclass(frozen=True)
class Scores:
    """Scores as they are at one place of the chain: ``scale · ∏ multipliers · query keyᵀ + terms``.

    Attributes:
        axes: of the scores there.
        scale, multipliers: what the product is multiplied by.
        terms: biases and masks, in order: a mask replaces what was before it.
        sink: columns that were joined to them.
        shifted: something was added to all of a row, which a softmax does not see, but a sink that
            is joined later does.
    """

    axes: Axes
    scale: float = 1.0
    multipliers: tuple[Multiplier, ...] = ()
    terms: tuple[Term, ...] = ()
    sink: Sink | None = None
    shifted: bool = False

    def scaled(self, factor: float) -> Scores:
        """All of them times a number."""
        terms = tuple(replace(term, factor=term.factor * factor) for term in self.terms)
        sink = None if self.sink is None else self.sink.scaled(factor)
        return replace(self, scale=self.scale * factor, terms=terms, sink=sink)


def absorb(link: ChainNode, scores: Scores) -> Scores:
    """The scores behind one node between the first product and the softmax.

    Raises:
        Mismatch: the node computes something that no attention does, or can't be told.
    """
    handler = _HANDLERS.get(link.node.op_type)
    if handler is not None:
        return handler(link, scores)
    return replace(scores, axes=pass_through(link.node, scores.axes))


def pass_through(node: ir.Node, axes: Axes) -> Axes:
    """Axes behind an operator that computes nothing.

    Raises:
        Mismatch: it does more than that, or where the axes go can't be told.
    """
    if node.op_type in LAYOUT_OPS:
        following = follow_layout(node, axes)
        if following is None:
            raise Mismatch(f"its {node.op_type} can't be followed")
        return following
    if node.op_type == "Expand" and not _keeps_shape(node):
        raise Mismatch("its scores are expanded")
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes["to"].as_int())
        if not dtype.is_floating_point():
            raise Mismatch("its scores are cast to integers")
    return axes


def _keeps_shape(node: ir.Node) -> bool:
    source, shape = node.inputs[0], node.outputs[0].shape
    return source is not None and shape is not None and list(shape) == list(source.shape or ())


def _fill(link: ChainNode, scores: Scores) -> Scores:
    """``Where``: a mask, which replaces the scores by a number."""
    condition, fill = link.node.inputs[0], scalar_of(link.node.inputs[3 - link.operand])
    assert condition is not None
    if fill is None:
        raise Mismatch("its scores are replaced by other values where masked")
    if fill > -WIDE:
        raise Mismatch(f"its scores are replaced by {fill:g} where masked, which doesn't hide them")
    operand = beside(condition, scores.axes)
    mask = Term(operand, fill=fill, hidden=link.operand == 2)
    return replace(scores, terms=(*scores.terms, mask))


def _limit(link: ChainNode, scores: Scores) -> Scores:
    """``Clip``, ``Max`` and ``Min``: far out they act on fills alone."""
    name, inputs = link.node.op_type, enumerate(link.node.inputs)
    found = [scalar_of(v) for i, v in inputs if i != link.operand and v is not None]
    limits = [limit for limit in found if limit is not None]
    if len(limits) < len(found) or any(abs(limit) < WIDE for limit in limits):
        raise Mismatch(f"its scores are limited by {name}")
    if name == "Min":
        return scores
    return replace(scores, terms=tuple(_limited_below(term, limits) for term in scores.terms))


def _limited_below(term: Term, limits: Sequence[float]) -> Term:
    for limit in limits:
        if term.fill is not None and term.score < limit < 0:
            term = replace(term, fill=limit / term.factor)
    return term


def _multiply(link: ChainNode, scores: Scores) -> Scores:
    """``Mul`` and ``Div``: by a number, or by a tensor."""
    divides, other = link.node.op_type == "Div", _other(link)
    number = scalar_of(other)
    if number is not None:
        return scores.scaled(1 / number if divides else number)
    operand = beside(other, scores.axes)
    if scores.terms or scores.sink is not None:
        raise Mismatch("its scores are multiplied after a bias or mask")
    return replace(scores, multipliers=(*scores.multipliers, Multiplier(operand, divides)))


def _add(link: ChainNode, scores: Scores) -> Scores:
    """``Add`` and ``Sub``: a bias; one number on all scores of a row changes no softmax."""
    subtracts, other = link.node.op_type == "Sub", _other(link)
    if (subtracts and _is_row_maximum(other)) or scalar_of(other) is not None:
        return replace(scores, shifted=True)
    operand, factor = beside(other, scores.axes), -1.0 if subtracts else 1.0
    mask = _fill_by_product(operand, factor, scores)
    if mask is not None:
        return replace(scores, multipliers=scores.multipliers[:-1], terms=(mask,))
    bias = Term(operand, factor, may_hide=may_hide(other))
    return replace(scores, terms=(*scores.terms, bias))


def _fill_by_product(bias: FactoredValue, factor: float, scores: Scores) -> Term | None:
    """The mask of ``scores · m + number · (1 − m)``, with zeros and ones in ``m``: scores are
    filled with the number where it is 0. None where the last multiplier is no such mask."""
    if scores.terms or not scores.multipliers or scores.multipliers[-1].divides:
        return None
    mask = scores.multipliers[-1].operand
    low = low_bias(bias.value, factor) if is_binary(mask.value) else None
    if low is None or [factors(a) for a in bias.axes] != [factors(a) for a in mask.axes]:
        return None
    own = literals_of(mask.value, False)
    alike = len(own) == len(low.literals) and all(
        any(one.same_as(other) for other in low.literals) for one in own
    )
    if not alike:
        return None
    return Term(mask, fill=low.number, hidden=False)


def _join(link: ChainNode, scores: Scores) -> Scores:
    """``Concat`` and ``Pad``: sinks, whose columns have no key."""
    if scores.sink is not None:
        raise Mismatch("its scores are joined with others twice")
    join = joined if link.node.op_type == "Concat" else padded
    if scores.shifted:
        raise Mismatch("its scores are shifted before others are joined to them")
    sink, axes = join(link, scores.axes, len(scores.terms))
    return replace(scores, axes=axes, sink=sink)


def _negate(_: ChainNode, scores: Scores) -> Scores:
    """``Neg``."""
    return scores.scaled(-1.0)


_HANDLERS: dict[str, Callable[[ChainNode, Scores], Scores]] = {
    "Where": _fill,
    "Clip": _limit,
    "Max": _limit,
    "Min": _limit,
    "Mul": _multiply,
    "Div": _multiply,
    "Add": _add,
    "Sub": _add,
    "Concat": _join,
    "Pad": _join,
    "Neg": _negate,
}
"""Operators that compute on scores; all others of a chain only move them."""


def _other(link: ChainNode) -> ir.Value:
    """What an operator of two inputs combines the scores with."""
    other = link.node.inputs[1 - link.operand]
    assert other is not None
    return other


def beside(value: ir.Value, axes: Axes) -> FactoredValue:
    """A value that is broadcast with the scores, with the scores' factors."""
    own = axes_of(value)
    if own is None:
        raise Mismatch("the shape of a mask or bias is unknown")
    if len(own) > len(axes):
        raise Mismatch("a mask or bias has more axes than the scores")
    found: list[Axis] = []
    for axis, its_own in zip(axes[len(axes) - len(own) :], own, strict=True):
        if its_own and not axis:
            raise Mismatch("a mask or bias is larger than the scores")
        found.append(axis if its_own else ())
    return FactoredValue(value, tuple(found))


def _is_row_maximum(value: ir.Value) -> bool:
    """A maximum over all scores, or over the last axis: subtracting it changes no softmax over that
    axis. The axis is there, of size 1, or put back behind."""
    node = value.producer()
    if node is not None and node.op_type == "Unsqueeze":
        put_back = node.inputs[0]
        own = put_back is not None and value.shape is not None and value.shape[-1] == 1
        return own and put_back is not None and _is_row_maximum(put_back)
    if node is None or node.op_type != "ReduceMax":
        return False
    source, given = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if "axes" in node.attributes:
        axes = set(node.attributes["axes"].as_ints())
    elif given is None:
        return True
    else:
        tensor = ir.convenience.get_const_tensor(given)
        if tensor is None:
            return False
        axes = set(tensor.numpy().reshape(-1).tolist())
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    positive = {axis % rank if rank else axis for axis in axes}
    return not axes or positive in ({rank - 1}, set(range(rank))) or axes == {-1}
