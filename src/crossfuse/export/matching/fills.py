"""What hides keys: fills that must lie far below all scores, and biases that may come to lie beside
them.

A softmax gives weight 0 to a score far below the others. In a row where a fill hides every key, the
fills alone must be left: `require_hiding_fills` refuses where such a row would mix them with scores
or with a bias of about their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.softmax_chain import Mismatch
from crossfuse.export.matching.terms import Term

__all__ = ["may_hide", "require_hiding_fills"]

_HIDES = 1e3
"""A score this far below others weighs nothing."""

_ABSORBS = 1e30
"""Beside a number this large a score is nothing, in any float type that holds it."""

_BOUNDED = frozenset(
    {
        *("MatMul", "Gemm", "Softmax", "LayerNormalization", "Tanh", "Sigmoid", "Shape", "Size"),
        *("Less", "Equal", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not"),
        "FusedAttention",
    }
)
"""Operators whose results are scores like others, whatever goes in."""


class _HidingNumbers(NamedTuple):
    """Magnitudes of the constants behind a bias that are large enough to hide keys, and whether
    floats come in from outside, which may be of any size."""

    levels: frozenset[float]
    from_outside: bool


def may_hide(bias: ir.Value) -> bool:
    """Whether a bias may be as low as what hides keys."""
    numbers = _hiding_numbers(bias)
    return numbers.from_outside or bool(numbers.levels)


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
    for number in _hiding_numbers(bias.operand.value).levels:
        level = abs(number * bias.factor)
        if level / 2 <= -fill.score <= level * 2:
            raise Mismatch(
                f"its scores are replaced by {fill.score:g} where masked, and biased by "
                f"{-level:g}: rows where both hide every key mix scores and fills"
            )


def _hiding_numbers(value: ir.Value) -> _HidingNumbers:
    """What a bias is made of, back to constants, inputs and operators whose results are bounded."""
    levels: set[float] = set()
    outside = False
    seen, pending = {value}, [value]
    while pending:
        current = pending.pop()
        tensor = ir.convenience.get_const_tensor(current)
        node = current.producer()
        if tensor is not None:
            largest = _largest(tensor)
            levels |= {largest} if largest >= _HIDES else set()
        elif node is None:
            outside |= current.dtype is not None and current.dtype.is_floating_point()
        elif node.op_type not in _BOUNDED:
            new = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(new)
            pending += new
    return _HidingNumbers(frozenset(levels), outside)


def _largest(tensor: ir.TensorProtocol) -> float:
    """The largest magnitude of a float tensor; 0 of any other, and of an empty one."""
    if not tensor.dtype.is_floating_point() or not tensor.size:
        return 0.0
    return float(np.abs(tensor.numpy().astype(np.float64)).max())
