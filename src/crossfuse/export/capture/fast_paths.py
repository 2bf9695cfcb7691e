"""PyTorch's modules and functions as they are written, on no path that a compiler or a kernel of
several layers takes.

In evaluation mode ``nn.TransformerEncoder``, its layers and ``nn.MultiheadAttention`` may compute a
layer in one operator, and an encoder given ``src_key_padding_mask`` packs its rows as nested
tensors: padded positions then come out as zeros, or cut off, which is not what the layers compute.
What ``torch.compile`` made can't be watched, and ``flex_attention`` compiles itself. So nothing
that counts, traces or judges runs on these paths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import flex_attention

__all__ = ["without_fast_paths"]


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Turn them off for a while, in the whole process; also a decorator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    compiled = flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    torch.backends.mha.set_fastpath_enabled(False)
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    # Where the compiler was never imported, nothing is compiled.
    known = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if known else nullcontext():
            yield
    finally:
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = compiled
        torch.backends.mha.set_fastpath_enabled(fast)
