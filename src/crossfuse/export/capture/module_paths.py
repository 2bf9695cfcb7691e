"""Which module is running, by its path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from crossfuse.graph.metadata import plain_path

__all__ = ["module_stack"]


@contextmanager
def module_stack(root: nn.Module) -> Iterator[list[str]]:
    """A list whose last element is the path of the innermost module that is running, ``""`` for the
    root."""
    names = {
        module: plain_path(name)
        for name, module in root.named_modules()
        # They take no hooks, and what they run belongs to the module that calls them.
        if not isinstance(module, torch.jit._script.RecursiveScriptModule)
        or isinstance(module, torch.jit._trace.TopLevelTracedModule)
    }
    stack = [""]
    handles = []

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(names[module])

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        stack.pop()

    for module in names:
        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
