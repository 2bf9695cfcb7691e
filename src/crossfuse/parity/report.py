"""The parity policy and its report.

A candidate of dtype *t* passes an output when at each point its largest absolute error against the
reference is within the absolute floor of *t* (scaled down for outputs whose largest magnitude is
below 1), or no worse than ``EAGER_MULTIPLE`` times the error that the eager model run in *t* has
against the same reference (its worst over all points). NaN and infinity never pass. Integer outputs
are compared by the fraction of elements that differ, with a floor of 0.

Points made to reach tails are judged among themselves: there the eager model's error says nothing
about other points, and the floor is relative to the output's magnitude. Where the eager model in
half precision overflows on them, they are not judged in it.

An eager error that a bundle states is believed up to ``BELIEVED`` times the output's magnitude at
the point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import Advice, BundleError, ParityError, Said
from crossfuse.parity.reference import EAGER, ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import MADE, TAILS

if TYPE_CHECKING:
    from crossfuse.parity.bisect import Fault

__all__ = [
    "EAGER_MULTIPLE",
    "FLOORS",
    "OutputParity",
    "ParityReport",
    "believed_error",
    "compare",
    "judged_as",
    "output_error",
]

FLOORS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Absolute error below which a candidate of a precision passes, whatever the eager model's error;
in half precision about five units in the last place at 1."""


EAGER_MULTIPLE = 4.0
"""How many times the eager model's error in the same dtype a candidate may have: another order of
summation, not more."""

_BEFORE_WRITING = (
    "Nothing was written. Check that the module gives the same outputs twice "
    "(module.eval()), and report it if so"
)
_NARROW = Advice(
    "Nothing was written. Take a wider precision, such as {}",
    Said("--precision mixed", "precision='mixed'"),
)
BELIEVED = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
"""The largest error of the eager model that is believed, relative to an output's largest magnitude:
more would be no proof of anything, whoever says it."""

_BELIEVED_FRACTION = 0.05
"""The same of integer outputs: the fraction of elements that differ; always one element."""

Runner = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class OutputParity:
    """One output's worst case over all points: the point that is furthest beyond, or nearest to,
    its tolerance.

    Attributes:
        max_abs: largest absolute error there (for integers, the fraction of differing elements).
        max_rel: largest error relative to the reference's largest magnitude at the same point, over
            all points.
        cosine: smallest cosine similarity with the reference, over all points.
        tolerance: what ``max_abs`` may be.
        tolerance_from: where that comes from.
        worst_at: the sizes there.
        finite: no NaN or infinity anywhere.
    """

    max_abs: float
    max_rel: float
    cosine: float
    tolerance: float
    tolerance_from: str
    worst_at: Mapping[str, int]
    finite: bool

    @property
    def passed(self) -> bool:
        """Within the tolerance, and finite."""
        return self.finite and self.max_abs <= self.tolerance


