"""`crossfuse.export(...)` is a function and ``crossfuse.export`` a package: both, because the
module itself is callable.

Python sets a package's attribute to the submodule whenever that is imported, so a function of the
same name would be lost at the first import of a module inside. A callable module is both at any
time.
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

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """What ``help`` shows: the function's parameters and text."""
        function = _function(self.__name__)
        return f"{function.__name__}{inspect.signature(function)}\n\n{inspect.getdoc(function)}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Calling the package calls the function of its name, from the module that the parent's
    ``__callables__`` names."""
    sys.modules[package].__class__ = _CallablePackage


def _function(package: str) -> Any:
    parent, _, name = package.rpartition(".")
    return getattr(importlib.import_module(sys.modules[parent].__callables__[name]), name)
