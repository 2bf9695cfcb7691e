"""Beam search over all sequences of a small vocabulary, against looking at every one of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from crossfuse.runtime.generation.sampling import Draws, log_softmax
from crossfuse.runtime.generation.search_beams import BeamSearch
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.stopping import Stopping
from unit.runtime.toy_decoder import IMAGES, VOCABULARY, logits_of

END = 2


def log_probs_of(ids: Any) -> np.ndarray:
    return log_softmax(logits_of(ids, IMAGES[0]))


def searched(settings: GenerationSettings, prompt: list[int], new: int, seed: Any = None) -> Any:
    search = BeamSearch(np.array(prompt), len(prompt) + new, settings, Stopping(settings), number=0)
    draws = None if seed is None else Draws(seed, 1)
    while not search.done:
        running = search.running.ids[:, : search.length]
        order = search.advance(np.stack([log_probs_of(ids) for ids in running]), draws)
        np.testing.assert_array_equal(search.running.ids[:, : search.length - 1], running[order])
    return search.results()


def every_sequence(prompt: list[int], new: int, ends: bool) -> list[tuple[float, list[int]]]:
    """Sums of log-probabilities of all sequences that end, or are as long as they may be."""
    found = []
    for count in range(1, new + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=count):
            inner = END in tokens[:-1]
            whole = count == new or tokens[-1] == END
            if (ends and (inner or not whole)) or (not ends and count < new):
                continue
            ids = [*prompt, *tokens]
            total = sum(log_probs_of(ids[:i])[ids[i]] for i in range(len(prompt), len(ids)))
            found.append((float(total), ids))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("prompt", [[1], [3, 5, 4]])
def test_with_beams_for_all_the_best_are_found(prompt: list[int]) -> None:
    settings = GenerationSettings(num_beams=VOCABULARY**2, num_return_sequences=5)
    found = searched(settings, prompt, 3)
    expected = every_sequence(prompt, 3, ends=False)[:5]
    assert [one.ids.tolist() for one in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([one.score for one in found], [s / 3 for s, _ in expected], 1e-5)
    assert not any(one.ended for one in found)
    for one in found:
        np.testing.assert_allclose(one.log_probs.sum() / 3, one.score, rtol=1e-5)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 2.0])
def test_sequences_that_end_compete_by_the_length_penalty(penalty: float) -> None:
    settings = GenerationSettings(
        num_beams=VOCABULARY**2,
        num_return_sequences=4,
        eos_token_id=(END,),
        length_penalty=penalty,
        early_stopping="never",
    )
    found = searched(settings, [1], 3)
    scored = [(s / (len(ids) - 1) ** penalty, ids) for s, ids in every_sequence([1], 3, ends=True)]
    expected = sorted(scored, reverse=True)[:4]
    assert [one.ids.tolist() for one in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([one.score for one in found], [s for s, _ in expected], 1e-5)
    assert [one.ended for one in found] == [one.ids[-1] == END for one in found]


def test_early_stopping_takes_the_first_that_end() -> None:
    early = GenerationSettings(num_beams=2, eos_token_id=(0, 1, 2, 3), early_stopping=True)
    search = BeamSearch(np.array([1]), 12, early, Stopping(early))
    steps = 0
    while not search.done:
        ids = search.running.ids[:, : search.length]
        search.advance(np.stack([log_probs_of(row) for row in ids]), None)
        steps += 1
    assert steps < 11
    assert search.results()[0].ended


def test_sampled_beams_differ_by_seed_alone() -> None:
    settings = GenerationSettings(num_beams=2, num_return_sequences=2, do_sample=True)
    drawn = [
        [one.ids.tolist() for one in searched(settings, [1], 10, seed)]
        for seed in (1, *range(1, 16))
    ]
    assert drawn[0] == drawn[1]
    assert any(one != drawn[0] for one in drawn)