@dataclass(frozen=True)
class ParityReport:
    """A target against a reference.

    Attributes:
        points: sizes of the named dimensions.
        fault: where a bisection was asked for and found one.
        failing: positions of the points where an output is beyond its tolerance.
        kinds: of the points: ``example`` for the user's own inputs, ``made``, or ``tails``.
        notes: what was not tried or judged, and why.
        computed_by: what computed the reference.
        reference_reason: why the reference is not plain float64 of a float32 model; empty where it
            is.
    """

    target: str
    executed_on: str
    precision: str
    reference_dtype: str
    points: tuple[Mapping[str, int], ...]
    outputs: Mapping[str, OutputParity]
    fault: Fault | None = None
    failing: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    computed_by: str = EAGER
    reference_reason: str = ""

    @property
    def passed(self) -> bool:
        """Every output passes."""
        return bool(self.outputs) and all(output.passed for output in self.outputs.values())

    @property
    def failure(self) -> ParityError | None:
        """The error naming the outputs that fail, or None."""
        failed = [
            f"{name} (error {o.max_abs:.3g} at {dict(o.worst_at)})"
            if o.finite
            else f"{name} (NaN or infinity)"
            for name, o in self.outputs.items()
            if not o.passed
        ]
        if not failed:
            return None
        worst = max((o.tolerance for o in self.outputs.values() if not o.passed), default=0.0)
        return ParityError(
            f"target {self.target!r} does not compute what {self.computed_by} computes",
            got="; ".join(failed),
            expected=f"at most {worst:.3g}",
            do=Advice(
                "{} says where a bundle's target begins to differ; failed parity is not shipped",
                Said("`crossfuse verify --bisect`", "crossfuse.verify(..., bisect=True)"),
            ),
        )

    def require_passed(self) -> None:
        """Raise the `failure` where there is one: a :class:`ParityError`. For what is not written
        yet, so can't be bisected."""
        if (failure := self.failure) is not None:
            failure.do = _BEFORE_WRITING if self.precision == "fp32" else _NARROW
            raise failure

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest and ``--json``."""
        return {
            "passed": self.passed,
            "target": self.target,
            "executed_on": self.executed_on,
            "precision": self.precision,
            "reference_dtype": self.reference_dtype,
            "computed_by": self.computed_by,
            "reference_reason": self.reference_reason,
            "points": [dict(p) for p in self.points],
            "kinds": list(self.kinds),
            "notes": list(self.notes),
            "outputs": {
                name: {
                    "passed": o.passed,
                    "max_abs": _finite(o.max_abs),
                    "max_rel": _finite(o.max_rel),
                    "cosine": _finite(o.cosine),
                    "tolerance": o.tolerance,
                    "tolerance_from": o.tolerance_from,
                    "worst_at": dict(o.worst_at),
                    "finite": o.finite,
                }
                for name, o in self.outputs.items()
            },
        } | ({"fault": self.fault.to_json()} if self.fault is not None else {})


def compare(
    run: Runner, reference: ReferenceSet, *, target: str, executed_on: str, precision: str = "fp32"
) -> ParityReport:
    """Run a candidate at every reference point and judge its outputs.

    Raises:
        BundleError: a precision that there is no policy for, or outputs that are not the
            reference's.
    """
    judged = judged_as(precision)
    if judged not in FLOORS:
        raise BundleError(
            "there is no parity policy for a precision",
            got=repr(precision),
            expected=", ".join(FLOORS),
        )
    results = [run(point.inputs) for point in reference.points]
    names = list(reference.points[0].outputs) if reference.points else []
    for point, got in zip(reference.points, results, strict=True):
        if set(point.outputs) != set(got) or set(point.outputs) != set(names):
            raise BundleError(
                "the target's outputs are not the reference's",
                got=", ".join(got),
                expected=", ".join(point.outputs),
            )
    outputs = {}
    failing: set[int] = set()
    unjudged: dict[int, list[str]] = {}
    for name in names:
        chosen = _judged_points(reference.points, name, judged)
        for i in set(range(len(results))) - set(chosen):
            unjudged.setdefault(i, []).append(name)
        if not chosen:
            continue
        pairs = [(np.asarray(results[i][name]), reference.points[i].outputs[name]) for i in chosen]
        errors = [output_error(got, truth) for got, truth in pairs]
        allowed = _tolerances([reference.points[i] for i in chosen], name, reference, judged)
        shares = [
            _share(error, tolerance) for error, (tolerance, _) in zip(errors, allowed, strict=True)
        ]
        worst = int(np.argmax(shares))
        outputs[name] = OutputParity(
            max_abs=errors[worst],
            max_rel=max(
                error / _magnitude(truth) for error, (_, truth) in zip(errors, pairs, strict=True)
            ),
            cosine=min(_cosine(got, truth) for got, truth in pairs),
            tolerance=allowed[worst][0],
            tolerance_from=allowed[worst][1],
            worst_at=reference.points[chosen[worst]].sizes,
            finite=all(bool(np.isfinite(got).all()) for got, _ in pairs if got.dtype.kind == "f"),
        )
        failing |= {i for i, share in zip(chosen, shares, strict=True) if not share <= 1.0}
    return ParityReport(
        target,
        executed_on,
        precision,
        reference.dtype,
        tuple(point.sizes for point in reference.points),
        outputs,
        failing=tuple(sorted(failing)),
        kinds=tuple(point.kind for point in reference.points),
        notes=(
            *reference.notes,
            *(
                _unjudged_note(reference.points[i], names, judged)
                for i, names in sorted(unjudged.items())
            ),
        ),
        computed_by=reference.computed_by,
        reference_reason=reference.reason,
    )


def _judged_points(points: Sequence[ReferencePoint], name: str, judged: str) -> list[int]:
    """Positions of the points at which an output is judged.

    Not in half precision where the eager model in it is no measure: tails at which it is not
    finite, and one made point at which it gives something else (an added finfo.min absorbs scores).
    One, so that a reference set can't excuse them all.
    """
    if judged == "fp32":
        return list(range(len(points)))
    excused, tails = [], []
    for i, point in enumerate(points):
        error, truth = point.half.get(judged, {}).get(name), point.outputs[name]
        if point.kind == TAILS and truth.dtype.kind == "f" and error is None:
            tails.append(i)
        elif point.kind == MADE and error is not None and error > believed_error(truth, judged):
            excused.append(i)
    left_out = {*tails, *(excused if len(excused) == 1 else ())}
    return [i for i in range(len(points)) if i not in left_out]


def _unjudged_note(point: ReferencePoint, names: list[str], judged: str) -> str:
    where = f"not judged at {dict(point.sizes)}, {point.kind}, {', '.join(names)}"
    why = "is not finite there" if point.kind == TAILS else "gives something else there"
    return f"{where}: the eager model in {judged} {why}"


def _tolerances(
    points: Sequence[ReferencePoint], name: str, reference: ReferenceSet, judged: str
) -> list[tuple[float, str]]:  # fmt: skip
    """What an output's error may be at each point, and where that comes from."""
    found = []
    measured = replace(reference, points=tuple(points))
    magnitudes = {
        tails: max(
            (_magnitude(p.outputs[name]) for p in points if (p.kind == TAILS) is tails), default=1.0
        )
        for tails in (False, True)
    }
    for point in points:
        truth, tails = point.outputs[name], point.kind == TAILS
        own = _magnitude(truth)
        floor = (
            FLOORS[judged] * (own if tails else min(1.0, magnitudes[False]))
            if truth.dtype.kind == "f"
            else 0.0
        )
        believed = believed_error(truth, judged)
        eager = measured.eager_error(name, judged, tails=tails)
        allowed = EAGER_MULTIPLE * min(eager, believed)
        cause = f"{EAGER_MULTIPLE:g} × eager {judged} error" + (
            ", as far as believed" if eager > believed else ""
        )
        found.append((floor, f"floor of {judged}") if floor >= allowed else (allowed, cause))
    return found


