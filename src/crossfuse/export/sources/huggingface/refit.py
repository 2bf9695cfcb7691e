"""A spec whose dynamic dimensions were found, without those that its tracing shows to be fixed.

What the eager model takes is more than what a trace of it holds for: code that lists a batch row by
row runs at any size, and is traced for one. The dimensions were not asked for, so they become
narrower or fixed, and the manifest says why. A batch that is fixed is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from crossfuse.core.tensors import Dim
from crossfuse.export.capture.guards import NotFreeError
from crossfuse.export.sources.huggingface.tried import refusal
from crossfuse.export.sources.huggingface.varied_axes import fits
from crossfuse.spec.input_origin import FIXED
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["refitted"]

_ROWS = ("batch", "texts")


def refitted(spec: ModelSpec, refused: NotFreeError) -> ModelSpec:
    """The spec with the dimensions that a trace refused narrower or fixed.

    Raises:
        NotFreeError: as it was given, where that changes nothing.
    """
    sizes = spec.example_sizes
    narrower: dict[str, Dim | None] = {}
    for name, dim in refused.narrower.items():
        inside = dim is not None and dim.min <= sizes[name] <= (dim.max or sizes[name])
        narrower[name] = dim if inside and dim != spec.dims[name] else None
    fixed = [name for name, dim in narrower.items() if dim is None and name in spec.dims]
    if not narrower or not (fixed or any(narrower.values())):
        raise refused
    one = _one_row(spec, [name for name in fixed if name in _ROWS])
    axes = {
        name: {
            axis: narrower.get(dim.name) or dim
            for axis, dim in ((a, Dim.parse(d)) for a, d in own.items())
            if dim.name not in fixed
        }
        for name, own in spec.dynamic.items()
    }
    examples = [e for e in spec.examples if fits(e, one.inputs, axes)]
    about = dict(spec.about)
    if fixed:
        why = dict.fromkeys(fixed, str(refused.what))
        about[FIXED] = {**about.get(FIXED, {}), **why}
    found = replace(one, examples=()).with_dynamic(axes)
    return replace(found, examples=examples, about=about, dims_found=True)


def _one_row(spec: ModelSpec, dims: list[str]) -> ModelSpec:
    """The spec with one row in each batch that is to be fixed, where the model takes that."""
    if not dims:
        return spec
    inputs = _first_rows(spec.inputs, spec.axes, dims)
    given = spec.arguments.given
    fixed = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    smaller = {dim: replace(spec.dims[dim], min=1) for dim in dims}
    if refusal(spec.module, {**fixed, **inputs}) is not None:
        return spec
    axes = {
        name: {axis: smaller.get(Dim.parse(dim).name, dim) for axis, dim in own.items()}
        for name, own in spec.dynamic.items()
    }
    return replace(spec, inputs={**fixed, **inputs}, dynamic=axes, examples=())


def _first_rows(
    inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], dims: list[str]
) -> dict[str, Tensor]:
    found = {}
    for name, tensor in inputs.items():
        for axis, dim in axes.get(name, {}).items():
            if dim in dims:
                tensor = tensor.narrow(axis, 0, 1)
        found[name] = tensor.contiguous()
    return found
