"""Masks of padded rows."""

from __future__ import annotations

import pytest
import torch

from crossfuse.spec.padding import padded_mask


@pytest.mark.parametrize("shape", [(5,), (40, 9), (6, 5, 9)])
@pytest.mark.parametrize("least", [1, 3])
def test_rows_keep_their_first_places(shape: tuple[int, ...], least: int) -> None:
    mask = padded_mask(shape, torch.Generator().manual_seed(0), least=least)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    rows = mask.reshape(-1, shape[-1]).tolist()
    assert all(row == sorted(row, reverse=True) for row in rows), "a prefix"
    assert all(sum(row) >= least for row in rows)
    assert bool(mask[0].all())
    if len(shape) > 1:
        assert len({sum(row) for row in rows}) > 1


def test_which_row_is_whole() -> None:
    for whole in (0, -1):
        for seed in range(9):
            generator = torch.Generator().manual_seed(seed)
            assert bool(padded_mask((4, 50), generator, whole=whole)[whole].all())
    drawn = torch.Generator().manual_seed(0)
    free = padded_mask((200, 50), drawn, whole=None)
    assert not bool(free[0].all() and free[-1].all())
    same = padded_mask((200, 50), torch.Generator().manual_seed(0), whole=None)
    assert torch.equal(free, same)
