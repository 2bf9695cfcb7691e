"""What is left to draw from, against ``transformers``; and draws, against their probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from crossfuse.runtime.generation.histories import Histories
from crossfuse.runtime.generation.sampling import (
    Draws,
    log_probability,
    log_softmax,
    top,
    warpers_of,
)
from crossfuse.runtime.generation.settings import GenerationSettings

RNG = np.random.default_rng(1)
ONES = np.ones(5, np.int64)
HISTORY = Histories(np.zeros((5, 3), np.int64), ONES, ONES, ONES * 9)
CASES: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "temperature": ({"temperature": 0.7}, lambda: hf.TemperatureLogitsWarper(0.7)),
    "top k": ({"top_k": 4}, lambda: hf.TopKLogitsWarper(4)),
    "all of them": ({"top_k": 99}, lambda: hf.TopKLogitsWarper(99)),
    "top p": ({"top_p": 0.6}, lambda: hf.TopPLogitsWarper(0.6)),
    "tight": ({"top_p": 0.0}, lambda: hf.TopPLogitsWarper(0.0)),
    "min p": ({"min_p": 0.2}, lambda: hf.MinPLogitsWarper(0.2)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_is_what_the_library_leaves(name: str) -> None:
    settings, theirs = CASES[name]
    (ours,) = warpers_of(GenerationSettings(**{"top_k": 0, **settings}, do_sample=True))
    for _ in range(5):
        scores = (RNG.standard_normal((5, 20)) * 2).astype(np.float32)
        scores[RNG.random((5, 20)) < 0.1] = -np.inf
        expected = theirs()(None, torch.from_numpy(scores.copy())).numpy()
        np.testing.assert_allclose(ours(HISTORY, scores.copy()), expected, rtol=1e-6)


def test_the_log_probability_of_one_token_is_that_of_all() -> None:
    scores = (np.random.default_rng(7).standard_normal((4, 50)) * 9).astype(np.float32)
    scores[1, :40] = -np.inf
    expected = torch.from_numpy(scores).double().log_softmax(-1).numpy()
    for row, token in ((0, 3), (1, 45), (2, int(scores[2].argmax())), (3, 0)):
        found = log_probability(scores[row], token)
        assert found == pytest.approx(expected[row, token], rel=1e-5, abs=1e-6)
        assert found == log_softmax(scores)[row, token]
    assert log_probability(scores[1], 0) == -np.inf


def test_beams_keep_a_token_beside_the_ends() -> None:
    settings = GenerationSettings(
        do_sample=True, num_beams=2, eos_token_id=(2, 3), top_k=1, top_p=0.01, min_p=1.0
    )
    scores = (RNG.standard_normal((5, 20))).astype(np.float32)
    for process in warpers_of(settings):
        scores = process(HISTORY, scores)
    assert np.isfinite(scores).sum(1).tolist() == [3] * 5


def test_nothing_is_warped_without_samples() -> None:
    assert warpers_of(GenerationSettings(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1)) == []
    (last,) = warpers_of(GenerationSettings(renormalize_logits=True))
    scores = RNG.standard_normal((5, 4))
    np.testing.assert_allclose(np.exp(last(HISTORY, scores)).sum(-1), 1)


def test_log_softmax_and_top_are_those_of_torch() -> None:
    scores = RNG.standard_normal((3, 50)).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(scores), -1).numpy()
    np.testing.assert_allclose(log_softmax(scores), expected, atol=1e-6)
    assert top(scores[0], 7).tolist() == torch.topk(torch.from_numpy(scores[0]), 7)[1].tolist()
    assert top(np.float32([1, 3, 3, 2, 3]), 4).tolist() == [1, 2, 4, 3]
    assert top(np.float32([1, 2]), 5).tolist() == [1, 0]


@pytest.mark.parametrize("size", [640, 1000, 51864 * 5])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_the_largest_of_long_rows_come_in_order(size: int, count: int) -> None:
    plain = RNG.standard_normal(size).astype(np.float32)
    coarse = np.round(plain * 2) / 2  # with many that are equal
    hidden = np.where(np.arange(size) % 97 == 3, plain, -np.inf)
    for scores in (plain, coarse, hidden, -np.sort(plain), np.sort(plain)):
        assert top(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


def test_draws_follow_the_probabilities() -> None:
    scores = np.float32([1.0, 0.0, -np.inf, 2.0, -1.0])
    shares = np.exp(log_softmax(scores.astype(np.float64)))
    draws = Draws(3, 1)
    counts = np.bincount([draws.token(0, scores) for _ in range(4000)], minlength=5)
    expected = 4000 * shares
    assert counts[2] == 0
    kept = expected > 0
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert statistic < 16.3, "the 0.999 quantile of chi-square with 3 degrees of freedom"


def test_several_are_drawn_without_replacement() -> None:
    scores = np.log(np.float64([0.5, 0.3, 0.2]))
    draws = Draws(4, 1)
    pairs = [tuple(draws.several(0, scores, 2).tolist()) for _ in range(3000)]
    assert all(a != b for a, b in pairs)
    expected = {
        (a, b): p * q / (1 - p)
        for a, p in enumerate((0.5, 0.3, 0.2))
        for b, q in enumerate((0.5, 0.3, 0.2))
        if a != b
    }
    statistic = sum((pairs.count(k) - 3000 * p) ** 2 / (3000 * p) for k, p in expected.items())
    assert statistic < 20.5, "the 0.999 quantile of chi-square with 5 degrees of freedom"


def test_a_seed_says_what_is_drawn_for_each_sequence() -> None:
    scores = np.zeros(1000, np.float32)
    alone, beside, other = Draws(7, 1), Draws(7, 3), Draws(8, 1)
    first = [alone.token(0, scores) for _ in range(5)]
    beside.token(1, scores)
    assert first == [beside.token(0, scores) for _ in range(5)]
    assert first != [other.token(0, scores) for _ in range(5)]
    assert Draws(None, 1).token(0, scores) in range(1000)
