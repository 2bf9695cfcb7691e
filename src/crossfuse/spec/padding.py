"""Masks of padded rows: what every example input with a mask is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["padded_mask"]


def padded_mask(
    shape: Sequence[int], generator: torch.Generator, *, least: int = 1, whole: int | None = 0
) -> Tensor:
    """Rows that keep a random number of their first places.

    Args:
        shape: ``[…, length]``, of one axis at least.
        generator: of the numbers; one is drawn for each row.
        least: places that each row keeps.
        whole: position along the first axis at which all is kept, or None for nowhere.

    Returns:
        booleans of the shape, True where a place is kept.
    """
    import torch

    length = shape[-1]
    kept = torch.randint(least, length + 1, (*shape[:-1], 1), generator=generator)
    if whole is not None:
        kept[whole] = length
    return torch.arange(length) < kept
