"""OpenVINO, imported in this one place: without telemetry.

Importing OpenVINO sends an event over the network, by the package ``openvino_telemetry``, unless
that package is absent. So it is hidden while OpenVINO is imported, unless the process uses it
already.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crossfuse.core.requirements import install, is_installed
from crossfuse.errors import BundleError, InputError, PackageError

__all__ = ["openvino", "require_openvino"]

_TELEMETRY = "openvino_telemetry"
_INSTALL = f"Install it: {install('openvino')}"


def require_openvino(who: str, kind: type[InputError] = PackageError) -> None:
    """Raise a :class:`PackageError`, or an error of another kind, where it is not installed;
    ``who`` needs it."""
    if not is_installed("openvino"):
        raise kind(f"{who} needs OpenVINO, which is not installed", do=_INSTALL)


def openvino() -> Any:
    """The module.

    Raises:
        BundleError: it can't be imported.
    """
    try:
        with _without_telemetry():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise BundleError(f"OpenVINO can't be imported: {error}", do=_INSTALL) from error


@contextmanager
def _without_telemetry() -> Iterator[None]:
    if _TELEMETRY in sys.modules or "openvino" in sys.modules:
        yield
        return
    # An entry of None is a package that can't be imported, for which OpenVINO has a stand-in.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)
