"""The parity policy of low precision: what integers may do to an output.

Rounding to 8 bits is no small multiple of what fp32 or a half precision does, so an output is
judged by its own measures, each with a documented limit (`PLAIN`):

* the smallest *cosine* similarity with the reference, over all points;
* the largest *relative RMS* error: of the error, relative to that of the reference;
* the *top-1 agreement*: how often the largest number along the last axis is the reference's, over
  all rows of all points. A row counts where it is a decision: the reference's lead over what was
  chosen instead is more than `TIE` of the row's standard deviation. Of integer outputs, how many
  elements are equal.

NaN, infinity and other shapes never pass. Where the user's own metric decides (`parity.metric`),
only what can't be right is refused (`BESIDE_A_METRIC`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BESIDE_A_METRIC", "PLAIN", "TIE", "Limits", "LowPrecision", "measured"]

TIE = 0.1
"""The lead, in standard deviations of a row, from which on its largest number is a decision: twice
the relative RMS error that an output may have."""


@dataclass(frozen=True)
class Limits:
    """What an output must reach.

    Attributes:
        cosine: at least.
        relative_rms: at most.
        top1: at least.
    """

    cosine: float
    relative_rms: float
    top1: float

    @property
    def words(self) -> str:
        """For people."""
        agreement = f", top-1 agreement ≥ {self.top1:.0%}" if self.top1 else ""
        return f"relative RMS, cosine ≥ {self.cosine:g}{agreement}"


PLAIN = Limits(cosine=0.999, relative_rms=0.05, top1=0.99)
"""Where nothing but the outputs is known: a cosine of 0.999 is a relative RMS error of 0.045."""

BESIDE_A_METRIC = Limits(cosine=0.9, relative_rms=0.5, top1=0.0)
"""Where the user's own metric decides."""


class Pair(NamedTuple):
    """A candidate's output and the reference's, at one point."""

    got: NDArray[Any]
    truth: NDArray[Any]


@dataclass(frozen=True)
class LowPrecision:
    """An output's measures over all points.

    Attributes:
        cosine: the smallest; 1 for integers.
        relative_rms: the largest; 0 for integers.
        top1: the agreement; 1 where no row is a decision.
        worst: position of the point with the largest relative RMS error.
    """

    cosine: float
    relative_rms: float
    top1: float
    worst: int

    def misses(self, limits: Limits) -> tuple[str, ...]:
        """What is beyond the limits, in words."""
        found = []
        if not self.cosine >= limits.cosine:
            found.append(f"cosine {self.cosine:.6f} below {limits.cosine:g}")
        if not self.relative_rms <= limits.relative_rms:
            found.append(f"relative RMS {self.relative_rms:.3g} above {limits.relative_rms:g}")
        if not self.top1 >= limits.top1:
            found.append(f"top-1 agreement {self.top1:.2%} below {limits.top1:.0%}")
        return tuple(found)


def measured(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> LowPrecision:
    """Measures of one output.

    Args:
        pairs: the candidate's array and the reference's, at every point, any shape and dtype.
    """
    known = [Pair(np.asarray(got), truth) for got, truth in pairs]
    errors = [_relative_rms(pair) for pair in known]
    agreed = [_agreement(pair) for pair in known]
    rows = sum(count for _, count in agreed)
    return LowPrecision(
        cosine=min((_cosine(pair) for pair in known), default=1.0),
        relative_rms=max(errors, default=0.0),
        top1=sum(right for right, _ in agreed) / rows if rows else 1.0,
        worst=int(np.argmax(errors)) if errors else 0,
    )


def _relative_rms(pair: Pair) -> float:
    got, truth = pair
    if got.shape != truth.shape:
        return float("inf")
    if truth.dtype.kind != "f" or truth.size == 0:
        return 0.0
    error = _rms(got.astype(np.float64) - truth.astype(np.float64))
    if error == 0:
        return 0.0
    size = _rms(truth.astype(np.float64))
    ratio = error / size if size > 0 else float("inf")
    return ratio if np.isfinite(ratio) else float("inf")


def _cosine(pair: Pair) -> float:
    got, truth = pair
    if got.shape != truth.shape:
        return 0.0
    if truth.dtype.kind != "f":
        return 1.0
    a, b = got.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    if scale == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    if not np.isfinite(scale):
        return 0.0
    return float(a @ b) / scale


def _agreement(pair: Pair) -> tuple[int, int]:
    """Rows that agree, and rows that are a decision."""
    got, truth = pair
    if got.shape != truth.shape:
        return 0, 1
    if truth.dtype.kind != "f":
        return int(np.sum(got == truth)), truth.size
    if truth.ndim == 0 or truth.shape[-1] <= 1 or truth.size == 0:
        return 0, 0
    rows = truth.astype(np.float64).reshape(-1, truth.shape[-1])
    chosen = np.argmax(got.reshape(rows.shape), axis=-1)
    best = np.argmax(rows, axis=-1)
    at = np.arange(len(rows))
    lead = rows[at, best] - rows[at, chosen]
    wrong = int(np.sum(lead > TIE * rows.std(axis=-1)))
    return len(rows) - wrong, len(rows)


def _rms(array: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.mean(np.square(array))))
