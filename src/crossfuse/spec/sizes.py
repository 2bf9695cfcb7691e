"""Sizes of named dimensions, read off inputs, and shapes at such sizes; an axis is as large as a
dimension, or a multiple of it (``8*height``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from crossfuse.core.dimensions import multiple_of
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["shape_at", "sizes_in"]

Axes = Mapping[int, str]


def sizes_in(inputs: Mapping[str, Tensor], axes: Mapping[str, Axes], where: str) -> dict[str, int]:
    """The size of each named dimension.

    Args:
        inputs: by name.
        axes: sizes of the dynamic axes per input, as text.
        where: words for the inputs, for errors.

    Raises:
        InputError: one dimension with two sizes, or an axis that is no multiple of it.
    """
    sizes: dict[str, int] = {}
    for name, own in axes.items():
        for axis, text in own.items():
            factor, dim = multiple_of(text) or (1, text)
            got = int(inputs[name].shape[axis])
            if got % factor:
                raise InputError(
                    f"the size of an axis is no multiple of {factor} in {where}",
                    where=f"{name}, axis {axis}",
                    got=got,
                    expected=text,
                )
            if sizes.setdefault(dim, got // factor) != got // factor:
                raise InputError(
                    f"dimension {dim!r} has two sizes in {where}",
                    where=f"{name}, axis {axis}",
                    got=got // factor,
                    expected=sizes[dim],
                )
    return sizes


def shape_at(like: Sequence[int], axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with its dynamic axes at the sizes of the named dimensions."""
    return tuple(_size(axes[i], sizes) if i in axes else int(n) for i, n in enumerate(like))


def _size(text: str, sizes: Mapping[str, int]) -> int:
    factor, name = multiple_of(text) or (1, text)
    return factor * sizes[name]
