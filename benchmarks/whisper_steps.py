"""Whisper's features of a sound, by the checkpoint's own extractor: for `transcribing.py` and
`cases.py`."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def log_mel(checkpoint: str, sound: Path) -> np.ndarray:
    """``[1, mels, frames]`` of up to 30 s of 16 kHz mono."""
    from transformers import WhisperFeatureExtractor

    with wave.open(str(sound)) as file:
        rate = file.getframerate()
        samples = (
            np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
        )
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    return extractor(samples, sampling_rate=rate, return_tensors="np").input_features.astype(
        np.float32
    )
