"""What a profile found, with all its samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossfuse.errors import InputError
from crossfuse.profile.coldstart import ColdStart
from crossfuse.profile.sampling import Samples
from crossfuse.profile.statistics import Interval, Summary, summarize

__all__ = ["OURS", "SCHEMA_VERSION", "LatencyReport", "Row"]

SCHEMA_VERSION = 1
OURS = "crossfuse"
"""Name of the rows of the bundle itself."""


@dataclass(frozen=True)
class Row:
    """One callable at one point.

    Attributes:
        name: ``crossfuse``, ``crossfuse encode`` and ``crossfuse query`` of split bundles, or a rival's.
        sizes: of the named dimensions.
        samples: None where it failed.
        machine: samples of a fixed product of matrices from the same rounds: how fast the machine was meanwhile.
        ratio: its median over the bundle's at this point.
        error: largest absolute difference of its outputs from the bundle's, relative to their largest magnitude.
        failure: why there are no samples.
    """

    name: str
    sizes: Mapping[str, int]
    samples: Samples | None = None
    machine: Samples | None = None
    ratio: Interval | None = None
    error: float | None = None
    failure: str | None = None

    @property
    def summary(self) -> Summary | None:
        """Percentiles and the median's interval."""
        return None if self.samples is None else summarize(self.samples.rounds)

    def to_json(self) -> dict[str, Any]:
        """Plain data, raw samples included."""
        summary = self.summary
        return {
            "name": self.name,
            "sizes": dict(self.sizes),
            "latency": None if summary is None else summary.to_json(),
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "error": self.error,
            "failure": self.failure,
            "unstable_rounds": [] if self.samples is None else list(self.samples.unstable),
            "rounds_ns": [] if self.samples is None else [list(r) for r in self.samples.rounds],
            "machine_ns": [] if self.machine is None else [list(r) for r in self.machine.rounds],
        }


@dataclass(frozen=True)
class LatencyReport:
    """A profile of a bundle's target.

    Attributes:
        bundle, target, provider, precision: what was profiled.
        rows: by point: the bundle first, then its rivals.
        cold_start: None where it was not measured.
        break_even: queries per context from which encoding once pays, where the bundle is split and it ever does.
        environment: machine and versions.
        command: to do it again.
    """

    bundle: str
    target: str
    provider: str
    precision: str
    rows: tuple[Row, ...]
    cold_start: ColdStart | None = None
    break_even: float | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "bundle": self.bundle,
            "target": self.target,
            "provider": self.provider,
            "precision": self.precision,
            "rows": [row.to_json() for row in self.rows],
            "cold_start": None if self.cold_start is None else self.cold_start.to_json(),
            "break_even": self.break_even,
            "environment": dict(self.environment),
            "command": self.command,
        }


def read_rows(path: Path) -> list[Row]:
    """The rows of a report's JSON, with their samples.

    Raises:
        InputError: not a report, or one of a newer version.
    """
    try:
        data = json.loads(path.read_text())
        if data["schema_version"] > SCHEMA_VERSION:
            raise InputError("the report was written by a newer crossfuse", where=path, got=data["schema_version"])
        return [
            Row(
                str(row["name"]),
                {str(name): int(size) for name, size in row["sizes"].items()},
                _samples(row["rounds_ns"]),
                _samples(row["machine_ns"]),
                failure=row["failure"],
            )
            for row in data["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a latency report: {error}", where=path) from error


def _samples(rounds: list[list[int]]) -> Samples | None:
    return Samples(tuple(tuple(int(ns) for ns in r) for r in rounds)) if rounds else None
