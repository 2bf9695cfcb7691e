"""PyTorch's transformer modules without their fast paths.

In evaluation mode ``nn.TransformerEncoder``, its layers and ``nn.MultiheadAttention`` may compute a
layer in one operator, and an encoder given ``src_key_padding_mask`` packs its rows as nested
tensors: padded positions then come out as zeros, or cut off, which is not what the layers compute.
So nothing that counts, traces or judges runs on these paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["without_fast_paths"]


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Turn them off for a while, in the whole process; also a decorator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
