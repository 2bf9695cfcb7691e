"""The parity policy and its report.

A candidate of dtype *t* passes an output when its largest absolute error against the reference is within the absolute floor
of *t* (scaled down for outputs whose largest magnitude is below 1), or no worse than ``EAGER_MULTIPLE`` times the error that
the eager model run in *t* has against the same reference (its worst over all shape points). NaN and infinity never pass.
Integer outputs are compared by the fraction of elements that differ, with a floor of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import ParityError
from crossfuse.verify.reference import ReferenceSet

if TYPE_CHECKING:
    from crossfuse.verify.bisect import Fault

__all__ = ["EAGER_MULTIPLE", "FLOORS", "OutputParity", "ParityReport", "compare", "judged_as", "output_error"]

FLOORS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Absolute error below which a candidate of a precision passes, whatever the eager model's error; in
half precision about five units in the last place at 1."""


EAGER_MULTIPLE = 4.0
"""How many times the eager model's error in the same dtype a candidate may have: another order of summation, not more."""

Runner = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class OutputParity:
    """One output's worst case over all points.

    Attributes:
        max_abs: largest absolute error (for integers, the largest fraction of differing elements).
        max_rel: largest error relative to the reference's largest magnitude at that point.
        cosine: smallest cosine similarity with the reference.
        tolerance: what ``max_abs`` may be.
        tolerance_from: where that comes from.
        worst_at: the shape point of the largest error.
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
    """A target against the eager model; ``fault`` where a bisection was asked for and found one, ``failing`` the positions
    of the points where an output is beyond its tolerance, ``reference_reason`` why the reference is not plain float64.
    """

    target: str
    executed_on: str
    precision: str
    reference_dtype: str
    points: tuple[Mapping[str, int], ...]
    outputs: Mapping[str, OutputParity]
    fault: Fault | None = None
    failing: tuple[int, ...] = ()
    reference_reason: str = ""

    @property
    def passed(self) -> bool:
        """Every output passes."""
        return bool(self.outputs) and all(output.passed for output in self.outputs.values())

    def require_passed(self) -> None:
        """Raise :class:`ParityError` naming the outputs that fail."""
        failed = [
            f"{name} (error {o.max_abs:.3g} at {dict(o.worst_at)})" if o.finite else f"{name} (NaN or infinity)"
            for name, o in self.outputs.items()
            if not o.passed
        ]
        if failed:
            worst = max((o.tolerance for o in self.outputs.values() if not o.passed), default=0.0)
            raise ParityError(
                f"target {self.target!r} does not compute what the eager model computes",
                got="; ".join(failed),
                expected=f"at most {worst:.3g}",
                do="`crossfuse verify --bisect` says where a bundle's target begins to differ; failed parity is not shipped",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest and ``--json``."""
        return {
            "passed": self.passed,
            "target": self.target,
            "executed_on": self.executed_on,
            "precision": self.precision,
            "reference_dtype": self.reference_dtype,
            "reference_reason": self.reference_reason,
            "points": [dict(p) for p in self.points],
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


def compare(run: Runner, reference: ReferenceSet, *, target: str, executed_on: str, precision: str = "fp32") -> ParityReport:
    """Run a candidate at every reference point and judge its outputs."""
    judged = judged_as(precision)
    results = [run(point.inputs) for point in reference.points]
    outputs = {}
    failing: set[int] = set()
    for name in reference.points[0].outputs:
        pairs = [(got[name], point.outputs[name], point) for got, point in zip(results, reference.points, strict=True)]
        errors = [output_error(got, truth) for got, truth, _ in pairs]
        worst = int(np.argmax(errors))
        magnitude = max(_magnitude(truth) for _, truth, _ in pairs)
        floor = 0.0 if pairs[0][1].dtype.kind != "f" else FLOORS[judged] * min(1.0, magnitude)
        allowed = EAGER_MULTIPLE * reference.eager_error(name, judged)
        outputs[name] = OutputParity(
            max_abs=errors[worst],
            max_rel=max(error / _magnitude(truth) for error, (_, truth, _) in zip(errors, pairs, strict=True)),
            cosine=min(_cosine(got, truth) for got, truth, _ in pairs),
            tolerance=max(floor, allowed),
            tolerance_from=f"floor of {judged}" if floor >= allowed else f"{EAGER_MULTIPLE:g} × eager {judged} error",
            worst_at=pairs[worst][2].sizes,
            finite=all(bool(np.isfinite(got).all()) for got, _, _ in pairs if got.dtype.kind == "f"),
        )
        failing |= {i for i, error in enumerate(errors) if not error <= outputs[name].tolerance}
    points = tuple(point.sizes for point in reference.points)
    return ParityReport(
        target,
        executed_on,
        precision,
        reference.dtype,
        points,
        outputs,
        failing=tuple(sorted(failing)),
        reference_reason=reference.reason,
    )


def judged_as(precision: str) -> str:
    """The precision whose floor and eager error judge another one: ``mixed`` is fp16 where it isn't fp32."""
    return "fp16" if precision == "mixed" else precision


def output_error(got: NDArray[Any], truth: NDArray[Any]) -> float:
    """Largest absolute error in float64, or the fraction of differing elements of integers; a wrong shape is infinite."""
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
