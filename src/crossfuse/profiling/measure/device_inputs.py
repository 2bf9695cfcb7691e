"""Inputs in a GPU's memory, so that calls can be measured without copies between host and
device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.gpu import Gpu

__all__ = ["on_gpu"]


def on_gpu(inputs: Mapping[str, NDArray[Any]], gpu: Gpu | None = None) -> dict[str, DeviceArray]:
    """Copies of host arrays on a GPU, the first unless given; they are there when this returns."""
    gpu = gpu or Gpu()
    placed = {}
    for name, array in inputs.items():
        placed[name] = gpu.empty(array.shape, array.dtype.name)
        if array.nbytes:
            gpu.driver.upload(placed[name].pointer, np.ascontiguousarray(array))
    return placed
