"""What 8 bits stand for."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.core.target import TARGETS
from crossfuse.targets.quantize.codes import Codes, codes_of


def test_targets_have_codes_of_their_own() -> None:
    assert codes_of(TARGETS["ort-cpu"], "int8") is codes_of(TARGETS["openvino"], "int8")
    assert codes_of(TARGETS["openvino"], "int8") is Codes.UINT8
    for name in ("tensorrt", "tensorrt-rtx"):
        assert codes_of(TARGETS[name], "mixed-int8") is Codes.INT8
        assert codes_of(TARGETS[name], "fp8") is Codes.FP8


@pytest.mark.parametrize("codes", [Codes.INT8, Codes.FP8])
def test_the_nearest_codes_and_nothing_beyond_the_largest(codes: Codes) -> None:
    numbers = np.array([0, 1, -3.4, 126.6, 1e6, -1e6, 17.3])
    found = codes.rounded(numbers).astype(np.float64)
    top = codes.top
    assert (found[0], found[4], found[5]) == (0, top, -top)
    inside = np.abs(numbers) < top
    steps = 0.5 if codes is Codes.INT8 else np.abs(numbers[inside]) / 16
    assert (np.abs(found - numbers)[inside] <= steps).all()
    assert float(np.array(top).astype(codes.dtype)) == top
    assert codes.symmetric
