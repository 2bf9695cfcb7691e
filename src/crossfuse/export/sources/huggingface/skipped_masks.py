"""Masks that the library's eager path leaves out, as its modules read that.

Where no token is padded, ``transformers`` makes no mask for its scaled-dot-product attention and
leaves the rest to the module's ``is_causal``. While it traces it always makes one, which is the
same as long as module and mask agree. Some don't: the text tower of AIMv2 asks for a causal mask
and its attention says that it is not causal, so that it is causal in a batch with padding alone.
That is what the eager model computes, so it is what is exported: whether a mask would have been
left out is read off the padding at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["SkippedMasks"]


@dataclass(frozen=True)
class _Made:
    """A mask, kept alive so that its identity stays its own.

    Attributes:
        mask: bool ``[B, 1, L, S]``; True = attend.
        padding: bool ``[B, S]``; True = a token; None where none can be padding.
        causal: what the mask alone says.
    """

    mask: Tensor
    padding: Tensor | None
    causal: bool


@dataclass
class SkippedMasks:
    """The library's function that makes masks, remembering those that it would leave out."""

    original: Any
    made: dict[int, _Made] = field(default_factory=dict)

    def make(self, **given: Any) -> Any:
        """The library's mask; it calls this by keywords."""
        mask = self.original(**given)
        causal = given.get("allow_is_causal_skip", True)
        left_out = causal or given.get("allow_is_bidirectional_skip", False)
        if isinstance(mask, Tensor) and left_out and given.get("local_size") is None:
            self.made[id(mask)] = _Made(mask, given.get("attention_mask"), causal)
        return mask

    def as_eager(self, mask: Tensor | None, causal: bool) -> Tensor | None:
        """The mask that a module of this causality attends with when nothing is traced."""
        made = None if mask is None else self.made.get(id(mask))
        if made is None or made.causal == causal:
            return mask
        if made.padding is None:
            return None
        unpadded = made.padding.bool().all()
        if not causal:
            return made.mask | unpadded
        rows, columns = (torch.arange(n, device=made.mask.device) for n in made.mask.shape[-2:])
        # The library takes a single query for one that follows all keys.
        own = (rows[:, None] >= columns) | (rows[-1] == 0)
        return torch.where(unpadded, own, made.mask)
