"""SOURCE → :class:`ModelSpec`: a zoo name is resolved by the caller; here are factories in modules and files."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from crossfuse.errors import InputError
from crossfuse.model_spec import ModelSpec

__all__ = ["factory_spec", "is_factory", "is_onnx"]

_DO = "A factory is a function without arguments that returns a crossfuse.ModelSpec"


def is_onnx(source: str) -> bool:
    """``path/model.onnx``."""
    return source.endswith(".onnx")


def is_factory(source: str) -> bool:
    """``package.module:factory`` or ``path/file.py:factory``."""
    return ":" in source


def factory_spec(source: str) -> ModelSpec:
    """Call the factory that a source names.

    Raises:
        InputError: it can't be found, it raises, or it returns something else.
    """
    where, _, name = source.rpartition(":")
    module = _load_file(Path(where)) if where.endswith(".py") else _import(where)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise InputError("the source names no function", where=where, got=repr(name), do=_DO)
    try:
        spec = factory()
    except Exception as error:  # user code may raise anything
        raise InputError(f"the factory raised {type(error).__name__}: {error}", where=source, do=_DO) from error
    if not isinstance(spec, ModelSpec):
        raise InputError("the factory returned something else", where=source, got=type(spec).__name__, do=_DO)
    return spec


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # user code may raise anything
        raise InputError(f"the source can't be imported: {error}", where=name, do=_DO) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("the source file doesn't exist", where=path)
    spec = importlib.util.spec_from_file_location(f"crossfuse_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError("the source file can't be loaded", where=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code may raise anything
        raise InputError(f"the source file raised {type(error).__name__}: {error}", where=path, do=_DO) from error
    return module
