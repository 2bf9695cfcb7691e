"""`Histories`: the tokens so far, which processors of scores go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Histories", "Processor"]


class Histories(NamedTuple):
    """The tokens so far.

    Attributes:
        ids: ``[rows, width]``; what is behind a row's length means nothing.
        lengths: ``[rows]``.
        prompts: ``[rows]``: how many of them are the prompt.
        longest: ``[rows]``: how many there may be.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prompts: NDArray[np.int64]
    longest: NDArray[np.int64]

    def behind(self, before: NDArray[np.int64] | None) -> Histories:
        """With tokens in front of each row, ``[rows, tokens]``, which count as the prompt's."""
        if before is None:
            return self
        count = before.shape[1]
        return Histories(
            np.concatenate([before, self.ids], 1),
            self.lengths + count,
            self.prompts + count,
            self.longest + count,
        )

    def row(self, index: int) -> NDArray[np.int64]:
        """The tokens of one row."""
        return self.ids[index, : self.lengths[index]]


Processor = Callable[[Histories, Any], Any]
"""Scores ``[rows, vocabulary]`` float32 from such; may change them in place."""
