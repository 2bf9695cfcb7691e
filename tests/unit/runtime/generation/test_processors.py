"""Processors of scores, against those of ``transformers`` on the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from crossfuse import InputError
from crossfuse.runtime.generation.histories import Histories
from crossfuse.runtime.generation.processors import processors_of
from crossfuse.runtime.generation.settings import GenerationSettings

VOCABULARY, LONGEST = 12, 9
RNG = np.random.default_rng(0)


def histories(length: int, prompt: int = 2, rows: int = 4) -> Histories:
    ids = np.zeros((rows, LONGEST), np.int64)
    ids[:, :length] = RNG.integers(0, 4, (rows, length))
    full = np.full(rows, 1)
    return Histories(ids, full * length, full * prompt, full * LONGEST)


EOS = torch.tensor([2, 3])
CASES: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "repetition": (
        {"repetition_penalty": 1.7},
        lambda prompt: hf.RepetitionPenaltyLogitsProcessor(1.7),
    ),
    "single": ({"no_repeat_ngram_size": 1}, lambda prompt: hf.NoRepeatNGramLogitsProcessor(1)),
    "pairs": ({"no_repeat_ngram_size": 2}, lambda prompt: hf.NoRepeatNGramLogitsProcessor(2)),
    "triples": ({"no_repeat_ngram_size": 3}, lambda prompt: hf.NoRepeatNGramLogitsProcessor(3)),
    "words": (
        {"bad_words_ids": [[2], [5], [0, 1], [1, 2, 3], [3, 0]], "eos_token_id": 2},
        lambda prompt: hf.NoBadWordsLogitsProcessor([[2], [5], [0, 1], [1, 2, 3], [3, 0]], 2),
    ),
    "length": (
        {"min_length": 5, "eos_token_id": [2, 3]},
        lambda prompt: hf.MinLengthLogitsProcessor(5, EOS),
    ),
    "new": (
        {"min_new_tokens": 3, "eos_token_id": [2, 3]},
        lambda prompt: hf.MinNewTokensLengthLogitsProcessor(prompt, 3, EOS),
    ),
    "first": ({"forced_bos_token_id": 7}, lambda prompt: hf.ForcedBOSTokenLogitsProcessor(7)),
    "last": (
        {"forced_eos_token_id": [2, 3]},
        lambda prompt: hf.ForcedEOSTokenLogitsProcessor(LONGEST, [2, 3]),
    ),
    "never": ({"suppress_tokens": [1, 8]}, lambda prompt: hf.SuppressTokensLogitsProcessor([1, 8])),
    "not first": (
        {"begin_suppress_tokens": [1, 8]},
        lambda prompt: hf.SuppressTokensAtBeginLogitsProcessor([1, 8], prompt),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_library(name: str) -> None:
    settings, theirs = CASES[name]
    (ours,) = processors_of(GenerationSettings.of(settings, {}))
    for prompt in (1, 2):
        for length in range(prompt, LONGEST):
            so_far = histories(length, prompt)
            scores = RNG.standard_normal((4, VOCABULARY)).astype(np.float32)
            ids = torch.from_numpy(so_far.ids[:, :length])
            expected = theirs(prompt)(ids, torch.from_numpy(scores.copy())).numpy()
            np.testing.assert_array_equal(ours(so_far, scores.copy()), expected)


def test_a_forced_first_token_is_not_the_first_that_is_suppressed() -> None:
    settings = GenerationSettings.of({"forced_bos_token_id": 7, "begin_suppress_tokens": [1]}, {})
    both = processors_of(settings)

    def banned(length: int) -> list[int]:
        scores = np.zeros((4, VOCABULARY), np.float32)
        for process in both:
            scores = process(histories(length, prompt=1), scores)
        return np.flatnonzero(np.isneginf(scores[0])).tolist()

    assert banned(1) == [i for i in range(VOCABULARY) if i != 7]
    assert banned(2) == [1]
    assert banned(3) == []


def test_each_row_goes_by_its_own_tokens() -> None:
    (process,) = processors_of(GenerationSettings(no_repeat_ngram_size=2))
    ids = np.array([[1, 5, 1, 0], [1, 5, 6, 1], [3, 3, 0, 0]])
    lengths = np.array([3, 4, 2])
    scores = process(
        Histories(ids, lengths, lengths * 0, lengths * 0 + 9), np.zeros((3, 8), np.float32)
    )
    assert [np.flatnonzero(np.isneginf(row)).tolist() for row in scores] == [[5], [5], [3]]


def test_ids_beyond_the_vocabulary_are_passed_over() -> None:
    settings = GenerationSettings(
        repetition_penalty=2.0,
        no_repeat_ngram_size=1,
        suppress_tokens=(99,),
        bad_words_ids=((50,),),
    )
    scores = np.ones((1, 4), np.float32)
    history = Histories(np.array([[9, 3]]), np.array([2]), np.array([1]), np.array([9]))
    for process in processors_of(settings):
        scores = process(history, scores)
    assert scores.tolist() == [[1, 1, 1, -np.inf]]


def test_invalid_values_are_removed_where_asked() -> None:
    (process,) = processors_of(GenerationSettings(remove_invalid_values=True))
    scores = np.float32([[np.nan, np.inf, 1, -np.inf]])
    limit = np.finfo(np.float32).max
    assert process(histories(2, rows=1), scores).tolist() == [[0, limit, 1, -limit]]


def test_a_hook_comes_last() -> None:
    seen: list[list[int]] = []

    def hook(rows: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
        seen.extend(row.tolist() for row in rows)
        assert np.isneginf(scores[:, 1]).all()
        return scores + 1

    first, last = processors_of(GenerationSettings(suppress_tokens=(1,)), hook)
    history = Histories(np.array([[4, 5, 0]]), np.array([2]), np.array([1]), np.array([3]))
    found = last(history, first(history, np.zeros((1, 3), np.float32)))
    assert (found.tolist(), seen) == ([[1, -np.inf, 1]], [[4, 5]])


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        (lambda rows, scores: scores[:, :1], "shape that it gets"),
        (lambda rows, scores: 1 / 0, "the logits hook raised ZeroDivisionError"),
        (lambda rows, scores: None, "shape that it gets|the logits hook raised"),
    ],
)
def test_a_hook_that_fails_is_blamed(hook: Any, error: str) -> None:
    (process,) = processors_of(GenerationSettings(), hook)
    with pytest.raises(InputError, match=error):
        process(histories(2), np.zeros((4, 3), np.float32))
