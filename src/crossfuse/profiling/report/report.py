"""What a profile found, with all its samples. ``report.schema.json`` beside this file describes the
JSON, and is made from these classes (`python -m crossfuse.profiling.report.schema`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import AtLeast, Form, Where
from crossfuse.core.json_reader import Origin, decode_text
from crossfuse.errors import InputError
from crossfuse.profiling.explain.attribution import NodeTime, StageTimes, group
from crossfuse.profiling.explain.machine import Limits
from crossfuse.profiling.explain.roofline import Attained, attained
from crossfuse.profiling.measure.coldstart import ColdStart
from crossfuse.profiling.measure.generation import GenerationTimes
from crossfuse.profiling.measure.load import LoadResult
from crossfuse.profiling.measure.sampling import Samples
from crossfuse.profiling.measure.statistics import Interval, Summary, summarize

__all__ = ["OURS", "SCHEMA_VERSION", "LatencyReport", "Row", "StageReport", "read_rows"]

SCHEMA_VERSION = 1
"""Raised when a reader of older reports would misread a newer one."""

OURS = "crossfuse"
"""Name of the rows of the bundle itself."""

_Nanoseconds = Annotated[int, AtLeast(1)]
_Round = tuple[_Nanoseconds, ...]


@dataclass(frozen=True)
class Row(JsonData):
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
        reference_error: the same difference from the model's own numbers, in float64 where it runs
            in that; None where it was not measured, as without baselines.
        joules: energy of one call, where a GPU tells it.
        failure: why there are no samples.
    """

    __json__: ClassVar[Form] = Form(
        keys=(
            "name",
            "sizes",
            "summary",
            "ratio",
            "error",
            "reference_error",
            "joules",
            "failure",
            "unstable_rounds",
            "rounds_ns",
            "machine",
        ),
        names={"summary": "latency", "machine": "machine_ns"},
    )

    name: str
    sizes: Mapping[str, int]
    samples: Samples | None = None
    machine: tuple[int, ...] = ()
    ratio: Interval | None = None
    error: float | None = None
    reference_error: float | None = None
    joules: float | None = None
    failure: str | None = None

    @cached_property
    def summary(self) -> Summary | None:
        """Percentiles and the median's interval."""
        return None if self.samples is None else summarize(self.samples.rounds)

    @property
    def distance(self) -> float | None:
        """How far its outputs are from the model's own numbers; where those were not computed, from
        the bundle's."""
        return self.error if self.reference_error is None else self.reference_error

    @property
    def unstable_rounds(self) -> tuple[int, ...]:
        """Rounds that stick out, by number."""
        return () if self.samples is None else self.samples.unstable

    @property
    def rounds_ns(self) -> tuple[_Round, ...]:
        """Every sample, by round."""
        return () if self.samples is None else self.samples.rounds


@dataclass(frozen=True)
class StageReport:
    """One stage's nodes, and how far from the machine's limits it is where those were measured.

    Attributes:
        stage: its name in the bundle.
        seconds: of a run under the engine's profiler.
        runs: that were traced.
        nodes: in the order of execution.
        attained: of the whole stage.
        sites: by attention.
    """

    __json__: ClassVar[Form] = Form(sparse=frozenset({"attained", "sites"}))

    stage: str
    seconds: float
    runs: int
    nodes: tuple[NodeTime, ...]
    attained: Attained | None = None
    sites: Mapping[str, Attained] | None = None


@dataclass(frozen=True)
class LatencyReport(JsonData):
    """A profile of a bundle's target; times are seconds unless a name ends in ``_ns``.

    Attributes:
        bundle: its path as given.
        model: its name.
        target: that was profiled.
        provider: what executed it.
        precision: of the target.
        rows: by point: the bundle first, then its rivals.
        stages: where the time goes at the first point.
        limits: what the machine attains; None where that was not measured.
        load: several callers at once, and arrivals at a rate, at the first point.
        generation: of bundles with a step stage, tokens for one caller and for several at once, at
            the first point.
        cold_start: None where it was not measured.
        break_even: queries per context from which encoding once pays, where the bundle is split and
            it ever does.
        device_bytes: GPU memory in use with the session loaded, where there is a GPU that tells.
        ledger: rows of the bundle's fusion ledger.
        parity: of the target, when it was built.
        environment: machine, system, versions, and the load average at the end.
        command: to do it again.
    """

    __json__: ClassVar[Form] = Form(
        keys=(
            "bundle",
            "model",
            "target",
            "provider",
            "precision",
            "rows",
            "stage_reports",
            "limits",
            "load",
            "generation",
            "cold_start",
            "break_even",
            "device_bytes",
            "ledger",
            "parity",
            "environment",
            "command",
        ),
        names={"stage_reports": "stages"},
        version=SCHEMA_VERSION,
    )

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
    generation: tuple[GenerationTimes, ...] = ()

    @property
    def points(self) -> list[Mapping[str, int]]:
        """Sizes that were measured, in order."""
        return [row.sizes for row in self.rows if row.name == OURS]

    def at(self, sizes: Mapping[str, int]) -> list[Row]:
        """The rows at a point."""
        return [row for row in self.rows if row.sizes == sizes]

    @property
    def stage_reports(self) -> tuple[StageReport, ...]:
        """Where the time goes at the first point, by stage; empty where nothing was traced."""
        return tuple(_stage_report(stage, self.limits) for stage in self.stages)


def _stage_report(stage: StageTimes, limits: Limits | None) -> StageReport:
    about = StageReport(stage.stage, stage.seconds, stage.runs, stage.nodes)
    if limits is None:
        return about
    sites = group([node for node in stage.nodes if node.site is not None], "site")
    return replace(
        about,
        attained=attained(stage.nodes, limits),
        sites={site: attained(nodes, limits) for site, nodes in sites},
    )


@dataclass(frozen=True)
class _StoredRow:
    """What is read of a row."""

    name: str
    sizes: Mapping[str, int]
    rounds_ns: tuple[Annotated[_Round, Where(bool, "a round with samples")], ...]
    machine_ns: _Round
    failure: str | None

    def row(self) -> Row:
        samples = Samples(self.rounds_ns) if self.rounds_ns else None
        return Row(self.name, self.sizes, samples, self.machine_ns, failure=self.failure)


@dataclass(frozen=True)
class _StoredReport:
    """What is read of a report: its rows."""

    __json__: ClassVar[Form] = Form(version=SCHEMA_VERSION)

    rows: tuple[_StoredRow, ...]


def read_rows(path: Path) -> list[Row]:
    """The rows of a report's JSON, with their samples.

    Raises:
        InputError: not a report, one of a newer version, or a field that is missing or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the latency report can't be read: {error}", where=path) from error
    origin = Origin("the latency report", path, newer="Upgrade crossfuse here")
    return [stored.row() for stored in decode_text(_StoredReport, text, origin).rows]
