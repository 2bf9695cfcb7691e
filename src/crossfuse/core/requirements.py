"""Packages that parts of crossfuse need: which extra installs them, and the words for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from crossfuse.errors import InputError, PackageError

__all__ = ["EXTRAS", "extra_of", "install", "is_installed", "needed"]

EXTRAS = {
    "PIL": "generate",
    "cuda": "gpu",
    "diffusers": "diffusers",
    "filelock": "cli",
    "jinja2": "report",
    "model_signing": "sign",
    "nncf": "rivals",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "openvino",
    "platformdirs": "cli",
    "polygraphy": "gpu",
    "pyarrow": "serve",
    "ray": "serve",
    "rich": "cli",
    "safetensors": "export",
    "starlette": "serve",
    "tensorrt": "gpu",
    "tensorrt_rtx": "rtx",
    "tokenizers": "generate",
    "torch": "export",
    "transformers": "hf",
    "typer": "cli",
    "yaml": "serve",
}
"""Module that crossfuse imports → the extra that installs it."""


def extra_of(module: str | None) -> str | None:
    """The extra that installs a module, or the package that it is in; None where none does."""
    return EXTRAS.get((module or "").partition(".")[0])


def install(*extras: str) -> str:
    """How to install extras, for errors: ``pip install 'crossfuse[cpu]'``."""
    return f"pip install 'crossfuse[{','.join(extras)}]'"


def is_installed(module: str) -> bool:
    """Whether there is code behind a module's name; it is not imported, but packages above it are.

    Type stubs alone leave a folder without code.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # of a package above it
        return False
    except ValueError:  # a module that something else put there, without a spec
        return True
    return spec is not None and spec.origin is not None


@contextmanager
def needed(module: str, who: str, kind: type[InputError] = PackageError) -> Iterator[None]:
    """Around the import of a package that may be absent.

    Args:
        module: the package's module, of `EXTRAS`.
        who: what needs it.
        kind: class of the error.

    Raises:
        PackageError: (or of the kind) it is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != module:
            raise
        raise kind(
            f"{who} needs {module}, which is not installed",
            do=f"Install it: {install(EXTRAS[module])}",
        ) from error
