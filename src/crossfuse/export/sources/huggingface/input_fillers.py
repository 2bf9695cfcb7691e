"""What example inputs hold: one function per kind of input.

All are seeded. Ids avoid the special ones and end in the end-of-text id; masks are padded, so that
masks matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossfuse.spec.padding import padded_mask

__all__ = [
    "Filler",
    "Segment",
    "Shape",
    "bounded_ids",
    "boxes",
    "classes",
    "fixed",
    "grid_mask",
    "grid_places",
    "half_mask",
    "ids_behind",
    "ids_with_segments",
    "mask",
    "mask_from",
    "normal",
    "ones",
    "plain_ids",
    "span",
    "there",
    "token_kinds",
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


def there(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Truth values, all true."""
    return torch.ones(shape, dtype=torch.bool)


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
        return padded_mask(shape, generator, least=least(shape[-1])).long()

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


@dataclass(frozen=True)
class Segment:
    """Placeholders in a row of ids.

    Attributes:
        count: how many.
        token: their id, which stands nowhere else.
        kind: the number that stands for them where kinds of tokens are an input.
        start, end: ids that stand before and behind them, where there are any.
    """

    count: int
    token: int
    kind: int = 1
    start: int | None = None
    end: int | None = None

    @property
    def row(self) -> list[int]:
        """The ids."""
        around = [[] if edge is None else [edge] for edge in (self.start, self.end)]
        return [*around[0], *[self.token] * self.count, *around[1]]

    @property
    def length(self) -> int:
        """How many ids there are, those around them too."""
        return len(self.row)


def ids_with_segments(segments: Sequence[Segment], rest: Filler) -> Filler:
    """Ids that begin with segments of placeholders, whose ids stand nowhere else.

    Args:
        segments: in their order.
        rest: fills the others.
    """
    front = torch.tensor([token for segment in segments for token in segment.row])

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        values = rest(shape, generator, made)
        plain = int(next(i for i in range(3, 4 + len(front)) if i not in front))
        values = torch.where(torch.isin(values, front), plain, values)
        values[..., : len(front)] = front
        return values

    return fill


def token_kinds(ids_name: str, segments: Sequence[Segment], *, numbered: bool) -> Filler:
    """0 for text and a segment's number, or 1, for its placeholders.

    Args:
        ids_name: of the ids, which were made before.
        segments: that stand in them.
        numbered: each kind has its number.
    """

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        found = torch.zeros(shape, dtype=torch.long)
        for segment in segments:
            found[made[ids_name] == segment.token] = segment.kind if numbered else 1
        return found

    return fill


def boxes(limit: float) -> Filler:
    """Boxes on a page, ``[…, 4]``: left, top, right, bottom, integers from 0 to ``limit``; numbers
    between 0 and 1 where the limit is 1."""

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        corners = torch.rand((*shape[:-1], 2, 2), generator=generator) * limit
        found = torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)
        return found if limit == 1 else found.long()

    return fill


def grid_places(columns: int, leading: Sequence[float] = ()) -> Filler:
    """Places of patches in a grid of so many columns, ``[…, patches, 2]``: row and column."""

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        count = torch.arange(shape[-2])
        places = torch.stack([count // columns, count % columns], dim=-1)
        return places.expand(shape).clone()

    return fill


def fixed(value: Tensor) -> Filler:
    """The same values in every row."""
    return lambda shape, generator, made: value.expand(shape).clone()
