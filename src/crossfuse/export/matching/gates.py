"""What is computed on the probabilities between the softmax and the product with the values: masks
filled in a second time, and gates.

A *gate* multiplies probabilities, or makes them 0 where they are hidden. `pass_gate` reads one off
a node; `place_gates` finds what it is to the attention:

1. A mask that hides what the scores' masks hide already changes rows without keys alone: they
   become 0, as the operator gives them. So it becomes a mask of the scores that removes keys, in
   place of all masks and low biases of the scores that it covers.
2. A gate that is the same for all keys of a row multiplies the result.
3. A gate that is the same for all rows multiplies the values.

Others are no attention: the weights of a row no longer sum to 1.

Beside sinks, `without_known_masks` drops masks filled in again: what they hide has no weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from typing import NamedTuple

from crossfuse.export.matching.axes import Axes, Axis, FactoredValue, all_factors, factors
from crossfuse.export.matching.conditions import (
    Literal,
    hides_as_bias,
    is_binary,
    literals_of,
)
from crossfuse.export.matching.score_arithmetic import beside, pass_through
from crossfuse.export.matching.softmax_chain import WIDE, ChainNode, Mismatch, scalar_of
from crossfuse.export.matching.terms import Term

__all__ = ["Gate", "GateKind", "PlacedGates", "pass_gate", "place_gates", "without_known_masks"]


class GateKind(Enum):
    """What a gate does with its operand."""

    MULTIPLY = "Mul"
    DIVIDE = "Div"
    KEEP = "keep"
    HIDE = "hide"


@dataclass(frozen=True)
class Gate:
    """A gate on probabilities.

    Attributes:
        operand: what multiplies or divides them, or the condition under which they are kept, or
            become 0; with the probabilities' factors.
        kind: which of these.
    """

    operand: FactoredValue
    kind: GateKind

    def literals(self) -> tuple[Literal, ...]:
        """What hides, where the gate is a mask; none where it is numbers."""
        if self.kind in (GateKind.KEEP, GateKind.HIDE):
            return literals_of(self.operand.value, self.kind is GateKind.HIDE)
        if self.kind is GateKind.MULTIPLY and is_binary(self.operand.value):
            return literals_of(self.operand.value, False)
        return ()


@dataclass(frozen=True)
class PlacedGates:
    """Where the gates of an attention go.

    Attributes:
        terms: the scores' terms, with the masks that gates have become.
        on_values, on_result: gates that multiply the values, and those that multiply the result.
    """

    terms: tuple[Term, ...]
    on_values: tuple[Gate, ...] = ()
    on_result: tuple[Gate, ...] = ()


def pass_gate(link: ChainNode, axes: Axes) -> tuple[Axes, Gate | None]:
    """Axes behind a node that follows the softmax, and the gate that the node is.

    Raises:
        Mismatch: it computes something else.
    """
    node = link.node
    if node.op_type in ("Mul", "Div"):
        other = node.inputs[1 - link.operand]
        assert other is not None
        kind = GateKind.MULTIPLY if node.op_type == "Mul" else GateKind.DIVIDE
        return axes, Gate(beside(other, axes), kind)
    if node.op_type != "Where":
        return pass_through(node, axes), None
    condition, fill = node.inputs[0], scalar_of(node.inputs[3 - link.operand])
    assert condition is not None
    if fill != 0:
        to = "other values" if fill is None else f"{fill:g}"
        raise Mismatch(f"its attention probabilities are replaced by {to} where masked")
    if _is_nan_check(link):
        return axes, None
    kind = GateKind.HIDE if link.operand == 2 else GateKind.KEEP
    return axes, Gate(beside(condition, axes), kind)


def _is_nan_check(link: ChainNode) -> bool:
    """``Where(IsNaN(p), 0, p)``: rows without keys, which are 0 by themselves."""
    condition = link.node.inputs[0]
    check = condition.producer() if condition is not None else None
    if check is None or check.op_type != "IsNaN":
        return False
    return check.inputs[0] is link.node.inputs[link.operand]


def place_gates(
    terms: tuple[Term, ...], gates: Sequence[Gate], rows: Axis, keys: Axis
) -> PlacedGates:
    """Find a place for each gate.

    Args:
        terms: of the scores, in order.
        gates: behind the softmax, in order.
        rows, keys: the factors of the query rows and of the keys.

    Raises:
        Mismatch: one has none.
    """
    terms, gates = _as_masks(terms, gates)
    on_values, on_result = [], []
    for gate in gates:
        its_own = set(all_factors(gate.operand.axes))
        if not its_own & set(factors(keys)):
            on_result.append(gate)
        elif not its_own & set(factors(rows)):
            on_values.append(gate)
        elif gate.literals():
            raise Mismatch(
                "its attention probabilities are masked by row and key behind the softmax, and its "
                "scores are not masked alike, so its weights don't sum to 1"
            )
        else:
            raise Mismatch(
                "its attention probabilities are multiplied by a tensor that differs by row and key"
            )
    return PlacedGates(terms, tuple(on_values), tuple(on_result))


def without_known_masks(
    terms: Sequence[Term], gates: Sequence[Gate], lowest: float | None
) -> list[Gate]:
    """The gates but for masks of what is 0 already beside sinks: with a sink no row is without
    keys.

    Args:
        terms: of the scores without the sinks.
        gates: behind the softmax.
        lowest: a sink's score is not below it; None where that is unknown.
    """
    low = -math.inf if lowest is None else min(lowest, 0.0) - WIDE / 2
    # What is added or filled in behind a fill may lift it.
    last = takewhile(lambda term: term.fill is not None and term.score <= low, reversed(terms))
    hidden = [literal for term in last for literal in _literals_of_term(term)]
    return [
        gate for gate in gates if not (own := _literals_of_gate(gate)) or not _covered(own, hidden)
    ]


class _PlacedLiteral(NamedTuple):
    """A literal with the axes of the mask that it is a part of."""

    literal: Literal
    axes: Axes

    def same_as(self, other: _PlacedLiteral) -> bool:
        """Whether both hide the same places of the scores; what one repeats, the other may
        lack."""
        aligned = zip(reversed(self.axes), reversed(other.axes), strict=False)
        pairs = [(factors(one), factors(two)) for one, two in aligned]
        return all(one == two for one, two in pairs if one and two) and self.literal.same_as(
            other.literal
        )


def _as_masks(
    terms: tuple[Term, ...], gates: Sequence[Gate]
) -> tuple[tuple[Term, ...], Sequence[Gate]]:
    """The terms with the gates that hide what terms hide, and the other gates."""
    hiding = [_literals_of_term(term) for term in terms]
    known = [literal for each in hiding for literal in each]
    masks: list[Gate] = []
    others: list[Gate] = []
    for gate in gates:
        own = _literals_of_gate(gate)
        (masks if own and _covered(own, known) else others).append(gate)
    gated = [literal for gate in masks for literal in _literals_of_gate(gate)]
    removed = [bool(own) and _covered(own, gated) for own in hiding]
    left = tuple(term for term, gone in zip(terms, removed, strict=True) if not gone)
    # A row without keys is 0 only where all that could fill it is gated.
    if not masks or any(term.finite or term.may_hide for term in left):
        return terms, gates
    added = tuple(
        Term(gate.operand, fill=-math.inf, hidden=gate.kind is GateKind.HIDE) for gate in masks
    )
    return left + added, others


def _literals_of_gate(gate: Gate) -> list[_PlacedLiteral]:
    return [_PlacedLiteral(literal, gate.operand.axes) for literal in gate.literals()]


def _literals_of_term(term: Term) -> list[_PlacedLiteral]:
    """What a term hides with; none for a bias that hides nothing, or may."""
    value = term.operand.value
    if term.fill is None:
        found = hides_as_bias(value, term.factor)
    else:
        found = literals_of(value, term.hidden)
    return [_PlacedLiteral(literal, term.operand.axes) for literal in found]


def _covered(own: Sequence[_PlacedLiteral], known: Sequence[_PlacedLiteral]) -> bool:
    return all(any(literal.same_as(other) for other in known) for literal in own)
