"""What example inputs hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.input_fillers import (
    Filler,
    bounded_ids,
    classes,
    grid_mask,
    half_mask,
    ids_behind,
    mask,
    mask_from,
    normal,
    ones,
    plain_ids,
    span,
    uniform,
    zeros,
)

SHAPE = (64, 9)


def fill(filler: Filler, shape: tuple[int, ...] = SHAPE, seed: int = 0, **made: Tensor) -> Tensor:
    return filler(shape, torch.Generator().manual_seed(seed), made)


@pytest.mark.parametrize(
    "filler",
    [normal, uniform(3.0), mask, half_mask, grid_mask, classes(2, 5)],
    ids=["normal", "uniform", "mask", "half_mask", "grid_mask", "classes"],
)
def test_the_seed_decides(filler: Filler) -> None:
    assert torch.equal(fill(filler), fill(filler))
    assert not torch.equal(fill(filler), fill(filler, seed=1))
    assert fill(filler).shape == SHAPE


def test_ranges() -> None:
    assert fill(ones).eq(1).all()
    assert fill(zeros).eq(0).all()
    assert set(fill(classes(2, 5)).flatten().tolist()) == {2, 3, 4}
    high = fill(uniform(3.0))
    assert (high.min() >= 0, high.max() <= 3, high.max() > 2) == (True, True, True)
    assert fill(span(2, 4), (2, 6)).tolist() == [[0, 0, 1, 1, 0, 0]] * 2
    assert all(f.dtype == torch.int64 for f in (fill(ones), fill(zeros), fill(span(0, 1))))


@pytest.mark.parametrize(
    ("filler", "least"), [(mask, 1), (half_mask, 5), (mask_from(lambda length: length - 2), 7)]
)
def test_masks_are_padded_behind_and_the_first_row_is_whole(filler: Filler, least: int) -> None:
    kept = fill(filler)
    lengths = kept.sum(-1)
    assert torch.equal(kept, (torch.arange(9) < lengths[:, None]).long())
    assert lengths[0] == 9
    assert lengths.min() == least
    assert len(lengths.unique()) == 10 - least


def test_images_are_padded_at_two_sides() -> None:
    seen = fill(grid_mask, (32, 6, 8))
    rows, columns = seen[:, :, 0].sum(1), seen[:, 0, :].sum(1)
    expected = (torch.arange(6) < rows[:, None])[:, :, None] & (torch.arange(8) < columns[:, None])[
        :, None, :
    ]
    assert torch.equal(seen, expected.long())
    assert (rows[0], columns[0]) == (6, 8)
    assert rows.min() >= 3
    assert columns.min() >= 4
    assert rows.min() < 6


def test_ids_are_plain_and_end_where_the_mask_ends() -> None:
    plain = plain_ids(10, (0, 3, None, 12, -1, 9))
    assert plain.tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert plain_ids(2, (0, 1)).tolist() == [0]
    kept = fill(mask)
    ids = fill(bounded_ids(plain, "mask", end=9, pad=0), mask=kept)
    for row, count in zip(ids.tolist(), kept.sum(-1).tolist(), strict=True):
        assert set(row[: count - 1]) <= set(plain.tolist())
        assert row[count - 1 :] == [9] + [0] * (9 - count)
    alone = fill(bounded_ids(plain, "mask", end=9, pad=0))
    assert set(alone.flatten().tolist()) == set(plain.tolist())
    neither = fill(bounded_ids(plain, "mask", end=None, pad=None), mask=kept)
    assert torch.equal(neither, alone)


@pytest.mark.parametrize("count", [1, 4])
def test_places_of_an_image_come_first_and_stand_nowhere_else(count: int) -> None:
    rest: Callable[..., Tensor] = classes(4, 8)
    ids = fill(ids_behind(count, 7, rest))
    assert ids[:, :count].eq(7).all()
    assert set(ids[:, count:].flatten().tolist()) == {3, 4, 5, 6}
