"""``torch.finfo`` as the user's dtype has it, while a copy of the model runs in float64.

A mask written ``(1 - mask.float()) * torch.finfo(x.dtype).min`` is in float32 whatever the model's
dtype is: with float64's lowest number it would overflow, and 0 · −∞ is NaN. A limit that the model
reads off its own tensors belongs to what is compared, as the model's weights do.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

__all__ = ["limits_of"]


def limits_of(module: nn.Module, inputs: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """While this lasts, float64's limits are float32's, unless the model has float64 itself.

    Args:
        module: the user's, in its own dtype.
        inputs: its example inputs.
    """
    tensors = (*module.parameters(), *module.buffers(), *inputs)
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return nullcontext()
    limits = torch.finfo

    def of_float32(dtype: torch.dtype | None = None) -> torch.finfo:
        given = torch.get_default_dtype() if dtype is None else dtype
        return limits(torch.float32 if given == torch.float64 else given)

    return patch.object(torch, "finfo", of_float32)
