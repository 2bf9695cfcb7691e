"""The parity policy: how far a candidate may be from the reference.

A candidate of dtype *t* passes an output when at each point its largest absolute error against the
reference is within the absolute floor of *t* (scaled down for outputs whose largest magnitude is
below 1), or no worse than ``EAGER_MULTIPLE`` times the error that the eager model run in *t* has
against the same reference (its worst over all points). NaN and infinity never pass. Integer outputs
are compared by the fraction of elements that differ, with a floor of 0.

Points made to reach tails are judged among themselves: there the eager model's error says nothing
about other points, and the floor is relative to the output's magnitude. Where the eager model in
half precision overflows on them, they are not judged in it.

An eager error that a bundle states is believed up to ``BELIEVED`` times the output's magnitude at
the point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import MADE, TAILS

__all__ = [
    "BELIEVED",
    "EAGER_MULTIPLE",
    "FLOORS",
    "Tolerance",
    "believed_error",
    "judged_as",
    "judged_points",
    "magnitude",
    "output_error",
    "tolerances",
]

FLOORS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Absolute error below which a candidate of a precision passes, whatever the eager model's error;
in half precision about five units in the last place at 1."""


EAGER_MULTIPLE = 4.0
"""How many times the eager model's error in the same dtype a candidate may have: another order of
summation, not more."""

BELIEVED = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
"""The largest error of the eager model that is believed, relative to an output's largest magnitude:
more would be no proof of anything, whoever says it."""

_BELIEVED_FRACTION = 0.05
"""The same of integer outputs: the fraction of elements that differ; always one element."""


@dataclass(frozen=True)
class Tolerance:
    """What an output's error may be at a point.

    Attributes:
        allowed: the largest absolute error (for integers, the largest fraction of elements that
            differ).
        cause: where that comes from.
    """

    allowed: float
    cause: str

    def share(self, error: float) -> float:
        """An error as a share of what is allowed; infinite where nothing is."""
        if error == 0:
            return 0.0
        return error / self.allowed if self.allowed > 0 else float("inf")


def judged_points(points: Sequence[ReferencePoint], name: str, judged: str) -> list[int]:
    """Positions of the points at which an output is judged.

    Not in half precision where the eager model in it is no measure: tails at which it is not
    finite, and one made point at which it gives something else (an added finfo.min absorbs scores).
    One, so that a reference set can't excuse them all.
    """
    if judged == "fp32":
        return list(range(len(points)))
    excused, tails = [], []
    for i, point in enumerate(points):
        error, truth = point.half.get(judged, {}).get(name), point.outputs[name]
        if point.kind == TAILS and truth.dtype.kind == "f" and error is None:
            tails.append(i)
        elif point.kind == MADE and error is not None and error > believed_error(truth, judged):
            excused.append(i)
    left_out = {*tails, *(excused if len(excused) == 1 else ())}
    return [i for i in range(len(points)) if i not in left_out]


def tolerances(
    points: Sequence[ReferencePoint], name: str, reference: ReferenceSet, judged: str
) -> list[Tolerance]:
    """What an output's error may be at each point, and where that comes from."""
    found = []
    measured = replace(reference, points=tuple(points))
    magnitudes = {
        tails: max(
            (magnitude(p.outputs[name]) for p in points if (p.kind == TAILS) is tails), default=1.0
        )
        for tails in (False, True)
    }
    for point in points:
        truth, tails = point.outputs[name], point.kind == TAILS
        own = magnitude(truth)
        floor = (
            FLOORS[judged] * (own if tails else min(1.0, magnitudes[False]))
            if truth.dtype.kind == "f"
            else 0.0
        )
        believed = believed_error(truth, judged)
        eager = measured.eager_error(name, judged, tails=tails)
        allowed = EAGER_MULTIPLE * min(eager, believed)
        cause = f"{EAGER_MULTIPLE:g} × eager {judged} error" + (
            ", as far as believed" if eager > believed else ""
        )
        found.append(
            Tolerance(floor, f"floor of {judged}")
            if floor >= allowed
            else Tolerance(allowed, cause)
        )
    return found


def judged_as(precision: str) -> str:
    """The precision whose floor and eager error judge another one: ``mixed`` is fp16 where it isn't
    fp32."""
    return "fp16" if precision == "mixed" else precision


def believed_error(truth: NDArray[Any], precision: str) -> float:
    """The largest error of the eager model in a precision that is believed, for an output of the
    reference."""
    if truth.dtype.kind == "f":
        return BELIEVED[precision] * magnitude(truth)
    return max(_BELIEVED_FRACTION, 1.0 / max(truth.size, 1))


def output_error(got: NDArray[Any], truth: NDArray[Any]) -> float:
    """Largest absolute error in float64, or the fraction of differing elements of integers.

    A wrong shape is infinite.
    """
    if got.shape != truth.shape:
        return float("inf")
    if got.size == 0:
        return 0.0
    if truth.dtype.kind != "f":
        return float(np.mean(got != truth))
    error = float(np.max(np.abs(got.astype(np.float64) - truth.astype(np.float64))))
    return float("inf") if np.isnan(error) else error


def magnitude(truth: NDArray[Any]) -> float:
    """Largest absolute value of a floating array, never 0; 1 for integers and for empty arrays."""
    if truth.dtype.kind != "f" or truth.size == 0:
        return 1.0
    return max(float(np.max(np.abs(truth))), np.finfo(np.float64).tiny)
