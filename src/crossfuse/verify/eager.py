"""Run the eager module at the shape points: in float64 for the truth, in float32 for the error that float32 has anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from crossfuse.errors import InputError
from crossfuse.export.capture import named_outputs
from crossfuse.model_spec import ModelSpec
from crossfuse.specs import CONTEXTS
from crossfuse.verify.eager_module import EagerModule
from crossfuse.verify.half import HALF_DTYPES, half_errors
from crossfuse.verify.parity import output_error
from crossfuse.verify.points import fan_out_points, shape_points
from crossfuse.verify.reference import ReferencePoint, ReferenceSet

__all__ = ["eager_reference"]

_HALF_POINTS = (0, 2)
"""Where the half precisions' own errors are measured: at the example's sizes and at the largest."""


def eager_reference(
    spec: ModelSpec, seed: int = 1, step: Callable[[str], None] = lambda _: None, *, shared_batch: str | None = None
) -> ReferenceSet:
    """Reference results at every shape point of the spec; ``step`` is told which.

    ``shared_batch``, of a split bundle, adds points with several queries per context, where eager is given each
    context so many times.

    Raises:
        InputError: the module can't run at a point, or gives NaN or infinity there.
    """
    points = [(sizes, 1) for sizes in shape_points(spec.dims, spec.example_sizes)]
    if shared_batch is not None:
        points += fan_out_points(spec.dims, spec.example_sizes, shared_batch)
    samples = [spec.sample(sizes, seed + i) for i, (sizes, _) in enumerate(points)]
    eager = EagerModule(spec, samples[0])
    found = []
    for i, ((sizes, fan_out), inputs) in enumerate(zip(points, samples, strict=True)):
        given = dict(inputs)
        for name in spec.context if shared_batch is not None else ():
            if spec.axes.get(name, {}).get(0) == shared_batch:
                given[name] = inputs[name][::fan_out].contiguous()
                inputs[name] = given[name].repeat_interleave(fan_out, dim=0)
        if shared_batch is not None:
            sizes = sizes | {CONTEXTS: sizes[shared_batch] // fan_out}
        step(f"eager reference {i + 1}/{len(points)}: " + ", ".join(f"{k}={v}" for k, v in sizes.items()))
        results = eager.run(inputs)
        single, truth = results.single, results.truth
        for name, array in truth.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    "the eager model gives NaN or infinity, so there is nothing to compare with",
                    where=f"{name} at {sizes}",
                    do="Give inputs on which the model is defined (ModelSpec.sampler)",
                )
        found.append(
            ReferencePoint(
                sizes,
                seed + i,
                {name: tensor.numpy() for name, tensor in given.items()},
                truth,
                {name: output_error(single[name], truth[name]) for name in truth},
            )
        )
    dtype, reason = eager.dtype, eager.reason
    # The copies in float64 and in half precision don't live at the same time.
    del eager
    return ReferenceSet(dtype, _with_half(spec, found, samples, step), reason=reason)


def _with_half(
    spec: ModelSpec, points: list[ReferencePoint], samples: list[dict[str, Tensor]], step: Callable[[str], None]
) -> tuple[ReferencePoint, ...]:
    """The points with the eager errors of half precisions at some of them."""
    some = [i for i in _HALF_POINTS if i < len(points)]
    errors: dict[int, dict[str, dict[str, float]]] = {i: {} for i in some}
    for precision in HALF_DTYPES:
        step(f"eager in {precision}")
        measured = half_errors(
            spec.module, precision, [(samples[i], points[i].outputs) for i in some], lambda out: spec.kept(named_outputs(out))
        )
        for i, found in zip(some, measured, strict=True):
            errors[i][precision] = found
    return tuple(replace(point, half=errors.get(i, {})) for i, point in enumerate(points))
