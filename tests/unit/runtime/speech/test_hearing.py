"""A sound as it is heard: how long it sounds, and which models write speech down."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.speech.hearing import Hearing, writes_down_speech
from unit.runtime.speech.toy_speech import (
    FRAMES,
    GENERATION,
    HOP,
    RATE,
    speech_processor,
    speech_session,
)  # fmt: skip
from unit.runtime.toy_decoder import toy_session


@pytest.mark.parametrize("samples", [1, 9, 10, 11, 700, 705, 2500])
def test_frames_that_sound(samples: int) -> None:
    """As the library counts them: every one that begins in the sound; features fill a window."""
    sound = np.ones(samples, np.float32)
    hearing = Hearing.of(speech_session(), speech_processor(), sound, {})
    assert hearing.sounding == len(range(0, samples, HOP))
    assert hearing.features.shape[1] == max(FRAMES, samples // HOP)
    assert hearing.duration == samples / RATE


def test_models_of_another_kind() -> None:
    assert writes_down_speech(GENERATION)
    assert not writes_down_speech({"eos_token_id": 3, "suppress_tokens": [1]})
    with pytest.raises(InputError, match="no model of Whisper's kind"):
        Hearing.of(toy_session(), speech_processor(), np.ones(9), {})
