"""Grids: what they cover, and when channels are scaled, against the error that it leaves."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.grids import (
    HEADROOM,
    Grid,
    LayerGrids,
    Range,
    grid_over,
    joined,
    scaling,
    short_step,
)
from onnx_building import normal


def of(*arrays: np.ndarray) -> Range:
    return Range(
        np.min([one.min(axis=0) for one in arrays], axis=0),
        np.max([one.max(axis=0) for one in arrays], axis=0),
    )


def rounded(x: np.ndarray, grid: Grid) -> np.ndarray:
    """What the codes of numbers stand for, in float64."""
    factors = np.asarray(grid.scaling or 1.0)
    codes = np.clip(np.rint(x / factors / grid.step) + grid.zero, 0, 255)
    return (codes - grid.zero) * grid.step * factors


@pytest.mark.parametrize(("low", "high"), [(-3, 5), (0.5, 4), (-4, -1), (0, 0), (-1e-30, 1e30)])
def test_a_grid_covers_the_range_and_zero(low: float, high: float) -> None:
    seen = Range(np.float32(low), np.float32(high))
    grid = grid_over(seen)
    ends = np.array([min(low, 0.0), 0.0, max(high, 0.0)]) * HEADROOM
    assert abs(rounded(ends, grid) - ends).max() <= grid.step
    assert rounded(np.zeros(1), grid) == 0, "0 is exact"
    assert (grid.step > 0, 0 <= grid.zero <= 255) == (True, True)
    assert LayerGrids(grid).made is None


def test_ranges_are_joined_and_known_only_where_finite() -> None:
    one, two = of(normal(4, 3, seed=1)), of(normal(4, 3, seed=2))
    both = joined(one, two)
    assert (both.low <= np.minimum(one.low, two.low)).all()
    assert both.known
    assert (both.peaks >= 0).all()
    for number in (np.nan, np.inf):
        assert not joined(one, Range(two.low, np.full(3, number, np.float32))).known


@pytest.mark.parametrize("outlier", [1.0, 1000.0])
def test_channels_are_scaled_where_some_are_far_larger(outlier: float) -> None:
    """And that makes the error of the product several times smaller."""
    x, w = normal(64, 32, seed=3), normal(32, 24, seed=4)
    x[:, 5] *= outlier
    w[5] /= outlier
    factors = scaling(of(x), [w, w[:, ::-1]])
    if outlier == 1:
        assert factors is None
        return
    assert factors is not None
    truth = x.astype(np.float64) @ w
    errors = [
        np.square(rounded(x, grid_over(of(x), one)) @ w - truth).mean() for one in (factors, None)
    ]
    assert errors[0] < errors[1] / 100
    assert grid_over(of(x), factors).scaling == tuple(map(float, factors))


def test_nothing_is_scaled_that_can_not_be() -> None:
    x, w = normal(8, 4, seed=5), normal(4, 9, seed=6)
    assert scaling(Range(np.float32(-1), np.float32(1)), [w]) is None, "the channels are not known"
    assert scaling(of(np.zeros_like(x)), [w]) is None
    assert scaling(of(x), [np.zeros_like(w)]) is None
    half = x * np.array([0, 1000, 1, 0])
    factors = scaling(of(half.astype(np.float32)), [w * np.array([1, 1e-3, 1, 0])[:, None]])
    assert factors is None or (np.isfinite(factors).all() and (factors > 0).all())


@pytest.mark.parametrize("size", [3e-9, 2e-6, 1.2345e-4, 0.7, 1.0, 4321.1])
def test_short_steps_are_numbers_of_every_half_type(size: float) -> None:
    step = float(short_step(size))
    assert step >= size
    assert step <= max(size * (1 + 2**-7), size + 2**-24)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert float(np.array(step).astype(dtype)) == step


@pytest.mark.parametrize("codes", [Codes.INT8, Codes.FP8])
@pytest.mark.parametrize(("low", "high"), [(-3, 5), (-40, 1), (1e-5, 2e-5), (0, 0)])
def test_symmetric_grids_reach_as_far_to_both_sides(codes: Codes, low: float, high: float) -> None:
    grid = grid_over(Range(np.float32(low), np.float32(high)), codes=codes)
    reach = HEADROOM * max(abs(low), abs(high))
    assert (grid.zero, grid.codes) == (0, codes)
    assert grid.step > 0
    assert reach <= grid.step * codes.top
    assert reach == 0 or grid.step <= max(reach / codes.top * 1.01, reach / codes.top + 2**-24)
    x = normal(8, 4, seed=1) * np.array([1, 1000, 1, 1])
    w = normal(4, 9, seed=2) / np.array([1, 1000, 1, 1])[:, None]
    factors = scaling(of(x.astype(np.float32)), [w.astype(np.float32)], codes)
    assert (factors is None) == (codes is Codes.FP8), "floats have small steps for small numbers"
