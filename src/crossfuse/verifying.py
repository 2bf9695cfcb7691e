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
from crossfuse.errors import InputError
from crossfuse.foreign import door
from crossfuse.parity_check import rehearse
from crossfuse.resolving import resolve_again
from crossfuse.runtime.engines import runs_here
from crossfuse.runtime.options import SessionOptions
from crossfuse.specs import CONTEXTS, Dim
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

_OTHER = "the source is not the bundle's model: it has other inputs"
_SAME = "Give the source that the bundle was exported from"


@door
def verify(
    path: str | Path,
    target: str | None = None,
    *,
    source: ModelSpec | str | None = None,
    checkpoint: str | None = None,
    task: str | None = None,
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
        checkpoint, task: of the source, as for `export`.
        seed: of the fresh inputs.
        bisect: also find the first attention or module where the target leaves its tolerance; the report's ``fault``.
        options: of the session.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, or one that can't run here.
        InputError: a source that is not the bundle's model.
    """
    reference = None
    if source is not None:
        from crossfuse.verify.eager import eager_reference

        opened = open_bundle(path).manifest
        spec = _within(resolve_again(source, opened.source, checkpoint=checkpoint, task=task), opened)
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
    """The spec with the dynamic dimensions, context and dropped outputs that the bundle was exported with.

    Raises:
        InputError: its inputs are not the bundle's.
    """
    given = {tensor.name: tensor for tensor in manifest.inputs}
    theirs, ours = f"inputs {', '.join(spec.inputs)}", f"inputs {', '.join(given)}"
    if set(given) != set(spec.inputs):
        raise InputError(_OTHER, got=theirs, expected=ours, do=_SAME)
    axes: dict[str, dict[int, str | Dim]] = {}
    for name, tensor in given.items():
        shape = tuple(spec.inputs[name].shape)
        fixed = {axis: size for axis, size in enumerate(tensor.shape) if isinstance(size, int)}
        if len(shape) != len(tensor.shape) or any(shape[axis] != size for axis, size in fixed.items()):
            raise InputError(_OTHER, where=name, got=list(shape), expected=tensor, do=_SAME)
        for axis, size in enumerate(tensor.shape):
            dim = manifest.dims.get(str(manifest.shared_batch if size == CONTEXTS else size))
            if dim is not None:
                axes.setdefault(name, {})[axis] = dim
    dropped = manifest.source.get("drop_outputs", [])
    more = [name for name in dropped if isinstance(name, str)] if isinstance(dropped, list) else []
    return replace(spec, dynamic=axes, context=manifest.context, drop_outputs=(*spec.drop_outputs, *more))
