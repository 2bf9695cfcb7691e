"""A module's boundary while it is traced: tensors by name in, a tuple of tensors out.

PyTorch's exporter knows some containers, has rules of its own for their order, and takes no
numbers in results. So for the time of the trace the module's own ``forward`` is replaced by one
that takes the inputs flat, calls the module as its user does, and gives the outputs flat: with any
container, in the order of the names, with the modules' paths as they are.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from crossfuse.spec.model_spec import ModelSpec

__all__ = ["flat_boundary", "parameter_names"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""What a call of a module runs around its ``forward``: they see the arguments and the result."""


@contextmanager
def flat_boundary(spec: ModelSpec) -> Iterator[dict[str, str]]:
    """Replace the module's ``forward``, for a time.

    Hooks that the module had run around its own forward; what is registered meanwhile runs around
    the flat one.

    Yields:
        the parameter's name for each input: the input's own, as far as it is an identifier.
    """
    module, names = spec.module, parameter_names(spec.inputs)
    attributes = vars(module)
    own = {name: attributes.get(name) for name in ("forward", *_HOOKS)}

    def forward(*args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, args, strict=False))
        given |= {name: kwargs[parameter] for name, parameter in names.items() if name not in given}
        _set(attributes, own)
        try:
            arguments, keywords = spec.arguments.bound(module, given)
            # Not a call, which the tracer would take for a module inside of this one.
            result = module._call_impl(*arguments, **keywords)
        finally:
            _set(attributes, flat)
        return tuple(spec.outputs_of(result).values())

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(parameter, kind) for parameter in names.values()]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat = {"forward": forward, **{name: OrderedDict[Any, Any]() for name in _HOOKS}}
    _set(attributes, flat)
    try:
        yield names
    finally:
        _set(attributes, own)


def parameter_names(inputs: Mapping[str, Any]) -> dict[str, str]:
    """An identifier for each input's name, each once."""
    found: dict[str, str] = {}
    for name in inputs:
        chosen = re.sub(r"\W", "_", name)
        if not chosen.isidentifier() or keyword.iskeyword(chosen):
            chosen = f"input_{chosen}"
        while chosen in found.values() or (chosen != name and chosen in inputs):
            chosen += "_"
        found[name] = chosen
    return found


def _set(attributes: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set a module's own attributes; None is for one that it has not."""
    for name, value in values.items():
        if value is None:
            attributes.pop(name, None)
        else:
            attributes[name] = value
