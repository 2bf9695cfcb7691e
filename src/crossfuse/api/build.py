"""A target added to a bundle, from the fused graph and the reference set that the bundle holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.api.arguments import Examples, Progress, paths, several, silent
from crossfuse.api.build_options import BuildOptions, check_options, request_key
from crossfuse.api.build_target import TargetBuild
from crossfuse.api.fused_graph import FUSED_GRAPH, WEIGHTS, fused_stages
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.trust import trust
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.foreign import door
from crossfuse.core.onnx_runtime import require_onnxruntime
from crossfuse.core.processor_files import PARTS
from crossfuse.core.target import HALF_PRECISIONS, require_precision, require_target
from crossfuse.errors import Advice, BundleError, InputError, Said
from crossfuse.parity.reference import REFERENCE_FILE
from crossfuse.parity.session_check import reference_of

if TYPE_CHECKING:
    from crossfuse.bundle.manifest import TargetEntry

__all__ = ["build"]


@door
def build(  # noqa: PLR0913 -- public: what a user may say of a target
    path: str | Path | Bundle,
    target: str,
    *,
    precision: str | None = None,
    io_dtype: str | None = None,
    compute_capabilities: Iterable[str] = (),
    profile_shapes: Iterable[str] = (),
    memory_limit: int | None = None,
    optimization_level: int | None = None,
    lean: bool = False,
    calibrate: Examples = (),
    metric: str | None = None,
    max_drop: float | None = None,
    allow_unfused: bool = False,
    allow_unquantized: bool = False,
    step: Progress | None = None,
) -> Bundle:
    """Add a target to a bundle (or build it again), from the fused graph and the reference set that
    the bundle holds.

    Args:
        path: the bundle, or where it is. It is read anew, once no other command writes it.
        target: its name.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``mixed`` (fp16, with the fewest nodes in fp32
            that parity needs); of ``ort-cpu``, ``openvino`` and engines also ``int8`` and
            ``mixed-int8`` (with the fewest linear layers in floats), of engines ``fp8``, of
            ``ort-cpu`` ``int4`` (weights alone). Where omitted, fp16 for engines and fp32 for the
            others.
        io_dtype: ``fp16`` for floating inputs and outputs in fp16; otherwise they are what the
            eager model's are.
        compute_capabilities: of the GPUs that a TensorRT-RTX engine is for, such as ``8.9``.
        profile_shapes: one optimization profile each, as ``DIM=SIZE,DIM=MIN:OPT:MAX``; where
            omitted, one over all sizes.
        memory_limit, optimization_level, lean: of engine builders; see
            :class:`~crossfuse.targets.tensorrt.build_engine.BuilderOptions`.
        calibrate: NPZ files of real inputs, or folders of them, that a low precision is chosen on;
            where omitted, the reference's inputs.
        metric: ``path/file.py:function`` or ``package.module:function``, which decides whether a
            low precision passes, in place of the parity policy; see
            :class:`~crossfuse.parity.metric.Metric`.
        max_drop: how far the metric may be below its value in fp32.
        allow_unfused: build even if an attention does not fuse.
        allow_unquantized: build even if a linear layer that was to be quantised is not.
        step: told what begins, for progress.

    Raises:
        BundleError: no bundle, or a damaged one.
        InputError, FusionError, QuantizationError, ParityError: as `export`.
        EngineError: the engine builder refuses the graph.
    """
    given = open_bundle(path)
    options = check_options(
        target,
        BuildOptions(
            precision,
            io_dtype,
            allow_unfused,
            several("compute_capabilities", compute_capabilities),
            several("profile_shapes", profile_shapes),
            memory_limit,
            optimization_level,
            lean,
            tuple(map(str, paths("calibrate", calibrate))),
            metric,
            max_drop,
            allow_unquantized,
        ),
    )
    require_onnxruntime("the check of a target's numbers")
    _require_measured(given, target, options)
    progress = step or silent
    with write_bundle(given.path, modify=True, waiting=progress) as writer:
        # What another command added before the lock was had stays.
        old = given
        if given.identity is None or given.replaced:
            old = open_bundle(given.path)
            _require_measured(old, target, options)
        if _is_built(old, target, options):
            progress(f"{target}: cached: the bundle holds this very build")
            return old
        progress("checking the bundle")
        kept = {name: entry for name, entry in old.manifest.targets.items() if name != target}
        shared = {FUSED_GRAPH, WEIGHTS, REFERENCE_FILE, *PARTS} & set(old.manifest.files)
        files = shared | {file for entry in kept.values() for file in _files_of(entry)}
        staged = writer.adopt(old, sorted(files), copied={WEIGHTS})
        model, stages = fused_stages(staged)
        reference = reference_of(staged)
        manifest = TargetBuild(writer, model, stages, reference, progress).add(
            replace(old.manifest, targets=kept), target, options
        )
        return trust(writer.commit(manifest), [target], old)


def _require_measured(bundle: Bundle, target: str, options: BuildOptions) -> None:
    """Refuse half precision in a bundle that was exported quickly and without it."""
    manifest = bundle.manifest
    if not manifest.quick:
        return
    precision = require_precision(options.precision, require_target(target))
    if precision in HALF_PRECISIONS and not any(
        point.half for point in reference_of(bundle).points
    ):
        raise InputError(
            "the bundle was exported quickly, and what the eager model loses in half precision was "
            "not measured",
            where=bundle.path,
            got=precision,
            do=Advice(
                "Export it again without {}, or with this target",
                Said("--quick", "quick=True"),
            ),
        )


def _is_built(bundle: Bundle, target: str, options: BuildOptions) -> bool:
    """The bundle's engine was built from the same graph, options and versions, and its files are
    whole; never where a metric decides, which is code that may have changed."""
    entry = bundle.manifest.targets.get(target)
    if (
        entry is None
        or entry.engine is None
        or options.metric is not None
        or entry.engine.request != request_key(bundle.manifest, target, options)
    ):
        return False
    try:
        bundle.verified(_files_of(entry))
    except BundleError:
        return False
    return True


def _files_of(entry: TargetEntry) -> set[str]:
    return {*entry.files, *entry.stages.values()}
