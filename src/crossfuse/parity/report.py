"""The parity report: a target's outputs at every point of a reference, judged by the policy
(`crossfuse.parity.policy`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.core.target import LOW_PRECISIONS
from crossfuse.errors import Advice, BundleError, ParityError, Said
from crossfuse.parity.low_precision import PLAIN, Limits, measured
from crossfuse.parity.metric import MetricOutcome
from crossfuse.parity.output_parity import Divergence, OutputParity
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

_SEARCHED = Advice(
    "Nothing was written. {} keeps as few layers in fp32 as the check needs; {} judges by what the "
    "outputs are for",
    Said("--precision mixed-int8", "precision='mixed-int8'"),
    Said("--metric", "metric=..."),
)
_FINER = Advice(
    "Nothing was written. {} errs less than fp8; {} judges by what the outputs are for",
    Said("--precision int8", "precision='int8'"),
    Said("--metric", "metric=..."),
)
_ADVICE: Mapping[str, str | Advice] = {
    "fp32": _BEFORE_WRITING,
    "int8": _SEARCHED,
    "fp8": _FINER,
    "int4": _SEARCHED,
}

Runner = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class ParityReport(JsonData):
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
        metric: what the user's own metric says, where it decides.
    """

    __json__: ClassVar[Form] = Form(
        keys=(
            "passed",
            "target",
            "executed_on",
            "precision",
            "reference_dtype",
            "computed_by",
            "reference_reason",
            "points",
            "kinds",
            "notes",
            "outputs",
            "fault",
            "metric",
        ),
        sparse=frozenset({"fault", "metric"}),
    )

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
    metric: MetricOutcome | None = None

    @property
    def passed(self) -> bool:
        """Every output passes, and the user's metric."""
        outputs = bool(self.outputs) and all(output.passed for output in self.outputs.values())
        return outputs and (self.metric is None or self.metric.passed)

    @property
    def failure(self) -> ParityError | None:
        """The error naming the outputs that fail, or None."""
        failed = [f"{name} ({o.fault})" for name, o in self.outputs.items() if not o.passed]
        if self.metric is not None and not self.metric.passed:
            failed.append(self.metric.words)
        if not failed:
            return None
        worst = max((o.tolerance for o in self.outputs.values() if not o.passed), default=0.0)
        low = self.precision in LOW_PRECISIONS
        return ParityError(
            f"target {self.target!r} does not compute what {self.computed_by} computes",
            got="; ".join(failed),
            expected=None if low else f"at most {worst:.3g}",
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
            failure.do = _ADVICE.get(self.precision, _NARROW)
            raise failure


def compare(
    run: Runner,
    reference: ReferenceSet,
    *,
    target: str,
    executed_on: str,
    precision: str = "fp32",
    limits: Limits = PLAIN,
) -> ParityReport:
    """Run a candidate at every reference point and judge its outputs; ``limits`` are those of a low
    precision.

    Raises:
        BundleError: a precision that there is no policy for, or outputs that are not the
            reference's.
    """
    judged = "fp32" if precision in LOW_PRECISIONS else judged_as(precision)
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
            arrays = [results[i][name] for i in chosen]
            found = (
                _judge_low(name, arrays, reference, limits)
                if precision in LOW_PRECISIONS
                else _judge(name, arrays, chosen, reference, judged)
            )
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


def _judge_low(
    name: str, results: Sequence[NDArray[Any]], reference: ReferenceSet, limits: Limits
) -> _Judged:
    """One output in low precision, at all points."""
    pairs = [
        (np.asarray(got), point.outputs[name])
        for got, point in zip(results, reference.points, strict=True)
    ]
    errors = [output_error(got, truth) for got, truth in pairs]
    found = measured(pairs)
    parity = OutputParity(
        max_abs=errors[found.worst],
        max_rel=max(
            error / magnitude(truth) for error, (_, truth) in zip(errors, pairs, strict=True)
        ),
        cosine=found.cosine,
        tolerance=limits.relative_rms,
        tolerance_from=limits.words,
        worst_at=reference.points[found.worst].sizes,
        finite=all(bool(np.isfinite(got).all()) for got, _ in pairs if got.dtype.kind == "f"),
        relative_rms=found.relative_rms,
        top1=found.top1,
        misses=found.misses(limits),
    )
    failing = {i for i, pair in enumerate(pairs) if measured([pair]).misses(limits)}
    return _Judged(parity, failing)


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
