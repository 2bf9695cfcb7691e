"""Inputs in a GPU's memory, so that calls can be measured without copies between host and device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.runtime.gpu import DeviceArray, Gpu

__all__ = ["on_gpu"]


def on_gpu(inputs: Mapping[str, NDArray[Any]], gpu: Gpu | None = None) -> dict[str, DeviceArray]:
    """Copies of host arrays on a GPU, the first unless given; they are there when this returns."""
    gpu = gpu or Gpu()
    stream = gpu.stream()
    placed = {}
    for name, array in inputs.items():
        buffer = gpu.allocate(array.nbytes, stream)
        gpu.upload(np.ascontiguousarray(array), buffer, stream)
        placed[name] = DeviceArray(buffer, array.shape, array.dtype.name)
    stream.sync()
    return placed
