"""What a module keeps between runs, put back: tables cached at one length, keys and values of a
step, counters, masks in a dict by size.

A run of the eager model is a function of its inputs only where it begins as the others did. So
whatever counts, traces or judges begins with the state in which the module was given. Parameters
don't count: a forward that writes into them is training.

Rules:

1. The state is what modules hold besides parameters, hooks and their own flags: buffers, submodules
and plain attributes, and what plain containers and objects among those hold in turn.
2. Attributes come back as the objects that they were, containers with what they held, and tensors
that were written into with their values.

3. Hooks that a run adds are taken away again where an attribute that marks them is: libraries add
them once, when something is first asked for, and two of them would note everything twice. Others,
our own and PyTorch's are left to those who added them.
4. A module that says so (``crossfuse_stateless``) has none: what it keeps doesn't depend on inputs.

It must not reach what no module refers to: a global, or a function's own cache.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OWN_ATTRIBUTES", "ModuleState", "kept_state"]

OWN_ATTRIBUTES = frozenset({*vars(nn.Module()), "_initialize_hook", "_load_hook"}) - {
    "_buffers",
    "_modules",
}
"""What PyTorch keeps in a module itself."""

_HOOKS = frozenset(name for name in OWN_ATTRIBUTES if "hooks" in name)
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
_NO_STATE = (type, types.ModuleType, types.FunctionType, types.MethodType, functools.partial)
_MOST_OBJECTS = 100_000


class ModuleState:
    """A module's state when this was made.

    Args:
        module: whose state it is. Tensors other than parameters are copied, once.
    """

    def __init__(self, module: nn.Module) -> None:
        self._seen: dict[int, Any] = {}
        self._attributes: list[tuple[dict[str, Any], frozenset[str], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._buffers: set[int] = set()
        self._hooks: list[tuple[dict[int, Any], frozenset[int]]] = []
        pending: list[Any] = [module]
        while pending and len(self._seen) < _MOST_OBJECTS:
            item = pending.pop()
            if id(item) not in self._seen:
                self._seen[id(item)] = item
                pending.extend(self._noted(item))

    def restore(self) -> None:
        """Put it back."""
        self.restore_attributes()
        with torch.no_grad():
            for tensor, value in self._tensors:
                # Not by PyTorch's count of writes, which some of its kernels leave out.
                if tensor.shape == value.shape and not torch.equal(tensor, value):
                    tensor.copy_(value)

    def restore_attributes(self, *, buffers: bool = True) -> None:
        """Put back which objects modules hold, but not what tensors were written into. Hooks that
        were removed stay so: whoever removed them meant it.

        Args:
            buffers: the modules' buffers too.
        """
        marked = False
        for held, own, saved in self._attributes:
            added = [name for name in held if name not in saved and name not in own]
            marked = marked or any(isinstance(held[name], bool) for name in added)
            for name in added:
                del held[name]
            marked = marked or any(
                value is not held.get(name) for name, value in saved.items()
                if isinstance(value, bool)
            )  # fmt: skip
            held.update(saved)
        for hooks, before in self._hooks if marked else ():
            for key in [key for key in hooks if key not in before and _is_foreign(hooks[key])]:
                del hooks[key]
        for container, saved in self._containers:
            if _differs(container, saved) and (buffers or id(container) not in self._buffers):
                container.clear()
                (container.extend if isinstance(container, list | deque) else container.update)(
                    saved
                )

    def _noted(self, item: Any) -> Iterator[Any]:
        """Remember one object; what it holds."""
        if isinstance(item, Tensor):
            if not isinstance(item, nn.Parameter) and not item.is_meta:
                self._tensors.append((item, item.detach().clone()))
        elif type(item) in _CONTAINERS:
            saved = copy.copy(item)
            self._containers.append((item, saved))
            yield from (saved.values() if isinstance(saved, dict) else saved)
        elif isinstance(item, tuple | frozenset):
            yield from item
        elif _has_state(item):
            own = OWN_ATTRIBUTES if isinstance(item, nn.Module) else frozenset[str]()
            kept = {name: value for name, value in vars(item).items() if name not in own}
            self._attributes.append((vars(item), own, kept))
            if isinstance(item, nn.Module):
                self._buffers.add(id(item._buffers))
                for name in _HOOKS:
                    hooks = vars(item).get(name)
                    if isinstance(hooks, dict):
                        self._hooks.append((hooks, frozenset(hooks)))
            yield from kept.values()


def _is_foreign(hook: Any) -> bool:
    """A hook that neither we nor PyTorch added; not a flag that PyTorch keeps of one."""
    added_by = str(getattr(hook, "__module__", "")).partition(".")[0]
    return callable(hook) and added_by not in ("crossfuse", "torch")


def _has_state(item: Any) -> bool:
    if isinstance(item, nn.Module):
        return not getattr(type(item), "crossfuse_stateless", False)
    library = type(item).__module__.partition(".")[0] in ("torch", "builtins")
    return hasattr(item, "__dict__") and not library and not isinstance(item, _NO_STATE)


def _differs(container: Any, saved: Any) -> bool:
    """It holds other objects, or in another order."""
    now, then = (
        list(part.items()) if isinstance(part, dict) else list(part) for part in (container, saved)
    )
    pairs = zip(_flat(now), _flat(then), strict=False)
    return len(now) != len(then) or any(a is not b for a, b in pairs)


def _flat(items: list[Any]) -> Iterator[Any]:
    for item in items:
        yield from item if isinstance(item, tuple) else (item,)


@contextmanager
def kept_state(module: nn.Module) -> Iterator[ModuleState]:
    """The module's state is afterwards what it was."""
    state = ModuleState(module)
    try:
        yield state
    finally:
        state.restore()
