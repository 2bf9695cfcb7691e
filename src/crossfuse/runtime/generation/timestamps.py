"""Whisper's rules of timestamps: tokens behind the vocabulary's text say times, in pairs that
ascend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.runtime.generation.histories import Histories, Processor
from crossfuse.runtime.generation.sampling import log_softmax
from crossfuse.runtime.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["timestamp_rules"]


def timestamp_rules(settings: GenerationSettings) -> Processor:
    """A processor by these rules:

    1. The first token is a timestamp, and none later than `max_initial_timestamp_index`.
    2. Behind a timestamp that begins a text comes text. Behind one that ends a text come one that
       begins the next, or the end.
    3. No timestamp is before the last; one that ends a text is behind the one that began it.
    4. Where timestamps together are likelier than any text, one of them comes.
    """
    assert settings.no_timestamps_token_id is not None
    none = settings.no_timestamps_token_id
    first = none + 1
    end = next(iter(settings.eos_token_id), settings.bos_token_id or 0)
    latest = settings.max_initial_timestamp_index

    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        scores[:, none : none + 1] = -np.inf
        for row, own in enumerate(scores):
            new = histories.row(row)[int(histories.prompts[row]) :]
            _in_pairs(own, new, first, end)
            if not len(new):
                own[:first] = -np.inf
                if latest is not None:
                    own[first + latest + 1 :] = -np.inf
        _likelier(scores, first)
        return scores

    return process


def _in_pairs(own: NDArray[Any], new: NDArray[np.int64], first: int, end: int) -> None:
    """Forbid what breaks a pair, and times before the last."""
    is_time = new >= first
    last = bool(is_time[-1:].any())
    before = len(new) < 2 or bool(is_time[-2])
    if last and before:
        own[first:] = -np.inf
    elif last:
        own[:end] = -np.inf
    times = new[is_time]
    if len(times):
        least = int(times[-1]) if last and not before else int(times[-1]) + 1
        own[first:least] = -np.inf


def _likelier(scores: NDArray[Any], first: int) -> None:
    """Leave timestamps alone where they are likelier together than any text."""
    if first >= scores.shape[-1]:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = log_softmax(scores)
        times = np.log(np.exp(chances[:, first:]).sum(-1))
    text = chances[:, :first].max(-1)
    scores[times > text, :first] = -np.inf
