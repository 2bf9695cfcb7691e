"""Profile a bundle: the session, its stages and its rivals, interleaved at every point of a sweep."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError, CrossfuseError
from crossfuse.profile.coldstart import cold_start
from crossfuse.profile.inputs import inputs_at, sweep_points
from crossfuse.profile.report import OURS, LatencyReport, Row
from crossfuse.profile.rivals import Run, make_rival
from crossfuse.profile.sampling import Plan, sample
from crossfuse.profile.statistics import ratio_of_medians, summarize
from crossfuse.runtime.loading import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.specs import names_of
from crossfuse.verify.parity import output_error
from crossfuse.verify.reference import load_reference

if TYPE_CHECKING:
    from crossfuse.model_spec import ModelSpec

__all__ = ["profile_bundle"]

MACHINE = "machine"
_MACHINE_SIZE = 384
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_PACKAGES = ("crossfuse", "numpy", "onnxruntime-gpu", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13")

Arrays = Mapping[str, NDArray[Any]]


def profile_bundle(
    path: str | Path,
    target: str | None,
    *,
    against: Sequence[str] = (),
    spec: Callable[[], ModelSpec] | None = None,
    sweep: Mapping[str, Sequence[int]] | None = None,
    plan: Plan | None = None,
    options: SessionOptions | None = None,
    cold_starts: int = 5,
    step: Callable[[str], None] = lambda _: None,
) -> LatencyReport:
    """See :func:`crossfuse.profile`; ``spec`` makes the model for the rivals."""
    bundle = open_bundle(path)
    known = _known_inputs(bundle)
    manifest = bundle.manifest
    points = sweep_points(sweep or {}, manifest.example, manifest.dims, manifest.shared_batch)
    rows: list[Row] = []
    model: ModelSpec | None = None
    with load(path, target, options) as session:
        if against and spec is not None:
            step("loading the model")
            model = spec()
        for point in points:
            inputs = inputs_at(session.inputs, known, point)
            rows += _point(session, inputs, point, against, model, plan, step)
        cold = None
        if cold_starts:
            step("cold starts")
            cold = cold_start(bundle.path, session.target, inputs_at(session.inputs, known, points[0]), cold_starts)
        return LatencyReport(
            str(path),
            session.target,
            session.provider,
            bundle.target(session.target).precision,
            tuple(rows),
            cold,
            _break_even(rows, points[0]),
            _environment(),
            " ".join(sys.argv),
        )


def _point(
    session: Session,
    inputs: Arrays,
    point: Mapping[str, int],
    against: Sequence[str],
    spec: ModelSpec | None,
    plan: Plan | None,
    step: Callable[[str], None],
) -> list[Row]:
    """The rows at one point, sampled together."""
    where = ", ".join(f"{name}={size}" for name, size in point.items())
    calls: dict[str, Callable[[], object]] = {OURS: lambda: session.run(**inputs)}
    expected = session.run(**inputs)
    if session.split:
        first = names_of(session.stages["context"].inputs)
        context_inputs = {name: inputs[name] for name in first}
        queries = {name: array for name, array in inputs.items() if name not in first}
        context = session.encode(**context_inputs)
        calls[f"{OURS} encode"] = lambda: session.encode(**context_inputs)
        calls[f"{OURS} query"] = lambda: session.query(context, **queries)
    failures: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name in against:
        step(f"{name} at {where}")
        run = _rival(name, spec, inputs, failures)
        if run is not None:
            calls[name] = run
            errors[name] = _difference(run(), expected)
    square = np.random.default_rng(0).standard_normal((_MACHINE_SIZE, _MACHINE_SIZE)).astype(np.float32)
    calls[MACHINE] = lambda: square @ square
    taken = sample(calls, plan, step=lambda text: step(f"{where}: {text}"))
    machine = taken.pop(MACHINE)
    rows = [
        Row(
            name,
            dict(point),
            samples,
            machine,
            None if name.startswith(OURS) else ratio_of_medians(samples.rounds, taken[OURS].rounds),
            errors.get(name),
        )
        for name, samples in taken.items()
    ]
    return [*rows, *(Row(name, dict(point), failure=why) for name, why in failures.items())]


def _rival(name: str, spec: ModelSpec | None, inputs: Arrays, failures: dict[str, str]) -> Run | None:
    """A rival that has run once, or None with its reason among the failures."""
    if spec is None:
        failures[name] = "the bundle doesn't say which model it was exported from; give its source"
        return None
    try:
        run = make_rival(name, spec, inputs)
        run()
    except CrossfuseError:
        raise
    except Exception as error:  # noqa: BLE001 -- a rival may fail in any way, and its row says how
        text = " ".join(_COLORS.sub("", str(error)).split())
        failures[name] = f"{type(error).__name__}: {text[:200]}"
        return None
    return run


def _difference(got: Arrays, expected: Arrays) -> float:
    """The worst output's largest difference, relative to the output's largest magnitude."""
    worst = 0.0
    for name, array in expected.items():
        if name in got and array.dtype.kind == "f":
            scale = max(float(np.max(np.abs(array), initial=0.0)), 1e-30)
            worst = max(worst, output_error(np.asarray(got[name]), array) / scale)
    return worst


def _break_even(rows: Sequence[Row], point: Mapping[str, int]) -> float | None:
    """Queries per context from which encoding once is faster than running everything each time."""
    medians = {row.name: summarize(row.samples.rounds).median.value for row in rows if row.samples and row.sizes == point}
    encode, query, whole = (medians.get(name) for name in (f"{OURS} encode", f"{OURS} query", OURS))
    if encode is None or query is None or whole is None or whole <= query:
        return None
    return encode / (whole - query)


def _known_inputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    name = bundle.manifest.reference
    if name is None:
        raise BundleError("the bundle holds no inputs to profile with", where=bundle.path, do="Export it again")
    return dict(load_reference(bundle.verified([name])[0]).points[0].inputs)


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
