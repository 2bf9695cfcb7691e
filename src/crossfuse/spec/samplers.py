"""A sampler that goes on being asked by its own names when a spec's dynamic axes get others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crossfuse.core.dimensions import multiple_of
from crossfuse.core.tensors import axis_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from crossfuse.core.tensors import Dim
    from crossfuse.spec.model_spec import ModelSpec, Sampler

__all__ = ["sampler_for"]


def sampler_for(spec: ModelSpec, dynamic: Mapping[str, Mapping[int, str | Dim]]) -> Sampler | None:
    """The spec's sampler for other dynamic axes of the same inputs.

    1. A dimension that has another name is asked for by the old one.
    2. An axis that is no longer dynamic has its example's size.
    3. None, so that the examples are imitated, where the sampler can't give what is asked: an axis
       that was fixed, another multiple of a dimension, or two sizes of one.
    """
    sampler = spec.sampler
    if sampler is None:
        return None
    if any(axis not in spec.axes.get(name, {}) for name, axes in dynamic.items() for axis in axes):
        return None
    sizes_of: dict[str, str | int] = {}
    for name, axes in spec.axes.items():
        for axis, own in axes.items():
            factor, dim = multiple_of(own) or (1, own)
            other = dynamic.get(name, {}).get(axis)
            size = _asked(other, int(spec.inputs[name].shape[axis]), factor)
            if size is None or sizes_of.setdefault(dim, size) != size:
                return None
    if all(dim == size for dim, size in sizes_of.items()):
        return sampler

    def sample(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return sampler(
            {d: size if isinstance(size, int) else sizes[size] for d, size in sizes_of.items()},
            generator,
        )

    return sample


def _asked(dim: str | Dim | None, example: int, factor: int) -> str | int | None:
    """What a dimension is asked for as, where an axis is so many times its size: another name, or
    the example's size; None where the axis is another multiple."""
    if dim is None:
        return example // factor
    multiple, name = multiple_of(axis_size(dim)) or (1, "")
    return name if multiple == factor else None
