"""Batches of image features that a model lists row by row and joins again.

``list(features)`` of ``[images, tokens, width]`` fixes the number of images to the example's, and
``torch.cat`` of the rows undoes it. While a model is traced, such a list holds one tensor with the
rows joined, so that the number stays a symbol; joined with itself it is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["joined_rows"]

_MODULES = ("transformers.models.llava.modeling_llava",)
"""Modules that list features, whose every list of a tensor is joined along its first axis."""


@contextmanager
def joined_rows() -> Iterator[None]:
    """Let the modules list tensors so, for a while."""
    found = [sys.modules[name] for name in _MODULES if name in sys.modules]
    for module in found:
        setattr(module, "list", _listed)  # noqa: B010 -- a name that the module has of the builtins
    try:
        yield
    finally:
        for module in found:
            delattr(module, "list")


def _listed(items: Any = ()) -> list[Any]:
    """A list; of a tensor with an unknown number of rows, these as one."""
    rows: Any = items.shape[0] if isinstance(items, Tensor) else None
    if isinstance(rows, torch.SymInt):
        return [items.flatten(0, 1)]
    return list(items)
