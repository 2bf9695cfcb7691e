"""Run the eager module at the shape points: in float64 for the truth, in float32 for the error that
float32 has anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossfuse.errors import InputError
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.flex_attention import flex_as_sdpa
from crossfuse.export.capture.module_state import kept_state
from crossfuse.parity.eager_module import EagerModule, EagerResults
from crossfuse.parity.half_precision import HALF_DTYPES, half_errors
from crossfuse.parity.policy import believed_error, output_error
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.samples import Sample, example_sample, given_sample, made_sample
from crossfuse.parity.shape_points import TAILS, Planned, planned_points, quick_points, rows_of
from crossfuse.parity.tables import tables_seen
from crossfuse.spec.imitation import Draw, Table
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["eager_reference", "given_reference"]


def eager_reference(
    spec: ModelSpec,
    seed: int = 1,
    progress: Callable[[str], None] = lambda _: None,
    *,
    shared_batch: str | None = None,
    quick: bool = False,
    halves: Iterable[str] = tuple(HALF_DTYPES),
) -> ReferenceSet:
    """Reference results at the user's examples and at inputs made; ``progress`` is told which.

    ``shared_batch``, of a split bundle, adds points with several queries per context, where eager
    is given each context so many times. ``quick`` leaves out all made points but one, or two of a
    split bundle. ``halves`` are the half precisions whose own errors are measured.

    Raises:
        InputError: the module can't run at an example or at sizes that its dimensions allow, or
            gives NaN or infinity there.
    """
    examples = [
        example_sample(spec, inputs, i, shared_batch)
        for i, inputs in enumerate((spec.inputs, *spec.examples))
    ]
    runner = EagerModule(spec, examples[0].whole)
    watched = _watched_tables(spec) if runner.tables is None else runner.tables
    tables = watched | {name: Table(rows) for name, rows in spec.vocabulary.items()}
    kinds = spec.kinds()
    planned = planned_points(
        spec.dims,
        spec.example_sizes,
        kinds.values(),
        Draw(tables=tables),
        shared_batch,
        rows_of(spec.axes),
    )
    found, samples, notes = [], [], []
    if quick:
        chosen = quick_points(planned)
        notes.append(f"quick: {len(chosen)} of {len(planned)} made points")
        planned = chosen
    for i, sample in enumerate(examples):
        progress(
            f"eager reference {i + 1}/{len(examples) + len(planned)}: example "
            f"{_sizes_text(sample.sizes)}"
        )
        results = runner.run(sample.whole)
        _require_defined(
            results, f"example {i + 1}" if len(examples) > 1 else "the example", sample.sizes
        )
        found.append(_point(sample, results))
        samples.append(sample)
    for i, plan in enumerate(planned):
        progress(
            f"eager reference {len(examples) + i + 1}/{len(examples) + len(planned)}: "
            f"{_sizes_text(plan.sizes)}"
        )
        attempt = _attempt(spec, plan, seed + 1 + i, runner, shared_batch)
        notes += attempt.notes
        if attempt.results is not None and attempt.sample is not None:
            found.append(_point(attempt.sample, attempt.results))
            samples.append(attempt.sample)
    dtype, reason = runner.dtype, runner.reason
    # The copies in float64 and in half precision don't live at the same time.
    del runner
    return ReferenceSet(
        dtype, _with_half(spec, found, samples, progress, halves), tuple(notes), reason=reason
    )


def given_reference(
    spec: ModelSpec,
    given: Sequence[tuple[str, Mapping[str, Tensor]]],
    progress: Callable[[str], None] = lambda _: None,
    *,
    shared_batch: str | None = None,
) -> ReferenceSet:
    """Reference results at the user's inputs alone.

    Args:
        spec: of the model.
        given: where each set of inputs is from, and the inputs as a session takes them: in a split
            bundle each context may have several queries.
        progress: told what begins.
        shared_batch: of a split bundle.

    Raises:
        InputError: the module can't run on them, or gives NaN or infinity.
    """
    found, samples = [], []
    runner: EagerModule | None = None
    for i, (where, inputs) in enumerate(given):
        progress(f"eager reference {i + 1}/{len(given)}: {where}")
        sample = given_sample(spec, inputs, where, i, shared_batch)
        runner = runner or EagerModule(spec, sample.whole)
        results = runner.run(sample.whole)
        _require_defined(results, where, sample.sizes)
        found.append(_point(sample, results))
        samples.append(sample)
    dtype, reason = ("float64", "") if runner is None else (runner.dtype, runner.reason)
    del runner
    points = _with_half(spec, found, samples, progress, HALF_DTYPES)
    return ReferenceSet(dtype, points, reason=reason)


@dataclass(frozen=True)
class _Attempt:
    """What became of a planned point; no results where it was dropped."""

    sample: Sample | None
    results: EagerResults | None
    notes: list[str]


def _attempt(
    spec: ModelSpec, plan: Planned, seed: int, runner: EagerModule, shared_batch: str | None
) -> _Attempt:
    """The planned point with the most demanding draw on which the model is defined."""
    before: dict[str, Tensor] | None = None
    refused: list[tuple[Draw, str]] = []
    failure: InputError | None = None
    for draw in plan.draws:
        inputs = spec.sample(plan.sizes, seed, draw)
        if before is not None and all(torch.equal(inputs[name], before[name]) for name in inputs):
            continue
        before = inputs
        sample = made_sample(spec, plan, inputs, seed, shared_batch)
        try:
            results = runner.run(sample.whole)
        except InputError as error:
            failure = error
            refused.append((draw, "fails"))
            continue
        undefined, unsure = _undefined(results), _unsure(results)
        if not undefined and (not unsure or (draw is plan.draws[-1] and plan.kind != TAILS)):
            return _Attempt(sample, results, _notes(plan, refused, draw))
        if undefined:
            failure = _undefined_error(undefined, sample.sizes)
            refused.append((draw, f"gives NaN or infinity in {', '.join(undefined)}"))
        else:
            refused.append(
                (draw, f"gives something else in float32 than in float64 in {', '.join(unsure)}")
            )
    if plan.kind != TAILS and failure is not None:
        raise failure
    return _Attempt(None, None, _notes(plan, refused, None))


def _notes(plan: Planned, refused: list[tuple[Draw, str]], used: Draw | None) -> list[str]:
    """What was not tried at a point: nothing where the first draw was."""
    if not refused:
        return []
    reasons = "; ".join(f"with {draw.words()} the eager model {why}" for draw, why in refused)
    instead = "the point is left out" if used is None else f"{used.words()} instead"
    return [f"not checked at {_sizes_text(plan.sizes) or 'the fixed sizes'}: {reasons}; {instead}"]


def _watched_tables(spec: ModelSpec) -> dict[str, Table]:
    """What ids look up, of a module that has no run in float64 to watch: as one more run shows."""
    try:
        with (
            torch.no_grad(),
            without_fast_paths(),
            kept_state(spec.module),
            flex_as_sdpa(),
            tables_seen(spec.module, spec.inputs) as tables,
        ):
            spec.call(spec.inputs)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
        NotImplementedError,
        AssertionError,
        AttributeError,
    ):
        # A module that can't be watched; whether it can be run is told at the first point.
        return {}
    return tables


def _point(sample: Sample, results: EagerResults) -> ReferencePoint:
    return ReferencePoint(
        sample.sizes,
        sample.seed,
        {name: tensor.numpy() for name, tensor in sample.given.items()},
        results.truth,
        {name: output_error(results.single[name], truth) for name, truth in results.truth.items()},
        kind=sample.kind,
    )


def _undefined(results: EagerResults) -> list[str]:
    """Names of outputs with NaN or infinity."""
    return [
        name
        for name in results.truth
        if not (_is_finite(results.truth[name]) and _is_finite(results.single[name]))
    ]


def _unsure(results: EagerResults) -> list[str]:
    """Names of outputs whose error in float32 is more than rounding: an added −10⁹ absorbs scores
    there, but not in float64."""
    return [
        name
        for name, truth in results.truth.items()
        if output_error(results.single[name], truth) > believed_error(truth, "fp32")
    ]


def _is_finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _require_defined(results: EagerResults, where: str, sizes: Mapping[str, int]) -> None:
    undefined = _undefined(results)
    if undefined:
        raise _undefined_error(undefined, sizes, where)


def _undefined_error(
    undefined: Sequence[str], sizes: Mapping[str, int], where: str = "made inputs"
) -> InputError:
    return InputError(
        "the eager model gives NaN or infinity, so there is nothing to compare with",
        where=f"{', '.join(undefined)} on {where} at {dict(sizes)}",
        do="Give inputs on which the model is defined (the example inputs, and ModelSpec.sampler)",
    )


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _with_half(
    spec: ModelSpec,
    points: Sequence[ReferencePoint],
    samples: Sequence[Sample],
    progress: Callable[[str], None],
    precisions: Iterable[str],
) -> tuple[ReferencePoint, ...]:
    """The points with the eager errors of half precisions at some of them."""
    some = [i for i, sample in enumerate(samples) if sample.half]
    errors: dict[int, dict[str, dict[str, float]]] = {i: {} for i in some}
    for precision in precisions:
        progress(f"eager in {precision}")
        measured = half_errors(
            spec.module,
            precision,
            [(samples[i].whole, points[i].outputs) for i in some],
            spec.run,
        )
        for i, found in zip(some, measured, strict=True):
            errors[i][precision] = found
    return tuple(replace(point, half=errors.get(i, {})) for i, point in enumerate(points))
