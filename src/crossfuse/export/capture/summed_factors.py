"""Which multiplication of an eager run a sum makes a product of matrices: that of two values each
of which has an axis of its own, beside one that both have and that is summed.

``(q[:, :, None] * k[:, None]).sum(-1)`` is ``q @ kᵀ``. What such a multiplication is multiplied
with or divided by on its way to the sum doesn't change that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["SummedFactors"]


class _Multiplied(NamedTuple):
    left: Tensor
    right: Tensor
    shared: frozenset[int]
    """Axes that both have, counted from the last one: −1, −2 …"""


class SummedFactors:
    """The multiplications so far, by what they made."""

    def __init__(self) -> None:
        self._made = WeakTensorKeyDictionary()

    def multiplied(self, name: str, args: Any, result: Any) -> tuple[Tensor, Tensor] | None:
        """Take note of an operator that ran.

        Returns:
            the two values whose product it ends; None where it ends none.
        """
        tensors = [value for value in args[:2] if isinstance(value, Tensor)]
        before = next((self._made[t] for t in tensors if t in self._made), None)
        if name in ("aten::mul", "aten::div"):
            if before is None and name == "aten::mul" and len(tensors) == 2:
                before = _outer(*tensors)
            if before is not None and isinstance(result, Tensor):
                self._made[result] = before
        elif name == "aten::sum" and before is not None and len(args) > 1 and args[1]:
            rank = tensors[0].dim()
            summed = {axis if axis < 0 else axis - rank for axis in args[1]}
            if before.shared & summed:
                return before.left, before.right
        return None


def _outer(left: Tensor, right: Tensor) -> _Multiplied | None:
    """Two values that broadcast against each other, both ways."""
    first, second = _varying(left), _varying(right)
    shared = first & second
    if not (shared and first - second and second - first):
        return None
    return _Multiplied(left, right, shared)


def _varying(tensor: Tensor) -> frozenset[int]:
    """Axes along which there is more than one element, by the way that they lie in memory: one that
    was expanded has a stride of 0."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    varying = (size > 1 and stride > 0 for size, stride in pairs)
    return frozenset(i - tensor.dim() for i, varies in enumerate(varying) if varies)
