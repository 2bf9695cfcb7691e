"""What hides keys: fills that must lie far below all scores, and biases that may come to lie beside
them.

A softmax gives weight 0 to a score far below the others. In a row where a fill hides every key, the
fills alone must be left: `require_hiding_fills` refuses where such a row would mix them with scores
or with a bias of about their size.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from crossfuse.export.matching.softmax_chain import Mismatch
from crossfuse.export.matching.terms import Term
from crossfuse.graph.magnitudes import magnitudes_behind

__all__ = ["may_hide", "require_hiding_fills"]

_HIDES = 1e3
"""A score this far below others weighs nothing."""

_ABSORBS = 1e30
"""Beside a number this large a score is nothing, in any float type that holds it."""


def may_hide(bias: ir.Value) -> bool:
    """Whether a bias may be as low as what hides keys."""
    return magnitudes_behind(bias).reach(_HIDES)


def require_hiding_fills(terms: Sequence[Term]) -> None:
    """Refuse fills that don't hide, or that a bias is about as low as.

    Args:
        terms: of one attention, in order, with their final factors.

    Raises:
        Mismatch: a finite fill is less than 10³ below 0, or within a factor of two of a number that
            a bias hides with, where a row would mix both.
    """
    for term in terms:
        if not term.finite:
            continue
        if term.score > -_HIDES:
            raise Mismatch(
                f"its scores are replaced by {term.score:g} where masked, which doesn't hide them"
            )
        for bias in terms:
            if bias.fill is None and term.score > -_ABSORBS:
                _require_apart(term, bias)


def _require_apart(fill: Term, bias: Term) -> None:
    """Refuse a fill within a factor of two of a number that the bias hides with."""
    for number in magnitudes_behind(bias.operand.value).largest:
        if number < _HIDES:
            continue
        level = abs(number * bias.factor)
        if level / 2 <= -fill.score <= level * 2:
            raise Mismatch(
                f"its scores are replaced by {fill.score:g} where masked, and biased by "
                f"{-level:g}: rows where both hide every key mix scores and fills"
            )
