"""A sound at another rate: band-limited, so that nothing above the lower rate's half folds back
into what is heard."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["resample"]

_ZEROS = 32
"""Zeros of the kernel on either side."""
_SHARPNESS = 12.0
"""Of the Kaiser window: what folds back is below −100 dB."""
_PASSED = 0.95
"""Share of the lower rate's band that a lower rate keeps."""
_BLOCK = 1 << 15
"""Samples that are made at once."""


def resample(sound: NDArray[np.floating], own: int, rate: int) -> NDArray[np.float64]:
    """The sound at another rate.

    Args:
        sound: samples ``[time]``.
        own: samples per second.
        rate: that are wanted.

    Returns:
        ``[time · rate // own]`` float64.
    """
    wide = np.asarray(sound, np.float64)
    if own == rate or not wide.size:
        return wide
    up, down = rate // math.gcd(own, rate), own // math.gcd(own, rate)
    band = min(1.0, _PASSED * up / down if down > up else 1.0)
    reach = math.ceil(_ZEROS / band)
    kernels = _kernels(up, reach, band)
    # The sample at or before each new one stands at place `reach` of its window.
    padded = np.pad(wide, (reach, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    made = np.empty(wide.size * up // down)
    for start in range(0, made.size, _BLOCK):
        place, phase = np.divmod(np.arange(start, min(start + _BLOCK, made.size)) * down, up)
        made[start : start + len(place)] = np.einsum("nk,nk->n", windows[place], kernels[phase])
    return made


def _kernels(phases: int, reach: int, band: float) -> NDArray[np.float64]:
    """``[phases, 2 · reach + 1]``: weights of the samples around a place between two of them."""
    distance = np.arange(-reach, reach + 1) - np.arange(phases)[:, None] / phases
    inside = np.maximum(0.0, 1 - (distance / (reach + 1)) ** 2)
    window = np.i0(_SHARPNESS * np.sqrt(inside)) / np.i0(_SHARPNESS)
    kernels: NDArray[np.float64] = band * np.sinc(band * distance) * window
    kernels /= kernels.sum(-1, keepdims=True)
    return kernels
