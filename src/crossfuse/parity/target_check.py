"""Parity of a target: of the artifact where it can run, else of the graph that a CPU can execute in
its place."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.bundle.manifest import EngineInfo, Manifest
from crossfuse.errors import InputError, ParityError, unknown
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.report import ParityReport
from crossfuse.parity.session_check import check_session
from crossfuse.runtime.backends import runs_here
from crossfuse.runtime.load import open_session, with_dtypes
from crossfuse.runtime.options import SessionOptions
from crossfuse.targets.registry import Target, require_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.export.split.assembly import Stages
    from crossfuse.targets.precision.stages import Precise

__all__ = ["ParityCheck", "rehearse"]


def rehearse(
    manifest: Manifest, target: str, stages: Stages, reference: ReferenceSet
) -> ParityReport:
    """Parity of a built target's graph, executed by a CPU in its place.

    Args:
        manifest: of the bundle.
        target: its name.
        stages: of the fused graph, in fp32.
        reference: the eager model's results.
    """
    from crossfuse.targets.precision.stages import Precise, half_stages

    if target not in manifest.targets:
        raise unknown("the bundle has no such target", target, manifest.targets)
    entry = manifest.targets[target]
    precise = Precise(stages.graphs)
    if entry.precision != "fp32":
        missing = require_target(target).without_bf16
        precise = half_stages(
            stages.graphs,
            entry.precision,
            keep=entry.kept,
            half_frontier=True,
            without_bf16=missing,
        )
    return ParityCheck(stages, reference, entry.precision).rehearsed(
        require_target(target), precise
    )


@dataclass(frozen=True)
class ParityCheck:
    """Parity of a target with these stages, in a precision."""

    stages: Stages
    reference: ReferenceSet
    precision: str

    def executed(
        self, target: str, paths: Mapping[str, Path], precise: Precise, engine: EngineInfo | None
    ) -> ParityReport:
        """Of the artifact itself; an ONNX target that can't run here is executed by the CPU
        provider."""
        options = SessionOptions(provider=None if runs_here(target) else "CPUExecutionProvider")
        return self._check(target, paths, options, precise.boundary, engine)

    def rehearsed(self, target: Target, precise: Precise) -> ParityReport:
        """Of the graph that a CPU can execute in the target's place."""
        from crossfuse.targets.graph_files import graph_file, save_graph
        from crossfuse.targets.registry import rehearse_stages

        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            half = [
                t.name
                for spec in self.stages.specs.values()
                for t in spec.inputs
                if t.dtype in ("float16", "bfloat16")
            ]
            for stage, graph in rehearse_stages(precise.graphs, target, half).items():
                paths[stage] = Path(folder) / graph_file(stage, target.name)
                save_graph(graph, paths[stage], paths[stage].with_suffix(".bin"))
            report = self._check("ort-cpu", paths, SessionOptions(), {}, None)
        return replace(
            report,
            target=target.name,
            executed_on=f"CPUExecutionProvider, {self.precision} simulated",
        )

    def passes(self, graphs: Mapping[str, ir.Model]) -> bool:
        """Whether half graphs pass, executed as the CPU target."""
        from crossfuse.targets.precision.stages import Precise

        try:
            return self.rehearsed(require_target("ort-cpu"), Precise(graphs)).passed
        except (InputError, ParityError):
            return False

    def _check(
        self,
        target: str,
        paths: Mapping[str, Path],
        options: SessionOptions,
        boundary: Mapping[str, str],
        engine: EngineInfo | None,
    ) -> ParityReport:
        stages = with_dtypes(self.stages.specs, boundary)
        with open_session(
            target,
            stages,
            self.stages.dims,
            paths,
            options,
            shared_batch=self.stages.shared_batch,
            decode=self.stages.decode,
            engine=engine,
        ) as session:
            return check_session(session, self.reference, self.precision)
