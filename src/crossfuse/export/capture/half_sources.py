"""Modules in half precision, whole or in part, as sources: the same weights, computed in float32.

What precision a target computes in is asked of the export, not of the checkpoint. So a copy of the
module holds its fp16 and bf16 tensors in float32, and where its forward asks for half floats by
name (``x.half()``, ``dtype=torch.float16``) it gets float32.

1. Inputs declared in fp16 stay so in the bundle and are widened first; those in bf16, which NumPy
lacks, become float32.
2. Outputs are what is computed: float32.
3. In the float64 copy of this copy, half floats and float32 become float64; in a copy in half
precision, nothing is widened.
4. A module in float32 or float64 is left as it is, and so is the user's own in any case.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from crossfuse.core.foreign import cause_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture.copies import copied
from crossfuse.spec.containers import mapped
from crossfuse.spec.model_spec import ModelSpec, Sampler

__all__ = ["half_source", "widened"]

_log = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)
_NARROW, _SOURCE = "_crossfuse_narrow_forward", "_crossfuse_half_source"
_CONVERSIONS = {
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.float: torch.float32,
}
_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def widened(spec: ModelSpec) -> ModelSpec:
    """The spec with its module in float32 where the user's has half floats; else the spec itself.

    Raises:
        InputError: the module can't be copied.
    """
    module = spec.module
    weights = [tensor.dtype for tensor in (*module.parameters(), *module.buffers())]
    inputs = [value.dtype for value in spec.inputs.values() if isinstance(value, Tensor)]
    kinds = " and ".join(name for dtype, name in _NAMES.items() if dtype in (*weights, *inputs))
    if not kinds or half_source(module) is not None:
        return spec
    _log.debug("%s is in %s: a copy in float32 takes its place", spec.name, kinds)
    try:
        wide = copied(
            module, lambda tensor: torch.float32 if tensor.dtype in _HALF else None, attributes=True
        )
    except Exception as error:  # the user's code, which may refuse a copy in any way
        raise InputError(
            "the module is in half precision, and no copy of it can be made in float32: "
            f"{cause_of(error)}",
            where=spec.name,
            got=kinds,
            do="Call module.float() before it is given to crossfuse: its weights keep their values",
        ) from error
    _give_wide_forward(wide, kinds)
    _require_running(spec, wide, kinds)
    sampler = spec.sampler
    return replace(
        spec,
        module=wide,
        inputs=_without_bf16(spec.inputs),
        examples=[_without_bf16(example) for example in spec.examples],
        sampler=None if sampler is None else _sampling_without_bf16(sampler),
        about={**spec.about, "dtype": kinds},
    )


def _require_running(spec: ModelSpec, wide: nn.Module, kinds: str) -> None:
    """Refuse a module that runs in half precision, but not in float32; one that doesn't run at all
    is left to later steps."""
    try:
        with torch.no_grad():
            spec.call({name: tensor.clone() for name, tensor in spec.inputs.items()})
    except Exception:  # noqa: BLE001 -- the user's code
        return
    try:
        with torch.no_grad():
            given = {name: t.clone() for name, t in _without_bf16(spec.inputs).items()}
            spec.call(given, wide)
    except Exception as error:  # the user's code, which may refuse float32 in any way
        raise InputError(
            f"the module is in half precision and does not run in float32: {cause_of(error)}",
            where=spec.name,
            got=kinds,
            do=Advice(
                "Make its forward take float32 as well: what precision a target computes in is "
                "asked with {}",
                Said("--precision", "precision=..."),
            ),
        ) from error


def half_source(module: nn.Module) -> str | None:
    """The half dtypes that the source of a widened module was in; None of any other module."""
    return vars(module).get(_SOURCE)


def _give_wide_forward(module: nn.Module, source: str) -> None:
    """Give the module a ``forward`` in which half floats are as wide as its weights; its copies
    take it along."""
    narrow = module.forward
    setattr(module, _NARROW, narrow)
    setattr(module, _SOURCE, source)

    # A function of the module, not of this one: a copy's forward must find the copy.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        narrow, dtype = getattr(self, _NARROW), _dtype(self)
        if dtype in _HALF:
            return narrow(*args, **kwargs)
        wide = mapped((args, kwargs), lambda _, value: _widen(value, dtype))
        with _WideFloats(dtype):
            return narrow(*wide[0], **wide[1])

    signature = inspect.signature(narrow)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    module.forward = MethodType(forward, module)


def _dtype(module: nn.Module) -> torch.dtype:
    """Of the weights: float32, float64 in a copy for the reference, half in a copy for half
    precision's own error."""
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


class _WideFloats(TorchFunctionMode):
    """Narrower float dtypes that a call names become this one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.narrower = {*_HALF, torch.float32} - {dtype}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _CONVERSIONS.get(func) in self.narrower:
            return args[0].to(self.dtype)
        wide = tree_map(self._wide, (args, kwargs or {}))
        return func(*wide[0], **wide[1])

    def _wide(self, value: Any) -> Any:
        return self.dtype if isinstance(value, torch.dtype) and value in self.narrower else value


def _widen(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in _HALF else value


def _without_bf16(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: _widen(t, torch.float32) if t.dtype == torch.bfloat16 else t
        for name, t in inputs.items()
    }


def _sampling_without_bf16(sampler: Sampler) -> Sampler:
    return lambda sizes, generator: _without_bf16(sampler(sizes, generator))
