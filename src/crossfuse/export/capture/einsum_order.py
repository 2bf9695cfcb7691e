"""Einsums of three operands or more, in an order in which activations meet in a product of their
own.

PyTorch multiplies operands from left to right. In ``einsum("bld,bsd,d->bls", q, k, w)`` the first
two then meet without a sum, and no product of matrices is seen. Here weights go to an activation
first, the one that has most of their labels; what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["WeightsFirst", "order_of"]


class WeightsFirst(TorchFunctionMode):
    """Computes such einsums so, for a while.

    Args:
        is_weight: whether a tensor is one.
    """

    def __init__(self, is_weight: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.is_weight = is_weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.functional.einsum or not isinstance(args[0], str):
            return func(*args, **(kwargs or {}))
        equation, *operands = args
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = list(operands[0])
        if len(operands) < 3:
            return func(*args, **(kwargs or {}))
        weights = [self.is_weight(operand) for operand in operands]
        path = order_of(equation.partition("->")[0].split(","), weights)
        # PyTorch's own function, which the public one calls with the order that a library finds.
        return torch._VF.einsum(equation, operands, path=path)  # type: ignore[attr-defined]


def order_of(labels: Sequence[str], weights: Sequence[bool]) -> list[int]:
    """Pairs of places, one after the other; each product goes to the end of what is left.

    Args:
        labels: of each operand.
        weights: which of them are weights.
    """
    left = [(set(own) - set(" ."), weight) for own, weight in zip(labels, weights, strict=True)]
    path: list[int] = []
    while len(left) > 1:
        first = next((i for i, (_, weight) in enumerate(left) if weight), 0)
        others = [i for i in range(len(left)) if i != first]
        own, weight = left[first]
        second = max(others, key=lambda i: (not left[i][1], len(own & left[i][0]), -i))
        if not weight:
            second = others[0]
        pair = sorted((first, second))
        merged = (own | left[second][0], weight and left[second][1])
        path += pair
        left = [each for i, each in enumerate(left) if i not in pair] + [merged]
    return path
