"""One target of a bundle: precision, lowering, engine, proof of fusion, proof of parity; what
`export` and `build` share."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from crossfuse.api.arguments import Progress
from crossfuse.api.build_options import BuildOptions
from crossfuse.api.built_engines import EngineRequest, build_engines
from crossfuse.api.built_files import BuiltFiles, CompiledGraph, Fusions, compiled_graph
from crossfuse.api.built_linears import build_layers, built_linears
from crossfuse.api.calibration import calibration_data, reference_inputs
from crossfuse.bundle.manifest import Manifest, TargetEntry
from crossfuse.core.openvino_linears import WIDE_FLOATS
from crossfuse.core.target import LOW_PRECISIONS, Target, require_precision, require_target
from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import Advice, ParityError, Said
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.target_check import ParityCheck
from crossfuse.runtime.backends import runs_here
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import StageRequest
from crossfuse.targets.registry import lower_stages

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.api.low_precision import LowPrecisionStages
    from crossfuse.bundle.writer import BundleWriter
    from crossfuse.core.linear_ledger import Became
    from crossfuse.export.split.assembly import Stages
    from crossfuse.parity.report import ParityReport
    from crossfuse.targets.precision.stages import StageGraphs
    from crossfuse.targets.quantize.stages import PlannedLayer

__all__ = ["TargetBuild"]

_PRODUCERS = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "polygraphy",
)
_WITHOUT_SPLIT = Said("--whole", "whole=True")
_WHOLE = Advice(
    "Nothing was written. It fails where several queries ask one context: where samples of a batch "
    "depend on each other, export without the split ({})",
    _WITHOUT_SPLIT,
)
_WIDER = Advice(
    "Nothing was written. Build this target in fp32 ({})",
    Said("--precision fp32", "precision='fp32'"),
)
_PASSES_WHOLE = Advice(
    "Nothing was written. Without the split into context and query the same graph passes: export "
    "it in one piece ({}); each call then takes contexts and queries together",
    _WITHOUT_SPLIT,
)


@dataclass(frozen=True)
class TargetBuild:
    """What all targets of a bundle are built from.

    Attributes:
        writer: of the bundle being written.
        model: the whole fused graph.
        stages: what it is split into.
        reference: the eager model's results.
        progress: told what begins.
    """

    writer: BundleWriter
    model: ir.Model
    stages: Stages
    reference: ReferenceSet
    progress: Progress

    def add(self, manifest: Manifest, target: str, options: BuildOptions) -> Manifest:
        """Build a target into the bundle.

        Args:
            manifest: so far.
            target: its name.
            options: checked by `check_options`.

        Returns:
            the manifest with the target's entry, and its column in the ledger.

        Raises:
            FusionError: an attention did not fuse.
            ParityError: the target does not compute what the eager model computes.
            EngineError: the engine builder refuses the graph.
        """
        known = require_target(target)
        precision = require_precision(options.precision, known)
        check = ParityCheck(self.stages, self.reference, precision, generation=manifest.generation)
        low = self._low_precision(manifest, known, options, check)
        check = check if low is None else low.check
        precise = self._in_precision(known, options, check) if low is None else low.precise
        layers = build_layers(known, self.model, self.stages.graphs, precise, low)
        self.progress(f"{target}: lowering")
        if known.engine is not None:
            asked = EngineRequest(self.stages, known, options, manifest, layers)
            built = build_engines(precise, asked, self.writer, self.progress)
        else:
            built = self._graphs(precise, known, precision, layers)
        ledger = manifest.ledger.with_target(target, built.kernels, built.reasons)
        if not options.allow_unfused:
            ledger.require_fused([target], str(manifest.source.get("kind")))
        costs = {} if low is None else low.costs
        linears = built_linears(known, precision, layers, costs, built, self.writer.folder)
        if not options.allow_unquantized:
            linears.require_quantized(target)
        self.progress(f"{target}: parity")
        try:
            parity = self._parity(check, known, precise, built)
        except ParityError as error:
            if low is not None:
                low.name_layers(error)
            raise
        entry = TargetEntry(
            stages=built.stages,
            files=tuple(sorted(built.files)),
            precision=precision,
            producers=_producers(known),
            parity=parity.to_json(),
            kept=precise.kept,
            boundary=precise.boundary,
            engine=built.engine,
            package=known.package,
            linears=linears,
            calibration="" if low is None else low.calibration,
        )
        return replace(manifest.with_target(target, entry), ledger=ledger)

    def _in_precision(
        self, target: Target, options: BuildOptions, check: ParityCheck
    ) -> StageGraphs:
        """The stages' graphs in the target's precision."""
        from crossfuse.targets.precision.stages import StageGraphs, half_stages, search_islands
        from crossfuse.targets.quantize.half_products import half_products

        precision, graphs = check.precision, self.stages.graphs
        if precision == "fp32":
            return StageGraphs(graphs)
        keep: dict[str, str] = {}
        if precision == "mixed":
            points = reference_inputs(self.reference, self.model, self.stages.shared_batch)
            keep = search_islands(self.model, graphs, points, check.passes, progress=self.progress)
        self.progress(f"{target.name}: casting to {precision}")
        ends = _float_ends(self.model) if options.io_dtype == "fp16" else []
        found = half_stages(
            graphs,
            precision,
            keep=keep,
            half_handover=target.hands_over_half,
            half_io=ends,
            without_bf16=target.without_bf16,
        )
        if precision == "bf16" and not found.kept:
            for graph in found.graphs.values():
                graph.metadata_props[WIDE_FLOATS] = "bf16"
        elif precision == "bf16" and target.compiles:
            found = replace(found, graphs=half_products(graphs).graphs)
        return found

    def _low_precision(
        self, manifest: Manifest, target: Target, options: BuildOptions, check: ParityCheck
    ) -> LowPrecisionStages | None:
        """The stages with their linear layers in integers; None in other precisions."""
        if check.precision not in LOW_PRECISIONS:
            return None
        from crossfuse.api.low_precision import quantized

        data = calibration_data(options.calibrate, manifest, self.reference, self.model)
        return quantized(self.model, check, target, options, data, self.progress)

    def _graphs(
        self,
        precise: StageGraphs,
        target: Target,
        precision: str,
        layers: Sequence[PlannedLayer],
    ) -> BuiltFiles:
        """Write the graphs of an ONNX target, and ask the engine that compiles them."""
        from crossfuse.targets.graph_files import Places, save_graph
        from crossfuse.targets.precision.simulate import half_inputs, simulate

        graphs = precise.graphs
        if target.simulates:
            graphs = {
                stage: simulate(graph, boundary=[*precise.boundary, *half_inputs(graph)])
                for stage, graph in graphs.items()
            }
        fusions = Fusions()
        files: dict[str, str] = {}
        used: set[str] = set()
        places: Places = {}
        linears: dict[str, Mapping[str, Became]] = {}
        for stage, lowered in lower_stages(graphs, target).items():
            files[stage] = target.file(stage)
            graph = self.writer.file(files[stage])
            weights = self.writer.file(target.weights_file(stage))
            used |= {files[stage], *save_graph(lowered.model, graph, weights, places)}
            found = CompiledGraph(lowered.kernels, lowered.reasons)
            if target.compiles:
                self.progress(f"{target.name}: {stage}: what the engine makes of it")
                request = StageRequest(target, graph, SessionOptions(), precision=precision)
                results = [layer.result for layer in layers if layer.stage == stage]
                found = compiled_graph(lowered, request, results)
            fusions.note(found.kernels, found.reasons)
            if found.linears is not None:
                linears[stage] = found.linears
        return BuiltFiles(files, frozenset(used), fusions.kernels, fusions.reasons, linears=linears)

    def _parity(
        self, check: ParityCheck, target: Target, precise: StageGraphs, built: BuiltFiles
    ) -> ParityReport:
        """Of the artifact where it can run, else of the graph that a CPU executes in its place.

        Raises:
            ParityError: the target does not compute what the eager model computes.
        """
        report: ParityReport | None = None
        try:
            if runs_here(target.name) or (target.artifact_on_cpu and check.precision == "fp32"):
                paths = {stage: self.writer.folder / file for stage, file in built.stages.items()}
                report = check.executed(target, paths, precise, built.engine)
            else:
                report = check.checked_on_cpu(target, precise)
            report.require_passed()
        except ParityError as error:
            searched = ("fp32", "mixed", *LOW_PRECISIONS)
            if check.precision not in searched and "mixed" not in target.precisions:
                error.do = _WIDER
            elif self._passes_whole(check.precision):
                error.do = _PASSES_WHOLE
            elif (
                report is not None
                and check.precision not in LOW_PRECISIONS
                and self._shared_contexts(report)
            ):
                error.do = _WHOLE
            raise
        return report

    def _passes_whole(self, precision: str) -> bool:
        """The graph of a split bundle passes in one piece, where each context has one query; tried
        in fp32 alone."""
        from crossfuse.export.split.assembly import assemble

        if precision != "fp32" or "model" in self.stages.graphs:
            return False
        self.progress("parity without the split")
        shared = self.stages.shared_batch or ""
        points = tuple(
            point
            for point in self.reference.points
            if point.sizes.get(CONTEXTS) == point.sizes.get(shared)
        )
        whole = assemble(self.model, (), self.stages.dims, self.stages.example)
        reference = replace(self.reference, points=points)
        return ParityCheck(whole, reference, precision).passes(whole.graphs)

    def _shared_contexts(self, report: ParityReport) -> bool:
        """The outputs that fail do so most where several queries ask one context."""
        worst = [output.worst_at for output in report.outputs.values() if not output.passed]
        shared = self.stages.shared_batch
        return shared is not None and all(
            sizes.get(CONTEXTS, 0) < sizes.get(shared, 0) for sizes in worst
        )


def _float_ends(model: ir.Model) -> list[str]:
    """Floating inputs and outputs of the whole graph."""
    ends = (*model.graph.inputs, *model.graph.outputs)
    return [v.name or "" for v in ends if v.dtype is not None and v.dtype.name == "FLOAT"]


def _producers(target: Target) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (*_PRODUCERS, *([target.package] if target.package else [])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
