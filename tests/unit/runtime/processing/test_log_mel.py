"""Features of sounds, against the extractor's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.core.json_reader import Origin, decode
from crossfuse.runtime.processing.log_mel import LogMel

ORIGIN = Origin("the settings", "here")


def of(**settings: Any) -> tuple[LogMel, Any]:
    import json

    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(**settings)
    return decode(LogMel, json.loads(extractor.to_json_string()), ORIGIN), extractor


def sounds(rate: int) -> dict[str, np.ndarray]:
    generator, times = np.random.default_rng(0), np.arange(rate) / rate
    return {
        "noise": generator.standard_normal(rate // 2),
        "long": generator.standard_normal(2 * rate + 37) * 0.1,
        "rising": np.sin(times**2 * rate * 0.7) * times,
        "silence": np.zeros(40),
        "quiet": generator.standard_normal(rate) * 1e-4,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_length": 1},
        {"chunk_length": 1, "feature_size": 128},
        {"chunk_length": 2, "feature_size": 13, "n_fft": 512, "hop_length": 128},
        {"chunk_length": 1, "sampling_rate": 24000, "n_fft": 401, "hop_length": 100},
    ],
)
def test_features_are_the_extractors(settings: dict[str, Any]) -> None:
    mine, extractor = of(**settings)
    np.testing.assert_allclose(mine.bands, extractor.mel_filters, atol=1e-12)
    rate = mine.sampling_rate
    assert (mine.samples, mine.frames) == (extractor.n_samples, extractor.nb_max_frames)
    for name, sound in sounds(rate).items():
        cut = np.zeros(extractor.n_samples, np.float32)
        cut[: len(sound)] = sound[: extractor.n_samples]
        expected = extractor._np_extract_fbank_features(cut[None], "cpu")[0]
        np.testing.assert_allclose(mine(sound), expected, atol=1e-5, err_msg=name)
        theirs = extractor(sound.astype(np.float32), sampling_rate=rate, return_tensors="np")
        # PyTorch's float32 itself is 2e-5 off where a sound is far below its loudest.
        np.testing.assert_allclose(mine(sound), theirs.input_features[0], atol=1e-4, err_msg=name)
        if len(sound) > mine.samples:
            whole = sound.astype(np.float32)[None]
            expected = extractor._np_extract_fbank_features(whole, "cpu")[0]
            np.testing.assert_allclose(mine(sound, whole=True), expected, atol=1e-5)


def test_what_is_no_sound_is_refused() -> None:
    mine, _ = of(chunk_length=1)
    for wrong in (np.zeros((2, 3)), np.zeros(0), np.array(["a"]), np.array([np.nan])):
        with pytest.raises(InputError, match="sound"):
            mine(wrong)


@pytest.mark.parametrize(
    "changed",
    [{"dither": 0.1}, {"do_normalize": True}, {"feature_extractor_type": "ClapFeatureExtractor"}],
)
def test_other_features_are_refused(changed: dict[str, Any]) -> None:
    known = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "n_fft": 400,
        "sampling_rate": 16000, "hop_length": 160, "chunk_length": 1,
    }  # fmt: skip
    assert decode(LogMel, known, ORIGIN).frames == 100
    with pytest.raises(InputError, match=next(iter(changed))):
        decode(LogMel, known | changed, ORIGIN)
    with pytest.raises(InputError, match="hop_length"):
        decode(LogMel, known | {"hop_length": 0}, ORIGIN)
    for large in ({"chunk_length": 1 << 19}, {"feature_size": 1 << 19}, {"n_fft": 1 << 16}):
        with pytest.raises(InputError, match=r"asks? for more|n_fft"):
            decode(LogMel, known | large, ORIGIN)
