"""Sounds at other rates, against the sounds that they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import resample_poly

from crossfuse.core.resample import resample


def tone(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(("own", "rate"), [(44100, 16000), (48000, 16000), (8000, 16000)])
def test_what_both_rates_hold_stays(own: int, rate: int) -> None:
    for hertz in (50.0, 440.0, 3100.0):
        made = resample(tone(hertz, own), own, rate)
        expected = tone(hertz, rate)
        assert made.shape == expected.shape
        np.testing.assert_allclose(made[200:-200], expected[200:-200], atol=2e-4)


def test_what_the_lower_rate_can_not_hold_does_not_fold_back() -> None:
    for hertz in (9000.0, 15000.0, 20000.0):
        made = resample(tone(hertz, 44100), 44100, 16000)
        assert np.abs(made[200:-200]).max() < 1e-3


def test_a_peer_says_the_same_of_noise_below_the_band() -> None:
    noise = np.random.default_rng(0).standard_normal(6000)
    smooth = resample_poly(noise, 4, 1)
    found, expected = resample(smooth, 4, 1), noise
    np.testing.assert_allclose(
        np.convolve(found, np.hanning(9) / 4, "same")[100:-100],
        np.convolve(expected, np.hanning(9) / 4, "same")[100:-100],
        atol=0.02,
    )


def test_the_same_rate_and_no_sound() -> None:
    sound = np.arange(5.0)
    assert resample(sound, 8000, 8000) is sound
    assert resample(np.zeros(0), 8000, 16000).size == 0
