"""ONNX Runtime, imported in this one place: quietly.

ONNX Runtime 1.31 writes files into the user's cache folder and looks names up for its telemetry,
unless ``ORT_DISABLE_TELEMETRY`` is 1 when it is imported. So that is set first, unless the user set
it.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from crossfuse.core.requirements import install, is_installed
from crossfuse.errors import BundleError, InputError, PackageError

__all__ = ["has_onnxruntime", "onnxruntime", "require_onnxruntime"]

_INSTALL = f"Install it: {install('cpu')}, or 'crossfuse[gpu]' for NVIDIA GPUs"


def has_onnxruntime() -> bool:
    """Whether it is installed; nothing is imported."""
    return is_installed("onnxruntime")


def require_onnxruntime(who: str, kind: type[InputError] = PackageError) -> None:
    """Raise a :class:`PackageError`, or an error of another kind, where it is not installed;
    ``who`` needs it."""
    if not has_onnxruntime():
        raise kind(f"{who} needs ONNX Runtime, which is not installed", do=_INSTALL)


def onnxruntime() -> Any:
    """The module.

    Raises:
        BundleError: it can't be imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BundleError(f"ONNX Runtime can't be imported: {error}", do=_INSTALL) from error
