"""A bundle's target checked again: the session's numbers, an engine's graph where it can't run, and
where a divergence begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.api.arguments import Examples, Progress, paths, silent
from crossfuse.api.build_options import BuildOptions, check_low_precision
from crossfuse.api.calibration import calibration_data
from crossfuse.api.examples import with_tensors
from crossfuse.api.fused_graph import fused_stages
from crossfuse.api.sources import Source, SourceOptions, accepted
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.staging import unreplaced
from crossfuse.bundle.store import Bundle
from crossfuse.core.foreign import door
from crossfuse.core.target import LOW_PRECISIONS, TARGETS
from crossfuse.core.tensors import CONTEXTS, Dim
from crossfuse.errors import Advice, InputError, Said
from crossfuse.parity.given import Given, Inputs, check_given, read_given
from crossfuse.parity.metric import Metric
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.report import Divergence, ParityReport
from crossfuse.parity.session_check import reference_of, verify_bundle
from crossfuse.parity.target_check import ParityCheck, check_on_cpu
from crossfuse.parity.trial import require_tried
from crossfuse.runtime.backends import runs_here
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.signed import Signed
from crossfuse.runtime.tuned import chosen_target

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["verify"]

_OTHER = "the source is not the bundle's model: it has other inputs"
_DATA = Said("--metric-data", "metric_data")
_SAME = "Give the source that the bundle was exported from"


@door
def verify(  # noqa: PLR0913 -- public: what a user may say of a check
    path: str | Path | Bundle,
    target: str | None = None,
    *,
    source: ModelSpec | str | None = None,
    checkpoint: str | None = None,
    task: str | None = None,
    inputs: Inputs | Sequence[Inputs] | None = None,
    seed: int = 1,
    bisect: bool = False,
    metric: str | None = None,
    max_drop: float | None = None,
    metric_data: Examples = (),
    options: SessionOptions | None = None,
    public_key: str | Path | None = None,
    signature: str | Path | None = None,
    step: Progress | None = None,
) -> ParityReport:
    """Check a bundle's target against the eager model's results.

    Args:
        path: the bundle, or where it is.
        target: where omitted, the best that runs here. Of an engine that can't, the graph is
            executed by the CPU in its place; the report's ``executed_on`` says so.
        source: recompute the reference from this model with ``seed``; where omitted, the results
            that the bundle carries are used, and neither PyTorch nor the model is needed. Context,
            dynamic axes and dropped outputs are the bundle's.
        checkpoint, task: of the source, as for `export`.
        inputs: compare on these instead: paths of NPZ files, or arrays by name; one set or a list.
            With ``source`` the reference is the eager model in float64; without, the bundle's fused
            graph, executed by ONNX Runtime on the CPU in fp32 (``onnx_ir`` is needed): that
            compares the target with this graph, not with the eager model.
        seed: of the fresh inputs.
        bisect: also find the first attention or module where the target leaves its tolerance; the
            report's ``fault``.
        metric: ``file.py:function`` of ``(run, data)``, larger is better: judges a low precision in
            place of the policy, as in `build`. What a manifest says of a metric counts for nothing.
        max_drop: how far the metric may be below its value in fp32; with ``metric``.
        metric_data: NPZ files, or folders of them, that the metric gets; some of the reference's
            inputs where omitted.
        options: of the session.
        public_key: file of a key in PEM: the bundle has to be what this key's owner signed, and its
            engines are trusted then.
        signature: file of the signature; ``NAME.sig`` beside the bundle's folder where omitted.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, one that can't run here, or one that isn't signed.
        InputError: a source that is not the bundle's model, inputs that the bundle doesn't take, or
            a metric that can't be used.
    """
    given = read_given(inputs)
    progress = step or silent
    signed = Signed.of(path, public_key, signature)
    chosen = signed.options(options)

    judged = _Judged(metric, max_drop, tuple(map(str, paths("metric_data", metric_data))))

    def verified(bundle: Bundle) -> ParityReport:
        signed.require(bundle)
        check, reference = _Check(bundle, target, given, progress, judged), None
        if source is not None:
            about = bundle.manifest.source
            named = Source.of_bundle(about, source, checkpoint=checkpoint, task=task)
            reference = check.recomputed(named, seed)
        elif given:
            reference = check.of_fused_graph()
        report = check.report(reference, chosen)
        return replace(report, fault=check.divergence(report, reference)) if bisect else report

    return unreplaced(path, verified, copied=True)


@dataclass(frozen=True)
class _Judged:
    """By what a low precision is judged: a metric, how far it may drop, and paths of its data."""

    metric: str | None = None
    max_drop: float | None = None
    data: tuple[str, ...] = ()

    def of(self, bundle: Bundle, target: str, progress: Progress) -> Metric | None:
        """The metric with its value for the bundle's fused graph in fp32; None where none is given.

        Raises:
            InputError: the target is in another precision, or the metric can't be used.
        """
        if self == _Judged():
            return None
        from crossfuse.api.low_precision import metric_of

        precision = bundle.target(target).precision
        options = BuildOptions(precision, metric=self.metric, max_drop=self.max_drop)
        check_low_precision(options)
        if self.metric is None:
            raise InputError(
                Advice("data for a metric ({}) needs one ({})", _DATA, Said("--metric", "metric"))
            )
        fused, reference = fused_stages(bundle), reference_of(bundle)
        data = calibration_data(self.data, bundle.manifest, reference, fused.model)
        progress(f"{self.metric} in fp32, on {data.words}")
        settings = bundle.manifest.generation
        check = ParityCheck(fused.stages, reference, precision, generation=settings)
        return check.with_metric(metric_of(options, data)).metric


@dataclass(frozen=True)
class _Check:
    """One call of `verify`: the bundle, opened once, and what is asked."""

    bundle: Bundle
    target: str | None
    given: list[Given]
    progress: Progress
    judged: _Judged

    def recomputed(self, source: Source, seed: int) -> ReferenceSet:
        """The eager model's results at fresh inputs, or at the user's."""
        manifest = self.bundle.manifest
        checked = check_given(self.given, manifest)
        from crossfuse.export.keep_probabilities import with_probabilities
        from crossfuse.parity.eager import eager_reference, given_reference

        fitted = _fitted(source.model(), manifest, source.options)
        spec = with_probabilities(accepted(fitted, self.progress))
        batch = manifest.shared_batch
        if not checked:
            return eager_reference(spec, seed, self.progress, shared_batch=batch)
        tensors = [(where, with_tensors(arrays)) for where, arrays in checked]
        return given_reference(spec, tensors, self.progress, shared_batch=batch)

    def of_fused_graph(self) -> ReferenceSet:
        """The fused graph's results at the user's inputs."""
        from crossfuse.parity.fused import fused_reference

        bundle = self.bundle
        name = self.target or chosen_target(bundle)
        if name == "onnx" and bundle.target(name).precision == "fp32":
            raise InputError(
                "there is nothing to compare this target with on inputs of your own: it is the "
                "portable graph itself",
                where=name,
                do=Advice(
                    "Give the model as well ({}), or another target", Said("--source", "source=...")
                ),
            )
        checked = check_given(self.given, bundle.manifest)
        own = None if bundle.manifest.reference is None else reference_of(bundle)
        fused = fused_stages(bundle)
        return fused_reference(fused.model, bundle.manifest, checked, own, self.progress)

    def report(
        self, reference: ReferenceSet | None, options: SessionOptions | None
    ) -> ParityReport:
        """Parity of the target, or of the graph that a CPU executes in an engine's place."""
        bundle, target = self.bundle, self.target
        if target is None or not _needs_another_machine(bundle, target):
            require_tried(bundle, target, options)
            metric = self.judged.of(bundle, target or chosen_target(bundle), self.progress)
            self.progress("running the target")
            return verify_bundle(
                bundle, target, options=options, reference=reference, metric=metric
            )
        bundle.target(target)  # refused where the bundle doesn't hold it
        fused = fused_stages(bundle)
        self.progress(f"{target} can't run here: executing its graph on the CPU")
        kept = reference or reference_of(bundle)
        return check_on_cpu(bundle.manifest, target, fused.stages, kept)

    def divergence(self, report: ParityReport, reference: ReferenceSet | None) -> Divergence | None:
        """The first attention or module where the target leaves its tolerance."""
        from crossfuse.parity.bisect import bisect, bisection_point, stage_candidates

        bundle = self.bundle
        fused = fused_stages(bundle)
        kept = bundle.target(report.target).kept
        references = reference or reference_of(bundle)
        point = bisection_point(report, references, bundle.manifest.shared_batch)
        candidates = stage_candidates(bundle, report.target, fused.stages.graphs)
        return bisect(
            fused.model, candidates, point, report.precision, kept=kept, progress=self.progress
        )


