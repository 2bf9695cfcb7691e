"""Profile a bundle: its session and its baselines in the same rounds at every point of a sweep, and
where its time goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError, InputError
from crossfuse.parity.policy import output_error
from crossfuse.parity.reference import load_reference
from crossfuse.profiling.baselines import Baselines, Run
from crossfuse.profiling.environment import command_line, environment
from crossfuse.profiling.explain.machine import fixed_work, measure_limits
from crossfuse.profiling.explain.stages import context_inputs, stage_times
from crossfuse.profiling.gpu_counters import GpuMeter
from crossfuse.profiling.measure.coldstart import ColdStart, cold_start
from crossfuse.profiling.measure.device_inputs import on_gpu
from crossfuse.profiling.measure.generation import (
    GenerationTimes,
    generation_times,
    question_of,
)
from crossfuse.profiling.measure.inputs import inputs_at, sweep_points
from crossfuse.profiling.measure.load import LoadResult, closed_loop, open_loop
from crossfuse.profiling.measure.sampling import Plan, Samples, sample
from crossfuse.profiling.measure.statistics import Interval, paired_ratio
from crossfuse.profiling.report.report import OURS, LatencyReport, Row
from crossfuse.runtime.gpu import Gpu
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["ProfileRequest", "profile_bundle"]

_MACHINE = "fixed work"
_ENERGY_CALLS = 20
_COLORS = re.compile(r"\x1b\[[0-9;]*m")

Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure beside the latency of a bundle; see :func:`crossfuse.profile`."""

    against: Sequence[str] = ()
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    callers: Sequence[int] = ()
    rates: Sequence[float] = ()
    load_seconds: float = 5.0
    cold_starts: int = 5
    trace: bool = True


def profile_bundle(
    path: str | Path | Bundle,
    target: str | None,
    request: ProfileRequest,
    *,
    spec: ModelSpec | None = None,
    options: SessionOptions | None = None,
    progress: Progress = lambda _: None,
) -> LatencyReport:
    """Measure one target of a bundle, as :func:`crossfuse.profile` describes.

    Args:
        path: the bundle's folder.
        target: where omitted, the best that runs here.
        request: what to measure.
        spec: the baselines' model; without one they are left out.
        options: of the session.
        progress: told what begins.

    Raises:
        BundleError: a damaged bundle, one without inputs, or one that can't run here.
        InputError: a sweep over an unknown dimension, or a size outside its range.
    """
    bundle = open_bundle(path)
    known = _known_inputs(bundle)
    manifest = bundle.manifest
    settings = options or SessionOptions()
    points = sweep_points(request.sweep, manifest.example, manifest.dims, manifest.shared_batch)
    with load(bundle, target, settings) as session, ExitStack() as stack:
        gpu = _gpu_of(session)
        first = inputs_at(session.inputs, known, points[0])
        on_ort = session.provider.endswith("ExecutionProvider")
        limits = None
        if request.trace and on_ort:
            progress("what the machine attains")
            limits = measure_limits(session.provider, settings)
        baselines = None
        if request.against and spec is not None:
            baselines = stack.enter_context(
                Baselines(spec, _device_of(session), settings.threads, device_id=gpu)
            )
        fixed = fixed_work(session.provider, settings) if on_ort else None
        bench = _Bench(session, request, baselines, fixed, progress)
        rows: list[Row] = []
        for point in points:
            rows += bench.rows(inputs_at(session.inputs, known, point), point)
        stages = stage_times(bundle, session, settings, first, progress) if request.trace else ()
        entry = bundle.target(session.target)
        return LatencyReport(
            bundle=str(bundle.path),
            model=manifest.name,
            target=session.target,
            provider=session.provider,
            precision=entry.precision,
            rows=tuple(rows),
            stages=tuple(stages),
            limits=limits,
            load=tuple(_loads(session, first, request, progress)),
            generation=tuple(_generation(session, first, request, progress)),
            cold_start=_cold_start(bundle, session, first, request, progress),
            break_even=_break_even(rows, points[0]),
            device_bytes=GpuMeter(device=gpu).used_bytes(),
            ledger=tuple(row.to_json() for row in manifest.ledger),
            parity=entry.parity,
            environment=environment(),
            command=command_line(),
        )


@dataclass(frozen=True)
class _Bench:
    """What is measured at every point: the session, its baselines, and fixed work beside them."""

    session: Session
    request: ProfileRequest
    baselines: Baselines | None
    fixed: Callable[[], object] | None
    progress: Progress

    def rows(self, inputs: Arrays, point: Mapping[str, int]) -> list[Row]:
        """The rows at one point, sampled together."""
        where = ", ".join(f"{name}={size}" for name, size in point.items())
        calls = self._own_calls(inputs)
        others = self._baseline_calls(inputs, where)
        calls |= others.calls
        gpu = _gpu_of(self.session)
        joules = {name: _energy(call, gpu) for name, call in calls.items()}
        if self.fixed is not None:
            calls[_MACHINE] = self.fixed
        taken = sample(
            calls, self.request.plan, progress=lambda text: self.progress(f"{where}: {text}")
        )
        machine = () if self.fixed is None else tuple(min(r) for r in taken.pop(_MACHINE).rounds)
        rows = [
            Row(
                name,
                dict(point),
                samples,
                machine,
                ratio=_ratio(name, taken),
                error=others.errors.get(name),
                reference_error=others.reference_errors.get(name),
                joules=joules[name],
            )
            for name, samples in taken.items()
        ]
        failed = [Row(name, dict(point), failure=why) for name, why in others.failures.items()]
        return [*rows, *failed]

    def _own_calls(self, inputs: Arrays) -> dict[str, Callable[[], object]]:
        """The bundle's own calls: whole, by stage, and without copies on a GPU."""
        session = self.session
        calls: dict[str, Callable[[], object]] = {OURS: lambda: session.run(inputs)}
        if session.split:
            first = context_inputs(session, inputs)
            queries = {name: array for name, array in inputs.items() if name not in first}
            context = session.encode(first)
            calls[f"{OURS} encode"] = lambda: session.encode(first)
            calls[f"{OURS} query"] = lambda: session.query(context, queries)
        if _device_of(session) == "cuda":
            placed = on_gpu(inputs, Gpu(_gpu_of(session)))
            calls[f"{OURS} without copies"] = lambda: session.run(placed)
        return calls

    def _baseline_calls(self, inputs: Arrays, where: str) -> _BaselineCalls:
        """The baselines that run here, each run once and compared with the bundle."""
        found = _BaselineCalls()
        if self.baselines is None:
            return found
        expected = self.session.run(inputs)
        self.progress(f"the model's own numbers at {where}")
        truth = _truth(self.baselines, inputs)
        found.reference_errors[OURS] = _difference(expected, truth)
        for name in self.request.against:
            self.progress(f"{name} at {where}")
            run = _baseline(name, self.baselines, inputs, found.failures)
            if run is not None:
                found.calls[name] = run
                got = run()
                found.errors[name] = _difference(got, expected)
                found.reference_errors[name] = _difference(got, truth)
        return found


