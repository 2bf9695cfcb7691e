"""Attention in float64 over masks in float32: PyTorch's fused attention for CPUs misreads such a
mask from 16 keys on, so it gets the mask in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["DoubleMasks"]


class DoubleMasks(TorchFunctionMode):
    """While this is on, an additive mask has the dtype of float64 queries."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch; attention with the mask that it can read."""
        named, given = dict(kwargs or {}), list(args)
        if func is F.scaled_dot_product_attention:
            query = named.get("query", given[0] if given else None)
            if isinstance(query, Tensor) and query.dtype == torch.float64:
                given[3:4] = [_in_double(mask) for mask in given[3:4]]
                named |= {n: _in_double(named[n]) for n in ("attn_mask",) if n in named}
        return func(*given, **named)


def _in_double(mask: Any) -> Any:
    additive = isinstance(mask, Tensor) and mask.is_floating_point()
    return mask.double() if additive else mask
