"""Biases, masks and multipliers of scores, as they were written out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossfuse.export.matching.axes import FactoredValue

__all__ = ["Multiplier", "Term"]


@dataclass(frozen=True)
class Term:
    """A bias on the scores, ``factor · operand``; where ``fill`` is given, a mask.

    Attributes:
        operand: the bias, or the mask's condition, with the scores' factors.
        factor: what the scores, this term with them, were multiplied by afterwards.
        fill: what replaces the scores, before the factor, where the operand is ``hidden``.
        hidden: whether a mask's condition is True where it hides.
        may_hide: a bias that may be as low as what hides keys, as one that comes from outside may.
    """

    operand: FactoredValue
    factor: float = 1.0
    fill: float | None = None
    hidden: bool = True
    may_hide: bool = False

    @property
    def finite(self) -> bool:
        """A fill that leaves a row without keys something to average."""
        return self.fill is not None and bool(np.isfinite(self.fill))

    @property
    def score(self) -> float:
        """A fill's final score."""
        assert self.fill is not None
        return self.fill * self.factor


@dataclass(frozen=True)
class Multiplier:
    """A tensor that multiplies the scores, or divides them."""

    operand: FactoredValue
    divides: bool
