"""Copies of a module whose floating tensors are in another dtype from the start: a copy first and a
conversion after would need the memory of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["copied"]


def copied(
    module: nn.Module, dtype: Callable[[Tensor], torch.dtype | None], *, attributes: bool = False
) -> nn.Module:
    """A deep copy.

    Args:
        module: left as it is.
        dtype: of a floating tensor's copy, or None to keep its own.
        attributes: tensors that modules hold as plain attributes too, besides parameters and
            buffers.

    Raises:
        Exception: whatever the module's parts raise that can't be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors(module, attributes=attributes):
        requested = dtype(tensor) if tensor.is_floating_point() else None
        if requested is not None:
            memo[id(tensor)] = _converted(tensor, requested)
    return copy.deepcopy(module, memo)


def _tensors(module: nn.Module, *, attributes: bool) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules() if attributes else ():
        for value in vars(part).values():
            yield from (item for item in _items(value) if isinstance(item, Tensor))


def _items(value: Any) -> Iterable[Any]:
    """What a plain container holds; anything else is one item."""
    if type(value) is dict:
        return value.values()
    return value if type(value) in (list, tuple) else (value,)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    made = tensor.detach().to(dtype, copy=True)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
