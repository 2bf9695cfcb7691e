"""Run the eager module at the shape points: in float64 for the truth, in float32 for the error that float32 has anyway."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossfuse.errors import Advice, CrossfuseError, InputError, Said
from crossfuse.export.capture import named_outputs
from crossfuse.foreign import cause_of, place_of
from crossfuse.model_spec import ModelSpec
from crossfuse.specs import CONTEXTS
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
    double, dtype = _double_module(spec, samples[0])
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
        single = _run(spec.module, inputs, spec)
        truth = single if double is None else _run(double, _as_double(inputs), spec)
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
    # The copies in float64 and in half precision don't live at the same time.
    del double, truth, single
    return ReferenceSet(dtype, _with_half(spec, found, samples, step))


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


def _double_module(spec: ModelSpec, inputs: dict[str, Tensor]) -> tuple[nn.Module | None, str]:
    """The module in float64, or None where it doesn't run in float64 (it fixes a dtype inside, say)."""
    # Made with its tensors in float64 at once: a copy in float32 first would be half as large again.
    tensors = (*spec.module.parameters(), *spec.module.buffers())
    memo: dict[int, Any] = {id(t): _double_tensor(t) for t in tensors if t.is_floating_point()}
    try:
        double = copy.deepcopy(spec.module, memo).double()
        with torch.no_grad():
            double(**_as_double(inputs))
    except Exception:  # noqa: BLE001 -- the user's code, which may refuse a copy or float64 in any way
        return None, "float32"
    return double, "float64"


def _double_tensor(tensor: Tensor) -> Tensor:
    double = tensor.detach().double()
    return nn.Parameter(double, requires_grad=False) if isinstance(tensor, nn.Parameter) else double


def _as_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}


def _run(module: nn.Module, inputs: dict[str, Tensor], spec: ModelSpec) -> dict[str, NDArray[Any]]:
    try:
        with torch.no_grad():
            outputs = spec.kept(named_outputs(module(**inputs)))
    except CrossfuseError:
        raise
    except (Exception, SystemExit) as error:  # the user's code
        shapes = {name: tuple(t.shape) for name, t in inputs.items()}
        as_given = all(tuple(t.shape) == tuple(spec.inputs[name].shape) for name, t in inputs.items())
        place = place_of(error)
        raise InputError(
            f"the eager model fails: {cause_of(error)}",
            where=f"{spec.name} on {shapes}" + ("" if place is None else f"; {place}"),
            do="Make the module run in PyTorch first: module(**inputs)"
            if as_given
            else Advice(
                "If the model does not take these sizes, narrow the range of the dimension: {}",
                Said("--dynamic INPUT:AXIS=NAME:MIN:MAX", "dynamic={INPUT: {AXIS: 'NAME:MIN:MAX'}}"),
            ),
        ) from error
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}
