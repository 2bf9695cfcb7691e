"""Bounds that are numbers plus sizes which are not known."""

from __future__ import annotations

import math

from crossfuse.export.split.spans import EVERY_PLACE, Bound, Span


def test_bounds_with_sizes_are_compared() -> None:
    size = Bound.of("p")
    first, rest = Span(Bound(0), size + Bound(-1)), Span(size, Bound(math.inf))
    assert rest.above(first)
    assert not first.above(rest)
    assert not Span(size, size).above(Span.of(0, 1))
    assert Span(size, size).not_below(Span.of(0, 0))
    assert Span.of(0, 1).joined(Span.of(3, 4)) == Span.of(0, 4)
    assert Span(size, size).joined(Span.of(5, 5)).high.number == math.inf
    assert Bound.of(3) == Bound(3)
    assert (size + -size) == Bound(0)


def test_every_place_holds_all_others() -> None:
    behind = Span(Bound.of("p"), Bound(math.inf))
    assert EVERY_PLACE.joined(behind) == EVERY_PLACE
    assert (Span.of(-math.inf, 0) + Span.of(0, math.inf)) == Span.of(-math.inf, math.inf)
