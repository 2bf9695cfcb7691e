"""Profile a bundle: its session and its rivals in the same rounds at every point of a sweep, and
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
from crossfuse.core.tensors import names_of
from crossfuse.errors import BundleError, InputError
from crossfuse.parity.reference import load_reference
from crossfuse.parity.report import output_error
from crossfuse.profiling.baselines import Rivals, Run
from crossfuse.profiling.environment import command_line, environment
from crossfuse.profiling.explain.attribution import StageTimes, trace_engine, trace_stage
from crossfuse.profiling.explain.machine import fixed_work, measure_limits
from crossfuse.profiling.gpu_counters import GpuMeter
from crossfuse.profiling.measure.coldstart import cold_start
from crossfuse.profiling.measure.device_inputs import on_gpu
from crossfuse.profiling.measure.inputs import inputs_at, sweep_points
from crossfuse.profiling.measure.load import LoadResult, closed_loop, open_loop
from crossfuse.profiling.measure.sampling import Plan, Samples, sample
from crossfuse.profiling.measure.statistics import Interval, paired_ratio
from crossfuse.profiling.report.report import OURS, LatencyReport, Row
from crossfuse.runtime.gpu import Gpu
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.runtime.tensorrt_stage import TrtStage

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["Wanted", "profile_bundle"]

_MACHINE = "fixed work"
_ENERGY_CALLS = 20
_COLORS = re.compile(r"\x1b\[[0-9;]*m")

Arrays = Mapping[str, NDArray[Any]]
Step = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
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
    path: str | Path,
    target: str | None,
    wanted: Wanted,
    *,
    spec: ModelSpec | None = None,
    options: SessionOptions | None = None,
    step: Step = lambda _: None,
) -> LatencyReport:
    """See :func:`crossfuse.profile`; ``spec`` is the rivals' model."""
    bundle = open_bundle(path)
    known = _known_inputs(bundle)
    manifest = bundle.manifest
    settings = options or SessionOptions()
    points = sweep_points(wanted.sweep, manifest.example, manifest.dims, manifest.shared_batch)
    rows: list[Row] = []
    with load(path, target, settings) as session, ExitStack() as stack:
        first = inputs_at(session.inputs, known, points[0])
        entry = bundle.target(session.target)
        on_ort = session.provider.endswith("ExecutionProvider")
        limits = None
        if wanted.trace and on_ort:
            step("what the machine attains")
            limits = measure_limits(session.provider, settings)
        rivals = None
        if wanted.against and spec is not None:
            rivals = stack.enter_context(
                Rivals(spec, _device_of(session), settings.threads, device_id=_gpu_of(session))
            )
        fixed = fixed_work(session.provider, settings) if on_ort else None
        for point in points:
            rows += _point(
                session, inputs_at(session.inputs, known, point), point, wanted, rivals, fixed, step
            )
        stages = tuple(_stages(bundle, session, settings, first, step)) if wanted.trace else ()
        loads = tuple(_loads(session, first, wanted, step))
        cold = None
        if wanted.cold_starts:
            step("cold starts")
            cold = cold_start(
                bundle.path, session.target, first, wanted.cold_starts, device=_gpu_of(session)
            )
        return LatencyReport(
            str(path),
            manifest.name,
            session.target,
            session.provider,
            entry.precision,
            tuple(rows),
            stages,
            limits,
            loads,
            cold,
            _break_even(rows, points[0]),
            GpuMeter(device=_gpu_of(session)).used_bytes(),
            tuple(row.to_json() for row in manifest.ledger),
            entry.parity,
            environment(),
            command_line(),
        )


