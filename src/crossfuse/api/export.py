"""The way of the data: source → spec → fused graph → targets → bundle, gated by fusion and
parity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse import __version__
from crossfuse.api.arguments import Examples, Progress, paths, several, silent
from crossfuse.api.build_options import BuildOptions, check_options, options_of
from crossfuse.api.build_target import TargetBuild
from crossfuse.api.fused_graph import FUSED_GRAPH, WEIGHTS
from crossfuse.api.sources import Source, SourceOptions, accepted
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.trust import trust
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.checkpoint_weights import weights_words
from crossfuse.core.files import write_whole
from crossfuse.core.foreign import door
from crossfuse.core.garbage import imported, old_objects_kept
from crossfuse.core.onnx_runtime import require_onnxruntime
from crossfuse.core.target import CPU_TARGET, HALF_PRECISIONS, require_precision, require_target
from crossfuse.errors import InputError, ParityError
from crossfuse.parity.reference import REFERENCE_FILE, save_reference

if TYPE_CHECKING:
    from crossfuse.bundle.store import Bundle
    from crossfuse.bundle.writer import BundleWriter
    from crossfuse.core.tensors import Dim
    from crossfuse.export.fuse import FusedGraph
    from crossfuse.export.split.assembly import Stages
    from crossfuse.parity.reference import ReferenceSet
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["export"]

_TRACING = ("torch._dynamo", "crossfuse.export.fuse")
"""Modules that import most of what tracing needs."""

_SEED = 1
"""Of the inputs at which targets are compared."""


@door
def export(  # noqa: PLR0913 -- public: what a user may say of a source and of its targets
    source: ModelSpec | str,
    path: str | Path,
    targets: Iterable[str] = (CPU_TARGET,),
    *,
    precision: str | None = None,
    io_dtype: str | None = None,
    compute_capabilities: Iterable[str] = (),
    profile_shapes: Iterable[str] = (),
    calibrate: Examples = (),
    metric: str | None = None,
    max_drop: float | None = None,
    allow_unfused: bool = False,
    allow_unquantized: bool = False,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    context: Iterable[str] = (),
    dynamic: Mapping[str, Mapping[int, str | Dim]] | None = None,
    decode: str | None = None,
    drop_outputs: Iterable[str] = (),
    keep_probabilities: Iterable[str] = (),
    example: Examples = (),
    image: Examples = (),
    text: str | Iterable[str] = (),
    audio: Examples = (),
    video: Examples = (),
    prefix: str | int | None = None,
    whole: bool = False,
    quick: bool = False,
    step: Progress | None = None,
) -> Bundle:
    """Export a model to a bundle.

    Args:
        source: a :class:`ModelSpec`, a zoo name, ``hf:FOLDER-OR-ID``, ``package.module:factory``,
            ``path/file.py:factory`` or ``model.onnx``.
        path: the bundle's folder; an existing bundle there is replaced, at once and only when all
            is done.
        targets: ``onnx``, ``ort-cpu``, ``openvino``, ``ort-cuda``, ``tensorrt``, ``tensorrt-rtx``,
            or those that are registered.
        precision, io_dtype, compute_capabilities, profile_shapes: as `build`, for all the targets.
        calibrate, metric, max_drop, allow_unquantized: of low precisions, as `build`.
        allow_unfused: export even if an attention did not fuse; the ledger says which.
        size, seed, checkpoint: of a zoo model: ``tiny`` or ``published``, random weights' seed, or
            a folder with a ``transformers`` checkpoint (safetensors) whose weights to load.
        task, trust_remote_code: of ``hf:`` sources: which head (a pipeline's task or a class name),
            and whether code that comes with the checkpoint may run.
        allow_missing: let weights that a checkpoint lacks, or has in another shape, stay random;
            the manifest says which.
        context, dynamic, decode: in place of the source's own, as of :class:`ModelSpec`; dynamic
            axes in place of those alone that they name.
        drop_outputs: names of outputs to leave out, ``*`` for any text.
        keep_probabilities: ``SITE`` or ``SITE:HEAD,HEAD`` of attentions whose probabilities are
            computed beside the fused operator, as of :class:`ModelSpec`.
        example: NPZ files of real inputs: every target is compared at them, too. The first gives an
            ONNX file its example inputs, and an ``hf:`` source whose own don't fit it.
        image, text, audio, video: of ``hf:`` sources: files and texts that the checkpoint's
            processor makes the example inputs of, one or several, as of
            :func:`crossfuse.huggingface_spec`.
        prefix: of ``hf:`` sources: give the first tokens with the context, ``prefix_NAME``, and the
            rest with each query: how many they are, or ``"placeholders"``, up to and with the last
            placeholder of an image. The rest is decoded step by step, where the model can.
        whole: don't split, although the source names context inputs.
        quick: for work in progress: compare at the examples and one made point (of a split, one
            more), and measure what half precision loses only where a target has one. The manifest
            says so, and so do `inspect` and every report of the bundle.
        step: told what begins, for progress.

    Raises:
        InputError: a source, target, precision or output folder that can't be used.
        FusionError: an attention did not fuse (its site and the reason are named).
        QuantizationError: a linear layer that was to be quantised was not.
        ParityError: a target does not compute what the eager model computes.
    """
    requested = BuildOptions(
        precision,
        io_dtype,
        allow_unfused=allow_unfused,
        compute_capabilities=several("compute_capabilities", compute_capabilities),
        profile_shapes=several("profile_shapes", profile_shapes),
        calibrate=tuple(map(str, paths("calibrate", calibrate))),
        metric=metric,
        max_drop=max_drop,
        allow_unquantized=allow_unquantized,
    )
    of_targets = {
        name: check_options(name, options_of(name, requested))
        for name in dict.fromkeys(several("targets", targets))
    }
    of_source = SourceOptions(
        size=size,
        seed=seed,
        checkpoint=checkpoint,
        task=task,
        trust_remote_code=trust_remote_code,
        allow_missing=allow_missing,
        context=several("context", context),
        dynamic=dynamic or {},
        decode=decode,
        drop_outputs=several("drop_outputs", drop_outputs),
        keep_probabilities=several("keep_probabilities", keep_probabilities),
        examples=paths("example", example),
        image=paths("image", image),
        text=several("text", [text] if isinstance(text, str) else text),
        audio=paths("audio", audio),
        video=paths("video", video),
        prefix=None if prefix is None else str(prefix),
    )
    named = Source.of(source, of_source)
    require_onnxruntime("the check of a target's numbers")
    progress = step or silent
    with old_objects_kept() as keep, write_bundle(path, waiting=progress) as writer:
        spec = _loaded(named, progress)
        keep()
        graph = _fused(named, spec, allow_unfused, progress)
        # Weights go to disk first: the graph then holds none while the reference has its copy of
        # the module in float64.
        progress("writing weights")
        _write_graph(graph, writer)
        for name, content in spec.processing.items():
            write_whole(writer.file(name), content)
        stages = _stages(graph, whole, progress)
        reference = _reference(graph, stages, writer, progress, of_targets, quick)
        build = TargetBuild(writer, graph.model, stages, reference, progress)
        manifest = _with_targets(build, graph, named, of_targets)
        manifest = replace(manifest, quick=quick)
        progress("finishing")
        return trust(writer.commit(manifest))


def _loaded(source: Source, progress: Progress) -> ModelSpec:
    """The model, as an export takes it."""
    progress("loading the model")
    spec = source.load()
    for warning in weights_words(spec.about):
        progress(warning)
    imported(*_TRACING)
    return accepted(spec, progress)


def _fused(source: Source, spec: ModelSpec, allow_unfused: bool, progress: Progress) -> FusedGraph:
    """The graph with one operator per attention; refused where an attention was not captured."""
    from crossfuse.export.capture.guards import NotFreeError
    from crossfuse.export.capture.to_onnx import OtherLengthsError
    from crossfuse.export.fuse import fuse

    while True:
        try:
            graph = fuse(spec, progress)
            break
        except NotFreeError as error:
            spec = source.refitted(spec, error)
            progress("some sizes can't vary; tracing without")
        except OtherLengthsError as error:
            left = tuple(p for p in error.patterns if p not in spec.drop_outputs)
            if not spec.dims_found or not left:
                raise
            spec = replace(spec, drop_outputs=(*spec.drop_outputs, *left))
            progress(f"lists of varying lengths are left out: {', '.join(left)}; tracing without")
    if not allow_unfused:
        graph.ledger.require_fused([], source.kind.value)
    return graph


def _write_graph(graph: FusedGraph, writer: BundleWriter) -> None:
    from crossfuse.targets.graph_files import save_graph

    save_graph(graph.model, writer.file(FUSED_GRAPH), writer.file(WEIGHTS))


def _reference(
    graph: FusedGraph,
    stages: Stages,
    writer: BundleWriter,
    progress: Progress,
    options: Mapping[str, BuildOptions],
    quick: bool,
) -> ReferenceSet:
    """The eager model's results, which the bundle keeps."""
    from crossfuse.parity.eager import eager_reference
    from crossfuse.parity.half_precision import HALF_DTYPES

    in_half = any(
        require_precision(of.precision, require_target(name)) in HALF_PRECISIONS
        for name, of in options.items()
    )
    found = eager_reference(
        graph.spec,
        _SEED,
        progress,
        shared_batch=stages.shared_batch,
        quick=quick,
        halves=HALF_DTYPES if in_half or not quick else (),
    )
    save_reference(found, writer.file(REFERENCE_FILE))
    return found


def _with_targets(
    build: TargetBuild, graph: FusedGraph, source: Source, options: Mapping[str, BuildOptions]
) -> Manifest:
    """The manifest with all targets; without the stage for steps where that fails, and was not
    asked for.

    Raises:
        ParityError: a target fails all the same.
    """
    files = set(build.writer.folder.iterdir())
    wide = all(
        require_precision(of.precision, require_target(name)) == "fp32"
        for name, of in options.items()
    )
    try:
        return _added(build, graph, source, options)
    except ParityError as error:
        if build.stages.decode is None or not (graph.spec.decode_where_possible and wide):
            raise
        for path in set(build.writer.folder.iterdir()) - files:
            path.unlink()
        build = replace(build, stages=build.stages.without_steps())
        manifest = _added(build, graph, source, options)
        build.progress(f"no stage for steps: {error}")
        return manifest


def _added(
    build: TargetBuild, graph: FusedGraph, source: Source, options: Mapping[str, BuildOptions]
) -> Manifest:
    manifest = _manifest(graph, build.stages, source)
    for name, of in options.items():
        manifest = build.add(manifest, name, of)
    return manifest


def _manifest(graph: FusedGraph, stages: Stages, source: Source) -> Manifest:
    """What the bundle says of itself before it has targets."""
    spec = graph.spec
    return Manifest(
        name=spec.name,
        source=source.to_manifest() | dict(spec.about),
        created_by=f"crossfuse {__version__}",
        dims=stages.dims,
        stages=stages.specs,
        context=spec.context,
        shared_batch=stages.shared_batch,
        with_queries=stages.with_queries,
        prefix=stages.prefix,
        ledger=graph.ledger,
        fused_graph=FUSED_GRAPH,
        decode=stages.decode,
        generation={} if stages.decode is None else spec.generation,
        example=stages.example,
        reference=REFERENCE_FILE,
    )


def _stages(graph: FusedGraph, whole: bool, progress: Progress) -> Stages:
    """The stages of a graph; without one for steps where that can't be made and was not asked
    for."""
    from crossfuse.export.split.assembly import assemble

    spec = graph.spec
    sizes = spec.example_sizes
    try:
        return assemble(
            graph.model, spec.context, spec.dims, sizes, whole=whole, decode=spec.decode
        )
    except InputError as error:
        if spec.decode is None or not spec.decode_where_possible:
            raise
        stages = assemble(graph.model, spec.context, spec.dims, sizes, whole=whole)
        progress(f"no stage for steps: {error}")
        return stages
