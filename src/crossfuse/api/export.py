"""The way of the data: source → spec → fused graph → targets → bundle, gated by fusion and
parity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.api.build_target import WEIGHTS, BuildOptions, add_target, check_options, request_key
from crossfuse.api.sources import Examples, accepted, describe, resolve, resolve_again
from crossfuse.api.verify import fused_stages, verify
from crossfuse.bundle.manifest import Manifest, TargetEntry
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.checkpoint_weights import weights_words
from crossfuse.core.foreign import door
from crossfuse.core.onnx_runtime import require_onnxruntime
from crossfuse.errors import BundleError, InputError, unknown
from crossfuse.parity.reference import REFERENCE_FILE, save_reference
from crossfuse.parity.session_check import reference_of
from crossfuse.runtime.options import SessionOptions
from crossfuse.targets.registry import require_target

if TYPE_CHECKING:
    from crossfuse.export.fuse import FusedGraph
    from crossfuse.export.split.assembly import Stages
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.report.report import LatencyReport
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["build", "export", "profile", "resolve", "verify"]

FUSED_GRAPH = "fused.onnx"

Step = Callable[[str], None]


@door
def export(
    source: ModelSpec | str,
    path: str | Path,
    targets: Iterable[str] = ("ort-cpu",),
    *,
    precision: str | None = None,
    io_dtype: str | None = None,
    compute_capabilities: Iterable[str] = (),
    profile_shapes: Iterable[str] = (),
    allow_unfused: bool = False,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    drop_outputs: Iterable[str] = (),
    example: Examples = (),
    whole: bool = False,
    step: Step = lambda _: None,
) -> Bundle:
    """Export a model to a bundle.

    Args:
        source: a :class:`ModelSpec`, a zoo name, ``package.module:factory`` or
            ``path/file.py:factory``.
        path: the bundle's folder; an existing bundle there is replaced, at once and only when all
            is done.
        targets: ``onnx``, ``ort-cpu``, ``ort-cuda``, ``tensorrt``, ``tensorrt-rtx``.
        precision, io_dtype, compute_capabilities, profile_shapes: as `build`, for all the targets.
        allow_unfused: export even if an attention did not fuse; the ledger says which.
        size, seed, checkpoint: of a zoo model: ``tiny`` or ``published``, random weights' seed, or
            a folder with a ``transformers`` checkpoint (safetensors) whose weights to load.
        task, trust_remote_code: of ``hf:`` sources: which head (a pipeline's task or a class name),
            and whether code that comes with the checkpoint may run.
        allow_missing: let weights that a checkpoint lacks, or has in another shape, stay random;
            the manifest says which.
        whole: don't split, although the source names context inputs.
        example: NPZ files of real inputs: every target is compared at them, too. The first gives an
            ONNX file its example inputs.
        drop_outputs: names of outputs to leave out, ``*`` for any text.
        step: told what begins, for progress.

    Raises:
        InputError: a source, target, precision or output folder that can't be used.
        FusionError: an attention did not fuse (its site and the reason are named).
        ParityError: a target does not compute what the eager model computes.
    """
    wanted = BuildOptions(
        precision,
        io_dtype,
        allow_unfused=allow_unfused,
        compute_capabilities=several("compute_capabilities", compute_capabilities),
        profile_shapes=several("profile_shapes", profile_shapes),
    )
    checked = {
        t: check_options(t, _of_target(t, wanted))
        for t in dict.fromkeys(several("targets", targets))
    }
    dropped = several("drop_outputs", drop_outputs)
    require_onnxruntime("the check of a target's numbers")
    with write_bundle(path) as writer:
        from crossfuse.export.fuse import fuse
        from crossfuse.parity.eager import eager_reference
        from crossfuse.targets.graph_files import save_graph

        step("loading the model")
        spec = resolve(
            source,
            size=size,
            seed=seed,
            checkpoint=checkpoint,
            task=task,
            trust_remote_code=trust_remote_code,
            allow_missing=allow_missing,
            example=example,
        )
        spec = replace(spec, drop_outputs=(*spec.drop_outputs, *dropped))
        for warning in weights_words(spec.about):
            step(warning)
        spec = accepted(spec, step)
        graph = fuse(spec, step)
        spec = graph.spec
        if not allow_unfused:
            graph.ledger.require_fused([])
        # Weights go to disk first: the graph then holds none while the reference has its copy of
        # the module in float64.
        step("writing weights")
        save_graph(graph.model, writer.file(FUSED_GRAPH), writer.file(WEIGHTS))
        stages = _stages(graph, whole, step)
        reference = eager_reference(spec, step=step, shared_batch=stages.shared_batch)
        save_reference(reference, writer.file(REFERENCE_FILE))
        manifest = Manifest(
            name=spec.name,
            source=describe(source, size, seed, checkpoint, task, dropped) | dict(spec.about),
            created_by=f"crossfuse {version('crossfuse')}",
            dims=stages.dims,
            stages=stages.specs,
            context=spec.context,
            shared_batch=stages.shared_batch,
            ledger=graph.ledger,
            fused_graph=FUSED_GRAPH,
            decode=stages.decode,
            example=stages.example,
            reference=REFERENCE_FILE,
        )
        for name, options in checked.items():
            manifest = add_target(
                writer, manifest, graph.model, stages, name, reference, options, step=step
            )
        step("finishing")
        return writer.commit(manifest)


@door
def build(
    path: str | Path,
    target: str,
    *,
    precision: str | None = None,
    io_dtype: str | None = None,
    compute_capabilities: Iterable[str] = (),
    profile_shapes: Iterable[str] = (),
    memory_limit: int | None = None,
    optimization_level: int | None = None,
    lean: bool = False,
    allow_unfused: bool = False,
    step: Step = lambda _: None,
) -> Bundle:
    """Add a target to a bundle (or build it again), from the fused graph and the reference set that
    the bundle holds.

    Args:
        path: the bundle.
        target: its name.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``mixed`` (fp16, with the fewest nodes in fp32
            that parity needs); where omitted, fp16 for engines and fp32 for the others.
        io_dtype: ``fp16`` for floating inputs and outputs in fp16; otherwise they are what the
            eager model's are.
        compute_capabilities: of the GPUs that a TensorRT-RTX engine is for, such as ``8.9``.
        profile_shapes: one optimization profile each, as ``DIM=SIZE,DIM=MIN:OPT:MAX``; where
            omitted, one over all sizes.
        memory_limit, optimization_level, lean: of engine builders; see
            :class:`~crossfuse.targets.tensorrt.build_engine.BuilderOptions`.
        allow_unfused: build even if an attention does not fuse.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, or a damaged one.
        InputError, FusionError, ParityError: as `export`.
        EngineError: the engine builder refuses the graph.
    """
    old = open_bundle(path)
    wanted = BuildOptions(
        precision,
        io_dtype,
        allow_unfused,
        several("compute_capabilities", compute_capabilities),
        several("profile_shapes", profile_shapes),
        memory_limit,
        optimization_level,
        lean,
    )
    options = check_options(target, wanted)
    require_onnxruntime("the check of a target's numbers")
    if _is_built(old, target, options):
        step(f"{target}: cached: the bundle holds this very build")
        return old
    with write_bundle(path) as writer:
        step("checking the bundle")
        keep = {name for name, entry in old.manifest.targets.items() if name != target}
        shared = {FUSED_GRAPH, WEIGHTS, REFERENCE_FILE} & set(old.manifest.files)
        files = shared | {f for name in keep for f in _files_of(old.manifest.targets[name])}
        writer.adopt(old, sorted(files), copied={WEIGHTS})
        manifest = replace(
            old.manifest, targets={name: old.manifest.targets[name] for name in keep}
        )
        staged = Bundle(writer.folder, old.manifest)
        model, stages = fused_stages(staged)
        reference = reference_of(staged)
        manifest = add_target(
            writer, manifest, model, stages, target, reference, options, step=step
        )
        return writer.commit(manifest)


def _stages(graph: FusedGraph, whole: bool, step: Step) -> Stages:
    """The stages of a graph; without one for steps where that can't be made and was not asked
    for."""
    from crossfuse.export.split.assembly import assemble
    from crossfuse.export.split.decode_step import NoStepsError

    spec = graph.spec
    try:
        return assemble(
            graph.model,
            spec.context,
            spec.dims,
            spec.example_sizes,
            whole=whole,
            decode=spec.decode,
        )
    except NoStepsError as error:
        if not spec.decode_where_possible:
            raise
        step(f"no stage for steps: {error}")
        return assemble(graph.model, spec.context, spec.dims, spec.example_sizes, whole=whole)


def _is_built(bundle: Bundle, target: str, options: BuildOptions) -> bool:
    """The bundle's engine was built from the same graph, options and versions, and its files are
    whole."""
    entry = bundle.manifest.targets.get(target)
    if (
        entry is None
        or entry.engine is None
        or entry.engine.request != request_key(bundle.manifest, target, options)
    ):
        return False
    try:
        bundle.verified(_files_of(entry))
    except BundleError:
        return False
    return True


def _of_target(target: str, options: BuildOptions) -> BuildOptions:
    """Options of an export that builds several targets: GPUs and shapes are for those that have
    engines."""
    if require_target(target).engine and target != "tensorrt":
        return options
    return replace(options, compute_capabilities=())


@door
def profile(
    path: str | Path,
    target: str | None = None,
    *,
    against: Iterable[str] = (),
    source: ModelSpec | str | None = None,
    checkpoint: str | None = None,
    task: str | None = None,
    sweep: Mapping[str, Sequence[int]] | None = None,
    plan: Plan | None = None,
    callers: Sequence[int] = (),
    rates: Sequence[float] = (),
    load_seconds: float = 5.0,
    cold_starts: int = 5,
    trace: bool = True,
    options: SessionOptions | None = None,
    step: Step = lambda _: None,
) -> LatencyReport:
    """Measure a bundle's latency, with its rivals in the same rounds.

    Args:
        path: the bundle.
        target: where omitted, the best that runs here.
        against: of ``eager``, ``compile``, ``onnx``, ``hf``, ``openvino``, and on GPUs
            ``compile-max``, ``eager-fp16`` and ``tensorrt``; a rival that fails is a row with its
            reason.
        source: the rivals' model; where omitted, the zoo's that the bundle names. Nothing else that
            a bundle says is loaded.
        checkpoint, task: of the source, as for `export`.
        sweep: dimension → sizes; all combinations are measured.
        plan: how much is sampled.
        callers: closed loops of so many callers at once.
        rates: open loops of so many arrivals per second.
        load_seconds: how long each loop lasts.
        cold_starts: how many fresh processes.
        trace: tell where the time goes, by the engine's profiler, and what the machine attains; on
            ONNX Runtime.
        options: of the session.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, or one that can't run here.
        InputError: an unknown rival or dimension, or rivals of a bundle that names no zoo model,
            without a source.
    """
    from crossfuse.profiling.baselines import RIVALS
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.run import Wanted, profile_bundle

    names = list(dict.fromkeys(several("against", against)))
    for name in names:
        if name not in RIVALS:
            raise unknown("there is no such rival", name, RIVALS)
    wanted = Wanted(
        names, sweep or {}, plan or Plan(), callers, rates, load_seconds, cold_starts, trace
    )
    spec = None
    if names:
        step("loading the model")
        spec = resolve_again(
            source, open_bundle(path).manifest.source, checkpoint=checkpoint, task=task
        )
    return profile_bundle(path, target, wanted, spec=spec, options=options, step=step)


def several(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    """Several texts as they were given.

    Raises:
        InputError: one text alone, whose letters would be taken for several.
    """
    if isinstance(values, str):
        raise InputError(
            "an argument takes several texts",
            where=argument,
            got=repr(values),
            expected=f"[{values!r}]",
        )
    return tuple(values)


def _files_of(entry: TargetEntry) -> set[str]:
    return {*entry.files, *entry.stages.values()}
