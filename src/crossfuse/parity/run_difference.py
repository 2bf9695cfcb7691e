"""How far the results of two runs come apart, and whether rounding alone explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Difference", "difference"]

_LAST_BITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Differences relative to an output's largest magnitude that sums in another order may make."""

_ROUNDINGS = 64
"""A random order of sums (padding in any order, say) changes results by so many units in the last
place: that is not noise."""

_FEW = 0.01
"""The share of an integer output's elements that last bits may change."""


@dataclass(frozen=True)
class Difference:
    """The output that differs most: by how much, relative to its magnitude.

    ``last_bits``: no more than sums in another order can make, at worst; ``rounding``: no more than
    they usually make.
    """

    output: str = ""
    largest: float = 0.0
    absolute: float = 0.0
    last_bits: bool = True
    rounding: bool = True

    def sentence(self) -> str:
        """For people: which output differs, and by how much."""
        how = (
            f"by {self.absolute:.3g}"
            if np.isfinite(self.absolute)
            else "in its shape, or in what is finite"
        )
        return f"{self.output} differs {how}"


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Difference:
    """The output that differs most between two runs, of those that the first has."""
    found = [_of_output(name, first[name], second.get(name)) for name in first]
    return max(found, key=lambda one: one.largest, default=Difference())


def _of_output(name: str, first: Tensor, second: Tensor | None) -> Difference:
    if second is None or first.shape != second.shape:
        return Difference(name, float("inf"), float("inf"), last_bits=False, rounding=False)
    if first.numel() == 0 or torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0)):
        return Difference(name)
    if not first.is_floating_point():
        share = float((first != second).double().mean())
        return Difference(name, share, share, last_bits=share < _FEW, rounding=False)
    a, b = first.double().nan_to_num(0.0, 0.0, 0.0), second.double().nan_to_num(0.0, 0.0, 0.0)
    absolute = float((a - b).abs().max())
    relative = absolute / max(float(a.abs().max()), float(b.abs().max()), 1e-300)
    if not torch.equal(first.isfinite(), second.isfinite()):
        relative = absolute = float("inf")
    rounding = relative < _ROUNDINGS * torch.finfo(first.dtype).eps
    return Difference(
        name,
        relative,
        absolute,
        last_bits=relative < _LAST_BITS.get(first.dtype, 1e-3),
        rounding=rounding,
    )
