"""Whisper's rules of times, against those of ``transformers``."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossfuse import InputError
from crossfuse.runtime.generation.histories import Histories
from crossfuse.runtime.generation.processors import processors_of
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.timestamps import timestamp_rules

END, NONE, VOCABULARY = 10, 20, 40
FIRST = NONE + 1


def theirs(rows: np.ndarray, begin: int, scores: np.ndarray, latest: int | None) -> np.ndarray:
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    config = SimpleNamespace(
        no_timestamps_token_id=NONE, eos_token_id=END, bos_token_id=END,
        max_initial_timestamp_index=latest,
    )  # fmt: skip
    rules = WhisperTimeStampLogitsProcessor(config, begin_index=begin)
    made = rules(torch.from_numpy(rows), torch.from_numpy(scores.copy()))
    return made.numpy()


@pytest.mark.parametrize("latest", [None, 3])
def test_scores_are_those_of_the_library(latest: int | None) -> None:
    generator = np.random.default_rng(0)
    settings = GenerationSettings(
        return_timestamps=True, no_timestamps_token_id=NONE, eos_token_id=(END,),
        max_initial_timestamp_index=latest,
    )  # fmt: skip
    rules = timestamp_rules(settings)
    forced = 0
    for length in (2, 3, 4, 5, 9):
        for _ in range(20):
            ids = generator.integers(0, VOCABULARY, (6, length))
            scores = generator.standard_normal((6, VOCABULARY)).astype(np.float32) * 4
            expected = theirs(ids, 2, scores, latest)
            histories = Histories(
                ids, np.full(6, length), np.full(6, 2), np.full(6, 30)
            )  # fmt: skip
            found = rules(histories, scores.copy())
            np.testing.assert_array_equal(found, expected)
            forced += int(np.isneginf(expected[:, :FIRST]).all(-1).sum())
    assert forced > 50


def test_prompts_of_other_lengths_beside_each_other_go_by_their_own() -> None:
    generator = np.random.default_rng(4)
    settings = GenerationSettings(
        return_timestamps=True, no_timestamps_token_id=NONE, eos_token_id=(END,)
    )
    (rules,) = processors_of(settings)
    ids = np.array([[1, 2, FIRST, 5, 0, 0], [1, 2, 3, 4, FIRST, FIRST + 2]])
    scores = generator.standard_normal((2, VOCABULARY)).astype(np.float32)
    lengths, prompts = np.array([4, 6]), np.array([2, 5])
    found = rules(Histories(ids, lengths, prompts, np.full(2, 30)), scores.copy())
    for row, (length, begin) in enumerate(zip(lengths, prompts, strict=True)):
        expected = theirs(ids[row : row + 1, :length], int(begin), scores[row : row + 1], None)
        np.testing.assert_array_equal(found[row], expected[0])


def test_rules_need_to_know_the_tokens_of_time() -> None:
    with pytest.raises(InputError, match="no_timestamps_token_id"):
        GenerationSettings(return_timestamps=True)
