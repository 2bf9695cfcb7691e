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
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


class _CallablePackage(ModuleType):
    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self.__name__))

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """What ``help`` shows: the function's first sentence, its parameters and the rest of its
        text."""
        function = _function(self.__name__)
        first, _, rest = (inspect.getdoc(function) or "").partition("\n")
        return f"{first}\n\n{_call_text(self.__name__, function)}\n{rest}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Calling the package calls the function of its name, from the module that the parent's
    ``__callables__`` names."""
    sys.modules[package].__class__ = _CallablePackage


def _function(package: str) -> Callable[..., Any]:
    parent, _, name = package.rpartition(".")
    module = importlib.import_module(sys.modules[parent].__callables__[name])
    function: Callable[..., Any] = getattr(module, name)
    return function


def _call_text(name: str, function: Callable[..., Any]) -> str:
    """A call of the function, one parameter a line; annotations as they are in its source."""
    signature = inspect.signature(function)
    lines, keyword_only = [f"{name}("], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        lines.append(f"    {_parameter_text(parameter)},")
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {_annotation_text(returned)}"
    return "\n".join([*lines, f"){arrow}"])


def _parameter_text(parameter: inspect.Parameter) -> str:
    text = parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation_text(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {parameter.default!r}"
    return text


def _annotation_text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
