"""Points at which parity is checked: sizes of the named dimensions, and what the inputs there are
to reach.

The user's own examples come first, as they are. Made inputs follow: masks padded at the end, masks
of other kinds, samples without any key, ids of a table's largest rows, and features of ten times
their size. What a model isn't defined on (it gives NaN, or fails) is replaced by something milder,
step by step, or dropped, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crossfuse.core.tensors import Dim

if TYPE_CHECKING:
    from crossfuse.spec.imitation import Draw
    from crossfuse.spec.input_kinds import Kind

__all__ = [
    "EXAMPLE",
    "LEAST_POINTS",
    "MADE",
    "QUICK_POINTS",
    "TAILS",
    "Planned",
    "fan_out_points",
    "planned_points",
    "quick_points",
    "rows_of",
    "shape_points",
]

EXAMPLE, MADE, TAILS = "example", "made", "tails"
"""Kinds of points: the user's own inputs, inputs made, and those made to reach tails, which are
judged apart."""

LEAST_POINTS = 4
"""The fewest points at the model's own magnitudes that a bundle is checked at."""

QUICK_POINTS = 2
"""The same of a quick export: the example, and one made point at other sizes."""

_TAILS = (10.0, 3.0)
"""How many times features are scaled; the second where the model isn't defined on the first."""


@dataclass(frozen=True)
class Planned:
    """A point to be made.

    Attributes:
        sizes: of the named dimensions.
        draws: what its inputs are to reach, the most demanding first.
        kind: `MADE` or `TAILS`; the latter may be dropped.
        fan_out: queries per context.
        half: the eager model's errors in half precision are measured here.
    """

    sizes: Mapping[str, int]
    draws: tuple[Draw, ...]
    kind: str = MADE
    fan_out: int = 1
    half: bool = False


def planned_points(
    dims: Mapping[str, Dim],
    example: Mapping[str, int],
    kinds: Iterable[Kind],
    plain: Draw,
    shared_batch: str | None = None,
    rows: str | None = None,
) -> list[Planned]:
    """What is made besides the user's examples.

    Args:
        dims: the named dimensions.
        example: their sizes in the first example.
        kinds: of the inputs.
        plain: the draw that all others add to; it knows the tables.
        shared_batch: of a split bundle: adds points with several queries per context.
        rows: as of `shape_points`.
    """
    mild = (plain, replace(plain, tables={}), replace(plain, tables={}, flipped=True))
    holes = replace(plain, masks="holes")
    extremes, nothing = replace(holes, extremes=True), replace(holes, masks="none")
    known = list(kinds)
    masked = any(kind.name in ("mask", "additive") for kind in known)
    points = []
    for i, sizes in enumerate(shape_points(dims, example, rows)[1:]):
        demanding = {1: (extremes, holes, replace(plain, extremes=True)), 2: (nothing, holes)}.get(
            i, ()
        )
        points.append(Planned(sizes, (*demanding, *mild), half=i == 1 or (i == 2 and masked)))
    if any(kind.name == "features" for kind in known):
        points.append(
            Planned(
                example, tuple(replace(plain, scale=scale) for scale in _TAILS), TAILS, half=True
            )
        )
    if shared_batch is not None:
        points += [
            Planned(sizes, mild, fan_out=count)
            for sizes, count in fan_out_points(dims, example, shared_batch)
        ]
    return points


def quick_points(planned: Sequence[Planned]) -> list[Planned]:
    """Of the planned points one made, of odd sizes beyond the example where the dimensions allow,
    and one with several queries per context."""
    alone = [point for point in planned if point.kind == MADE and point.fan_out == 1]
    chosen = alone[min(2, len(alone) - 1)]
    demanding = next(point for point in alone if point.draws[0].extremes)
    several = [point for point in planned if point.fan_out > 1]
    few = min(several, key=lambda point: math.prod(point.sizes.values()), default=None)
    return [
        replace(chosen, draws=demanding.draws, half=True),
        *([] if few is None else [few]),
    ]


def rows_of(axes: Mapping[str, Mapping[int, str]]) -> str | None:
    """The dimension that is the first axis of every input, of inputs' named axes: the batch."""
    first = {own.get(0) for own in axes.values()}
    return first.pop() if len(first) == 1 else None


def shape_points(
    dims: Mapping[str, Dim], example: Mapping[str, int], rows: str | None = None
) -> list[dict[str, int]]:
    """At least four points: the example, all at their minimum, beyond the example, mixtures of
    small and large, and each dimension alone at 0 that may be.

    Sizes beyond the example go up to one and a half times its size, so that a wide range doesn't
    make the check slow. ``rows``, the first axis of all inputs, goes beyond it at one point alone:
    each row more costs a whole run of the model. A model without dynamic dimensions gets its one
    shape four times, with other inputs each time.
    """
    low = {name: dim.min for name, dim in dims.items()}
    high = {
        name: _clamp(dim, example[name] + max(1, example[name] // 2)) for name, dim in dims.items()
    }
    middle = {name: _clamp(dim, example[name] + 1 | 1) for name, dim in dims.items()}
    few = high
    if rows is not None and rows in dims:
        few, middle = high | {rows: example[rows]}, middle | {rows: example[rows]}
    names = list(dims)
    points = [
        dict(example),
        low,
        high,
        middle,
        {name: (low if i == 0 else few)[name] for i, name in enumerate(names)},
        {name: (few if i == 0 else low)[name] for i, name in enumerate(names)},
        *({**example, name: 0} for name, dim in dims.items() if dim.min == 0),
    ]
    distinct: list[dict[str, int]] = []
    for point in points:
        if point not in distinct:
            distinct.append(point)
    while len(distinct) < LEAST_POINTS:
        distinct.append(dict(example))
    return distinct


def fan_out_points(
    dims: Mapping[str, Dim], example: Mapping[str, int], batch: str
) -> list[tuple[dict[str, int], int]]:
    """Sizes and queries per context: three on one context, and two on each of two, where the batch
    allows it. More would tell no more, and the eager model computes each context so many times."""
    points = []
    for contexts, fan_out in ((1, 3), (2, 2), (1, 2)):
        limit = dims[batch].max
        if limit is None or contexts * fan_out <= limit:
            points.append(({**example, batch: contexts * fan_out}, fan_out))
    return points[:2]


def _clamp(dim: Dim, size: int) -> int:
    return max(dim.min, size if dim.max is None else min(size, dim.max))
