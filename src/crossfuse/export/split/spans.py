"""Between which bounds something lies: a number, or a number and sizes that are not known.

A bound is a number plus sizes that are at least 0 and not known, so that a bound may be ``P − 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["EVERY_PLACE", "Bound", "Span"]


@dataclass(frozen=True)
class Bound:
    """A number, plus so many times each of some sizes that are at least 0."""

    number: float
    sizes: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, size: int | str | None) -> Bound:
        """A size: its number, or itself by its name."""
        return cls(size) if isinstance(size, int) else cls(0, ((str(size), 1),))

    def __add__(self, other: Bound) -> Bound:
        total = dict(self.sizes)
        for name, times in other.sizes:
            total[name] = total.get(name, 0) + times
        kept = tuple(sorted((name, times) for name, times in total.items() if times))
        return Bound(self.number + other.number, kept)

    def __neg__(self) -> Bound:
        return Bound(-self.number, tuple((name, -times) for name, times in self.sizes))

    def over(self, other: Bound) -> float:
        """By how much it is greater, at least; −inf where that isn't known."""
        if self.number == math.inf or other.number == -math.inf:
            return math.inf if self.number != other.number else 0.0
        rest = self + -other
        return rest.number if all(times > 0 for _, times in rest.sizes) else -math.inf


@dataclass(frozen=True)
class Span:
    """From one bound to another, both included."""

    low: Bound
    high: Bound

    @classmethod
    def of(cls, low: float, high: float) -> Span:
        """Between two numbers."""
        return cls(Bound(low), Bound(high))

    @property
    def known(self) -> bool:
        """Both bounds are numbers alone."""
        return not (self.low.sizes or self.high.sizes)

    def __add__(self, other: Span) -> Span:
        if -math.inf in (self.high.number, other.high.number):
            return Span.of(-math.inf, -math.inf)
        low = -math.inf in (self.low.number, other.low.number)
        high = math.inf in (self.high.number, other.high.number)
        return Span(
            Bound(-math.inf) if low else self.low + other.low,
            Bound(math.inf) if high else self.high + other.high,
        )

    def __neg__(self) -> Span:
        return Span(-self.high, -self.low)

    def above(self, other: Span) -> bool:
        """All of it is known to be greater than all of another."""
        return self.low.over(other.high) > 0

    def not_below(self, other: Span) -> bool:
        """Nothing of it is less than anything of another."""
        return self.low.over(other.high) >= 0

    def joined(self, other: Span) -> Span:
        """What holds both."""
        low = self.low if other.low.over(self.low) >= 0 else other.low
        high = self.high if self.high.over(other.high) >= 0 else other.high
        return Span(
            low if min(self.low.over(low), other.low.over(low)) >= 0 else Bound(-math.inf),
            high if min(high.over(self.high), high.over(other.high)) >= 0 else Bound(math.inf),
        )


EVERY_PLACE = Span.of(0, math.inf)
"""All of an axis."""
