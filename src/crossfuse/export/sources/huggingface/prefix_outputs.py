"""Which outputs of a model stand by its tokens, and which have several places for each of its rows:
found by running it on fewer of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["of_several", "with_rows"]

_IDS = "input_ids"


def with_rows(spec: ModelSpec, axes: Mapping[str, int]) -> tuple[str, ...]:
    """Outputs whose second axis has as many places as there are tokens: in the example, and in the
    example without its last token."""
    shapes = []
    for left_out in (0, 1):
        inputs = dict(spec.inputs)
        for name, axis in axes.items():
            inputs[name] = inputs[name].narrow(axis, 0, inputs[name].shape[axis] - left_out)
        length = inputs[_IDS].shape[1]
        with torch.no_grad():
            found = spec.outputs_of(spec.call(inputs))
        shapes.append({n for n, out in found.items() if out.ndim > 1 and out.shape[1] == length})
    return tuple(sorted(set.intersection(*shapes)))


def of_several(spec: ModelSpec) -> tuple[str, ...]:
    """Outputs whose first axis has several places for each row."""
    dim = spec.axes[_IDS].get(0)
    if dim is None or spec.inputs[_IDS].shape[0] < 2:
        return ()
    one = {
        name: tensor.narrow(axis, 0, 1)
        for name, tensor in spec.inputs.items()
        for axis, other in spec.axes.get(name, {}).items()
        if other == dim
    }
    rows = []
    for inputs in (spec.inputs, {**spec.inputs, **one}):
        with torch.no_grad():
            found = spec.outputs_of(spec.call(inputs))
        rows.append({name: out.shape[0] for name, out in found.items() if out.ndim})
    return tuple(
        sorted(
            name
            for name, count in rows[0].items()
            if (each := rows[1].get(name, 1)) > 1 and count == each * spec.inputs[_IDS].shape[0]
        )
    )
