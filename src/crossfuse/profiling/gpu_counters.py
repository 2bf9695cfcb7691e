"""What a GPU says about itself through NVML: energy and memory.

Nothing where there is no GPU, or no `nvidia-ml-py`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from crossfuse.runtime.driver import gpu_count, gpu_uuid

__all__ = ["GpuMeter"]


class GpuMeter:
    """A GPU's counters.

    Args:
        nvml: the module, for tests.
        device: number of the GPU in this process. NVML numbers GPUs in its own way, which knows
            nothing of ``CUDA_VISIBLE_DEVICES``, so the GPU is found by its identity.
    """

    def __init__(self, nvml: Any = None, device: int = 0) -> None:
        self._nvml = _nvml() if nvml is None else nvml
        if self._nvml is None:
            return
        self._nvml.nvmlInit()
        identity = gpu_uuid(device)
        if identity is None:
            self._device = self._nvml.nvmlDeviceGetHandleByIndex(device)
            return
        try:
            self._device = self._nvml.nvmlDeviceGetHandleByUUID(identity)
        except self._nvml.NVMLError:
            # A part of a GPU (MIG) is none of NVML's GPUs.
            self._nvml = None

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
        return (
            None
            if self._nvml is None
            else int(self._nvml.nvmlDeviceGetMemoryInfo(self._device).used)
        )


def _nvml() -> Any:
    if not gpu_count() or find_spec("pynvml") is None:
        return None
    import pynvml

    return pynvml
