"""`LogMel`: Whisper's log-mel features of a sound, with NumPy alone.

The sound is cut into overlapping windows; the power of each, summed in bands that are even to the
ear, is taken to its logarithm, and what is 80 dB below the loudest is lifted to there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from crossfuse.core.json_form import AtLeast, Form
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WHISPER", "LogMel"]

WHISPER = "WhisperFeatureExtractor"

_HIGHEST = 8000.0
"""Of the bands, in hertz."""
_LINEAR_UP_TO = 1000.0
_MELS_THERE = 15.0
_STEP = np.log(6.4) / 27
"""Mels up to 1000 Hz are even in hertz, and above in its logarithm."""
_FLOOR = 1e-10
_RANGE = 8.0
"""Tens of dB that are kept below the loudest."""
_BLOCK = 4096
"""Windows that are computed at once."""

_MOST = 1 << 26
"""Samples at once, and numbers of the bands: settings that ask for more would take a machine's
memory."""
_Count = Annotated[int, AtLeast(1, 1 << 20)]


@dataclass(frozen=True)
class LogMel:
    """Settings of the features, as ``preprocessor_config.json`` names them.

    Attributes:
        feature_extractor_type: whose features they are.
        feature_size: bands.
        sampling_rate: samples per second.
        hop_length: samples from a window to the next.
        chunk_length: seconds that the model hears at once.
        n_fft: samples of a window.
        dither: noise that is added to the sound.
        padding_value: of what is behind the sound's end.
        do_normalize: the sound is brought to mean 0 and variance 1 first.
    """

    __json__: ClassVar[Form] = Form(
        required=frozenset(
            {"feature_extractor_type", "feature_size", "hop_length", "n_fft", "chunk_length"}
        )
    )

    feature_extractor_type: str
    feature_size: _Count
    sampling_rate: _Count
    hop_length: _Count
    chunk_length: _Count
    n_fft: Annotated[int, AtLeast(2, 1 << 14)]
    dither: float = 0.0
    padding_value: float = 0.0
    do_normalize: bool = False

    def __post_init__(self) -> None:
        others = {
            "feature_extractor_type": (self.feature_extractor_type, WHISPER),
            "dither": (self.dither, 0.0),
            "do_normalize": (self.do_normalize, False),
        }
        for name, (value, known) in others.items():
            if value != known:
                raise InputError(
                    "sounds of this kind can't be prepared here",
                    where=name,
                    got=value,
                    expected=known,
                    do="Prepare them with the model's own processor, and give the arrays",
                )

        bands = self.feature_size * (self.n_fft // 2 + 1)
        largest = max(self.samples, bands, self.feature_size * self.frames)
        if largest > _MOST:
            raise InputError(
                "the settings for sounds ask for more than is prepared here",
                where="chunk_length, sampling_rate, feature_size, hop_length, n_fft",
                got=f"{largest} numbers at once",
                expected=f"at most {_MOST}",
            )

    @property
    def samples(self) -> int:
        """Of what the model hears at once."""
        return self.chunk_length * self.sampling_rate

    @property
    def frames(self) -> int:
        """Of what the model hears at once."""
        return self.samples // self.hop_length

    def __call__(self, sound: object, *, whole: bool = False) -> NDArray[np.float32]:
        """Features of one sound.

        Args:
            sound: samples ``[time]`` at the sampling rate, as numbers from -1 to 1.
            whole: of its own length where it is longer than the model hears at once; else it is
                cut there. Shorter ones are always padded to that.

        Returns:
            ``[feature_size, frames]`` float32.

        Raises:
            InputError: no sound.
        """
        given = np.asarray(sound)
        if given.ndim != 1 or not given.size or given.dtype.kind not in "fiu":
            raise InputError(
                "a sound has to be samples of one channel",
                got=f"{given.dtype}{list(given.shape)}",
                expected="[time]",
            )
        if not np.isfinite(given).all():
            raise InputError("the sound holds NaN or infinity")
        length = max(self.samples, len(given)) if whole else self.samples
        padded = np.full(length, self.padding_value)
        padded[: len(given)] = given[:length]
        return self._features(padded)

    def _features(self, sound: NDArray[np.float64]) -> NDArray[np.float32]:
        half = self.n_fft // 2
        if len(sound) <= half:
            raise InputError("the windows are longer than the sound", where="n_fft", got=self.n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
        padded = np.pad(sound, half, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)
        windows = windows[:: self.hop_length][:-1]
        logs = np.empty((self.feature_size, len(windows)))
        for start in range(0, len(windows), _BLOCK):
            spectrum = np.fft.rfft(windows[start : start + _BLOCK] * window)
            power = spectrum.real**2 + spectrum.imag**2
            logs[:, start : start + _BLOCK] = np.log10(np.maximum(power @ self.bands, _FLOOR)).T
        features: NDArray[np.float32] = ((np.maximum(logs, logs.max() - _RANGE) + 4) / 4).astype(
            np.float32
        )
        return features

    @cached_property
    def bands(self) -> NDArray[np.float64]:
        """``[n_fft // 2 + 1, feature_size]``: weights of frequencies in triangular bands of equal
        area."""
        highest = _MELS_THERE + np.log(_HIGHEST / _LINEAR_UP_TO) / _STEP
        mels = np.linspace(0, highest, self.feature_size + 2)
        below = mels * _LINEAR_UP_TO / _MELS_THERE
        above = _LINEAR_UP_TO * np.exp(_STEP * (mels - _MELS_THERE))
        edges = np.where(mels < _MELS_THERE, below, above)
        hertz = np.linspace(0, self.sampling_rate // 2, self.n_fft // 2 + 1)[:, None]
        rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
        inside = np.maximum(0, np.minimum(rising, falling))
        bands: NDArray[np.float64] = inside * (2 / (edges[2:] - edges[:-2]))
        return bands
