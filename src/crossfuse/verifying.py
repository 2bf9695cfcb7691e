"""A bundle's target checked again: the session's numbers, an engine's graph where it can't run, and where a fault begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.build.targets import TARGETS
from crossfuse.building import WEIGHTS
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import InputError
from crossfuse.parity_check import rehearse
from crossfuse.resolving import resolve, with_tensors
from crossfuse.runtime.engines import best_target, runs_here
from crossfuse.runtime.options import SessionOptions
from crossfuse.specs import Dim
from crossfuse.verify.check import reference_of, verify_bundle
from crossfuse.verify.given import Given, Inputs, check_given, read_given
from crossfuse.verify.parity import ParityReport
from crossfuse.verify.reference import ReferenceSet

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
    inputs: Inputs | Sequence[Inputs] | None = None,
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
        inputs: compare on these instead: paths of NPZ files, or arrays by name; one set or a list. With ``source`` the
            reference is the eager model in float64; without, the bundle's fused graph, executed by ONNX Runtime on the CPU in
            fp32 (``onnx_ir`` is needed): that compares the target with this graph, not with the eager model.
        seed: of the fresh inputs.
        bisect: also find the first attention or module where the target leaves its tolerance; the report's ``fault``.
        options: of the session.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, or one that can't run here.
        InputError: inputs that the bundle doesn't take.
    """
    reference = None
    given = read_given(inputs)
    if source is not None:
        reference = _recomputed(path, source, given, seed, step)
    elif given:
        reference = _of_fused_graph(path, target, given, step)
    if target in TARGETS and TARGETS[target].engine and not runs_here(target):
        report = _rehearse(path, target, reference, step)
    else:
        step("running the target")
        report = verify_bundle(path, target, options=options, reference=reference)
    return replace(report, fault=_first_fault(path, report, reference, step)) if bisect else report


def _recomputed(path: str | Path, source: ModelSpec | str, given: list[Given], seed: int, step: Step) -> ReferenceSet:
    """The eager model's results at fresh inputs, or at the user's."""
    manifest = open_bundle(path).manifest
    checked = check_given(given, manifest)
    from crossfuse.verify.eager import eager_reference, given_reference

    about = manifest.source
    arguments = {k: about[k] for k in ("size", "seed", "checkpoint", "task") if k in about}
    spec = _within(resolve(source, **arguments), manifest)
    if not checked:
        return eager_reference(spec, seed, step, shared_batch=manifest.shared_batch)
    tensors = [(where, with_tensors(arrays)) for where, arrays in checked]
    return given_reference(spec, tensors, step, shared_batch=manifest.shared_batch)


def _of_fused_graph(path: str | Path, target: str | None, given: list[Given], step: Step) -> ReferenceSet:
    """The fused graph's results at the user's inputs."""
    from crossfuse.verify.fused import fused_reference

    bundle = open_bundle(path)
    name = target or best_target(bundle.targets)
    if name == "onnx" and bundle.target(name).precision == "fp32":
        raise InputError(
            "there is nothing to compare this target with on inputs of your own: it is the portable graph itself",
            where=name,
            do="Give the model as well (--source), or another target",
        )
    checked = check_given(given, bundle.manifest)
    own = None if bundle.manifest.reference is None else reference_of(bundle)
    model, _ = fused_stages(bundle)
    return fused_reference(model, bundle.manifest, checked, own, step)


def _rehearse(path: str | Path, target: str, reference: ReferenceSet | None, step: Step) -> ParityReport:
    """Parity of an engine's graph, executed by a CPU in its place."""
    bundle = open_bundle(path)
    _, stages = fused_stages(bundle)
    step(f"{target} can't run here: executing its graph on the CPU")
    return rehearse(bundle.manifest, target, stages, reference or reference_of(bundle))


def _first_fault(path: str | Path, report: ParityReport, reference: ReferenceSet | None, step: Step) -> Fault | None:
    from crossfuse.verify.bisect import bisect, stage_candidates, telling_point

    bundle = open_bundle(path)
    fused, stages = fused_stages(bundle)
    kept = bundle.target(report.target).kept
    references = reference or reference_of(bundle)
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
