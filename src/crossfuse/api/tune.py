"""The fastest target of a bundle on this machine, recorded for sessions to come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.api.arguments import Progress, several, silent
from crossfuse.bundle.staging import unreplaced
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.foreign import door
from crossfuse.errors import InputError
from crossfuse.runtime.tuned import forget, machine, remember

if TYPE_CHECKING:
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.tuning import TuneReport
    from crossfuse.runtime.options import SessionOptions

__all__ = ["forget_tuned", "tune"]


@door
def tune(  # noqa: PLR0913 -- public: what a user may say of a measurement
    path: str | Path | Bundle,
    targets: Iterable[str] = (),
    *,
    tolerance: float | None = None,
    sweep: Mapping[str, Sequence[int]] | None = None,
    new_tokens: int | None = None,
    plan: Plan | None = None,
    options: SessionOptions | None = None,
    step: Progress | None = None,
) -> TuneReport:
    """Measure the targets that a bundle holds, in the precisions that it holds them in, and record
    the fastest that passes: :func:`crossfuse.runtime.load` then takes it where no target is named.

    Each is compared with the bundle's reference first. Those that pass are timed in the same
    rounds: of bundles with a step stage how long it takes to encode a context and to generate
    tokens, of others whole calls. The record is in the user's cache: it holds for this bundle as it
    is now, this processor, the cores that this process may use, and these versions of the engines.

    Args:
        path: the bundle, or where it is.
        targets: some of its targets; where omitted, all.
        tolerance: the largest error that a target may have against the reference, relative to the
            output's largest magnitude (of integers, the fraction that differs); where omitted, the
            parity policy alone decides.
        sweep: dimension → sizes to measure at; the fastest is that of the geometric mean. Where
            omitted, at the sizes of the example.
        new_tokens: how many are generated in each call, of a bundle with a step stage; 0 for whole
            calls. Where omitted, 32, or whole calls where something is swept.
        plan: how much is sampled.
        options: of the sessions.
        step: told what begins, for progress.

    Returns:
        what was found; ``report.chosen`` is None where no target passes, and then nothing is
        recorded.

    Raises:
        BundleError: no bundle, a damaged one, one without a reference set, or no such target.
        InputError: a tolerance or a number of tokens below 0, tokens of a bundle without a step
            stage, an unknown dimension, or a cache that can't be written.
    """
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.tuning import TuneRequest, tune_bundle

    if tolerance is not None and not (tolerance >= 0 and math.isfinite(tolerance)):
        raise InputError("a tolerance is a number from 0 on", got=tolerance)
    if new_tokens is not None and (not isinstance(new_tokens, int) or new_tokens < 0):
        raise InputError("new tokens are counted from 0 on", got=repr(new_tokens))
    request = TuneRequest(
        several("targets", targets), tolerance, sweep or {}, new_tokens, plan or Plan()
    )
    progress = step or silent

    def tuned(bundle: Bundle) -> TuneReport:
        found = tune_bundle(bundle, request, options=options, progress=progress)
        bundle.require_unreplaced()
        report = replace(found, machine=machine())
        if report.chosen is None:
            return report
        about = report.to_json()
        try:
            record = remember(bundle.manifest, report.chosen, about["candidates"])
        except OSError as error:
            raise InputError(
                f"the choice can't be recorded: {error.strerror or error}",
                do="Set CROSSFUSE_CACHE to a folder that you may write to",
            ) from error
        return replace(report, record=str(record))

    where = str(path.path if isinstance(path, Bundle) else path)
    return replace(unreplaced(path, tuned, copied=True), bundle=where)


@door
def forget_tuned(path: str | Path | Bundle) -> bool:
    """Remove what `tune` recorded of a bundle on this machine; whether there was a record.

    Raises:
        BundleError: no bundle, or a damaged manifest.
    """
    return forget(open_bundle(path).manifest)
