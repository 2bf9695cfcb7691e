"""Inputs that only say how large images are: numbers of an export, not tensors of a graph.

Models that cut images into as many patches as they have (Qwen2-VL and its kin, LLaVA-NeXT) get the
sizes as a tensor, read its numbers and loop over them. No graph can do that. Where a plan's images
have one size, these numbers are the same in every call, so they become constants of what is
exported: the manifest has them, and a session refuses others.

`Known` is a tensor whose numbers stay known while the rest is traced: what is computed of known
tensors alone is computed at once, and known too.

Positions that a model makes of such sizes and of its ids (``get_rope_index``), by loops as well,
become an input in place of what they are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from crossfuse.export.capture.traceable import replaced

if TYPE_CHECKING:
    from torch import nn

__all__ = ["POSITIONS", "Known", "as_number", "fix_sizes", "says_sizes", "with_positions"]

POSITIONS = "position_ids"

_SIZES = ("_grid_thw", "_grid_hws", "_sizes", "spatial_shapes")
_NUMBERS = "batch_num_images"
_TYPES = "mm_token_type_ids"


_TAKE_SIZES = frozenset(
    {
        *(Tensor.view, Tensor.reshape, Tensor.expand, Tensor.repeat, Tensor.tile, Tensor.narrow),
        *(Tensor.unflatten, Tensor.split_with_sizes, torch.split_with_sizes, Tensor.new_zeros),
        *(torch.reshape, torch.narrow, torch.unflatten, torch.tile, torch.nn.functional.pad),
    }
)
"""Functions that take sizes as numbers."""


_BASE = vars(torch._C.TensorBase)["_base"].__get__


class Known(torch.Tensor):
    """A tensor whose numbers are known while others are symbols."""

    @staticmethod
    def of(values: Any) -> Known:
        """Of numbers in lists, integers."""
        with _disable_current_modes():
            return torch.tensor(values, dtype=torch.int64).as_subclass(Known)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """At once where all tensors are known; otherwise known ones become plain constants."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(isinstance(tensor, Known) for tensor in tensors):
            with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **kwargs)
            if func == _BASE:  # wrapped, it would be a view with a base of its own, without end
                return result
            several = isinstance(result, list | tuple)
            return tree_map(_known, result) if several else _known(result)
        if func is Tensor.__getitem__:
            args = (args[0], _by_places(args[1]))
        if func in _TAKE_SIZES:
            args, kwargs = tree_map(as_number, (args, kwargs))
        args = tuple(_of_numbers(arg) for arg in args)
        args, kwargs = tree_map(_plain, (args, kwargs))
        return func(*args, **kwargs)


def as_number(value: Any) -> Any:
    """A known tensor of one number as that; what else there is as it is."""
    if not isinstance(value, Known) or value.ndim or value.is_floating_point():
        return value
    with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        return value.item()


def _of_numbers(value: Any) -> Any:
    """A list of plain and of known numbers as plain ones."""
    if not isinstance(value, list | tuple) or not any(type(part) is int for part in value):
        return value
    return type(value)(map(as_number, value))


def _known(value: Any) -> Any:
    return value.as_subclass(Known) if isinstance(value, Tensor) else value


def _by_places(index: Any) -> Any:
    """An index in which known truth values are the places that they say, whose number is known, and
    known ends of slices are numbers."""
    placed: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, slice):
            part = slice(*map(as_number, (part.start, part.stop, part.step)))
        by_truth = isinstance(part, Known) and part.dtype is torch.bool
        placed.extend(torch.nonzero(part, as_tuple=True) if by_truth else [part])
    return tuple(placed)


def _plain(value: Any) -> Any:
    """A known tensor as one that is made where it is used."""
    if not isinstance(value, Known):
        return value
    with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        numbers, dtype = value.tolist(), value.dtype
    return torch.tensor(numbers, dtype=dtype)


def _arange_of(arange: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``arange``, which takes known numbers in tensors, and then gives known ones: a tracer would
    ask for the numbers of a tensor that it doesn't know."""

    def known(*args: Any, **kwargs: Any) -> Tensor:
        if not all(isinstance(arg, Known | int | float) for arg in args) or not any(
            isinstance(arg, Known) for arg in args
        ):
            return arange(*args, **kwargs)
        with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
            numbers = [arg.item() if isinstance(arg, Tensor) else arg for arg in args]
            return arange(*numbers, **kwargs).as_subclass(Known)

    return known


def _tensor_of(as_tensor: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``as_tensor``, which leaves known tensors as they are: it is no function that a subclass is
    asked about."""

    def known(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(data, Known):
            return as_tensor(data, *args, **kwargs)
        dtype = kwargs.get("dtype", args[0] if args else None)
        return data if dtype is None else data.to(dtype)

    return known


def says_sizes(name: str, tensor: Tensor) -> bool:
    """An input that only says how large images are, or how many each row has."""
    if tensor.is_floating_point():
        return False
    return (name.endswith(_SIZES) and tensor.ndim == 2) or (name == _NUMBERS and tensor.ndim == 1)


def fix_sizes(model: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Let a model know sizes, whatever it is given under their names.

    Args:
        model: whose ``forward`` is replaced; its modules keep their paths.
        sizes: nested lists of integers by the names of its inputs.
    """
    known = dict(sizes)
    original: Any = getattr(model.__dict__.get("forward"), "__func__", type(model).forward)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {name: Known.of(values) for name, values in known.items()}
        arange, as_tensor = _arange_of(torch.arange), _tensor_of(torch.as_tensor)
        with replaced(torch, "arange", arange), replaced(torch, "as_tensor", as_tensor):
            return original(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)


def with_positions(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with the positions that the model makes of them, and without what only these are made
    of; as they were where it makes none, or can't."""
    maker: Any = next((m for m in model.modules() if hasattr(m, "get_rope_index")), None)
    takes = inspect.signature(type(model).forward).parameters
    if maker is None or POSITIONS in inputs or POSITIONS not in takes or _TYPES not in inputs:
        return dict(inputs)
    wanted = inspect.signature(maker.get_rope_index).parameters
    try:
        with torch.no_grad():
            made: Any = maker.get_rope_index(**{n: t for n, t in inputs.items() if n in wanted})
    except Exception:  # noqa: BLE001 -- a model's code; it makes its positions itself then
        return dict(inputs)
    left = {name: tensor for name, tensor in inputs.items() if name != _TYPES}
    return {**left, POSITIONS: made[0].contiguous()}
