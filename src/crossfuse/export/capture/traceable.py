"""Parts of PyTorch that stand in the way of tracing, as plain operators while a module is traced.

Rules:

1. Gradient modes are entered without a trace of their own: what is under them is part of the
program, not a sub-graph that no pass looks into.
2. ``torch.vmap`` becomes the batched operators that it runs.
3. A size can be a key of a dict, or an argument of a cached function: equal expressions are one
key.
4. Scripted modules are called by their compiled method, whose operators are seen.
5. A module that converts another one as it runs (``self.gate.to(torch.float32)``) is left as it is
where that changes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import apis
from torch.fx.experimental.proxy_tensor import (
    PreDispatchTorchFunctionMode,
    disable_proxy_modes_tracing,
    make_fx,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["as_operators", "noted_vmaps", "replaced", "traceable"]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a class or module, replaced for a while.

    Nothing happens where this version of the library has none of that name.
    """
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def traceable() -> Iterator[None]:
    """Replace what can't be traced, for a while."""
    with ExitStack() as stack:
        for owner, name, value in (
            (
                PreDispatchTorchFunctionMode,
                "__torch_function__",
                _without_gradient_modes(PreDispatchTorchFunctionMode.__torch_function__),
            ),
            (apis, "vmap_impl", _batched(_vmap_impl())),
            (torch.SymInt, "__hash__", _hash),
            (torch.jit._script.RecursiveScriptModule, "__call__", _call_scripted),
            (nn.Module, "_apply", _converted),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield


@contextmanager
def noted_vmaps(note: Callable[[bool], None]) -> Iterator[None]:
    """``torch.vmap`` runs what a trace of it holds, for a while, and says when it begins and
    ends."""
    vmap = _vmap_impl()

    def noted(function: Any, *args: Any, **kwargs: Any) -> Any:
        note(True)
        try:
            return vmap(_plain(function), *args, **kwargs)
        finally:
            note(False)

    with replaced(apis, "vmap_impl", noted):
        yield


def as_operators(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of tensors, in which functional transforms are what they run.

    Tensors that it closes over, or a function that it calls, are operands as well. Where nothing is
    traced, this is the call.
    """
    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    cells = list(_cells_of(function, set()))

    def call(*tensors: Tensor) -> Any:
        given = list(leaves)
        for i, tensor in zip(places, tensors[: len(places)], strict=True):
            given[i] = tensor
        args, kwargs = tree_unflatten(given, spec)
        with _holding(cells, tensors[len(places) :]):
            return function(*args, **kwargs)

    tensors: list[Tensor] = [leaves[i] for i in places] + [cell.cell_contents for cell in cells]
    modes = _get_current_function_mode_stack()
    if not any(isinstance(mode, PreDispatchTorchFunctionMode) for mode in modes):
        return call(*tensors)
    with disable_proxy_modes_tracing(), _without_mode(PreDispatchTorchFunctionMode):
        body = make_fx(_plain(call))(*tensors)
    # Not as a module: its nodes belong to the module that is running.
    return body.forward(*tensors)


def _cells_of(function: Any, seen: set[int]) -> Iterator[CellType]:
    """The cells with tensors of a function, and of those in its cells."""
    function = function.func if isinstance(function, functools.partial) else function
    for cell in getattr(function, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # it is not filled yet
            continue
        if id(cell) not in seen:
            seen.add(id(cell))
            if isinstance(content, Tensor):
                yield cell
            elif isinstance(content, FunctionType | functools.partial):
                yield from _cells_of(content, seen)


@contextmanager
def _holding(cells: Sequence[CellType], tensors: Sequence[Tensor]) -> Iterator[None]:
    """The cells hold these tensors for a while."""
    before = [cell.cell_contents for cell in cells]
    for cell, tensor in zip(cells, tensors, strict=True):
        cell.cell_contents = tensor
    try:
        yield
    finally:
        for cell, tensor in zip(cells, before, strict=True):
            cell.cell_contents = tensor


def _vmap_impl() -> Callable[..., Any]:
    found: Callable[..., Any] = vars(apis)["vmap_impl"]
    return found


def _batched(vmap: Callable[..., Any]) -> Callable[..., Any]:
    def batched(function: Any, *args: Any, **kwargs: Any) -> Any:
        in_dims, out_dims, randomness, chunk_size, *given = args

        def call(*given: Any, **kwargs: Any) -> Any:
            return vmap(function, in_dims, out_dims, randomness, chunk_size, *given, **kwargs)

        return as_operators(call, *given, **kwargs)

    return batched


@contextmanager
def _without_mode(kind: type[TorchFunctionMode]) -> Iterator[None]:
    """Modes of a kind are off the stack for a while."""
    from torch.overrides import _pop_mode, _push_mode

    modes = [_pop_mode() for _ in _get_current_function_mode_stack()][::-1]
    others = [mode for mode in modes if not isinstance(mode, kind)]
    for mode in others:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in others:
            _pop_mode()
        for mode in modes:
            _push_mode(mode)


def _without_gradient_modes(original: Callable[..., Any]) -> Callable[..., Any]:
    def torch_function(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return func(*args)
        return original(self, func, types, args, kwargs)

    return torch_function


def _call_scripted(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._c._get_method("forward")(*args, **kwargs)


def _converted(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """The module, whose tensors have the dtype and device that it is converted to.

    Raises:
        TypeError: they have others.
    """
    names = (*self.named_parameters(recurse=recurse), *self.named_buffers(recurse=recurse))
    for name, tensor in names:
        made = fn(tensor)
        if (made.dtype, made.device) != (tensor.dtype, tensor.device):
            raise TypeError(
                f"{type(self).__name__} is converted as the model runs: its {name} from "
                f"{tensor.dtype} to {made.dtype}; convert it before, and keep it so"
            )
    return self


class _PlainOperators(TorchFunctionMode):
    """What has no batched form for symbolic sizes, in operators that have one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = {F.linear: _linear, F.scaled_dot_product_attention: _attention}.get(func, func)
        return plain(*args, **(kwargs or {}))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _PlainOperators():
            return function(*args, **kwargs)

    return call


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = x @ weight.transpose(-2, -1)
    return product if bias is None else product + bias


def _attention(  # noqa: PLR0913 -- the signature of PyTorch's operator
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Written out; a row without keys gives 0."""
    if dropout_p or enable_gqa:
        raise NotImplementedError("vmap of attention with dropout, or with fewer heads of keys")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * scale
    if is_causal:
        rows, columns = (torch.arange(n, device=query.device) for n in scores.shape[-2:])
        attn_mask = rows[:, None] >= columns
    if attn_mask is None:
        return scores.softmax(-1) @ value
    if attn_mask.dtype != torch.bool:
        return (scores + attn_mask).softmax(-1) @ value
    weights = torch.where(attn_mask, scores, -math.inf).softmax(-1)
    return torch.where(weights.isnan(), 0.0, weights) @ value


def _hash(size: Any) -> int:
    node = size.node
    return hash(node.nested_int() if node.is_nested_int() else (id(node.shape_env), str(node.expr)))
