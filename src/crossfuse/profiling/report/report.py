"""What a profile found, with all its samples. ``report.schema.json`` beside this file describes the
JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from crossfuse.errors import InputError
from crossfuse.profiling.explain.attribution import StageTimes, group
from crossfuse.profiling.explain.machine import Limits
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.measure.coldstart import ColdStart
from crossfuse.profiling.measure.load import LoadResult
from crossfuse.profiling.measure.sampling import Samples
from crossfuse.profiling.measure.statistics import Interval, Summary, summarize

__all__ = ["OURS", "SCHEMA_VERSION", "LatencyReport", "Row", "read_rows"]

SCHEMA_VERSION = 1
OURS = "crossfuse"
"""Name of the rows of the bundle itself."""


@dataclass(frozen=True)
class Row:
    """One callable at one point.

    Attributes:
        name: ``crossfuse``; ``crossfuse encode`` and ``crossfuse query`` of split bundles; on a GPU
            ``crossfuse without copies``, inputs and outputs staying there; or a rival's.
        sizes: of the named dimensions.
        samples: None where it failed.
        machine: least nanoseconds of fixed work in each of the rounds: how fast the machine was
            meanwhile; empty where the engine is not ONNX Runtime.
        ratio: its time over the bundle's in the same rounds.
        error: largest absolute difference of its outputs from the bundle's, relative to their
            largest magnitude; None where no output has the same name.
        joules: energy of one call, where a GPU tells it.
        failure: why there are no samples.
    """

    name: str
    sizes: Mapping[str, int]
    samples: Samples | None = None
    machine: tuple[int, ...] = ()
    ratio: Interval | None = None
    error: float | None = None
    joules: float | None = None
    failure: str | None = None

    @cached_property
    def summary(self) -> Summary | None:
        """Percentiles and the median's interval."""
        return None if self.samples is None else summarize(self.samples.rounds)

    def to_json(self) -> dict[str, Any]:
        """Plain data, raw samples included."""
        return {
            "name": self.name,
            "sizes": dict(self.sizes),
            "latency": None if self.summary is None else self.summary.to_json(),
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "error": self.error,
            "joules": self.joules,
            "failure": self.failure,
            "unstable_rounds": [] if self.samples is None else list(self.samples.unstable),
            "rounds_ns": [] if self.samples is None else [list(r) for r in self.samples.rounds],
            "machine_ns": list(self.machine),
        }


@dataclass(frozen=True)
class LatencyReport:
    """A profile of a bundle's target.

    Attributes:
        bundle, model, target, provider, precision: what was profiled.
        rows: by point: the bundle first, then its rivals.
        stages: where the time goes at the first point.
        limits: what the machine attains; None where that was not measured.
        load: several callers at once, and arrivals at a rate, at the first point.
        cold_start: None where it was not measured.
        break_even: queries per context from which encoding once pays, where the bundle is split and
            it ever does.
        device_bytes: GPU memory in use with the session loaded, where there is a GPU that tells.
        ledger, parity: what the bundle's manifest says about the target.
        environment: machine and versions.
        command: to do it again.
    """

    bundle: str
    model: str
    target: str
    provider: str
    precision: str
    rows: tuple[Row, ...]
    stages: tuple[StageTimes, ...] = ()
    limits: Limits | None = None
    load: tuple[LoadResult, ...] = ()
    cold_start: ColdStart | None = None
    break_even: float | None = None
    device_bytes: int | None = None
    ledger: tuple[Mapping[str, Any], ...] = ()
    parity: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def points(self) -> list[Mapping[str, int]]:
        """Sizes that were measured, in order."""
        return [row.sizes for row in self.rows if row.name == OURS]

    def at(self, sizes: Mapping[str, int]) -> list[Row]:
        """The rows at a point."""
        return [row for row in self.rows if row.sizes == sizes]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "bundle": self.bundle,
            "model": self.model,
            "target": self.target,
            "provider": self.provider,
            "precision": self.precision,
            "rows": [row.to_json() for row in self.rows],
            "stages": [self._stage(stage) for stage in self.stages],
            "limits": None if self.limits is None else self.limits.to_json(),
            "load": [result.to_json() for result in self.load],
            "cold_start": None if self.cold_start is None else self.cold_start.to_json(),
            "break_even": self.break_even,
            "device_bytes": self.device_bytes,
            "ledger": [dict(row) for row in self.ledger],
            "parity": None if self.parity is None else dict(self.parity),
            "environment": dict(self.environment),
            "command": self.command,
        }

    def _stage(self, stage: StageTimes) -> dict[str, Any]:
        data = stage.to_json()
        if self.limits is not None:
            data["attained"] = attained(stage.nodes, self.limits).to_json()
            sites = group([node for node in stage.nodes if node.site is not None], "site")
            data["sites"] = {site: attained(nodes, self.limits).to_json() for site, nodes in sites}
        return data


def read_rows(path: Path) -> list[Row]:
    """The rows of a report's JSON, with their samples.

    Raises:
        InputError: not a report, or one of a newer version.
    """
    try:
        data = json.loads(path.read_text())
        if data["schema_version"] > SCHEMA_VERSION:
            raise InputError(
                "the report was written by a newer crossfuse",
                where=path,
                got=data["schema_version"],
            )
        return [
            Row(
                str(row["name"]),
                {str(name): int(size) for name, size in row["sizes"].items()},
                _samples(row["rounds_ns"]),
                _times(row["machine_ns"]) if row["machine_ns"] else (),
                failure=row["failure"],
            )
            for row in data["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a latency report: {error}", where=path) from error


def _samples(rounds: list[list[int]]) -> Samples | None:
    return Samples(tuple(_times(r) for r in rounds)) if rounds else None


def _times(values: list[int]) -> tuple[int, ...]:
    times = tuple(int(ns) for ns in values)
    if min(times, default=0) <= 0:
        raise ValueError("a round without samples, or a time that is not positive")
    return times
