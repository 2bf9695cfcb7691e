"""Percentiles and intervals of latencies.

Samples come in rounds, between which a shared machine drifts, so samples of one round are not
independent: intervals are bootstrapped over whole rounds. Ratios of two callables are taken round
by round, so that drift that hits both cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form

__all__ = ["Interval", "Summary", "paired_ratio", "summarize"]

RESAMPLES = 1000
CONFIDENCE = 0.95

Rounds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Interval(JsonData):
    """A number with the ends of its 95% interval: value, low, high."""

    __json__: ClassVar[Form] = Form(array=True)

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary(JsonData):
    """Latencies in seconds.

    Attributes:
        count: samples.
        median: with its interval.
        p90, p95, p99: percentiles of all samples.
        minimum, mean: of all samples.
    """

    __json__: ClassVar[Form] = Form(
        keys=("count", "p50", "p50_interval", "p90", "p95", "p99", "minimum", "mean"),
        names={"minimum": "min"},
    )

    count: int
    median: Interval
    p90: float
    p95: float
    p99: float
    minimum: float
    mean: float

    @property
    def p50(self) -> float:
        """The median."""
        return self.median.value

    @property
    def p50_interval(self) -> tuple[float, float]:
        """Ends of the median's 95% interval."""
        return self.median.low, self.median.high


def summarize(rounds: Rounds, seed: int = 0) -> Summary:
    """Sum up samples in nanoseconds, by rounds."""
    arrays = [np.asarray(r, dtype=np.float64) * 1e-9 for r in rounds]
    pooled = np.concatenate(arrays)
    p90, p95, p99 = np.quantile(pooled, [0.90, 0.95, 0.99])
    median = _bootstrap(
        len(arrays),
        lambda chosen: float(np.median(np.concatenate([arrays[i] for i in chosen]))),
        seed,
    )
    return Summary(
        len(pooled),
        median,
        float(p90),
        float(p95),
        float(p99),
        float(pooled.min()),
        float(pooled.mean()),
    )


def paired_ratio(numerator: Rounds, denominator: Rounds, seed: int = 0) -> Interval:
    """How many times one takes the other's time: the median over rounds of the ratio of their
    medians in a round.

    Raises:
        ValueError: different numbers of rounds.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"{len(numerator)} and {len(denominator)} rounds")
    ratios = np.asarray(
        [np.median(a) / np.median(b) for a, b in zip(numerator, denominator, strict=True)]
    )
    return _bootstrap(len(ratios), lambda chosen: float(np.median(ratios[chosen])), seed)


def _bootstrap(count: int, statistic: Callable[[NDArray[np.int64]], float], seed: int) -> Interval:
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(statistic(np.arange(count)), float(low), float(high))
