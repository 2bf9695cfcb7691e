"""PyTorch's modules and functions as they are written, on no path that a compiler, a kernel of
several layers or a narrower precision takes.

In evaluation mode ``nn.TransformerEncoder``, its layers and ``nn.MultiheadAttention`` may compute a
layer in one operator, and an encoder given ``src_key_padding_mask`` packs its rows as nested
tensors: padded positions then come out as zeros, or cut off, which is not what the layers compute.
What ``torch.compile`` made can't be watched, and ``flex_attention`` compiles itself.
``torch.autocast`` says in which precision PyTorch is to compute; what precision a target computes
in is asked of the export. So nothing that counts, traces or judges runs on these paths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import flex_attention

from crossfuse.export.capture.control_flow import scans_as_steps
from crossfuse.export.capture.traceable import replaced

__all__ = ["uncompiled", "without_fast_paths"]


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` was given; any other itself."""
    original = vars(module).get("_modules", {}).get("_orig_mod")
    return module if original is None else original


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Turn them off for a while, in the whole process; also a decorator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            for owner, name, value in (
                (flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
                (torch.autocast, "__enter__", lambda self: self),
                (torch.autocast, "__exit__", lambda *_: None),
            ):
                stack.enter_context(replaced(owner, name, value))
            stack.enter_context(scans_as_steps())
            # Where the compiler was never imported, nothing is compiled.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                wrapper = torch._dynamo.eval_frame.OptimizedModule
                stack.enter_context(replaced(wrapper, "__call__", _call_original))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _call_original(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._orig_mod(*args, **kwargs)
