"""A bundle's target checked again: the session's numbers, an engine's graph where it can't run, and where a fault begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.build.targets import TARGETS
from crossfuse.building import WEIGHTS
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.parity_check import rehearse
from crossfuse.resolving import accepted, options_of, resolve
from crossfuse.runtime.engines import runs_here
from crossfuse.runtime.options import SessionOptions
from crossfuse.specs import Dim
from crossfuse.verify.check import verify_bundle
from crossfuse.verify.parity import ParityReport
from crossfuse.verify.reference import REFERENCE_FILE, ReferenceSet, load_reference

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.assembly import Stages
    from crossfuse.model_spec import ModelSpec
    from crossfuse.verify.bisect import Fault

__all__ = ["fused_stages", "verify"]

Step = Callable[[str], None]


def verify(
    path: str | Path,
    target: str | None = None,
    *,
    source: ModelSpec | str | None = None,
    seed: int = 1,
    bisect: bool = False,
    options: SessionOptions | None = None,
    step: Step = lambda _: None,
) -> ParityReport:
    """Check a bundle's target against the eager model's results.

    Args:
        path: the bundle.
        target: where omitted, the best that runs here. Of an engine that can't, the graph is executed by the CPU in its place;
            the report's ``executed_on`` says so.
        source: recompute the reference from this model with ``seed``; where omitted, the results that the bundle carries
            are used, and neither PyTorch nor the model is needed.
        seed: of the fresh inputs.
        bisect: also find the first attention or module where the target leaves its tolerance; the report's ``fault``.
        options: of the session.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, or one that can't run here.
    """
    reference = None
    if source is not None:
        from crossfuse.verify.eager import eager_reference

        opened = open_bundle(path).manifest
        spec = _within(accepted(resolve(source, **options_of(opened.source)), step), opened)
        reference = eager_reference(spec, seed, step, shared_batch=opened.shared_batch)
    if target in TARGETS and TARGETS[target].engine and not runs_here(target):
        report = _rehearse(path, target, reference, step)
    else:
        step("running the target")
        report = verify_bundle(path, target, options=options, reference=reference)
    return replace(report, fault=_first_fault(path, report, reference, step)) if bisect else report


def _rehearse(path: str | Path, target: str, reference: ReferenceSet | None, step: Step) -> ParityReport:
    """Parity of an engine's graph, executed by a CPU in its place."""
    bundle = open_bundle(path)
    _, stages = fused_stages(bundle)
    step(f"{target} can't run here: executing its graph on the CPU")
    return rehearse(bundle.manifest, target, stages, reference or load_reference(bundle.verified([REFERENCE_FILE])[0]))


def _first_fault(path: str | Path, report: ParityReport, reference: ReferenceSet | None, step: Step) -> Fault | None:
    from crossfuse.verify.bisect import bisect, stage_candidates, telling_point

    bundle = open_bundle(path)
    fused, stages = fused_stages(bundle)
    kept = bundle.target(report.target).kept
    references = reference or load_reference(bundle.verified([REFERENCE_FILE])[0])
    point = telling_point(report, references, bundle.manifest.shared_batch)
    candidates = stage_candidates(bundle, report.target, stages.graphs)
    return bisect(fused, candidates, point, report.precision, kept=kept, step=step)


def fused_stages(bundle: Bundle) -> tuple[ir.Model, Stages]:
    """A bundle's fused graph, and the stages that it was split into."""
    from crossfuse.assembly import assemble
    from crossfuse.build.files import load_graph

    manifest = bundle.manifest
    bundle.verified({manifest.fused_graph, WEIGHTS} & set(manifest.files))
    model = load_graph(bundle, manifest.fused_graph)
    decode = None if manifest.decode is None else manifest.decode.tokens
    whole = "model" in manifest.stages
    return model, assemble(model, manifest.context, manifest.dims, manifest.example, whole=whole, decode=decode)


def _within(spec: ModelSpec, manifest: Manifest) -> ModelSpec:
    """The spec with the ranges of dynamic dimensions that the bundle was exported with."""
    axes: dict[str, dict[int, str | Dim]] = {
        name: {axis: manifest.dims.get(dim, dim) for axis, dim in axes.items()} for name, axes in spec.axes.items()
    }
    return replace(spec, dynamic=axes)
