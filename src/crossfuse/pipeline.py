"""The way of the data: source → spec → fused graph → targets → bundle, gated by fusion and parity."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.arrays import load_arrays
from crossfuse.build.targets import lower, require_precision, require_target
from crossfuse.bundle.manifest import Manifest, TargetEntry
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import BundleWriter, write_bundle
from crossfuse.errors import InputError
from crossfuse.models.registry import ZOO, zoo_spec
from crossfuse.runtime.engines import runs_here
from crossfuse.runtime.loading import open_session
from crossfuse.runtime.options import SessionOptions
from crossfuse.specs import Dim
from crossfuse.verify.check import check_session, verify_bundle
from crossfuse.verify.parity import ParityReport
from crossfuse.verify.reference import REFERENCE_FILE, ReferenceSet, load_reference, save_reference

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.model_spec import ModelSpec

__all__ = ["build", "export", "resolve", "verify"]

FUSED_GRAPH = "fused.onnx"
WEIGHTS = "weights.bin"
HUGGING_FACE = "hf:"
_PRODUCERS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime-gpu", "onnxruntime")

Step = Callable[[str], None]


def export(
    source: ModelSpec | str,
    path: str | Path,
    targets: Iterable[str] = ("ort-cpu",),
    *,
    precision: str = "fp32",
    allow_unfused: bool = False,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    drop_outputs: Iterable[str] = (),
    example: str | Path | None = None,
    whole: bool = False,
    step: Step = lambda _: None,
) -> Bundle:
    """Export a model to a bundle.

    Args:
        source: a :class:`ModelSpec`, a zoo name, ``package.module:factory`` or ``path/file.py:factory``.
        path: the bundle's folder; an existing bundle there is replaced, at once and only when all is done.
        targets: ``onnx``, ``ort-cpu``, ``ort-cuda``.
        precision: ``fp32``.
        allow_unfused: export even if an attention did not fuse; the ledger says which.
        size, seed, checkpoint: of a zoo model: ``tiny`` or ``published``, random weights' seed, or a folder with a
            ``transformers`` checkpoint (safetensors) whose weights to load.
        task, trust_remote_code: of ``hf:`` sources: which head (a pipeline's task or a class name), and whether code that comes
            with the checkpoint may run.
        whole: don't split, although the source names context inputs.
        example: NPZ file with example inputs of an ONNX file.
        drop_outputs: names of outputs to leave out, ``*`` for any text.
        step: told what begins, for progress.

    Raises:
        InputError: a source, target, precision or output folder that can't be used.
        FusionError: an attention did not fuse (its site and the reason are named).
        ParityError: a target does not compute what the eager model computes.
    """
    names = [require_target(t).name for t in dict.fromkeys(targets)]
    require_precision(precision)
    with write_bundle(path) as writer:
        from crossfuse.assembly import assemble
        from crossfuse.build.files import save_graph
        from crossfuse.export.fuse import fuse
        from crossfuse.verify.eager import eager_reference

        step("loading the model")
        spec = resolve(
            source,
            size=size,
            seed=seed,
            checkpoint=checkpoint,
            task=task,
            trust_remote_code=trust_remote_code,
            example=example,
        )
        spec = replace(spec, drop_outputs=(*spec.drop_outputs, *drop_outputs))
        graph = fuse(spec, step)
        spec = graph.spec
        if not allow_unfused:
            graph.ledger.require_fused([])
        # Weights go to disk first: the graph then holds none while the reference has its copy of the module in float64.
        step("writing weights")
        save_graph(graph.model, writer.file(FUSED_GRAPH), writer.file(WEIGHTS))
        stages = assemble(graph.model, spec.context, spec.dims, spec.example_sizes, whole=whole, decode=spec.decode)
        reference = eager_reference(spec, step=step, shared_batch=stages.shared_batch)
        save_reference(reference, writer.file(REFERENCE_FILE))
        manifest = Manifest(
            name=spec.name,
            source=_source(source, size, seed, checkpoint, task),
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
        for name in names:
            manifest = _add_target(
                writer, manifest, stages.graphs, name, reference, precision, allow_unfused=allow_unfused, step=step
            )
        step("finishing")
        return writer.commit(manifest)


def build(
    path: str | Path,
    target: str,
    *,
    precision: str = "fp32",
    allow_unfused: bool = False,
    step: Step = lambda _: None,
) -> Bundle:
    """Add a target to a bundle (or build it again), from the fused graph and the reference set that the bundle holds.

    Raises:
        BundleError: no bundle, or a damaged one.
        InputError, FusionError, ParityError: as `export`.
    """
    require_target(target)
    require_precision(precision)
    from crossfuse.assembly import assemble
    from crossfuse.build.files import load_graph

    old = open_bundle(path)
    with write_bundle(path) as writer:
        step("checking the bundle")
        keep = {name for name, entry in old.manifest.targets.items() if name != target}
        shared = {FUSED_GRAPH, WEIGHTS, REFERENCE_FILE} & set(old.manifest.files)
        files = shared | {f for name in keep for f in _files_of(old.manifest.targets[name])}
        writer.adopt(old, sorted(files))
        manifest = replace(old.manifest, targets={name: old.manifest.targets[name] for name in keep})
        staged = Bundle(writer.folder, old.manifest)
        model = load_graph(staged, old.manifest.fused_graph)
        reference = load_reference(writer.folder / REFERENCE_FILE)
        decode = None if manifest.decode is None else manifest.decode.tokens
        stages = assemble(
            model, manifest.context, manifest.dims, manifest.example, whole="model" in manifest.stages, decode=decode
        )
        manifest = _add_target(
            writer, manifest, stages.graphs, target, reference, precision, allow_unfused=allow_unfused, step=step
        )
        return writer.commit(manifest)


def verify(
    path: str | Path,
    target: str | None = None,
    *,
    source: ModelSpec | str | None = None,
    seed: int = 1,
    options: SessionOptions | None = None,
    step: Step = lambda _: None,
) -> ParityReport:
    """Check a bundle's target against the eager model's results.

    Args:
        path: the bundle.
        target: where omitted, the best that runs here.
        source: recompute the reference from this model with ``seed``; where omitted, the results that the bundle carries
            are used, and neither PyTorch nor the model is needed.
        seed: of the fresh inputs.
        options: of the session.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, a damaged one, or one that can't run here.
    """
    reference = None
    if source is not None:
        from crossfuse.verify.eager import eager_reference

        opened = open_bundle(path).manifest
        about = opened.source
        arguments = {k: about[k] for k in ("size", "seed", "checkpoint", "task") if k in about}
        spec = _within(resolve(source, **arguments), opened)
        reference = eager_reference(spec, seed, step, shared_batch=opened.shared_batch)
    step("running the target")
    return verify_bundle(path, target, options=options, reference=reference)


def resolve(
    source: ModelSpec | str,
    *,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    example: str | Path | None = None,
) -> ModelSpec:
    """The spec behind a source; the options are those of `export`.

    Raises:
        InputError: unknown name, or a factory that fails.
    """
    if not isinstance(source, str):
        return source
    from crossfuse.export.sources import factory_spec, is_factory, is_onnx

    if source.startswith(HUGGING_FACE):
        from crossfuse.export.huggingface.source import huggingface_spec

        return huggingface_spec(source.removeprefix(HUGGING_FACE), task=task, trust_remote_code=trust_remote_code)
    if is_onnx(source):
        from crossfuse.export.onnx_files import onnx_spec

        return onnx_spec(source, None if example is None else load_arrays(Path(example)))
    if is_factory(source):
        return factory_spec(source)
    if source not in ZOO:
        raise InputError(
            "unknown source",
            got=repr(source),
            expected=f"a zoo name ({', '.join(ZOO)}), hf:FOLDER-OR-ID, package.module:factory, path/file.py:factory or "
            "model.onnx",
            do="See `crossfuse models`",
        )
    return zoo_spec(source, size, seed, checkpoint)


def _within(spec: ModelSpec, manifest: Manifest) -> ModelSpec:
    """The spec with the ranges of dynamic dimensions that the bundle was exported with."""
    axes: dict[str, dict[int, str | Dim]] = {
        name: {axis: manifest.dims.get(dim, dim) for axis, dim in axes.items()} for name, axes in spec.axes.items()
    }
    return replace(spec, dynamic=axes)


def _add_target(
    writer: BundleWriter,
    manifest: Manifest,
    graphs: Mapping[str, ir.Model],
    target: str,
    reference: ReferenceSet,
    precision: str,
    *,
    allow_unfused: bool,
    step: Step,
) -> Manifest:
    """Lower, write, prove fusion, prove parity; the manifest with the target's entry."""
    from crossfuse.build.files import graph_file, save_graph

    step(f"{target}: lowering")
    kernels: dict[str, str] = {}
    reasons: dict[str, str] = {}
    files: dict[str, str] = {}
    used: set[str] = set()
    for stage, graph in graphs.items():
        lowered = lower(graph, target)
        files[stage] = graph_file(stage, target)
        own = f"weights.{target}.bin" if stage == "model" else f"weights.{stage}.{target}.bin"
        used |= {files[stage], *save_graph(lowered.model, writer.file(files[stage]), writer.file(own))}
        kernels |= lowered.kernels
        reasons |= lowered.reasons
    ledger = manifest.ledger.with_target(target, kernels, reasons)
    if not allow_unfused:
        ledger.require_fused([target])
    step(f"{target}: parity")
    # Where the target can't run, its graph is checked on the CPU provider; the report says where it ran.
    options = SessionOptions(provider=None if runs_here(target) else "CPUExecutionProvider")
    paths = {stage: writer.folder / file for stage, file in files.items()}
    with open_session(
        target, manifest.stages, manifest.dims, paths, options, shared_batch=manifest.shared_batch, decode=manifest.decode
    ) as session:
        report = check_session(session, reference, precision)
    report.require_passed()
    entry = TargetEntry(
        stages=files, files=tuple(sorted(used)), precision=precision, producers=_producers(), parity=report.to_json()
    )
    return replace(manifest.with_target(target, entry), ledger=ledger)


def _files_of(entry: TargetEntry) -> set[str]:
    return {*entry.files, *entry.stages.values()}


def _source(source: ModelSpec | str, size: str, seed: int, checkpoint: str | None, task: str | None) -> dict[str, Any]:
    if not isinstance(source, str):
        return {"kind": "spec", "name": source.name}
    if source in ZOO:
        about: dict[str, Any] = {"kind": "zoo", "name": source}
        return about | ({"checkpoint": checkpoint} if checkpoint else {"size": size, "seed": seed})
    if source.startswith(HUGGING_FACE):
        return {"kind": "huggingface", "name": source} | ({"task": task} if task else {})
    return {"kind": "onnx" if source.endswith(".onnx") else "factory", "name": source}


def _producers() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PRODUCERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
