"""Verify a bundle's target against the reference set that it carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.target import require_target
from crossfuse.core.tensors import NEXT, POSITION, names_of
from crossfuse.errors import Advice, BundleError, InputError, ParityError, Said
from crossfuse.parity.given import whole_boundary
from crossfuse.parity.low_precision import BESIDE_A_METRIC, PLAIN, Limits
from crossfuse.parity.metric import Metric
from crossfuse.parity.reference import ReferencePoint, ReferenceSet, check_reference, load_reference
from crossfuse.parity.report import ParityReport, compare
from crossfuse.runtime.context import Context
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.runtime.tuned import chosen_target

if TYPE_CHECKING:
    from crossfuse.runtime.decoding import DecodingState

__all__ = [
    "check_session", "reference_of", "smallest_inputs", "verify_bundle", "verify_session",
]  # fmt: skip


def verify_bundle(
    path: str | Path | Bundle,
    target: str | None = None,
    *,
    options: SessionOptions | None = None,
    reference: ReferenceSet | None = None,
    metric: Metric | None = None,
) -> ParityReport:
    """Parity of a target on this machine.

    That a metric passed at the build is the manifest's word alone: without the metric, such a
    target is judged as any other.

    Args:
        path: the bundle, or where it is.
        target: where omitted, the best that runs here.
        options: of the session; ``SessionOptions(provider="CPUExecutionProvider")`` checks
            ``ort-cuda`` without a GPU.
        reference: a fresh reference set instead of the bundle's own.
        metric: the user's own, with its value in fp32; it decides in place of the policy for low
            precision.

    Raises:
        BundleError: the bundle is damaged, or holds no reference set, or can't run here.
    """
    bundle = open_bundle(path)
    name = target or chosen_target(bundle)
    with load(bundle, name, options) as session:
        return verify_session(session, bundle, reference=reference, metric=metric)


def verify_session(
    session: Session,
    bundle: Bundle,
    *,
    reference: ReferenceSet | None = None,
    metric: Metric | None = None,
) -> ParityReport:
    """Parity of an open session of a bundle, as `verify_bundle` has it."""
    entry = bundle.target(session.target)
    known = require_target(session.target).precisions
    if entry.precision not in known:
        raise BundleError(
            "there is no parity policy for a precision that the target can't have",
            got=repr(entry.precision),
            expected=", ".join(known),
        )
    limits = PLAIN if metric is None else BESIDE_A_METRIC
    report = check_session(session, reference or reference_of(bundle), entry.precision, limits)
    if metric is not None:
        return replace(report, metric=metric.judge(session))
    claimed = (entry.parity or {}).get("metric")
    if not claimed:
        return report
    said = (
        f"the manifest says that {claimed['name']} passed at the build, which counts for nothing "
    )
    return replace(report, notes=(*report.notes, said + "here: give the metric to judge by it"))


def check_session(
    session: Session, reference: ReferenceSet, precision: str, limits: Limits = PLAIN
) -> ParityReport:
    """Parity of an open session; of one that decodes, also of decoding step by step. ``limits`` are
    those of a low precision."""
    _require_same_model(session, reference)
    own = require_target(session.target).provider == session.provider
    executed_on = session.provider if own else f"{session.provider} (not the target's own)"
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in session.inputs}

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        with _on_reference_inputs(session.target, inputs):
            return session.run(
                {name: array.astype(dtypes[name], copy=False) for name, array in inputs.items()}
            )

    report = compare(
        run,
        reference,
        target=session.target,
        executed_on=executed_on,
        precision=precision,
        limits=limits,
    )
    if session.decode is None:
        return report
    checks = {"step by step": _steps}
    if _takes_many(session):
        checks["prompts, then steps"] = _prompts
    outputs = dict(report.outputs)
    ends = [_encoded(session, reference.points[i]) for i in (0, -1)]
    for how, decoded in checks.items():
        found = _check_decoding(session, reference, ends, decoded, (precision, limits))
        outputs |= {f"{name}, {how}": outcome for name, outcome in found.outputs.items()}
    return replace(report, outputs=outputs)


def _takes_many(session: Session) -> bool:
    """The step stage takes any number of tokens, each with its place; those of crossfuse 0.1 take
    one."""
    return any(
        spec.name == POSITION and len(spec.shape) == 2 for spec in session.stages["step"].inputs
    )


_NOT_EMPTY = Advice(
    "Let the ranges of the inputs that hold nothing here begin at 1: {}",
    Said("--dynamic INPUT:AXIS=NAME:1:MAX", "dynamic={INPUT: {AXIS: 'NAME:1:MAX'}}"),
)


@contextmanager
def _on_reference_inputs(target: str, inputs: Mapping[str, Any]) -> Iterator[None]:
    """What the eager model takes, a target has to take: that it refuses is a failed check, no bad
    input."""
    try:
        yield
    except InputError as error:
        is_empty = any(not array.size for array in inputs.values())
        raise ParityError(
            f"target {target!r} fails on inputs that the eager model takes: {error.what}",
            where=", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items()),
            do=_NOT_EMPTY if is_empty else None,
        ) from error


def _require_same_model(session: Session, reference: ReferenceSet) -> None:
    for what, ours in (("inputs", session.inputs), ("outputs", session.outputs)):
        names = set(names_of(ours))
        for point in reference.points:
            theirs = point.inputs if what == "inputs" else point.outputs
            if set(theirs) != names:
                raise InputError(
                    f"the reference is of another model: it has other {what}",
                    got=", ".join(theirs),
                    expected=", ".join(names_of(ours)),
                    do="Give the source that the bundle was exported from, or export it again",
                )
    if not reference.points:
        raise InputError("the reference set is empty", do="Export the bundle again")


class _Encoded(NamedTuple):
    """A point, and the context of its inputs."""

    point: ReferencePoint
    context: Context


def _encoded(session: Session, point: ReferencePoint) -> _Encoded:
    names = names_of(session.stages["context"].inputs)
    with _on_reference_inputs(session.target, point.inputs):
        return _Encoded(point, session.encode({name: point.inputs[name] for name in names}))


def _check_decoding(
    session: Session,
    reference: ReferenceSet,
    ends: Sequence[_Encoded],
    decoded: Callable[[Session, DecodingState, _Tokens], dict[str, Any]],
    judged: tuple[str, Limits],
) -> ParityReport:
    """Parity of decoding in some way with the eager model over whole sequences, at some points."""
    assert session.decode is not None
    token = session.decode.tokens
    kept = [spec.name for spec in session.stages["step"].outputs if not spec.name.startswith(NEXT)]

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        context = next(end.context for end in ends if end.point.inputs is inputs)
        with _on_reference_inputs(session.target, inputs):
            state = session.start(context, inputs[token].shape[0])
            beside = {name: inputs[name] for name in state.beside}
            return decoded(session, state, _Tokens(token, inputs[token], beside))

    axes = _token_axes(session)

    def second(name: str, array: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(array, axes[name], 1) if name in axes else array

    points = tuple(
        replace(end.point, outputs={name: second(name, end.point.outputs[name]) for name in kept})
        for end in ends
    )
    return compare(
        run,
        ReferenceSet(reference.dtype, points),
        target=session.target,
        executed_on=session.provider,
        precision=judged[0],
        limits=judged[1],
    )


def _token_axes(session: Session) -> dict[str, int]:
    """Where outputs of whole sequences have their tokens; those of steps have them second."""
    assert session.decode is not None
    query = session.stages["query"]
    tokens = next(spec for spec in query.inputs if spec.name == session.decode.tokens).shape[1]
    return {
        spec.name: spec.shape.index(tokens) for spec in query.outputs if tokens in spec.shape[2:]
    }


class _Tokens(NamedTuple):
    """Whole sequences ``[batch, tokens]`` of the input that decodes, and of those beside it."""

    name: str
    ids: NDArray[Any]
    beside: Mapping[str, NDArray[Any]]


def _steps(session: Session, state: DecodingState, given: _Tokens) -> dict[str, Any]:
    """Outputs of one token after the other."""
    whole = {given.name: given.ids, **given.beside}
    rows = []
    for column in range(given.ids.shape[1]):
        made = session.step(state, {name: array[:, column] for name, array in whole.items()})
        rows.append({name: array.copy() for name, array in made.items()})
    return {name: np.concatenate([row[name] for row in rows], axis=1) for name in rows[0]}


def _prompts(session: Session, state: DecodingState, given: _Tokens) -> dict[str, Any]:
    """Outputs of prompts of different lengths in one run, and of their other tokens in the runs
    after it, two each."""
    batch, width = given.ids.shape
    counts = 1 + (width // 2 + 3 * np.arange(batch)) % width
    whole: dict[str, NDArray[Any]] = {}
    while counts.any():
        at = state.positions
        columns = np.minimum(at[:, None] + np.arange(counts.max()), width - 1)
        made = state.append(
            np.take_along_axis(given.ids, columns, 1),
            counts,
            beside={n: np.take_along_axis(a, columns, 1) for n, a in given.beside.items()},
        )
        for name, array in made.items():
            shape = (batch, width, *array.shape[2:])
            into = whole.setdefault(name, np.zeros(shape, array.dtype))
            for row, (start, count) in enumerate(zip(at, counts, strict=True)):
                into[row, start : start + count] = array[row, :count]
        counts = np.minimum(width - state.positions, 2)
    return whole


def reference_of(bundle: Bundle) -> ReferenceSet:
    """The reference set that a bundle carries, checked against its graphs.

    Raises:
        BundleError: it holds none, or a damaged one, or one that leaves something out.
    """
    name = bundle.manifest.reference
    if name is None:
        raise BundleError(
            "the bundle holds no reference set",
            where=bundle.path,
            do="Verify against the model: pass its source",
        )
    (file,) = bundle.verified([name])
    reference = load_reference(file)
    bundle.require_unreplaced()
    manifest = bundle.manifest
    check_reference(reference, *whole_boundary(manifest), file, quick=manifest.quick)
    return reference


def smallest_inputs(bundle: Bundle) -> dict[str, NDArray[Any]] | None:
    """The smallest of the bundle's reference inputs that hold something; None in a bundle without.

    Raises:
        BundleError: the reference set is damaged.
    """
    if bundle.manifest.reference is None:
        return None
    (file,) = bundle.verified([bundle.manifest.reference])
    points = load_reference(file).points
    bundle.require_unreplaced()
    filled = [p.inputs for p in points if all(array.size for array in p.inputs.values())]
    found = min(filled, key=lambda one: sum(a.nbytes for a in one.values()), default=None)
    return None if found is None else dict(found)
