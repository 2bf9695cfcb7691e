"""Regressions between two reports of one thing on one machine.

What disturbs a measurement (neighbours, interrupts, a cold cache) makes it longer, never shorter,
so the least times are the most repeatable ones (Chen and Revels, "Robust benchmarking in noisy
environments", 2016): a round stands for its least sample, a report for its fastest round. The
interval is bootstrapped over rounds; it is wide where no other round came near the fastest.

A machine may also be slower for a whole report. Each round times fixed work as well, but a model
may be hit less than that: the interval holds every change that is possible if the model felt
between a quarter and all of what the fixed work felt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.errors import InputError
from crossfuse.profiling.measure.statistics import CONFIDENCE, RESAMPLES, Interval
from crossfuse.profiling.report.report import OURS, Row, read_rows

__all__ = ["THRESHOLD", "Change", "compare_reports", "compare_rows"]

THRESHOLD = 0.05
"""How much slower a row may be."""

_SLOWER = "slower"
_FELT = (0.25, 1.0)


@dataclass(frozen=True)
class Change(JsonData):
    """How a row's latency changed.

    Attributes:
        name, sizes: of the row.
        ratio: the second report's least time over the first's, without what the machine did.
        machine: the ratio of the fixed work's least times; None where a report doesn't tell.
        verdict: ``slower`` if the whole interval of the ratio is beyond the threshold, ``not
            slower`` if none of it is, ``can't tell`` otherwise; ``rival`` for what isn't the
            bundle's.
    """

    __json__: ClassVar[Form] = Form(
        keys=("name", "sizes", "ratio", "machine", "verdict", "regressed")
    )

    name: str
    sizes: dict[str, int]
    ratio: Interval
    machine: float | None
    verdict: str

    @property
    def regressed(self) -> bool:
        """Whether the bundle is slower."""
        return self.verdict == _SLOWER


def compare_reports(before: Path, after: Path, threshold: float = THRESHOLD) -> list[Change]:
    """Rows that both reports have.

    Raises:
        InputError: a file that is no report, or nothing in common.
    """
    changes = compare_rows(read_rows(before), read_rows(after), threshold)
    if not changes:
        raise InputError("the reports have no row in common", where=f"{before} and {after}")
    return changes


def compare_rows(
    before: Sequence[Row], after: Sequence[Row], threshold: float = THRESHOLD
) -> list[Change]:
    """How each row changed that both have."""
    known = {
        (row.name, tuple(sorted(row.sizes.items()))): row
        for row in before
        if row.samples is not None
    }
    changes = []
    for row in after:
        old = known.get((row.name, tuple(sorted(row.sizes.items()))))
        if old is None or row.samples is None:
            continue
        machine = min(row.machine) / min(old.machine) if old.machine and row.machine else None
        ratio = _ratio(_least(old), _least(row), machine or 1.0)
        changes.append(
            Change(row.name, dict(row.sizes), ratio, machine, _verdict(row, ratio, 1 + threshold))
        )
    return changes


def _verdict(row: Row, ratio: Interval, limit: float) -> str:
    if not row.name.startswith(OURS):
        return "rival"
    if ratio.low > limit:
        return _SLOWER
    return "not slower" if ratio.high <= limit else "can't tell"


def _least(row: Row) -> NDArray[np.int64]:
    """Of each round."""
    assert row.samples is not None
    return np.asarray([min(r) for r in row.samples.rounds])


def _ratio(
    before: NDArray[np.int64], after: NDArray[np.int64], machine: float, seed: int = 0
) -> Interval:
    generator = np.random.default_rng(seed)

    def draws(rounds: NDArray[np.int64]) -> NDArray[np.int64]:
        least: NDArray[np.int64] = rounds[
            generator.integers(0, len(rounds), (RESAMPLES, len(rounds)))
        ].min(axis=1)
        return least

    low, high = np.quantile(
        draws(after) / draws(before), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    )
    felt = [machine**exponent for exponent in _FELT]
    middle = float(after.min() / before.min() / np.sqrt(np.prod(felt)))
    return Interval(middle, float(low / max(felt)), float(high / min(felt)))
