"""What generation gives: whole sequences (`Generated`), and the tokens of one step as they come
(`Streamed`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Finished", "Generated", "Streamed", "gathered"]


class Streamed(NamedTuple):
    """One step's tokens.

    Attributes:
        tokens: ``[sequences]`` int64: the next token of each; of those that have ended, the pad
            token, or 0 where there is none.
        active: ``[sequences]`` bool: which got a token, one that ends it included.
        log_probs: ``[sequences]`` float32: of the tokens, 0 where there is none.
    """

    tokens: NDArray[np.int64]
    active: NDArray[np.bool_]
    log_probs: NDArray[np.float32]


class Finished(NamedTuple):
    """One sequence.

    Attributes:
        ids: its tokens, prompt included.
        prompt: how many of them are the prompt.
        log_probs: of the others.
        score: of the whole.
        ended: it ended by itself, and not because it was long.
        unscaled: as `log_probs`, without the temperature; None where these are the same.
    """

    ids: NDArray[np.int64]
    prompt: int
    log_probs: NDArray[np.float32]
    score: float
    ended: bool
    unscaled: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Generated:
    """Generated sequences: all results of the first prompt, the best first, then the next one's.

    Attributes:
        sequences: ``[results, longest]`` int64, prompts included, padded on the right.
        lengths: ``[results]``: how many tokens of each count.
        prompts: ``[results]``: how many of these are the prompt.
        log_probs: ``[results, longest new]`` float32: of each new token, in the distribution that
            it was chosen from (with beams, as their scores sum them); 0 behind a sequence's end.
        scores: ``[results]`` float32: the log-probabilities' sum; with beams, over the length to
            the power of the length penalty.
        ended: ``[results]`` bool: which ended by a stop token or sequence; the others are as long
            as they may be.
        unscaled: as `log_probs`, in the distribution without the temperature.
    """

    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prompts: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    scores: NDArray[np.float32]
    ended: NDArray[np.bool_]
    unscaled: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def new_tokens(self) -> list[NDArray[np.int64]]:
        """What was added to each prompt, the token that ends it included."""
        return [
            self.sequences[i, self.prompts[i] : self.lengths[i]] for i in range(len(self.lengths))
        ]


def gathered(found: Sequence[Finished], pad: int) -> Generated:
    """Results side by side."""
    lengths = np.array([len(one.ids) for one in found], np.int64)
    new = max(len(one.log_probs) for one in found)
    sequences = np.full((len(found), int(lengths.max())), pad, np.int64)
    log_probs: NDArray[Any] = np.zeros((len(found), new), np.float32)
    unscaled = np.zeros_like(log_probs)
    for row, one in enumerate(found):
        sequences[row, : len(one.ids)] = one.ids
        log_probs[row, : len(one.log_probs)] = one.log_probs
        unscaled[row, : len(one.log_probs)] = (
            one.log_probs if one.unscaled is None else one.unscaled
        )
    return Generated(
        sequences,
        lengths,
        np.array([one.prompt for one in found], np.int64),
        log_probs,
        np.array([one.score for one in found], np.float32),
        np.array([one.ended for one in found]),
        unscaled,
    )
