"""What is done to the scores of the next token before one is chosen: penalties, tokens that must or
must not come. In the order of ``transformers``, each sequence by its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.foreign import blaming
from crossfuse.errors import InputError
from crossfuse.runtime.generation.histories import Histories, Processor
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.timestamps import timestamp_rules

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Hook", "processors_of"]


Hook = Callable[[list[Any], Any], Any]
"""A caller's own: given each row's tokens and the scores, gives scores."""


def processors_of(settings: GenerationSettings, hook: Hook | None = None) -> list[Processor]:
    """What the settings ask for, in order, the caller's own last."""
    own = [] if hook is None else [_hooked(hook)]
    return [*_repetitions(settings), *_ends(settings), *_suppressed(settings), *own]


def _repetitions(settings: GenerationSettings) -> Iterator[Processor]:
    if settings.repetition_penalty != 1:
        yield _repeated(settings.repetition_penalty)
    if settings.no_repeat_ngram_size:
        yield _no_ngram_twice(settings.no_repeat_ngram_size)
    words = [word for word in settings.bad_words_ids if not _is_end(word, settings)]
    if words:
        yield _no_words(words)


def _ends(settings: GenerationSettings) -> Iterator[Processor]:
    if settings.eos_token_id and (settings.min_length or settings.min_new_tokens):
        yield _no_early_end(settings)
    if settings.forced_bos_token_id is not None:
        first = (settings.forced_bos_token_id,)
        yield _forced(first, lambda histories: histories.lengths == 1)
    if settings.forced_eos_token_id:
        yield _forced(settings.forced_eos_token_id, lambda h: h.lengths == h.longest - 1)
    if settings.remove_invalid_values:
        yield _finite


def _suppressed(settings: GenerationSettings) -> Iterator[Processor]:
    if settings.suppress_tokens:
        yield _without(settings.suppress_tokens, lambda h: h.lengths >= 0)
    if settings.begin_suppress_tokens:
        yield _without(settings.begin_suppress_tokens, _begins(settings))
    if settings.return_timestamps:
        yield timestamp_rules(settings)


def _is_end(word: Sequence[int], settings: GenerationSettings) -> bool:
    return len(word) == 1 and word[0] in settings.eos_token_id


def _within(ids: Any, scores: NDArray[Any]) -> NDArray[np.int64]:
    found = np.asarray(ids, np.int64).reshape(-1)
    within: NDArray[np.int64] = found[(found >= 0) & (found < scores.shape[-1])]
    return within


def _repeated(penalty: float) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        for row, own in enumerate(scores):
            ids = np.unique(_within(histories.row(row), scores))
            own[ids] = np.where(own[ids] < 0, own[ids] * penalty, own[ids] / penalty)
        return scores

    return process


def _no_ngram_twice(size: int) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        for row, own in enumerate(scores):
            ids = histories.row(row)
            if len(ids) < size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(ids, size)
            found = (windows[:, :-1] == ids[len(ids) + 1 - size :]).all(-1)
            own[_within(windows[found, -1], scores)] = -np.inf
        return scores

    return process


def _no_words(words: Sequence[Sequence[int]]) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        for row, own in enumerate(scores):
            ids = histories.row(row).tolist()
            for *begin, last in words:
                count = len(begin)
                if count <= len(ids) and ids[len(ids) - count :] == begin:
                    own[_within([last], scores)] = -np.inf
        return scores

    return process


def _no_early_end(settings: GenerationSettings) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        lengths = histories.lengths
        short = lengths < settings.min_length
        short |= lengths - histories.prompts < settings.min_new_tokens
        scores[np.ix_(short, _within(settings.eos_token_id, scores))] = -np.inf
        return scores

    return process


def _forced(ids: Sequence[int], when: Callable[[Histories], NDArray[np.bool_]]) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        now = when(histories)
        scores[now] = -np.inf
        scores[np.ix_(now, _within(ids, scores))] = 0
        return scores

    return process


def _without(ids: Sequence[int], when: Callable[[Histories], NDArray[np.bool_]]) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        scores[np.ix_(when(histories), _within(ids, scores))] = -np.inf
        return scores

    return process


def _begins(settings: GenerationSettings) -> Callable[[Histories], NDArray[np.bool_]]:
    """Which rows get their first token that is not forced."""

    def when(histories: Histories) -> NDArray[np.bool_]:
        forced = settings.forced_bos_token_id is not None
        later = (histories.prompts == 1) & forced
        first: NDArray[np.bool_] = histories.lengths == histories.prompts + later
        return first

    return when


def _finite(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = np.nan_to_num(scores, copy=False)
    return found


def _hooked(hook: Hook) -> Processor:
    def process(histories: Histories, scores: NDArray[Any]) -> NDArray[Any]:
        rows = [histories.row(row).copy() for row in range(len(scores))]
        with blaming("the logits hook raised"):
            found = np.asarray(hook(rows, scores), np.float32)
        if found.shape != scores.shape:
            raise InputError(
                "the logits hook has to give scores of the shape that it gets",
                got=list(found.shape),
                expected=list(scores.shape),
            )
        return found

    return process
