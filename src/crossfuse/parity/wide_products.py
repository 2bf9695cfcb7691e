"""Products of narrow tensors, summed in a wider type and rounded once.

In fp16 as GPUs do it, where PyTorch's CPU products are two orders of magnitude slower than in fp32;
in float32 to see what the order of its sums loses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from crossfuse.export.capture.operator_watch import OperatorWatch

__all__ = ["WideProducts"]

_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "crossfuse::fused_attention",
)  # fmt: skip


class WideProducts(OperatorWatch):
    """Products that take a tensor of the narrow type are computed in the wide one."""

    def __init__(self, narrow: torch.dtype, wide: torch.dtype) -> None:
        super().__init__()
        self.narrow = narrow
        self.wide = wide

    def watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator; a product of narrow tensors in the wide type."""
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func.name().partition(".")[0] not in _PRODUCTS or all(
            tensor.dtype != self.narrow for tensor in given
        ):
            return func(*args, **kwargs)
        widened = func(*tree_map(self._widen, args), **tree_map(self._widen, kwargs))
        return tree_map(self._narrow, widened)

    def _widen(self, value: Any) -> Any:
        return (
            value.to(self.wide)
            if isinstance(value, Tensor) and value.dtype == self.narrow
            else value
        )

    def _narrow(self, value: Any) -> Any:
        return (
            value.to(self.narrow)
            if isinstance(value, Tensor) and value.dtype == self.wide
            else value
        )
