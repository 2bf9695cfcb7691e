"""What tracing computes for each operator and nothing reads, or computes again each time, left out.

1. PyTorch keeps what operators give in a cache. To write down and to compare sizes that are symbols
   takes longer than to compute such an operator: without, tracing took 0.6 of the time.
2. For each node it reads the whole stack, some eighty frames with their lines, and keeps those of
   ``forward``. Here no others are read.
3. For each tensor it asks which memory formats it fits, for a note that no exporter reads.
4. Whether a tensor is contiguous it asks several times an operator. Sizes and strides that are the
   same expressions get the same answer, as the first one is a guard.
5. Whether there is an accelerator it asks several times an operator.
6. After each pass over a graph it writes the graph's Python code, and compiles it. Here it does so
   where the code is called.

These are places inside PyTorch. Where another version of it has none of that name, it runs as it
is, and takes longer.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import _prims_common
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.sym_node import SymNode

__all__ = ["tracing_shortcuts", "unread_code"]

_KEPT_FILE = "torch/__init__.py"


@contextmanager
def tracing_shortcuts() -> Iterator[None]:
    """While this lasts, tracing takes them; for one trace."""
    config, proxy = torch._dynamo.config, importlib.import_module("torch.fx.proxy")
    with ExitStack() as stack:

        def replace(owner: Any, name: str, made_of: Callable[[Any], Any]) -> None:
            if hasattr(owner, name):
                made = made_of(getattr(owner, name))
                stack.enter_context(patch.object(owner, name, made))

        if hasattr(config, "fake_tensor_cache_enabled"):
            stack.enter_context(config.patch("fake_tensor_cache_enabled", False))
        if hasattr(proxy, "_STACK_TRACE_ANCHORS"):
            frames = partial(_ForwardFrames, proxy._STACK_TRACE_ANCHORS)
            replace(proxy, "CapturedTraceback", lambda _: SimpleNamespace(extract=frames))
        replace(proxy_tensor, "_extract_tensor_metadata", _without_formats)
        replace(_prims_common, "is_contiguous", _remembered)
        replace(FakeTensorMode, "avoid_device_init", _asked_once)
        stack.enter_context(unread_code())
        yield


def unread_code() -> AbstractContextManager[None]:
    """While this lasts, the Python code of traced graphs is not written before it is called."""
    lazy: Any = importlib.import_module("torch.fx._lazy_graph_module")
    use: Callable[[bool], AbstractContextManager[None]] | None
    use = getattr(lazy, "_use_lazy_graph_module", None)
    return nullcontext() if use is None else use(True)


class _ForwardFrames:
    """Stands in for PyTorch's record of the stack, where frames of ``forward`` alone are kept.

    Args:
        anchors: files with functions that PyTorch keeps as well.
    """

    def __init__(self, anchors: Container[tuple[str, str]]) -> None:
        self._anchors = anchors

    def summary(self) -> traceback.StackSummary:
        """The frames that are kept, of the stack as it is now; the outermost first."""
        found: list[traceback.FrameSummary] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name, file = frame.f_code.co_name, frame.f_code.co_filename
            if name == "forward" or file.endswith(_KEPT_FILE) or (file, name) in self._anchors:
                found.append(traceback.FrameSummary(file, frame.f_lineno, name))
            frame = frame.f_back
        return traceback.StackSummary(reversed(found))


def _without_formats(extract: Callable[..., Any]) -> Callable[..., Any]:
    def extracted(result: Any, include_contiguity: bool = True) -> Any:
        return extract(result, include_contiguity=False)

    return extracted


def _remembered(ask: Callable[..., bool]) -> Callable[..., bool]:
    known: dict[Hashable, bool] = {}

    def is_contiguous(a: Any, false_if_dde: bool = False) -> bool:
        key = _layout_of(a)
        if key is None:
            return ask(a, false_if_dde)
        if (key, false_if_dde) not in known:
            known[key, false_if_dde] = ask(a, false_if_dde)
        return known[key, false_if_dde]

    return is_contiguous


def _layout_of(tensor: Any) -> Hashable | None:
    """Sizes and strides as expressions; None where something isn't known before the model runs."""
    if type(tensor) is not FakeTensor:
        return None
    parts = [*_expressions(tensor.shape), *_expressions(tensor.stride())]
    return None if None in parts else tuple(parts)


def _expressions(sizes: Sequence[Any]) -> Iterator[Any]:
    for size in sizes:
        if isinstance(size, int):
            yield size
        else:
            node = size.node
            known = type(node) is SymNode and node.has_hint() and not node.is_nested_int()
            yield node.expr if known else None


def _asked_once(asked: property) -> property:
    known: list[bool] = []

    def answer(mode: FakeTensorMode) -> bool:
        if not known:
            known.append(asked.__get__(mode))
        return known[0]

    return property(answer)
