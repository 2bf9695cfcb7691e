"""SOURCE → :class:`ModelSpec`: a zoo name is resolved by the caller; here are factories in modules
and files."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from crossfuse.core.foreign import blaming
from crossfuse.errors import InputError, suggestion
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["factory_spec", "function_of", "functions_in", "is_factory", "is_onnx"]

_DO = "A factory is a function without arguments that returns a crossfuse.ModelSpec"
_MOST_NAMES = 8


def is_onnx(source: str) -> bool:
    """``path/model.onnx``."""
    return source.endswith(".onnx")


def is_factory(source: str) -> bool:
    """``package.module:factory`` or ``path/file.py:factory``; also a file alone, whose error names
    its functions."""
    return ":" in source or source.endswith(".py")


def factory_spec(source: str) -> ModelSpec:
    """Call the factory that a source names.

    Raises:
        InputError: it can't be found, it raises, or it returns something else.
    """
    factory = function_of(source, _DO)
    with blaming("the factory raised", where=source):
        spec = factory()
    if not isinstance(spec, ModelSpec):
        raise InputError(
            "the factory returned something else", where=source, got=type(spec).__name__, do=_DO
        )
    return spec


def function_of(source: str, do: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` or ``path/file.py:function`` names.

    Args:
        source: its name.
        do: advice, which says what such a function is.

    Raises:
        InputError: it can't be found.
    """
    where, _, name = source.rpartition(":")
    if source.endswith(".py"):
        where, name = source, ""
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise InputError("the source file doesn't exist", where=path)
        known = functions_in(path)
        if not name:
            raise InputError(
                "the source names a file, but no function in it",
                where=path,
                expected=_choices(where, known),
                do=do,
            )
        module = _load_file(path)
    else:
        module = _import(where, do)
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == where
        ]
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(
            "the source names no function",
            where=where,
            got=repr(name),
            expected=_choices(where, known),
            do=suggestion(name, known) or do,
        )
    found: Callable[..., Any] = function
    return found


def functions_in(path: Path) -> list[str]:
    """Names of the functions at a file's top level that take no argument without a default; the
    file is read, not executed.

    Raises:
        InputError: the file isn't Python.
    """
    with blaming("the source file raised", where=path):
        tree = ast.parse(path.read_bytes(), str(path))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and len(node.args.posonlyargs) + len(node.args.args) == len(node.args.defaults)
        and None not in node.args.kw_defaults
    ]


def _choices(where: str, names: Sequence[str]) -> str:
    if not names:
        return f"{where}:FUNCTION"
    more = f", … ({len(names)} in all)" if len(names) > _MOST_NAMES else ""
    return " or ".join(f"{where}:{name}" for name in names[:_MOST_NAMES]) + more


def _import(name: str, do: str) -> ModuleType:
    with blaming("the source can't be imported:", where=name, do=do):
        return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"crossfuse_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError("the source file can't be loaded", where=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with blaming("the source file raised", where=path):
        spec.loader.exec_module(module)
    return module
