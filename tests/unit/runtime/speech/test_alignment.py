"""Times of tokens by the attention's scores, against what ``transformers`` makes of the same."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossfuse import InputError
from crossfuse.runtime.speech.alignment import Alignment, cheapest_way, fit
from unit.runtime.speech.toy_speech import (
    BANDS,
    FRAMES,
    GENERATION,
    HEADS,
    SCORES,
    START,
    speech_session,
)  # fmt: skip

RNG = np.random.default_rng(3)
HEARD = {"alignment_outputs": [[SCORES, 1], [SCORES, 0]]}


def ways(tokens: int, places: int) -> list[list[tuple[int, int]]]:
    """All ways from the first token and place to the last ones."""
    if (tokens, places) == (1, 1):
        return [[(0, 0)]]
    steps = [(tokens - 1, places - 1), (tokens - 1, places), (tokens, places - 1)]
    before = [way for t, p in steps if t > 0 and p > 0 for way in ways(t, p)]
    return [[*way, (tokens - 1, places - 1)] for way in before]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 5), (5, 3), (4, 1)])
def test_no_way_is_cheaper(shape: tuple[int, int]) -> None:
    costs = RNG.standard_normal(shape)
    best = min(ways(*shape), key=lambda way: sum(costs[at] for at in way))
    first = [min(place for token, place in best if token == i) for i in range(shape[0])]
    assert cheapest_way(costs).tolist() == first


@pytest.mark.parametrize("shape", [(30, 90), (7, 400), (40, 12)])
def test_ways_are_the_librarys(shape: tuple[int, int]) -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    costs = RNG.standard_normal(shape)
    text, time = _dynamic_time_warping(costs)
    expected = time[np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)]
    found = cheapest_way(costs)
    assert found.tolist() == expected.tolist()
    assert all(one <= other for one, other in pairwise(found.tolist()))


@pytest.mark.parametrize("places", [3, 4, 25])
def test_scores_are_smoothed_as_the_librarys(places: int) -> None:
    from transformers.models.whisper.generation_whisper import _median_filter

    scores = RNG.random((3, 6, places))
    given = torch.from_numpy(scores)[None]
    given = (given - given.mean(-2, keepdim=True)) / given.std(-2, keepdim=True, unbiased=False)
    expected = _median_filter(given, 7)[0].mean(0)
    np.testing.assert_allclose(fit(scores, 7), expected, atol=1e-12)


def test_a_place_that_tells_nothing_counts_nothing() -> None:
    scores = np.array([[[0.5, 0.1, 0.9], [0.5, 0.9, 0.1]]])
    np.testing.assert_allclose(fit(scores, 1), [[0, -1, 1], [0, 1, -1]])


@pytest.mark.parametrize("frames", [FRAMES, 61])
def test_places_are_the_librarys(frames: int) -> None:
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    session = speech_session(GENERATION | HEARD, scores=True)
    sound = RNG.standard_normal((1, BANDS, FRAMES)).astype(np.float32)
    context = session.encode(input_features=sound)
    prompt, tokens = [START, 27], np.array([28, 3, 7, 1, 40, 40, 2, 9, 20])
    found = Alignment.of(session).places(session, context, prompt, tokens, frames)

    fed = [*prompt, *tokens[:-1].tolist()]
    scores = session.start(context, prompt=[fed]).outputs[SCORES]
    theirs = torch.from_numpy(np.moveaxis(scores, 1, 2).copy())
    outputs = SimpleNamespace(
        cross_attentions=[(theirs,)], sequences=torch.zeros(1, len(fed) + 1),
    )  # fmt: skip
    model = SimpleNamespace(config=SimpleNamespace(decoder_layers=1, median_filter_width=7))
    extract: Any = WhisperGenerationMixin._extract_token_timestamps

    class Outputs(dict[str, Any]):
        __getattr__ = dict.__getitem__

    times = extract(
        model, Outputs(vars(outputs)), [(0, 1), (0, 0)], num_frames=torch.tensor([frames]),
        num_input_ids=len(prompt),
    )[0, len(prompt) :]  # fmt: skip
    np.testing.assert_allclose(found * 0.02, times, atol=1e-6)
    assert found.max() < frames // 2
    assert len(set(found.tolist())) > 3


def test_no_tokens_and_no_sound() -> None:
    session = speech_session(GENERATION | HEARD, scores=True)
    context = session.encode(input_features=np.zeros((1, BANDS, FRAMES), np.float32))
    aligned = Alignment.of(session)
    for tokens, frames in (([20], FRAMES), ([3, 20], 1)):
        places = aligned.places(session, context, [START], np.array(tokens), frames)
        assert places.tolist() == [0] * len(tokens)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "keeps no attention scores .*alignment_heads"),
        ({"alignment_outputs": [["other", 0]]}, "name no outputs and heads of them"),
        ({"alignment_outputs": [[SCORES, -1]]}, "name no outputs"),
        ({"alignment_outputs": 3}, "name no outputs"),
        (HEARD | {"median_filter_width": 4}, "odd number"),
    ],
)
def test_refusals(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Alignment.of(speech_session(GENERATION | settings, scores=True))


def test_a_head_that_is_not_there() -> None:
    session = speech_session(GENERATION | {"alignment_outputs": [[SCORES, HEADS]]}, scores=True)
    context = session.encode(input_features=np.zeros((1, BANDS, FRAMES), np.float32))
    with pytest.raises(InputError, match="no scores of this head"):
        Alignment.of(session).places(session, context, [START], np.array([3, 4, 20]), FRAMES)
