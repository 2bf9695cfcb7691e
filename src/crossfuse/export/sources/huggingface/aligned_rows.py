"""Rows of tokens that begin with a token: padding in front of them goes behind them.

Processors of models that generate pad on the left. The first tokens of such rows are not alike:
where an image stands depends on how long the text is. Behind this they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["aligned"]

_MASK = "attention_mask"


def aligned(inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
    """The inputs with each row's padding behind it.

    Args:
        inputs: by name; of a mask ``[batch, tokens]`` the zeros in front are padding. Without one
            they stay as they are.
        axes: of inputs with a place for each token, the axis; rows stand along the axis before it.
    """
    mask = inputs.get(_MASK)
    if mask is None or mask.ndim != 2 or axes.get(_MASK) != 1:
        return dict(inputs)
    batch, tokens = mask.shape
    if any(inputs[name].shape[axis - 1 : axis + 1] != mask.shape for name, axis in axes.items()):
        return dict(inputs)
    padding = (mask != 0).cumsum(1).eq(0).sum(1) % tokens
    order = (torch.arange(tokens) + padding[:, None]) % tokens
    rows = torch.arange(batch)[:, None]
    return {
        name: tensor if name not in axes else _taken(tensor, axes[name], rows, order)
        for name, tensor in inputs.items()
    }


def _taken(tensor: Tensor, axis: int, rows: Tensor, order: Tensor) -> Tensor:
    """Each row's places in their order."""
    front = tensor.movedim((axis - 1, axis), (0, 1))
    return front[rows, order].movedim((0, 1), (axis - 1, axis)).contiguous()
