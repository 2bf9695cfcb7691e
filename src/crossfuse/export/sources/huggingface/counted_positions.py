"""Positions that count on behind the first tokens of a row: from the greatest of theirs, one by
one, alike on all axes of positions. They need no input there, and new tokens have theirs.

Positions of several axes are so in models whose images have places in height and width: a text
behind an image begins where the greatest of these ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["count_on", "counting_on"]

_POSITIONS = "position_ids"
_MASK, _IDS = "attention_mask", "input_ids"


def counting_on(
    axes: Mapping[str, int], given: Sequence[Mapping[str, Tensor]], count: int
) -> frozenset[str]:
    """Inputs that are such positions in all examples, wherever a token counts.

    Args:
        axes: of inputs with a place for each token, the axis.
        given: the examples.
        count: of the first tokens.
    """
    return frozenset(
        name
        for name, axis in axes.items()
        if name.endswith(_POSITIONS)
        and all(
            example[name].ndim in (2, 3)
            and axis == example[name].ndim - 1
            and _counts_on(example, name, count, masked=axes.get(_MASK) == 1)
            for example in given
        )
    )


def _counts_on(example: Mapping[str, Tensor], name: str, count: int, *, masked: bool) -> bool:
    positions, ids = example[name], example[_IDS]
    if positions.shape[-2:] != ids.shape:
        return False
    rest = positions[..., count:]
    same = rest == count_on(positions[..., :count], ids[:, count:])
    if masked:
        same = same | (example[_MASK][:, count:] == 0)
    return bool(same.all())


def count_on(first: Tensor, rest: Tensor) -> Tensor:
    """Positions of tokens behind the first ones.

    Args:
        first: ``[batch, count]`` or ``[axes, batch, count]``: positions of the first tokens.
        rest: ``[batch, tokens]``: ids of the others.

    Returns:
        ``[batch, tokens]`` or ``[axes, batch, tokens]``, of the dtype of ``first``.
    """
    greatest = first.amax(-1)
    greatest = greatest.amax(0) if greatest.ndim > 1 else greatest
    steps = torch.arange(1, rest.shape[1] + 1, dtype=first.dtype, device=first.device)
    found = greatest[:, None] + steps
    return found.expand(*first.shape[:-1], -1)
