"""Draws: which tokens are left to draw from (temperature, top-k, top-p, min-p), and numbers of its
own for each sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.runtime.generation.histories import Histories, Processor
from crossfuse.runtime.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Draws", "log_probability", "log_softmax", "top", "warpers_of"]


def log_softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Log-probabilities over the last axis."""
    shifted: NDArray[Any] = scores - scores.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def log_probability(scores: NDArray[Any], token: int) -> float:
    """That of one token of a row, as `log_softmax` gives it for all."""
    shifted = scores - scores.max()
    own = shifted[token]
    return float(own - np.log(np.exp(shifted, out=shifted).sum()))


def top(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of the ``count`` largest of a row, the largest first, of equal ones the first."""
    if count < scores.size:
        places = np.flatnonzero(scores >= _reached(scores, count))
    else:
        places = np.arange(scores.size)
    order = np.argsort(-scores[places], kind="stable")[:count]
    return places[order].astype(np.int64)


_STRIPES = 64


def _reached(scores: NDArray[Any], count: int) -> Any:
    """A number that at least ``count`` of a row reach, and few more.

    Of a long row it is told by the largest of each stripe: sorting these is a fraction of sorting
    all.
    """
    width = scores.size // _STRIPES
    if width > count:
        scores = scores[: width * _STRIPES].reshape(_STRIPES, width).max(0)
    return np.partition(scores, scores.size - count)[scores.size - count]


def warpers_of(settings: GenerationSettings) -> list[Processor]:
    """What leaves fewer tokens to draw from, in order; behind all other processors."""
    made: list[Processor] = []
    # Beams need a token to go on with where all ends are likeliest.
    least = 1 if settings.num_beams == 1 else len(settings.eos_token_id or (0,)) + 1
    if settings.do_sample:
        if settings.temperature != 1:
            made.append(_divided(settings.temperature))
        if settings.top_k:
            made.append(_likeliest(max(settings.top_k, least)))
        if settings.top_p < 1:
            made.append(_nucleus(settings.top_p, least))
        if settings.min_p is not None:
            made.append(_share(settings.min_p, least))
    if settings.renormalize_logits:
        made.append(lambda histories, scores: log_softmax(scores))
    return made


class Draws:
    """Random numbers: each sequence has its own, whatever is drawn beside it.

    Args:
        seed: None draws other ones each time.
        sequences: how many there are.
    """

    def __init__(self, seed: int | None, sequences: int) -> None:
        parts = np.random.SeedSequence(seed).spawn(sequences)
        self._of = [np.random.Generator(np.random.PCG64(part)) for part in parts]

    def token(self, sequence: int, scores: NDArray[Any]) -> int:
        """One token, by the softmax of its scores."""
        shares = np.exp(log_softmax(scores.astype(np.float64)))
        sums = np.cumsum(shares)
        drawn = self._of[sequence].random() * sums[-1]
        place = int(np.searchsorted(sums, drawn, side="right"))
        return min(place, int(np.flatnonzero(shares)[-1]))

    def several(self, sequence: int, scores: NDArray[Any], count: int) -> NDArray[np.int64]:
        """As many different places, drawn one after the other by the softmax of their scores."""
        numbers = self._of[sequence].gumbel(size=scores.size)
        return top(scores.astype(np.float64) + numbers, count)


def _divided(temperature: float) -> Processor:
    return lambda histories, scores: scores / np.float32(temperature)


def _likeliest(count: int) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        if count < scores.shape[-1]:
            place = scores.shape[-1] - count
            least = np.partition(scores, place, axis=-1)[:, place, None]
            scores[scores < least] = -np.inf
        return scores

    return process


def _nucleus(share: float, least: int) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        order = np.argsort(scores, axis=-1, kind="stable")
        sums = np.cumsum(np.exp(log_softmax(np.take_along_axis(scores, order, -1))), axis=-1)
        removed = sums <= np.float32(1 - share)
        removed[:, -least:] = False
        gone = np.zeros_like(removed)
        np.put_along_axis(gone, order, removed, -1)
        scores[gone] = -np.inf
        return scores

    return process


def _share(share: float, least: int) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        chances = np.exp(log_softmax(scores))
        gone = chances < np.float32(share) * chances.max(-1, keepdims=True)
        for row, own in enumerate(scores):
            gone[row, top(own, least)] = False
        scores[gone] = -np.inf
        return scores

    return process