@dataclass(frozen=True)
class _BaselineCalls:
    """Baselines by name: calls, differences from the bundle's outputs and from the model's own, and
    why others fail."""

    calls: dict[str, Callable[[], object]] = field(default_factory=dict)
    errors: dict[str, float | None] = field(default_factory=dict)
    reference_errors: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def _truth(baselines: Baselines, inputs: Arrays) -> Arrays:
    """The model's own numbers; nothing where it fails by itself."""
    try:
        return baselines.truth(inputs)
    except InputError:
        return {}


def _baseline(
    name: str, baselines: Baselines, inputs: Arrays, failures: dict[str, str]
) -> Run | None:
    """A baseline that has run once, or None with its reason among the failures."""
    try:
        run = baselines.make(name, inputs)
        run()
    except Exception as error:  # noqa: BLE001 -- a baseline may fail in any way, and its row says how
        text = " ".join(_COLORS.sub("", str(error)).split())
        failures[name] = (
            text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:200]}"
        )
        return None
    return run


def _ratio(name: str, taken: Mapping[str, Samples]) -> Interval | None:
    return None if name.startswith(OURS) else paired_ratio(taken[name].rounds, taken[OURS].rounds)


def _difference(got: Arrays, expected: Arrays) -> float | None:
    """The worst output's difference, relative to its magnitude; None if no name is in both."""
    found = []
    for name, array in expected.items():
        if name in got and array.dtype.kind == "f":
            scale = max(float(np.max(np.abs(array), initial=0.0)), 1e-30)
            found.append(output_error(np.asarray(got[name]), array) / scale)
    return max(found, default=None)


def _energy(call: Callable[[], object], device: int) -> float | None:
    """Joules of one call, by the GPU's counter over several."""
    meter = GpuMeter(device=device)
    before = meter.joules()
    if before is None:
        return None
    for _ in range(_ENERGY_CALLS):
        call()
    after = meter.joules()
    return None if after is None else (after - before) / _ENERGY_CALLS


def _loads(
    session: Session, inputs: Arrays, request: ProfileRequest, progress: Progress
) -> Iterator[LoadResult]:
    """Several callers at once, then arrivals, served by as many threads as the most callers."""

    def call() -> object:
        return session.run(inputs)

    for callers in request.callers:
        progress(f"{callers} callers at once")
        yield closed_loop(call, callers, request.load_seconds)
    for rate in request.rates:
        progress(f"{rate:g} requests per second")
        yield open_loop(call, rate, request.load_seconds, max(request.callers, default=1))


def _generation(
    session: Session, inputs: Arrays, request: ProfileRequest, progress: Progress
) -> Iterator[GenerationTimes]:
    """Tokens for one caller, and for several at once; nothing of a bundle that doesn't decode."""
    if session.decode is None:
        return
    question = question_of(session, inputs)
    for callers in dict.fromkeys((1, *request.callers)):
        progress(f"generating for {callers} at once")
        yield generation_times(session, question, callers, request.load_seconds)


def _cold_start(
    bundle: Bundle, session: Session, inputs: Arrays, request: ProfileRequest, progress: Progress
) -> ColdStart | None:
    if not request.cold_starts:
        return None
    progress("cold starts")
    return cold_start(
        bundle.path, session.target, inputs, request.cold_starts, device=_gpu_of(session)
    )


def _break_even(rows: Sequence[Row], point: Mapping[str, int]) -> float | None:
    """Queries per context from which encoding once is faster than running everything each time."""
    medians = {
        row.name: row.summary.median.value for row in rows if row.summary and row.sizes == point
    }
    encode, query, whole = (medians.get(name) for name in (f"{OURS} encode", f"{OURS} query", OURS))
    if encode is None or query is None or whole is None or whole <= query:
        return None
    return encode / (whole - query)


def _device_of(session: Session) -> str:
    """Where a session computes, as PyTorch says it."""
    return "cuda" if session.engine(next(iter(session.stages))).on_device else "cpu"


def _gpu_of(session: Session) -> int:
    """The number of the GPU that a session computes on; 0 where it computes on none."""
    return session.engine(next(iter(session.stages))).device


def _known_inputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    name = bundle.manifest.reference
    if name is None:
        raise BundleError(
            "the bundle holds no inputs to profile with", where=bundle.path, do="Export it again"
        )
    return dict(load_reference(bundle.verified([name])[0]).points[0].inputs)
