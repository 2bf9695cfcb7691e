"""Values that no input reaches, known while a module is traced.

A branch on a buffer (``if self.probability > 0``, ``if not self.initted``) always goes one way once
the weights are there, but a tracer sees symbols. So what is computed from small buffers and
parameters alone is computed beside the trace as well, and a branch or a number asks for that.

Rules:

1. Known are parameters and buffers of at most `MOST_NUMBERS`, and what functions make of known
tensors and plain numbers.
2. Where a known tensor is asked for a number, a truth value or a list, the known one answers.
3. Where a known tensor is written into, nothing is known any more.
4. Ones and zeros of any sizes, and what arithmetic and other shapes make of these alone, hold one
number everywhere; whether any or all of them are true is known. Any write ends that.

It must not fire on what a random function gives, nor where any tensor comes from an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["MOST_NUMBERS", "known_values"]

MOST_NUMBERS = 4096
"""The largest tensor that is computed beside the trace."""

_ASKS = frozenset(
    {
        *(Tensor.__bool__, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__),
        Tensor.tolist,
    }
)
_IN_PLACE = frozenset(
    ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "iand", "ior", "ixor", "ipow")
)
_RANDOM = ("rand", "bernoulli", "dropout", "multinomial", "normal", "poisson", "uniform")


_FILLED: dict[Any, Callable[..., Tensor]] = {torch.ones: torch.ones, torch.zeros: torch.zeros}
"""What makes tensors of one number, and the number."""

_SHAPED = frozenset(
    {
        *(Tensor.expand, Tensor.view, Tensor.reshape, Tensor.transpose, Tensor.permute),
        *(Tensor.unsqueeze, Tensor.contiguous, Tensor.to),
        *(Tensor.T.__get__, Tensor.mT.__get__),  # type: ignore[attr-defined]
        *(torch.unsqueeze, torch.reshape, torch.transpose),
    }
)
"""What gives a tensor of the same numbers in another shape."""

_COMPUTED = frozenset(
    {
        *(Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul, Tensor.bool, Tensor.long),
        *(Tensor.float, Tensor.logical_and, Tensor.logical_or, Tensor.logical_not),
        *(Tensor.__and__, Tensor.__or__, Tensor.__invert__, Tensor.__eq__, Tensor.__ne__),
        *(Tensor.eq, Tensor.ne, Tensor.__gt__, Tensor.__lt__, Tensor.__ge__, Tensor.__le__),
        *(Tensor.__rsub__, Tensor.__sub__, Tensor.__add__, torch.logical_and, torch.logical_or),
    }
)
"""What computes each number from those at its place."""

_JUDGED = frozenset({torch.any, Tensor.any, torch.all, Tensor.all})


class _KnownValues(TorchFunctionMode):
    """Computes beside the trace.

    Args:
        weights: by name, the values of the module's small parameters and buffers.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._even: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, module: nn.Module, *_: Any) -> None:
        """The traced forward begins: its tensors stand for the weights."""
        self._known.clear()
        self._even.clear()
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in self._weights:
                self._known[id(tensor)] = (tensor, self._weights[name])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        known = [tensor for tensor in tensors if id(tensor) in self._known]
        if not known:
            return self._of_one_number(func, args, kwargs, tensors)
        if _writes(func, kwargs):
            self._known.clear()
            self._even.clear()
            return func(*args, **kwargs)
        symbolic = any(isinstance(leaf, torch.SymInt | torch.SymFloat) for leaf in leaves)
        if len(known) < len(tensors) or symbolic or _is_random(func):
            return func(*args, **kwargs)
        if func in _ASKS:
            return self._beside(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and _is_small(result):
            self._known[id(result)] = (result, self._beside(func, args, kwargs))
        return result

    def _of_one_number(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """What a function gives; noted where one number is in all its places."""
        result = func(*args, **kwargs)
        if _writes(func, kwargs):
            self._even.clear()
        elif func in _FILLED and isinstance(result, Tensor):
            self._even[id(result)] = (
                result,
                self._aside(_FILLED[func], ((),), {"dtype": result.dtype}),
            )
        elif tensors and isinstance(result, Tensor) and all(id(t) in self._even for t in tensors):
            first = self._even[id(tensors[0])][1]
            first = self._aside(Tensor.to, (first, result.dtype), {})
            number = self._number(func, args, kwargs, first)
            judged = func in _JUDGED and not result.ndim
            if number is not None and (judged or func not in _JUDGED):
                (self._known if judged else self._even)[id(result)] = (result, number)
        return result

    def _number(self, func: Any, args: Any, kwargs: Any, first: Tensor) -> Tensor | None:
        """The number that a function of tensors of one number gives; None where that isn't told."""
        if func in _SHAPED or func in _JUDGED:
            return first
        leaves = tree_leaves((args, kwargs))
        if func not in _COMPUTED or any(
            isinstance(n, torch.SymInt | torch.SymFloat) for n in leaves
        ):
            return None
        args, kwargs = tree_map_only(Tensor, lambda t: self._even[id(t)][1], (args, kwargs))
        number: Tensor = self._aside(func, args, kwargs)
        return number

    def _aside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A call that no trace sees."""
        with disable_proxy_modes_tracing(), unset_fake_temporarily(), torch.no_grad():
            return func(*args, **kwargs)

    def _beside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The same call on the known values, which no trace sees."""
        args, kwargs = tree_map_only(Tensor, lambda t: self._known[id(t)][1], (args, kwargs))
        return self._aside(func, args, kwargs)


def _writes(func: Any, kwargs: Any) -> bool:
    """It writes into its first argument: ``add_``, ``__iadd__``, ``__setitem__``, ``out=``."""
    name = getattr(func, "__name__", "")
    special = name.startswith("__")
    if special:
        return name in ("__setitem__", "__set__") or name[2:-2] in _IN_PLACE
    return name.endswith("_") or "out" in kwargs


def _is_random(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return any(word in name for word in _RANDOM)


def _is_small(tensor: Tensor) -> bool:
    sizes = list(tensor.shape)
    return all(isinstance(size, int) for size in sizes) and tensor.numel() <= MOST_NUMBERS


@contextmanager
def known_values(module: nn.Module) -> Iterator[None]:
    """Know the module's small weights, for as long as it is traced."""
    weights = (*module.named_parameters(), *module.named_buffers())
    small = {name: t.detach() for name, t in weights if _is_small(t) and not t.is_meta}
    mode = _KnownValues(small)
    handle = module.register_forward_pre_hook(mode.begin)
    try:
        with mode:
            yield
    finally:
        handle.remove()
