"""The parity report: a target's outputs at every point of a reference, judged by the policy
(`crossfuse.parity.policy`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import Advice, BundleError, ParityError, Said
from crossfuse.parity.policy import (
    FLOORS,
    judged_as,
    judged_points,
    magnitude,
    output_error,
    tolerances,
)
from crossfuse.parity.reference import EAGER, ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import TAILS

__all__ = ["Divergence", "OutputParity", "ParityReport", "compare"]

_BEFORE_WRITING = (
    "Nothing was written. Check that the module gives the same outputs twice "
    "(module.eval()), and report it if so"
)
_NARROW = Advice(
    "Nothing was written. Take a wider precision, such as {}",
    Said("--precision mixed", "precision='mixed'"),
)

Runner = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Divergence:
    """Where a target leaves its tolerance, as a bisection found it.

    Attributes:
        site: the first attention beyond its tolerance, or None where only what comes after the last
            one is.
        module: the first module whose output is, at or before that attention; None where it is the
            attention itself.
        error, tolerance: largest error there, and what it may be.
        evaluations: how many times the target was executed.
    """

    site: str | None
    module: str | None
    error: float
    tolerance: float
    evaluations: int

    def sentence(self) -> str:
        """For people."""
        where = f"attention {self.site}" if self.site else "what follows the last attention"
        within = f"; the first module beyond it is {self.module}" if self.module else ""
        return (
            f"the first difference is in {where}{within} (error {self.error:.3g}, tolerance "
            f"{self.tolerance:.3g}), found in "
            f"{self.evaluations} evaluations"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        finite = self.error if np.isfinite(self.error) else None
        about = {"site": self.site, "module": self.module, "evaluations": self.evaluations}
        return {**about, "error": finite, "tolerance": self.tolerance}


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
    fault: Divergence | None = None
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
        """Raise the `failure` where there is one: a :class:`ParityError`.

        This is for what is not written yet, so can't be bisected.
        """
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
    results = _results(run, reference)
    names = list(reference.points[0].outputs) if reference.points else []
    outputs: dict[str, OutputParity] = {}
    failing: set[int] = set()
    unjudged: dict[int, list[str]] = {}
    for name in names:
        chosen = judged_points(reference.points, name, judged)
        for i in set(range(len(results))) - set(chosen):
            unjudged.setdefault(i, []).append(name)
        if chosen:
            found = _judge(name, [results[i][name] for i in chosen], chosen, reference, judged)
            outputs[name] = found.parity
            failing |= found.failing
    left_out = [
        _unjudged_note(reference.points[i], names, judged) for i, names in sorted(unjudged.items())
    ]
    return ParityReport(
        target,
        executed_on,
        precision,
        reference.dtype,
        tuple(point.sizes for point in reference.points),
        outputs,
        failing=tuple(sorted(failing)),
        kinds=tuple(point.kind for point in reference.points),
        notes=(*reference.notes, *left_out),
        computed_by=reference.computed_by,
        reference_reason=reference.reason,
    )


def _results(run: Runner, reference: ReferenceSet) -> list[Mapping[str, NDArray[Any]]]:
    """The candidate's outputs at every point, which are to be the reference's."""
    results = [run(point.inputs) for point in reference.points]
    for point, got in zip(reference.points, results, strict=True):
        if set(point.outputs) != set(got) or set(point.outputs) != set(reference.points[0].outputs):
            raise BundleError(
                "the target's outputs are not the reference's",
                got=", ".join(got),
                expected=", ".join(point.outputs),
            )
    return results


@dataclass(frozen=True)
class _Judged:
    """An output's worst case, and the positions of the points where it is beyond its tolerance."""

    parity: OutputParity
    failing: set[int]


def _judge(
    name: str,
    results: Sequence[NDArray[Any]],
    chosen: Sequence[int],
    reference: ReferenceSet,
    judged: str,
) -> _Judged:
    """One output at the chosen points; ``results`` are the candidate's there."""
    points = [reference.points[i] for i in chosen]
    pairs = [
        (np.asarray(got), point.outputs[name]) for got, point in zip(results, points, strict=True)
    ]
    errors = [output_error(got, truth) for got, truth in pairs]
    allowed = tolerances(points, name, reference, judged)
    shares = [one.share(error) for one, error in zip(allowed, errors, strict=True)]
    worst = int(np.argmax(shares))
    parity = OutputParity(
        max_abs=errors[worst],
        max_rel=max(
            error / magnitude(truth) for error, (_, truth) in zip(errors, pairs, strict=True)
        ),
        cosine=min(_cosine(got, truth) for got, truth in pairs),
        tolerance=allowed[worst].allowed,
        tolerance_from=allowed[worst].cause,
        worst_at=points[worst].sizes,
        finite=all(bool(np.isfinite(got).all()) for got, _ in pairs if got.dtype.kind == "f"),
    )
    return _Judged(parity, {i for i, share in zip(chosen, shares, strict=True) if not share <= 1.0})


def _unjudged_note(point: ReferencePoint, names: list[str], judged: str) -> str:
    where = f"not judged at {dict(point.sizes)}, {point.kind}, {', '.join(names)}"
    why = "is not finite there" if point.kind == TAILS else "gives something else there"
    return f"{where}: the eager model in {judged} {why}"


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
