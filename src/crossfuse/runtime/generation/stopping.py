"""`Stopping`: which sequences have ended by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from crossfuse.runtime.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Stopping"]


class Stopping:
    """Tokens, and sequences of new tokens, that end a sequence."""

    def __init__(self, settings: GenerationSettings) -> None:
        self.tokens = np.array(settings.eos_token_id, np.int64)
        self.sequences = [np.array(one, np.int64) for one in settings.stop_sequences]

    def hit(self, ids: NDArray[np.int64], prompt: int) -> NDArray[np.bool_]:
        """``[rows]``: which end with one.

        Args:
            ids: ``[rows, tokens]``.
            prompt: how many of the tokens are the prompt, which ends nothing.
        """
        found = np.isin(ids[:, -1], self.tokens)
        for one in self.sequences:
            if ids.shape[1] - prompt >= len(one):
                found |= (ids[:, -len(one) :] == one).all(-1)
        return found
