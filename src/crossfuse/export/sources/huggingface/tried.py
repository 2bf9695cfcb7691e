"""The model itself, tried on inputs: what it refuses, and in which words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.foreign import cause_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["refusal"]


def refusal(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Why the eager model doesn't take inputs, in its own words; None where it does.

    Copies of tensors are given to it. Results that are not finite in places are results.
    """
    given = {
        n: value.clone() if isinstance(value, Tensor) else value for n, value in inputs.items()
    }
    try:
        with torch.no_grad():
            result: Any = model(**given)
    except Exception as error:  # noqa: BLE001 -- a model's code may raise anything
        return cause_of(error)
    return None if result is not None else "it returns nothing"
