"""What a measurement was made on: the machine, the system, and versions."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crossfuse.runtime.driver import gpu_count
from crossfuse.runtime.tuned import processor

__all__ = ["command_line", "environment"]

_PACKAGES = (
    *("crossfuse", "numpy", "onnxruntime-gpu", "onnxruntime", "torch", "transformers", "openvino"),
    *("tensorrt", "tensorrt-rtx-cu13"),
)


def environment() -> dict[str, Any]:
    """Machine and versions; ``load_average`` tells how busy the machine was already."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpus": gpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command of this process, as a shell takes it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
