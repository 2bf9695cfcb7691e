"""A bundle's target checked again: the session's numbers, an engine's graph where it can't run, and
where a fault begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.api.build_target import WEIGHTS
from crossfuse.api.sources import accepted, resolve_again, with_tensors
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.foreign import door
from crossfuse.core.tensors import CONTEXTS, Dim
from crossfuse.errors import Advice, InputError, Said
from crossfuse.parity.given import Given, Inputs, check_given, read_given
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.report import ParityReport
from crossfuse.parity.session_check import reference_of, verify_bundle
from crossfuse.parity.target_check import rehearse
from crossfuse.runtime.backends import best_target, runs_here
from crossfuse.runtime.options import SessionOptions
from crossfuse.targets.registry import TARGETS

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.export.split.assembly import Stages
    from crossfuse.parity.bisect import Fault
    from crossfuse.spec.model_spec import ModelSpec

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
    inputs: Inputs | Sequence[Inputs] | None = None,
    seed: int = 1,
    bisect: bool = False,
    options: SessionOptions | None = None,
    step: Step = lambda _: None,
) -> ParityReport:
    """Check a bundle's target against the eager model's results.

    Args:
        path: the bundle.
        target: where omitted, the best that runs here. Of an engine that can't, the graph is
            executed by the CPU in its place; the report's ``executed_on`` says so.
        source: recompute the reference from this model with ``seed``; where omitted, the results
            that the bundle carries are used, and neither PyTorch nor the model is needed.
        checkpoint, task: of the source, as for `export`.
        inputs: compare on these instead: paths of NPZ files, or arrays by name; one set or a list.
            With ``source`` the reference is the eager model in float64; without, the bundle's fused
            graph, executed by ONNX Runtime on the CPU in
            fp32 (``onnx_ir`` is needed): that compares the target with this graph, not with the
            eager model.
        seed: of the fresh inputs.
        bisect: also find the first attention or module where the target leaves its tolerance; the
            report's ``fault``.
        options: of the session.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, or one that can't run here.
        InputError: a source that is not the bundle's model, or inputs that the bundle doesn't take.
    """
    reference = None
    given = read_given(inputs)
    if source is not None:
        reference = _recomputed(path, source, given, seed, step, checkpoint=checkpoint, task=task)
    elif given:
        reference = _of_fused_graph(path, target, given, step)
    if target in TARGETS and TARGETS[target].engine and not runs_here(target):
        report = _rehearse(path, target, reference, step)
    else:
        step("running the target")
        report = verify_bundle(path, target, options=options, reference=reference)
    return replace(report, fault=_first_fault(path, report, reference, step)) if bisect else report


def _recomputed(
    path: str | Path,
    source: ModelSpec | str,
    given: list[Given],
    seed: int,
    step: Step,
    *,
    checkpoint: str | None,
    task: str | None,
) -> ReferenceSet:
    """The eager model's results at fresh inputs, or at the user's."""
    manifest = open_bundle(path).manifest
    checked = check_given(given, manifest)
    from crossfuse.parity.eager import eager_reference, given_reference

    spec = _within(
        accepted(resolve_again(source, manifest.source, checkpoint=checkpoint, task=task), step),
        manifest,
    )
    if not checked:
        return eager_reference(spec, seed, step, shared_batch=manifest.shared_batch)
    tensors = [(where, with_tensors(arrays)) for where, arrays in checked]
    return given_reference(spec, tensors, step, shared_batch=manifest.shared_batch)


def _of_fused_graph(
    path: str | Path, target: str | None, given: list[Given], step: Step
) -> ReferenceSet:
    """The fused graph's results at the user's inputs."""
    from crossfuse.parity.fused import fused_reference

    bundle = open_bundle(path)
    name = target or best_target(bundle.targets)
    if name == "onnx" and bundle.target(name).precision == "fp32":
        raise InputError(
            "there is nothing to compare this target with on inputs of your own: it is the "
            "portable graph itself",
            where=name,
            do=Advice(
                "Give the model as well ({}), or another target", Said("--source", "source=...")
            ),
        )
    checked = check_given(given, bundle.manifest)
    own = None if bundle.manifest.reference is None else reference_of(bundle)
    model, _ = fused_stages(bundle)
    return fused_reference(model, bundle.manifest, checked, own, step)


def _rehearse(
    path: str | Path, target: str, reference: ReferenceSet | None, step: Step
) -> ParityReport:
    """Parity of an engine's graph, executed by a CPU in its place."""
    bundle = open_bundle(path)
    _, stages = fused_stages(bundle)
    step(f"{target} can't run here: executing its graph on the CPU")
    return rehearse(bundle.manifest, target, stages, reference or reference_of(bundle))


def _first_fault(
    path: str | Path, report: ParityReport, reference: ReferenceSet | None, step: Step
) -> Fault | None:
    from crossfuse.parity.bisect import bisect, stage_candidates, telling_point

    bundle = open_bundle(path)
    fused, stages = fused_stages(bundle)
    kept = bundle.target(report.target).kept
    references = reference or reference_of(bundle)
    point = telling_point(report, references, bundle.manifest.shared_batch)
    candidates = stage_candidates(bundle, report.target, stages.graphs)
    return bisect(fused, candidates, point, report.precision, kept=kept, step=step)


def fused_stages(bundle: Bundle) -> tuple[ir.Model, Stages]:
    """A bundle's fused graph, and the stages that it was split into."""
    from crossfuse.export.split.assembly import assemble
    from crossfuse.targets.graph_files import load_graph

    manifest = bundle.manifest
    bundle.verified({manifest.fused_graph, WEIGHTS} & set(manifest.files))
    model = load_graph(bundle, manifest.fused_graph)
    decode = None if manifest.decode is None else manifest.decode.tokens
    whole = "model" in manifest.stages
    return model, assemble(
        model, manifest.context, manifest.dims, manifest.example, whole=whole, decode=decode
    )


def _within(spec: ModelSpec, manifest: Manifest) -> ModelSpec:
    """The spec with the dynamic dimensions, context and dropped outputs that the bundle was
    exported with.

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
        if len(shape) != len(tensor.shape) or any(
            shape[axis] != size for axis, size in fixed.items()
        ):
            raise InputError(_OTHER, where=name, got=list(shape), expected=tensor, do=_SAME)
        for axis, size in enumerate(tensor.shape):
            dim = manifest.dims.get(str(manifest.shared_batch if size == CONTEXTS else size))
            if dim is not None:
                axes.setdefault(name, {})[axis] = dim
    dropped = manifest.source.get("drop_outputs", [])
    more = [name for name in dropped if isinstance(name, str)] if isinstance(dropped, list) else []
    return replace(
        spec, dynamic=axes, context=manifest.context, drop_outputs=(*spec.drop_outputs, *more)
    )
