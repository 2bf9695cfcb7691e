"""What a GPU says about itself through NVML: energy and memory. Nothing where there is no GPU, or no `nvidia-ml-py`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from crossfuse.runtime.gpu import gpu_count

__all__ = ["GpuMeter"]


class GpuMeter:
    """The first GPU's counters.

    Args:
        nvml: the module, for tests.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = _nvml() if nvml is None else nvml
        if self._nvml is not None:
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByIndex(0)

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None where the GPU has no such counter."""
        if self._nvml is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device)) * 1e-3
        except self._nvml.NVMLError:
            return None

    def used_bytes(self) -> int | None:
        """Memory that all processes use."""
        return None if self._nvml is None else int(self._nvml.nvmlDeviceGetMemoryInfo(self._device).used)


def _nvml() -> Any:
    if not gpu_count() or find_spec("pynvml") is None:
        return None
    import pynvml

    return pynvml
