"""Weights in integers, against what they were made of and ONNX Runtime's own packing."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.rounding import BLOCK, in_blocks, on_one_step, per_channel
from onnx_building import normal

W = (normal(70, 9, seed=3) * np.logspace(-4, 3, 9)).astype(np.float32)


def test_channels_are_rounded_to_half_a_step_of_their_own() -> None:
    found = per_channel(W)
    assert found.weights.dtype == np.int8
    back = found.weights.astype(np.float64) * found.scales
    steps = np.abs(W).max(axis=0).astype(np.float64) / 127
    assert (np.abs(back - W) <= steps / 2 * (1 + 1e-5)).all()
    assert (np.abs(found.weights).max(axis=0) == 127).all(), "the whole range is used"


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3)])
def test_channels_of_zeros_and_of_numbers_too_small_for_a_step(shape: tuple[int, ...]) -> None:
    weights = np.zeros(shape, np.float32)
    weights[..., 0, 1] = 1e-42
    found = per_channel(weights)
    assert np.isfinite(found.scales).all()
    assert (found.scales > 0).all()
    assert found.weights.any() == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_packed_as_the_engine_packs_them(bits: int) -> None:
    """The same codes where the peer's block has its largest number at the same end, so compare
    what they stand for."""
    found = in_blocks(W, bits)
    blocks = -(-len(W) // BLOCK)
    packed = np.zeros((9, blocks, BLOCK * bits // 8), np.uint8)
    scales = np.zeros((9, blocks), np.float32)
    zeros = np.zeros((9, (blocks * bits + 7) // 8), np.uint8)
    pack = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}[bits]
    padded = np.pad(W, ((0, blocks * BLOCK - len(W)), (0, 0)))
    pack(packed, padded, scales, zeros, BLOCK, 9, len(W), True)

    def widened(codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(9, blocks, BLOCK)
        values = (codes.astype(np.float64) - (1 << (bits - 1))) * steps.reshape(9, blocks, 1)
        return values.reshape(9, -1)[:, : len(W)].T

    ours, theirs = widened(found.packed, found.scales), widened(packed, scales)
    largest = np.abs(W).max(axis=0)
    step = 1 / ((1 << (bits - 1)) - 1)
    assert (np.abs(ours - W) / largest).max() <= step / 2 * (1 + 1e-5)
    assert (np.abs(ours - theirs) / largest).max() <= 1.1 * step, "the same layout"
    assert found.size == W.shape


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = W.copy()
    weights[1, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        per_channel(weights)
    with pytest.raises(ValueError, match="not finite"):
        in_blocks(weights, 8)


@pytest.mark.parametrize("codes", [Codes.INT8, Codes.FP8])
@pytest.mark.parametrize("axes", [(-2,), (0,)])
def test_channels_have_multiples_of_one_step(codes: Codes, axes: tuple[int, ...]) -> None:
    weights = np.concatenate([W, np.zeros((len(W), 1), np.float32)], axis=1)
    found = on_one_step(weights, axes, codes)
    assert found.ratios.shape == (1, 10)
    assert found.weights.dtype == codes.dtype
    back = found.weights.astype(np.float64) * found.step * found.ratios
    largest = np.abs(weights).max(axis=0).astype(np.float64)
    least = found.step * found.ratios * 2**-10
    allowed = (
        largest / 127 / 2 * 1.02
        if codes is Codes.INT8
        else np.maximum(np.abs(weights) / 16 * 1.001, least)
    )
    assert (np.abs(back - weights) <= allowed + found.step * 2**-24 * 64).all()
    sums, results = np.abs(weights / found.ratios), np.abs(weights)
    wide = largest > largest.max() / 64
    assert (sums <= results)[:, wide].all(), "what is summed is no larger than the result"
    for number in (found.step, *found.ratios[0]):
        assert float(np.float16(number)) == number, "half floats hold the constants as they are"
    with pytest.raises(ValueError, match="not finite"):
        on_one_step(np.full((2, 2), np.nan, np.float32), (-2,), codes)
