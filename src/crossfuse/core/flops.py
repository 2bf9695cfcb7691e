"""Floating-point operations from shapes: the rules that graphs and profiles count by, two
operations per multiply-add.

As in PyTorch's ``FlopCounterMode``: products, convolutions and attentions count; element-wise
operators, norms and softmax don't.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["attention_flops", "convolution_flops", "product_flops"]


def product_flops(out: Sequence[int], inner: int) -> int:
    """Of a product, batched or not.

    Args:
        out: the result's shape.
        inner: the length that it sums over.
    """
    return 2 * math.prod(out) * inner


def convolution_flops(positions: int, weight: Sequence[int]) -> int:
    """Of a convolution.

    Args:
        positions: places at which the kernel is applied, batch included: of the result, or of a
            transposed convolution's input.
        weight: its shape, ``[out, in / groups, …]`` (transposed: ``[in, out / groups, …]``).
    """
    return 2 * positions * math.prod(weight)


def attention_flops(rows: int, keys: int, width: int, value_width: int) -> int:
    """Of both products of an attention.

    Args:
        rows: queries in all, batch times length.
        keys: that each query sees.
        width: of a query over all heads.
        value_width: of a result over all query heads.
    """
    return 2 * rows * keys * (width + value_width)
