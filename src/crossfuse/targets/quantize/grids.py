"""Grids of 8 bits that activations are rounded to, and channels scaled before where some are much
larger than others.

A grid covers what calibration saw, 0 included, and a tenth more, since other inputs reach farther,
in 255 steps of one size. Where a few channels are far larger than the rest, their steps are too
coarse for the others. So each channel may be divided by a factor first, and the weights multiplied
by it, as in SmoothQuant: the geometric mean of what either has to round then decides.

Symmetric grids have steps of 8 significant bits: numbers that every half type holds as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.targets.quantize.codes import Codes

__all__ = [
    "HEADROOM",
    "Grid",
    "LayerGrids",
    "Range",
    "grid_over",
    "joined",
    "scaling",
    "short_step",
]

HEADROOM = 1.1
"""How much farther than what was seen a grid reaches."""

_WEIGHT_CODES = 127
_GAIN = 4.0
"""Channels are scaled where that makes the expected squared error smaller by this factor."""

_PEAK = 3.0
"""How much larger a channel's largest number is than its RMS, about."""

_BITS = 8
_SMALLEST_STEP = 2.0**-24
"""The smallest number of fp16."""


@dataclass(frozen=True)
class Range:
    """Smallest and largest numbers that were seen: ``[K]`` each, or scalars."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def known(self) -> bool:
        """Numbers were seen, and all of them were finite."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    @property
    def peaks(self) -> NDArray[np.float64]:
        """The largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high)).astype(np.float64)


@dataclass(frozen=True)
class Grid:
    """Codes of 8 bits: ``number = (code - zero) * step``.

    Attributes:
        step: size of a step, representable in fp32; of symmetric codes in every half type, too.
        zero: the code of 0.
        scaling: what each channel is divided by before, fp32; empty where nothing is.
        codes: which there are.
    """

    step: float
    zero: int
    scaling: tuple[float, ...] = ()
    codes: Codes = Codes.UINT8


@dataclass(frozen=True)
class LayerGrids:
    """Of one layer: what it is given, and, of a convolution, what it gives (behind its Relu)."""

    given: Grid
    made: Grid | None = None


def joined(first: Range, second: Range) -> Range:
    """What covers both; NaN stays, so that the range is not known."""
    return Range(np.minimum(first.low, second.low), np.maximum(first.high, second.high))


def short_step(size: NDArray[Any] | float) -> NDArray[np.float64]:
    """The smallest number of 8 significant bits from a positive one on, that fp16 holds, too."""
    _, exponent = np.frexp(np.asarray(size, np.float64))
    unit = np.maximum(np.ldexp(1.0, exponent - _BITS), _SMALLEST_STEP)
    return np.asarray(np.maximum(np.ceil(size / unit), 1.0) * unit)


def grid_over(
    seen: Range, factors: NDArray[np.float32] | None = None, codes: Codes = Codes.UINT8
) -> Grid:
    """The grid over a range with its headroom, 0 included; of nothing but zeros, one of step 1."""
    low, high = seen.low, seen.high
    if factors is not None:
        low, high = low / factors, high / factors
    least, most = HEADROOM * min(0.0, float(low.min())), HEADROOM * max(0.0, float(high.max()))
    scaled = () if factors is None else tuple(map(float, factors))
    if codes.symmetric:
        reach = max(-least, most)
        step = float(short_step(reach / codes.top)) if reach >= np.finfo(np.float32).tiny else 1.0
        return Grid(step, 0, scaled, codes)
    step = float(np.float32((most - least) / codes.top))
    if step < np.finfo(np.float32).tiny:
        step = 1.0
    zero = int(np.clip(np.rint(-least / step), 0, codes.top))
    return Grid(step, zero, scaled)


def scaling(
    seen: Range, weights: Sequence[NDArray[Any]], codes: Codes = Codes.UINT8
) -> NDArray[np.float32] | None:
    """Factors for the channels, ``[K]``; None where they gain little, as of floats, whose steps are
    as small as their numbers.

    Args:
        seen: per channel.
        weights: ``[K, N]`` of every layer that is given these channels.
        codes: that these are rounded to.
    """
    size = weights[0].shape[0]
    if seen.low.shape != (size,) or codes is Codes.FP8:
        return None
    peaks = seen.peaks
    sizes = np.max([np.abs(one).max(axis=1) for one in weights], axis=0).astype(np.float64)
    top, largest = peaks.max(), sizes.max()
    if top == 0 or largest == 0:
        return None
    floored = np.maximum(peaks, top * 1e-6), np.maximum(sizes, largest * 1e-6)
    factors = np.where(peaks > 0, np.sqrt(floored[0] / floored[1]), 1.0).astype(np.float32)
    ones = np.ones(size, np.float32)
    plain, scaled = (_expected(seen, weights, one, codes) for one in (ones, factors))
    return factors if scaled * _GAIN < plain else None


def _expected(
    seen: Range, weights: Sequence[NDArray[Any]], factors: NDArray[np.float32], codes: Codes
) -> float:
    """The expected squared error of a result, of all layers, up to a constant."""
    step = grid_over(seen, factors, codes).step
    given = float(np.square(seen.peaks / factors / _PEAK).sum())
    total = 0.0
    for one in weights:
        scaled = one.astype(np.float64) * factors[:, None]
        steps = np.abs(scaled).max(axis=0) / _WEIGHT_CODES
        total += step**2 * float(np.square(scaled).sum(axis=0).mean())
        total += given * float(np.square(steps).mean())
    return total
