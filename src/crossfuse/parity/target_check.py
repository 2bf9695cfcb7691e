"""Parity of a target: of the artifact where it can run, else of the graph that a CPU can execute in
its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.bundle.manifest import EngineInfo, Manifest
from crossfuse.core.scratch import scratch_folder
from crossfuse.core.target import CPU_TARGET, Target, require_target
from crossfuse.errors import InputError, ParityError, unknown
from crossfuse.parity.low_precision import BESIDE_A_METRIC, PLAIN
from crossfuse.parity.metric import Metric
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.report import ParityReport
from crossfuse.parity.session_check import check_session
from crossfuse.runtime.backends import runs_here
from crossfuse.runtime.load import SessionSpec, open_session, with_dtypes
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.targets.registry import cpu_equivalents

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.export.split.assembly import Stages
    from crossfuse.targets.precision.stages import StageGraphs

__all__ = ["ParityCheck", "check_on_cpu"]

_CPU = require_target(CPU_TARGET)


def check_on_cpu(
    manifest: Manifest, target: str, stages: Stages, reference: ReferenceSet
) -> ParityReport:
    """Parity of a built target's graph, executed by a CPU in its place.

    Args:
        manifest: of the bundle.
        target: its name.
        stages: of the fused graph, in fp32.
        reference: the eager model's results.
    """
    from crossfuse.targets.precision.stages import StageGraphs, half_stages

    if target not in manifest.targets:
        raise unknown("the bundle has no such target", target, manifest.targets)
    entry = manifest.targets[target]
    precise = StageGraphs(stages.graphs)
    if entry.precision != "fp32":
        known = require_target(target)
        precise = half_stages(
            stages.graphs,
            entry.precision,
            keep=entry.kept,
            half_handover=known.hands_over_half,
            without_bf16=known.without_bf16,
        )
    return ParityCheck(stages, reference, entry.precision).checked_on_cpu(
        require_target(target), precise
    )


@dataclass(frozen=True)
class ParityCheck:
    """Parity of a target with these stages, in a precision; where ``metric`` is given, it decides
    in place of the policy for low precision. ``generation`` are the bundle's settings, by which a
    metric generates."""

    stages: Stages
    reference: ReferenceSet
    precision: str
    metric: Metric | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def executed(
        self,
        target: Target,
        paths: Mapping[str, Path],
        precise: StageGraphs,
        engine: EngineInfo | None,
    ) -> ParityReport:
        """Of the artifact itself; an ONNX target that can't run here is executed by the CPU
        provider."""
        here = runs_here(target.name)
        options = SessionOptions(provider=None if here else _CPU.provider)
        return self._check(target, paths, options, precise.boundary, engine)

    def checked_on_cpu(self, target: Target, precise: StageGraphs) -> ParityReport:
        """Of the graph that a CPU can execute in the target's place."""
        with self._on_cpu(target, precise.graphs) as session:
            report = self._checked(session)
        return replace(
            report,
            target=target.name,
            executed_on=f"{_CPU.provider}, {self.precision} simulated",
        )

    def with_metric(self, metric: Metric) -> ParityCheck:
        """The check with a metric, whose value for the stages in fp32 is measured on the CPU."""
        with self._on_cpu(_CPU, self.stages.graphs) as session:
            return replace(self, metric=replace(metric, fp32=metric.value(session)))

    @contextmanager
    def _on_cpu(self, target: Target, graphs: Mapping[str, ir.Model]) -> Iterator[Session]:
        """A session of what a CPU executes in the target's place."""
        from crossfuse.targets.graph_files import save_graph

        with scratch_folder() as folder:
            paths = {}
            half = [
                t.name
                for spec in self.stages.specs.values()
                for t in spec.inputs
                if t.dtype in ("float16", "bfloat16")
            ]
            for stage, graph in cpu_equivalents(graphs, target, half).items():
                paths[stage] = folder / _CPU.file(stage)
                save_graph(graph, paths[stage], paths[stage].with_suffix(".bin"))
            spec = self._spec({}, None)
            with open_session(_CPU, paths, spec, SessionOptions()) as session:
                yield session

    def passes(self, graphs: Mapping[str, ir.Model]) -> bool:
        """Whether half graphs pass, executed as the CPU target."""
        from crossfuse.targets.precision.stages import StageGraphs

        try:
            return self.checked_on_cpu(_CPU, StageGraphs(graphs)).passed
        except (InputError, ParityError):
            return False

    def passes_on(self, target: Target, graphs: Mapping[str, ir.Model]) -> bool:
        """Whether graphs in the target's precision pass: lowered and executed by its own engine
        where that compiles graphs, else as of `passes`."""
        if not target.compiles:
            return self.passes(graphs)
        from crossfuse.targets.graph_files import save_graph
        from crossfuse.targets.registry import lower_stages

        with scratch_folder() as folder:
            paths = {}
            for stage, lowered in lower_stages(graphs, target).items():
                paths[stage] = folder / target.file(stage)
                save_graph(lowered.model, paths[stage], paths[stage].with_suffix(".bin"))
            try:
                return self._check(target, paths, SessionOptions(), {}, None).passed
            except (InputError, ParityError):
                return False

    def _check(
        self,
        target: Target,
        paths: Mapping[str, Path],
        options: SessionOptions,
        boundary: Mapping[str, str],
        engine: EngineInfo | None,
    ) -> ParityReport:
        spec = self._spec(boundary, engine)
        with open_session(target, paths, spec, options) as session:
            return self._checked(session)

    def _spec(self, boundary: Mapping[str, str], engine: EngineInfo | None) -> SessionSpec:
        return SessionSpec(
            with_dtypes(self.stages.specs, boundary),
            self.stages.dims,
            shared_batch=self.stages.shared_batch,
            decode=self.stages.decode,
            engine=engine,
            precision=self.precision,
            generation=self.generation,
        )

    def _checked(self, session: Session) -> ParityReport:
        limits = PLAIN if self.metric is None else BESIDE_A_METRIC
        report = check_session(session, self.reference, self.precision, limits)
        if self.metric is None:
            return report
        return replace(report, metric=self.metric.judge(session))
