"""What example inputs hold: one function per kind of input.

All are seeded. Ids avoid the special ones and end in the end-of-text id; masks are padded, so that
masks matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "Filler",
    "Shape",
    "bounded_ids",
    "classes",
    "grid_mask",
    "half_mask",
    "ids_behind",
    "mask",
    "mask_from",
    "normal",
    "ones",
    "plain_ids",
    "span",
    "uniform",
    "zeros",
]

Shape = tuple[int, ...]

Filler = Callable[[Shape, torch.Generator, dict[str, Tensor]], Tensor]
"""Makes one input: its shape, the generator, and the inputs made before it."""


def normal(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=generator)


def uniform(high: float = 1.0) -> Filler:
    """From 0 to ``high``, evenly."""
    return lambda shape, generator, made: torch.rand(shape, generator=generator) * high


def zeros(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Zeros, as integers."""
    return torch.zeros(shape, dtype=torch.long)


def ones(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Ones, as integers."""
    return torch.ones(shape, dtype=torch.long)


def classes(low: int, high: int) -> Filler:
    """Integers from ``low`` up to, and without, ``high``."""
    return lambda shape, generator, made: torch.randint(low, high, shape, generator=generator)


def span(start: int, stop: int) -> Filler:
    """Ones from a place of the last axis to another, and zeros around; integers."""

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        found = torch.zeros(shape, dtype=torch.long)
        found[..., start:stop] = 1
        return found

    return fill


def mask_from(least: Callable[[int], int]) -> Filler:
    """Ones, then padding of zeros, in each row of the last axis; the first row whole.

    Args:
        least: the row's length → how many ones each row has at least.
    """

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        length = shape[-1]
        kept = torch.randint(least(length), length + 1, (*shape[:-1], 1), generator=generator)
        kept[0] = length
        return (torch.arange(length) < kept).long()

    return fill


def mask(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Ones, then padding of zeros; the first row whole, at least one 1 in each."""
    return mask_from(lambda length: 1)(shape, generator, made)


def half_mask(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """As `mask`, at least half of each row kept: what is left after strided convolutions is not
    empty."""
    return mask_from(lambda length: (length + 1) // 2)(shape, generator, made)


def grid_mask(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Images padded at the right and the bottom by up to half; the first image whole."""
    batch, *axes = shape
    seen = torch.ones(shape, dtype=torch.long)
    for axis, size in enumerate(axes):
        kept = torch.randint(
            (size + 1) // 2, size + 1, (batch, *[1] * len(axes)), generator=generator
        )
        kept[0] = size
        positions = torch.arange(size).reshape([-1 if i == axis else 1 for i in range(len(axes))])
        seen = seen * (positions < kept)
    return seen


def plain_ids(vocabulary: int, special: Sequence[object]) -> Tensor:
    """The ids of a vocabulary without the special ones; id 0 where none is left."""
    usable = torch.ones(vocabulary, dtype=torch.bool)
    usable[[i for i in special if isinstance(i, int) and 0 <= i < vocabulary]] = False
    return usable.nonzero().reshape(-1) if bool(usable.any()) else torch.zeros(1, dtype=torch.long)


def bounded_ids(plain: Tensor, mask_name: str, end: int | None, pad: int | None) -> Filler:
    """Some of the plain ids; where a mask was made before, the last one of each row that is not
    padding ends the text, and padding follows.

    Args:
        plain: ids to draw from.
        mask_name: of the input that holds the mask.
        end: id that ends a text, if there is one.
        pad: id of padding, if there is one.
    """

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        values = plain[torch.randint(len(plain), shape, generator=generator)]
        if mask_name in made:
            lengths = made[mask_name].sum(-1, keepdim=True)
            positions = torch.arange(shape[-1])
            if end is not None:
                values = torch.where(positions == lengths - 1, end, values)
            if pad is not None:
                values = torch.where(positions >= lengths, pad, values)
        return values

    return fill


def ids_behind(count: int, token: int, rest: Filler) -> Filler:
    """Ids that begin with ``count`` times ``token``, which stands nowhere else.

    Args:
        count: places that, say, an image's features take.
        token: the id that stands for them.
        rest: fills the others.
    """

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        values = rest(shape, generator, made)
        values = torch.where(values == token, 3, values)
        values[:, :count] = token
        return values

    return fill
