"""`crossfuse.export(...)` is a function and ``crossfuse.export`` a package: both, because the module itself is callable.

Python sets a package's attribute to the submodule whenever that is imported, so a function of the same name would be lost at
the first import of a module inside. A callable module is both at any time.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


class _CallablePackage(ModuleType):
    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self.__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Calling the package calls the function of its name in :mod:`crossfuse.pipeline`."""
    sys.modules[package].__class__ = _CallablePackage


def _function(package: str) -> Any:
    return getattr(importlib.import_module("crossfuse.pipeline"), package.rpartition(".")[2])
