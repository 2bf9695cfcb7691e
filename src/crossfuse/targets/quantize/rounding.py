"""Weights rounded to 8 bits or less: per output channel for integer products, in blocks for
``MatMulNBits``, to one step whose multiples the channels have for engines.

Symmetric, so that the zero point is that of the type. A channel or block of zeros has the scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.grids import short_step

__all__ = [
    "BLOCK",
    "Blocks",
    "Channels",
    "OneStep",
    "in_blocks",
    "on_one_step",
    "per_channel",
    "per_filter",
]

BLOCK = 32
"""How many weights along a column share a scale in ``MatMulNBits``."""

_LARGEST = 127
_WIDEST = 64.0
"""How many times the one step a channel's own is at most."""


@dataclass(frozen=True)
class Channels:
    """Weights ``[…, K, N]`` in int8, and their scales, ``[N]`` or ``[…, 1, N]``; of a convolution,
    ``[M, …]`` and ``[M]``."""

    weights: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class OneStep:
    """Weights whose product is summed in one step, and multiplied by each channel's ratio behind.

    Attributes:
        weights: codes, in the shape of the weights.
        step: of all channels.
        ratios: each channel's own step by this one, fp32, of the shape of the magnitudes.
    """

    weights: NDArray[Any]
    step: float
    ratios: NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """Weights ``[K, N]`` as ``MatMulNBits`` takes them.

    Attributes:
        packed: ``[N, blocks, bytes]`` uint8; with 4 bits two weights a byte, the first one low.
        scales: ``[N · blocks]``.
        size: K and N.
        bits: of a weight.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    size: tuple[int, int]
    bits: int


def per_channel(weights: NDArray[Any]) -> Channels:
    """Round ``[…, K, N]`` to the nearest multiple of its column's largest magnitude over 127.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(weights).all():
        raise ValueError("weights that are not finite can't be rounded")
    scales = _scales(np.abs(weights).max(axis=-2, keepdims=True), _LARGEST)
    rounded = np.clip(np.rint(weights / scales), -_LARGEST, _LARGEST).astype(np.int8)
    return Channels(rounded, scales[0] if scales.ndim == 2 else scales)


def per_filter(weights: NDArray[Any], least: NDArray[Any] | None = None) -> Channels:
    """Round a convolution's ``[M, …]``, each filter by its own largest magnitude.

    Args:
        weights: fp32.
        least: ``[M]``, the smallest scales that may be.

    Raises:
        ValueError: NaN or infinity.
    """
    rows = weights.reshape(len(weights), -1)
    if not np.isfinite(rows).all():
        raise ValueError("weights that are not finite can't be rounded")
    scales = _scales(np.abs(rows).max(axis=1), _LARGEST)
    if least is not None:
        scales = np.maximum(scales, least.astype(np.float32))
    rounded = np.clip(np.rint(rows / scales[:, None]), -_LARGEST, _LARGEST).astype(np.int8)
    return Channels(rounded.reshape(weights.shape), scales)


def on_one_step(weights: NDArray[Any], axes: tuple[int, ...], codes: Codes) -> OneStep:
    """Round to symmetric codes, the largest magnitude of each channel to the largest.

    What is summed in the one step is no larger than the result itself, but for channels whose
    weights are far smaller than those of others: so a half float holds it where it holds the
    result.

    Args:
        weights: fp32.
        axes: that are summed over; the others are those of the channels.
        codes: symmetric ones.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(weights).all():
        raise ValueError("weights that are not finite can't be rounded")
    own = np.abs(weights.astype(np.float64)).max(axis=axes, keepdims=True) / codes.top
    present = own[own > 0]
    least = max(present.min(), present.max() / _WIDEST) if present.size else 1.0
    step = float(short_step(least))
    ratios = np.where(own > 0, short_step(own / step), 1.0)
    return OneStep(codes.rounded(weights / (step * ratios)), step, ratios.astype(np.float32))


def in_blocks(weights: NDArray[Any], bits: int) -> Blocks:
    """Round ``[K, N]`` in blocks of `BLOCK` along K, each to its own largest magnitude.

    Args:
        weights: fp32.
        bits: 4 or 8.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(weights).all():
        raise ValueError("weights that are not finite can't be rounded")
    rows, columns = weights.shape
    count = -(-rows // BLOCK)
    padded = np.zeros((columns, count * BLOCK), np.float32)
    padded[:, :rows] = weights.T
    blocks = padded.reshape(columns, count, BLOCK)
    zero = 1 << (bits - 1)
    scales = _scales(np.abs(blocks).max(axis=-1, keepdims=True), zero - 1)
    codes = (np.clip(np.rint(blocks / scales), 1 - zero, zero - 1) + zero).astype(np.uint8)
    packed = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    return Blocks(np.ascontiguousarray(packed), scales.reshape(-1), (rows, columns), bits)


def _scales(largest: NDArray[Any], top: int) -> NDArray[np.float32]:
    """One step per channel; of magnitudes too small for one in fp32, as of zeros, 1."""
    steps = (largest.astype(np.float64) / top).astype(np.float32)
    return np.where(steps < np.finfo(np.float32).tiny, np.float32(1), steps).astype(np.float32)
