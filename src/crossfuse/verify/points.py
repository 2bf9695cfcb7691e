"""Shape points: sizes of the named dimensions at which parity is checked."""

from __future__ import annotations

from collections.abc import Mapping

from crossfuse.specs import Dim

__all__ = ["fan_out_points", "shape_points"]

_LEAST = 4


def shape_points(dims: Mapping[str, Dim], example: Mapping[str, int]) -> list[dict[str, int]]:
    """At least four points: the example, all at their minimum, beyond the example, and mixtures of small and large.

    Sizes beyond the example go up to one and a half times its size, so that a wide range doesn't make the check slow. A model
    without dynamic dimensions gets its one shape four times (with other inputs each time).
    """
    low = {name: dim.min for name, dim in dims.items()}
    high = {name: _clamp(dim, example[name] + max(1, example[name] // 2)) for name, dim in dims.items()}
    middle = {name: _clamp(dim, example[name] + 1 | 1) for name, dim in dims.items()}
    names = list(dims)
    points = [
        dict(example),
        low,
        high,
        middle,
        {name: (low if i == 0 else high)[name] for i, name in enumerate(names)},
        {name: (high if i == 0 else low)[name] for i, name in enumerate(names)},
    ]
    distinct: list[dict[str, int]] = []
    for point in points:
        if point not in distinct:
            distinct.append(point)
    while len(distinct) < _LEAST:
        distinct.append(dict(example))
    return distinct


def fan_out_points(dims: Mapping[str, Dim], example: Mapping[str, int], batch: str) -> list[tuple[dict[str, int], int]]:
    """Sizes and queries per context: five on one context, four on each of two, where the batch allows it."""
    points = []
    for contexts, fan_out in ((1, 5), (2, 4), (1, 2)):
        limit = dims[batch].max
        if limit is None or contexts * fan_out <= limit:
            points.append(({**example, batch: contexts * fan_out}, fan_out))
    return points[:2]


def _clamp(dim: Dim, size: int) -> int:
    return max(dim.min, size if dim.max is None else min(size, dim.max))