def _needs_another_machine(bundle: Bundle, target: str) -> bool:
    """Whether the target's artifact can't be executed here, not even by the CPU provider, and
    another graph stands for it: integers have none."""
    known = TARGETS.get(target)
    if known is None or known.artifact_on_cpu or runs_here(target):
        return False
    entry = bundle.manifest.targets.get(target)
    return entry is None or entry.precision not in LOW_PRECISIONS


def _fitted(spec: ModelSpec, manifest: Manifest, options: SourceOptions) -> ModelSpec:
    """The spec with the dynamic dimensions and context of the bundle's boundary, without the
    outputs that were dropped, and with the probabilities that were kept.

    Raises:
        InputError: its inputs are not the bundle's.
    """
    given = {tensor.name: tensor for tensor in manifest.inputs}
    theirs, ours = f"inputs {', '.join(spec.inputs)}", f"inputs {', '.join(given)}"
    if set(given) != set(spec.inputs):
        raise InputError(_OTHER, got=theirs, expected=ours, do=_SAME)
    fixed = manifest.source.get("constants") or {}
    if spec.arguments.plain_constants() != fixed:
        got = repr(spec.arguments.plain_constants())
        raise InputError(_OTHER, got=got, expected=repr(dict(fixed)), do=_SAME)
    axes: dict[str, dict[int, str | Dim]] = {}
    for name, tensor in given.items():
        shape = tuple(spec.inputs[name].shape)
        if len(shape) != len(tensor.shape) or any(
            isinstance(size, int) and size != own
            for size, own in zip(tensor.shape, shape, strict=True)
        ):
            raise InputError(_OTHER, where=name, got=list(shape), expected=tensor, do=_SAME)
        for axis, size in enumerate(tensor.shape):
            dim = manifest.dims.get(str(manifest.shared_batch if size == CONTEXTS else size))
            if dim is not None:
                axes.setdefault(name, {})[axis] = dim
    return replace(
        spec.with_dynamic(axes),
        context=manifest.context,
        drop_outputs=(*spec.drop_outputs, *options.drop_outputs),
        keep_probabilities=(*spec.keep_probabilities, *options.keep_probabilities),
    )
