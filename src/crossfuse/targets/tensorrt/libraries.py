"""The two libraries with TensorRT's API: which target uses which, what it can build for, and how to
get it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crossfuse.errors import Advice, InputError, Said

__all__ = [
    "LIBRARIES",
    "LIBRARY_VARIABLE",
    "PROGRESS",
    "check_capabilities",
    "is_installed",
    "library_version",
    "require_library",
]

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Target → Python module."""

LIBRARY_VARIABLE = "CROSSFUSE_TENSORRT_LIBRARY"
"""Environment variable that tells a worker which module it builds with."""

PROGRESS = "@progress "
"""How a line of a worker's standard output begins that reports progress."""

_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}
_EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 builds for; the builder itself is asked again."""


def require_library(target: str) -> None:
    """Raise :class:`InputError` if the target's library, or Polygraphy, is not installed."""
    for module in (LIBRARIES[target], "polygraphy"):
        if not is_installed(module):
            raise InputError(
                f"building for target {target!r} needs {module}, which is not installed",
                do=f"pip install 'crossfuse[{_EXTRAS[target]}]'",
            )


def is_installed(module: str) -> bool:
    """There is code behind the name; type stubs alone leave a folder without any."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def library_version(target: str) -> str:
    """Version of the target's library, without importing it where its distribution is known."""
    for name in _DISTRIBUTIONS[LIBRARIES[target]]:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    module: Any = importlib.import_module(LIBRARIES[target])
    return str(module.__version__)


def check_capabilities(target: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, sorted.

    Raises:
        InputError: none for TensorRT-RTX, or one that it can't build for; any for TensorRT, which
            builds for the GPU at hand.
    """
    asked = tuple(sorted(dict.fromkeys(wanted), key=_order))
    if target == "tensorrt":
        if asked:
            raise InputError(
                "TensorRT builds for the GPU at hand",
                got=", ".join(asked),
                do=Advice(
                    "Leave {} out, or use tensorrt-rtx", Said("--sm", "compute_capabilities")
                ),
            )
        return ()
    if not asked:
        raise InputError(
            "which GPUs to build for is not given",
            expected=f"one or more of {', '.join(_CAPABILITIES)}",
            do=Advice(
                "For example {}", Said("--sm 8.0 --sm 8.9", "compute_capabilities=['8.0', '8.9']")
            ),
        )
    unknown = [c for c in asked if c not in _CAPABILITIES]
    if unknown:
        raise InputError(
            "TensorRT-RTX can't build for these compute capabilities",
            got=", ".join(unknown),
            expected=", ".join(_CAPABILITIES),
            do="Use target 'tensorrt' or 'ort-cuda' on other GPUs",
        )
    return asked


def _order(capability: str) -> tuple[int, ...]:
    parts = capability.split(".")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError(
            "a compute capability can't be read",
            got=repr(capability),
            expected="MAJOR.MINOR, such as 8.9",
        )
    return tuple(int(part) for part in parts)