def _point(
    session: Session,
    inputs: Arrays,
    point: Mapping[str, int],
    wanted: Wanted,
    rivals: Rivals | None,
    fixed: Callable[[], object] | None,
    step: Step,
) -> list[Row]:
    """The rows at one point, sampled together."""
    where = ", ".join(f"{name}={size}" for name, size in point.items())
    calls: dict[str, Callable[[], object]] = {OURS: lambda: session.run(inputs)}
    expected = session.run(inputs)
    if session.split:
        first, queries = _parts(session, inputs)
        context = session.encode(first)
        calls[f"{OURS} encode"] = lambda: session.encode(first)
        calls[f"{OURS} query"] = lambda: session.query(context, queries)
    if _device_of(session) == "cuda":
        placed = on_gpu(inputs, Gpu(_gpu_of(session)))
        calls[f"{OURS} without copies"] = lambda: session.run(placed)
    failures: dict[str, str] = {}
    errors: dict[str, float | None] = {}
    if rivals is not None:
        for name in wanted.against:
            step(f"{name} at {where}")
            run = _rival(name, rivals, inputs, failures)
            if run is not None:
                calls[name] = run
                errors[name] = _difference(run(), expected)
    joules = {name: _energy(call, _gpu_of(session)) for name, call in calls.items()}
    if fixed is not None:
        calls[_MACHINE] = fixed
    taken = sample(calls, wanted.plan, step=lambda text: step(f"{where}: {text}"))
    machine = () if fixed is None else tuple(min(r) for r in taken.pop(_MACHINE).rounds)
    rows = [
        Row(
            name, dict(point), samples, machine, _ratio(name, taken), errors.get(name), joules[name]
        )
        for name, samples in taken.items()
    ]
    return [*rows, *(Row(name, dict(point), failure=why) for name, why in failures.items())]


def _parts(
    session: Session, inputs: Arrays
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The inputs of the contexts, and those of the queries."""
    names = names_of(session.stages["context"].inputs)
    first = {name: inputs[name] for name in names}
    return first, {name: array for name, array in inputs.items() if name not in first}


def _rival(name: str, rivals: Rivals, inputs: Arrays, failures: dict[str, str]) -> Run | None:
    """A rival that has run once, or None with its reason among the failures."""
    try:
        run = rivals.make(name, inputs)
        run()
    except Exception as error:  # noqa: BLE001 -- a rival may fail in any way, and its row says how
        text = " ".join(_COLORS.sub("", str(error)).split())
        failures[name] = (
            text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:200]}"
        )
        return None
    return run


def _ratio(name: str, taken: Mapping[str, Samples]) -> Interval | None:
    return None if name.startswith(OURS) else paired_ratio(taken[name].rounds, taken[OURS].rounds)


def _difference(got: Arrays, expected: Arrays) -> float | None:
    """The worst output's largest difference, relative to the output's largest magnitude; None if no
    name is in both."""
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


def _stages(
    bundle: Bundle, session: Session, options: SessionOptions, inputs: Arrays, step: Step
) -> Iterator[StageTimes]:
    """Where the time of each stage goes."""
    entry = bundle.target(session.target)
    feeds: dict[str, Any] = dict(inputs)
    if session.split:
        feeds |= session.encode(_parts(session, inputs)[0]).tensors
    sites = [row.site for row in bundle.ledger]
    for name in ("model", "context", "query"):
        if name in entry.stages:
            step(f"where the time goes: {name}")
            given = {spec.name: feeds[spec.name] for spec in session.stages[name].inputs}
            engine = session.engine(name)
            if isinstance(engine, TrtStage):
                if engine.times_layers:
                    yield trace_engine(name, engine, given, sites=sites)
            else:
                graph = bundle.path / entry.stages[name]
                alone = len(entry.stages) == 1
                yield trace_stage(
                    name, graph, session.provider, options, given, alone=alone, sites=sites
                )


def _loads(session: Session, inputs: Arrays, wanted: Wanted, step: Step) -> Iterator[LoadResult]:
    """Several callers at once; then arrivals, served by as many threads as there were callers at
    most."""

    def call() -> object:
        return session.run(inputs)

    for callers in wanted.callers:
        step(f"{callers} callers at once")
        yield closed_loop(call, callers, wanted.load_seconds)
    for rate in wanted.rates:
        step(f"{rate:g} requests per second")
        yield open_loop(call, rate, wanted.load_seconds, max(wanted.callers, default=1))


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
    return "cpu" if session.provider == "CPUExecutionProvider" else "cuda"


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
