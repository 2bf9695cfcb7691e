"""Regressions between two reports of one thing on one machine.

Between two runs the machine is faster or slower as a whole. Each round also times a fixed product of matrices, and a round's
samples are taken relative to it. A row has regressed if the whole interval of its ratio lies beyond the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import InputError
from crossfuse.profile.report import Row, read_rows
from crossfuse.profile.statistics import CONFIDENCE, RESAMPLES, Interval

__all__ = ["THRESHOLD", "Change", "compare_reports", "compare_rows"]

THRESHOLD = 0.05
"""How much slower a row may be."""


@dataclass(frozen=True)
class Change:
    """How a row's latency changed: the second report's over the first's."""

    name: str
    sizes: dict[str, int]
    ratio: Interval
    regressed: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"name": self.name, "sizes": self.sizes, "ratio": self.ratio.to_json(), "regressed": self.regressed}


def compare_reports(before: Path, after: Path, threshold: float = THRESHOLD) -> list[Change]:
    """Rows that both reports have.

    Raises:
        InputError: a file that is no report, or nothing in common.
    """
    changes = compare_rows(read_rows(before), read_rows(after), threshold)
    if not changes:
        raise InputError("the reports have no row in common", where=f"{before} and {after}")
    return changes


def compare_rows(before: Sequence[Row], after: Sequence[Row], threshold: float = THRESHOLD) -> list[Change]:
    """How each row changed that both have."""
    known = {(row.name, tuple(sorted(row.sizes.items()))): row for row in before if row.samples is not None}
    changes = []
    for row in after:
        old = known.get((row.name, tuple(sorted(row.sizes.items()))))
        if old is None or row.samples is None:
            continue
        ratio = _ratio(_relative(old), _relative(row))
        changes.append(Change(row.name, dict(row.sizes), ratio, ratio.low > 1 + threshold))
    return changes


def _relative(row: Row) -> list[float]:
    """Each round's median, relative to the machine's speed in it."""
    assert row.samples is not None
    medians = [float(np.median(r)) for r in row.samples.rounds]
    return [m / speed for m, speed in zip(medians, row.machine, strict=True)] if row.machine else medians


def _ratio(before: list[float], after: list[float], seed: int = 0) -> Interval:
    generator = np.random.default_rng(seed)
    a, b = np.asarray(before), np.asarray(after)

    def median(values: NDArray[np.float64]) -> float:
        return float(np.median(values[generator.integers(0, len(values), len(values))]))

    draws = [median(b) / median(a) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.median(b) / np.median(a)), float(low), float(high))
