"""A sampler that goes on being asked by its own names when a spec's dynamic axes get others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crossfuse.core.tensors import Dim

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from crossfuse.spec.model_spec import ModelSpec, Sampler

__all__ = ["sampler_for"]


def sampler_for(spec: ModelSpec, dynamic: Mapping[str, Mapping[int, str | Dim]]) -> Sampler | None:
    """The spec's sampler for other dynamic axes of the same inputs.

    1. A dimension that has another name is asked for by the old one.
    2. An axis that is no longer dynamic has its example's size.
    3. None, so that the examples are imitated, where the sampler can't give what is asked: an axis
       that was fixed, or two sizes of one dimension.
    """
    sampler = spec.sampler
    if sampler is None:
        return None
    if any(axis not in spec.axes.get(name, {}) for name, axes in dynamic.items() for axis in axes):
        return None
    sizes_of: dict[str, str | int] = {}
    for name, axes in spec.axes.items():
        for axis, dim in axes.items():
            other = dynamic.get(name, {}).get(axis)
            size = int(spec.inputs[name].shape[axis]) if other is None else Dim.parse(other).name
            if sizes_of.setdefault(dim, size) != size:
                return None
    if all(dim == size for dim, size in sizes_of.items()):
        return sampler

    def sample(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return sampler(
            {d: size if isinstance(size, int) else sizes[size] for d, size in sizes_of.items()},
            generator,
        )

    return sample
