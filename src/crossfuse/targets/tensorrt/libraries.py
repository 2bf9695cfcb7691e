"""The libraries with TensorRT's API: whether a target's is here, which version, and what it can
build for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crossfuse.core.requirements import is_installed
from crossfuse.core.target import EngineLibrary, Target
from crossfuse.errors import Advice, InputError, Said

__all__ = [
    "LIBRARY_VARIABLE",
    "PROGRESS",
    "RTX",
    "check_capabilities",
    "check_fp8",
    "library_of",
    "library_version",
    "require_library",
]

LIBRARY_VARIABLE = "CROSSFUSE_TENSORRT_LIBRARY"
"""Environment variable that tells a worker which module it builds with."""

PROGRESS = "@progress "
"""How a line of a worker's standard output begins that reports progress."""

RTX = "tensorrt_rtx"
"""The module for which Polygraphy makes other configurations than for TensorRT."""


def library_of(target: Target) -> EngineLibrary:
    """The library that builds the target's engines.

    Raises:
        InputError: the target's artifacts are no engines.
    """
    if target.engine is None:
        raise InputError("the target has no engines", got=repr(target.name))
    return target.engine


def require_library(target: Target) -> None:
    """Raise :class:`InputError` if the target's library, or Polygraphy, is not installed."""
    for module in (library_of(target).module, "polygraphy"):
        if not is_installed(module):
            raise InputError(
                f"building for target {target.name!r} needs {module}, which is not installed",
                do=target.install,
            )


def library_version(target: Target) -> str:
    """Version of the target's library, without importing it where its distribution is known."""
    library = library_of(target)
    for name in library.distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    module: Any = importlib.import_module(library.module)
    return str(module.__version__)


def check_capabilities(target: Target, requested: Iterable[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, sorted.

    Raises:
        InputError: none for a library that builds without a GPU, or one that it can't build for;
            any for a library that builds for the GPU at hand.
    """
    capabilities = tuple(sorted(dict.fromkeys(requested), key=_order))
    possible = library_of(target).capabilities
    if target.builds_for_this_gpu:
        if capabilities:
            raise InputError(
                f"{target.provider} builds for the GPU at hand",
                got=", ".join(capabilities),
                do=Advice(
                    "Leave {} out, or use tensorrt-rtx", Said("--sm", "compute_capabilities")
                ),
            )
        return ()
    if not capabilities:
        raise InputError(
            "which GPUs to build for is not given",
            expected=f"one or more of {', '.join(possible)}",
            do=Advice(
                "For example {}", Said("--sm 8.0 --sm 8.9", "compute_capabilities=['8.0', '8.9']")
            ),
        )
    impossible = [c for c in capabilities if c not in possible]
    if impossible:
        raise InputError(
            f"{target.provider} can't build for these compute capabilities",
            got=", ".join(impossible),
            expected=", ".join(possible),
            do="Use target 'tensorrt' or 'ort-cuda' on other GPUs",
        )
    return capabilities


def check_fp8(target: Target, capabilities: Iterable[str]) -> None:
    """Refuse fp8 for GPUs that don't multiply in it.

    Raises:
        InputError: some of these compute capabilities are too low.
    """
    first = library_of(target).fp8_from
    lacking = [one for one in capabilities if _order(one) < first]
    if lacking:
        raise InputError(
            "these GPUs don't multiply in fp8",
            got=f"compute capability {', '.join(lacking)}",
            expected=f"{'.'.join(map(str, first))} or higher",
            do="Build int8 or fp16 for them, in a bundle of its own",
        )


def _order(capability: str) -> tuple[int, ...]:
    parts = capability.split(".")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError(
            "a compute capability can't be read",
            got=repr(capability),
            expected="MAJOR.MINOR, such as 8.9",
        )
    return tuple(int(part) for part in parts)