def _share(error: float, tolerance: float) -> float:
    """An error as a share of its tolerance."""
    if error == 0:
        return 0.0
    return error / tolerance if tolerance > 0 else float("inf")


def judged_as(precision: str) -> str:
    """The precision whose floor and eager error judge another one: ``mixed`` is fp16 where it isn't
    fp32."""
    return "fp16" if precision == "mixed" else precision


def believed_error(truth: NDArray[Any], precision: str) -> float:
    """The largest error of the eager model in a precision that is believed, for an output of the
    reference."""
    if truth.dtype.kind == "f":
        return BELIEVED[precision] * _magnitude(truth)
    return max(_BELIEVED_FRACTION, 1.0 / max(truth.size, 1))


def output_error(got: NDArray[Any], truth: NDArray[Any]) -> float:
    """Largest absolute error in float64, or the fraction of differing elements of integers; a wrong
    shape is infinite."""
    if got.shape != truth.shape:
        return float("inf")
    if got.size == 0:
        return 0.0
    if truth.dtype.kind != "f":
        return float(np.mean(got != truth))
    error = float(np.max(np.abs(got.astype(np.float64) - truth.astype(np.float64))))
    return float("inf") if np.isnan(error) else error


def _magnitude(truth: NDArray[Any]) -> float:
    if truth.dtype.kind != "f" or truth.size == 0:
        return 1.0
    return max(float(np.max(np.abs(truth))), np.finfo(np.float64).tiny)


def _cosine(got: NDArray[Any], truth: NDArray[Any]) -> float:
    if got.shape != truth.shape:
        return 0.0
    a, b = got.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    if scale == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(a @ b) / scale


def _finite(value: float) -> float | None:
    """JSON has no infinity; null says that there is no number."""
    return value if np.isfinite(value) else None
