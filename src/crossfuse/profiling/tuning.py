"""Which of a bundle's targets is the fastest on this machine, of those whose numbers are good
enough: all of them checked against the bundle's reference, then timed in the same rounds.

A target that can't be opened here, fails parity or leaves the user's tolerance is a candidate with
its reason, and is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from crossfuse.bundle.store import Bundle
from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.errors import CrossfuseError, InputError, ParityError
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.report import ParityReport
from crossfuse.parity.session_check import check_session, reference_of
from crossfuse.parity.trial import require_tried
from crossfuse.profiling.measure.generation import DEFAULT_NEW_TOKENS, generating, question_of
from crossfuse.profiling.measure.inputs import inputs_at, sweep_points
from crossfuse.profiling.measure.sampling import Plan, Samples, sample
from crossfuse.profiling.measure.statistics import Interval, paired_ratio, summarize
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session

__all__ = ["Candidate", "TuneReport", "TuneRequest", "tune_bundle"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TuneRequest:
    """What is compared, and how.

    Attributes:
        targets: of the bundle; all where empty.
        tolerance: the largest error that a target may have, relative to the largest magnitude of
            the output; None for the parity policy alone.
        sweep: dimension → sizes; all combinations are measured.
        new_tokens: how many tokens are generated in each call; 0 for calls of the whole model. None
            for the former where the bundle has a step stage and nothing is swept.
        plan: how much is sampled.
    """

    targets: Sequence[str] = ()
    tolerance: float | None = None
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    new_tokens: int | None = None
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True)
class Candidate(JsonData):
    """One target of the bundle.

    Attributes:
        target, precision: as the bundle has it.
        error: largest error against the reference, relative to the output's largest magnitude at
            the point, over all outputs and points; of integers, the fraction that differs. None
            where it could not be run, or is not finite.
        cosine: smallest cosine similarity; None likewise.
        seconds: median of one call at each point; empty where it was not timed.
        ratios: its time over the chosen target's in the same rounds, at each point.
        reason: why it was not timed; empty where it was.
    """

    __json__: ClassVar[Form] = Form(
        keys=("target", "precision", "error", "cosine", "seconds", "ratios", "reason")
    )

    target: str
    precision: str
    error: float | None = None
    cosine: float | None = None
    seconds: tuple[float, ...] = ()
    ratios: tuple[Interval, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class TuneReport(JsonData):
    """What was found.

    Attributes:
        bundle: its path as given.
        chosen: the fastest target that passes, by the geometric mean over the points; None where
            none does.
        points: sizes of the named dimensions that were measured.
        tolerance: that was asked for.
        new_tokens: generated in each call, as far as the state holds so many; 0 where calls were of
            the whole model.
        candidates: every target that was asked for, the fastest first.
        machine: that this holds for.
        record: the file that keeps the choice; None where nothing was recorded.
    """

    __json__: ClassVar[Form] = Form(
        keys=(
            *("bundle", "chosen", "points", "tolerance", "new_tokens"),
            *("candidates", "machine", "record"),
        )
    )

    bundle: str
    chosen: str | None
    points: tuple[Mapping[str, int], ...]
    tolerance: float | None
    candidates: tuple[Candidate, ...]
    new_tokens: int = 0
    machine: Mapping[str, Any] = field(default_factory=dict)
    record: str | None = None

    @property
    def failure(self) -> ParityError | None:
        """Why nothing was chosen, as an error; None where something was."""
        if self.chosen is not None:
            return None
        return ParityError(
            "no target of the bundle passes here, so none was chosen",
            where=self.bundle,
            got="; ".join(f"{one.target}: {one.reason}" for one in self.candidates),
            do="Allow a larger tolerance, or build another target or precision",
        )


def tune_bundle(
    bundle: Bundle,
    request: TuneRequest,
    *,
    options: SessionOptions | None = None,
    progress: Progress = lambda _: None,
) -> TuneReport:
    """Check and measure the targets of a bundle; nothing is recorded.

    Args:
        bundle: to tune.
        request: what to compare.
        options: of all sessions.
        progress: told what begins.

    Raises:
        BundleError: a damaged bundle, one without a reference set, or no such target.
        InputError: a sweep over an unknown dimension, a size outside its range, or tokens of a
            bundle that has no step stage.
    """
    names = tuple(dict.fromkeys(request.targets or bundle.targets))
    for name in names:
        bundle.target(name)
    manifest, reference = bundle.manifest, reference_of(bundle)
    bundle.verified(manifest.files)
    new_tokens = _new_tokens(bundle, request)
    points = sweep_points(request.sweep, manifest.example, manifest.dims, manifest.shared_batch)
    with ExitStack() as stack:
        found = _Candidates(bundle, reference, request.tolerance, options or SessionOptions())
        for name in names:
            progress(f"{name}: parity")
            found.add(name, stack)
        taken = [
            _timed(
                found.sessions, _calls(reference, point, new_tokens), point, request.plan, progress
            )
            for point in points
        ]
    candidates = tuple(_with_times(found.candidates, taken))
    return TuneReport(
        bundle=str(bundle.path),
        chosen=next((one.target for one in candidates if one.seconds), None),
        points=tuple(points),
        tolerance=request.tolerance,
        new_tokens=new_tokens,
        candidates=candidates,
    )


def _new_tokens(bundle: Bundle, request: TuneRequest) -> int:
    """How many tokens each call generates; 0 for calls of the whole model."""
    decodes = bundle.manifest.decode is not None
    if request.new_tokens and not decodes:
        raise InputError(
            "the bundle has no step stage, so it generates no tokens",
            got=f"new_tokens={request.new_tokens}",
            do="Leave it out",
        )
    if request.new_tokens is None:
        return DEFAULT_NEW_TOKENS if decodes and not request.sweep else 0
    return request.new_tokens


class _Candidates:
    """The targets so far, and open sessions of those that pass."""

    def __init__(
        self,
        bundle: Bundle,
        reference: ReferenceSet,
        tolerance: float | None,
        options: SessionOptions,
    ) -> None:
        self._bundle, self._reference = bundle, reference
        self._tolerance, self._options = tolerance, options
        self.candidates: dict[str, Candidate] = {}
        self.sessions: dict[str, Session] = {}

    def add(self, name: str, stack: ExitStack) -> None:
        """Open a target and compare it with the reference."""
        one = Candidate(name, self._bundle.target(name).precision)
        try:
            require_tried(self._bundle, name, self._options)
            session = stack.enter_context(load(self._bundle, name, self._options))
            report = check_session(session, self._reference, one.precision)
        except CrossfuseError as error:
            self.candidates[name] = replace(one, reason=str(error))
            return
        one = _with_error(one, report)
        reason = self._reason(one, report)
        self.candidates[name] = replace(one, reason=reason)
        if not reason:
            self.sessions[name] = session

    def _reason(self, one: Candidate, report: ParityReport) -> str:
        failed = [name for name, output in report.outputs.items() if not output.passed]
        if failed:
            return f"fails parity: {', '.join(failed)}"
        limit = self._tolerance
        if limit is not None and (one.error is None or one.error > limit):
            got = "not finite" if one.error is None else f"{one.error:.3g}"
            return f"its error is {got}, more than the tolerance of {limit:g}"
        return ""


def _with_error(one: Candidate, report: ParityReport) -> Candidate:
    error = max((output.max_rel for output in report.outputs.values()), default=0.0)
    cosine = min((output.cosine for output in report.outputs.values()), default=1.0)
    return replace(
        one,
        error=error if math.isfinite(error) else None,
        cosine=cosine if math.isfinite(cosine) else None,
    )


def _calls(
    reference: ReferenceSet, point: Mapping[str, int], new_tokens: int
) -> Callable[[Session], Callable[[], object]]:
    """What is timed of a session: it generates, or answers as a whole."""

    def call(session: Session) -> Callable[[], object]:
        inputs = inputs_at(session.inputs, reference.points[0].inputs, point)
        if new_tokens:
            return generating(session, question_of(session, inputs, new_tokens))
        return lambda: session.run(inputs)

    return call


def _timed(
    sessions: Mapping[str, Session],
    call: Callable[[Session], Callable[[], object]],
    point: Mapping[str, int],
    plan: Plan,
    progress: Progress,
) -> dict[str, Samples]:
    """Samples of calls at one point, interleaved."""
    where = ", ".join(f"{name}={size}" for name, size in point.items())
    return sample(
        {name: call(session) for name, session in sessions.items()},
        plan,
        progress=lambda text: progress(f"{where}: {text}"),
    )


def _with_times(
    candidates: Mapping[str, Candidate], taken: Sequence[Mapping[str, Samples]]
) -> Iterator[Candidate]:
    """All candidates: those that were timed first, by their time, with ratios to the fastest."""
    timed = [name for name, one in candidates.items() if not one.reason]

    def ratios(name: str, over: str) -> tuple[Interval, ...]:
        return tuple(paired_ratio(at[name].rounds, at[over].rounds) for at in taken)

    order = sorted(
        timed, key=lambda name: math.prod(ratio.value for ratio in ratios(name, timed[0]))
    )
    for name in order:
        yield replace(
            candidates[name],
            seconds=tuple(summarize(at[name].rounds).median.value for at in taken),
            ratios=ratios(name, order[0]),
        )
    yield from (one for one in candidates.values() if one.reason)
