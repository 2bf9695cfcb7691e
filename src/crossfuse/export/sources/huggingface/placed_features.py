"""Features put in the place of placeholders, row by row and among the first tokens alone.

``masked_scatter`` takes one feature after the other for the placeholders of a whole batch, in
whatever place they are. No part of its result then depends on the image alone. Where every row has
as many placeholders as its image has features, and all of them stand among the first tokens, the
features of a row go to those, and all other tokens stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["First", "placed_features"]


@dataclass(frozen=True)
class First:
    """The first tokens of each row.

    Attributes:
        count: how many there are.
        placeholders: how many of one id stand among them, for each such id.
    """

    count: int
    placeholders: Collection[int] = ()


@contextmanager
def placed_features(first: First | None) -> Iterator[None]:
    """While a model is traced, let it put features among the first tokens so.

    Args:
        first: None where they are no inputs of their own.
    """
    from transformers.exporters import utils

    if first is None:
        yield
        return

    def placing(original: Any) -> Any:
        def masked_scatter(self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
            rows = _of_tokens(self, mask, first.count)
            each = None if rows is None else _features_of_a_row(self, source, first.placeholders)
            if rows is None or each is None:
                found: Tensor = original(self, mask, source)
                return found
            return _placed(self, rows, each, first.count)

        return masked_scatter

    with utils.patch_attribute(torch.Tensor, "masked_scatter", placing):
        yield


def _of_tokens(states: Tensor, mask: Tensor, count: int) -> Tensor | None:
    """The first tokens' mask, ``[batch, count]``; None where the tensor is not made of the tokens,
    or its places are not masked as a whole."""
    if states.ndim != 3 or mask.ndim != 3 or not _counts_tokens(states.shape[1], count):
        return None
    alike = mask.shape[2] == 1 or mask.stride(2) == 0
    return mask[:, :count, 0] if alike and mask.shape[1] == states.shape[1] else None


def _counts_tokens(size: Any, count: int) -> bool:
    """A size is that of the first tokens and of some more."""
    return isinstance(size, torch.SymInt) and bool((size.node.expr - count).is_symbol)


def _features_of_a_row(
    states: Tensor, source: Tensor, placeholders: Collection[int]
) -> Tensor | None:
    """Features ``[batch, features, width]``; None where there are not as many as placeholders."""
    batch, _, width = states.shape
    for count in placeholders:
        if _hint(batch) * count * _hint(width) == _hint(source.numel()):
            torch._check(batch * count * width == source.numel())
            return source.reshape(batch, count, width)
    return None


def _hint(size: Any) -> int:
    """A size in the example."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _placed(states: Tensor, rows: Tensor, features: Tensor, count: int) -> Tensor:
    at = (rows.to(torch.int64).cumsum(1) - 1).clamp(min=0)
    taken = features.gather(1, at[..., None].expand(-1, -1, features.shape[2]))
    first = torch.where(rows[..., None], taken.to(states.dtype), states[:, :count])
    return torch.cat([first, states[:, count:]], 1)
