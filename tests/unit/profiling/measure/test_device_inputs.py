"""Inputs are copied to a GPU's memory whole, whatever their strides."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfuse.profiling.measure.device_inputs import on_gpu


class Memory:
    """A GPU that notes what is copied where."""

    def __init__(self) -> None:
        self.copied: dict[int, np.ndarray] = {}
        self.driver = self

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        class Array:
            pointer = 1000 + len(self.copied)

        Array.shape, Array.dtype = shape, dtype  # type: ignore[attr-defined]
        return Array

    def upload(self, pointer: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.copied[pointer] = array.copy()


def test_every_array_arrives() -> None:
    gpu = Memory()
    inputs = {"x": np.arange(6.0).reshape(2, 3).T, "ids": np.arange(3), "none": np.zeros((0, 4))}
    placed = on_gpu(inputs, gpu)  # type: ignore[arg-type]
    assert {name: (a.shape, a.dtype) for name, a in placed.items()} == {
        "x": ((3, 2), "float64"),
        "ids": ((3,), "int64"),
        "none": ((0, 4), "float64"),
    }
    np.testing.assert_array_equal(gpu.copied[placed["x"].pointer], inputs["x"])
    np.testing.assert_array_equal(gpu.copied[placed["ids"].pointer], inputs["ids"])
    assert len(gpu.copied) == 2, "nothing is copied of an empty array"
