"""What stands in front of a transcript: as ``transformers`` has it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossfuse import InputError
from crossfuse.runtime.speech.first_tokens import (
    first_time,
    first_tokens,
    language_of,
    previous_text,
)
from unit.runtime.speech.toy_speech import (
    BANDS,
    BEFORE,
    ENGLISH,
    FIRST,
    FRAMES,
    FRENCH,
    GENERATION,
    NONE,
    START,
    TRANSCRIBE,
    TRANSLATE,
    speech_session,
)  # fmt: skip

ENGLISH_ALONE = {
    "decoder_start_token_id": START, "no_timestamps_token_id": NONE, "is_multilingual": False,
}  # fmt: skip
OLDER = {**GENERATION, "forced_decoder_ids": [[1, None], [2, TRANSLATE]]}
FIXED = {**GENERATION, "forced_decoder_ids": [[1, FRENCH], [2, TRANSCRIBE], [3, NONE]]}
CASES = {
    "several languages": (GENERATION, {}),
    "a language": (GENERATION, {"language": "fr"}),
    "a language's token": (GENERATION, {"language": "<|FR|>"}),
    "a task": (GENERATION, {"task": "translate"}),
    "both": (GENERATION, {"language": "en", "task": "translate"}),
    "one language": (ENGLISH_ALONE, {}),
    "older settings": (OLDER, {}),
    "older settings with a language": (OLDER, {"language": "en"}),
    "older settings that say all": (FIXED, {}),
    "no more than a beginning": ({"decoder_start_token_id": START}, {}),
}


def theirs(about: dict[str, Any], heard: int, timed: bool, asked: dict[str, str]) -> list[int]:
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    config = SimpleNamespace(**about, return_timestamps=timed)
    for name, value in asked.items():
        setattr(config, name, value)
    model = SimpleNamespace(
        detect_language=lambda **_: torch.tensor([heard]), device="cpu",
    )  # fmt: skip
    found = WhisperGenerationMixin._retrieve_init_tokens(
        model, None, batch_size=1, generation_config=config, config=SimpleNamespace(),
        num_segment_frames=FRAMES, kwargs={},
    )  # fmt: skip
    return found[0].tolist()


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_the_library(case: str, timed: bool) -> None:
    about, asked = CASES[case]
    if timed and NONE not in about.values():
        pytest.skip("the library has no times there")
    session = speech_session(about)
    features = np.random.default_rng(3).standard_normal((1, BANDS, FRAMES)).astype(np.float32)
    context = session.encode(input_features=features)
    scores = session.query(context, decoder_input_ids=np.array([[START]]))["logits"][0, -1]
    heard = max((ENGLISH, FRENCH), key=lambda token: scores[token])
    found = first_tokens(session, context, timed=timed, **asked)
    assert found == theirs(about, heard, timed, asked)


@pytest.mark.parametrize(
    ("about", "asked", "words"),
    [
        (GENERATION, {"language": "de"}, "de"),
        (GENERATION, {"task": "summarize"}, "summarize"),
        (ENGLISH_ALONE, {"language": "en"}, "one language"),
        ({"decoder_start_token_id": START}, {"task": "translate"}, "no token of a task"),
        ({}, {}, "no token that a transcript begins with"),
    ],
)
def test_refusals(about: dict[str, Any], asked: dict[str, str], words: str) -> None:
    session = speech_session(about)
    context = session.encode(input_features=np.ones((1, BANDS, FRAMES), np.float32))
    with pytest.raises(InputError, match=words):
        first_tokens(session, context, **asked)


def test_the_text_before() -> None:
    assert previous_text(GENERATION, [1, 2, 3], 2) == [BEFORE, 2, 3]
    assert previous_text(GENERATION, [], 2) == []
    assert previous_text({"suppress_tokens": [4, 9, 8]}, [1], 5) == [9, 1]
    assert previous_text({}, [1], 5) == [1]


def test_languages_and_times() -> None:
    assert language_of(GENERATION, [START, FRENCH]) == "fr"
    assert language_of(ENGLISH_ALONE, [START]) is None
    assert (first_time(GENERATION), first_time({})) == (FIRST, None)
