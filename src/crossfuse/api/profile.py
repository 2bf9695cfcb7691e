"""Latency of a bundle, beside what one would use otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.api.arguments import Progress, several, silent
from crossfuse.api.sources import Source
from crossfuse.bundle.staging import unreplaced
from crossfuse.bundle.store import Bundle
from crossfuse.core.foreign import door
from crossfuse.errors import unknown

if TYPE_CHECKING:
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.report.report import LatencyReport
    from crossfuse.runtime.options import SessionOptions
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["profile"]


@door
def profile(  # noqa: PLR0913 -- public: what a user may say of a measurement
    path: str | Path | Bundle,
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
    step: Progress | None = None,
) -> LatencyReport:
    """Measure a bundle's latency, with baselines in the same rounds.

    Args:
        path: the bundle, or where it is.
        target: where omitted, the best that runs here.
        against: of ``eager``, ``compile``, ``onnx``, ``hf``, ``openvino``, ``openvino-f32``,
            ``openvino-int8``, ``eager-bf16``, ``ort-int8``, and on GPUs ``compile-max``,
            ``eager-fp16`` and ``tensorrt``; one that fails is a row with its reason.
        source: the baselines' model; where omitted, the zoo's that the bundle names. Nothing else
            that a bundle says is loaded. Context, dynamic axes, decoding and dropped outputs are
            those of the export.
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
        InputError: an unknown baseline or dimension, or baselines of a bundle that names no zoo
            model, without a source.
    """
    from crossfuse.profiling.baselines import BASELINES
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.run import ProfileRequest, profile_bundle

    names = list(dict.fromkeys(several("against", against)))
    for name in names:
        if name not in BASELINES:
            raise unknown("there is no such baseline", name, BASELINES)
    requested = ProfileRequest(
        names, sweep or {}, plan or Plan(), callers, rates, load_seconds, cold_starts, trace
    )
    progress = step or silent

    def profiled(bundle: Bundle) -> LatencyReport:
        spec = None
        if names:
            progress("loading the model")
            spec = Source.of_bundle(
                bundle.manifest.source, source, checkpoint=checkpoint, task=task
            ).load()
        report = profile_bundle(
            bundle, target, requested, spec=spec, options=options, progress=progress
        )
        bundle.require_unreplaced()
        return report

    where = str(path.path if isinstance(path, Bundle) else path)
    return replace(unreplaced(path, profiled, copied=True), bundle=where)
