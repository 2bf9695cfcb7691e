"""Arguments that an export fixes: grids of patches, sizes of images and the like, whose values
decide shapes, so that no graph can take them as inputs.

`hold` gives the instance another ``forward``, which adds them where the caller leaves them out; the
modules keep their paths, and the signature stays what it was. Values given by a caller stand.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["hold"]


def hold(model: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Fix arguments of a model's ``forward``, in place; held again, the new ones stand.

    Args:
        model: whose ``forward`` takes them by name.
        arguments: by name; tensors or plain values.

    Returns:
        The model itself.
    """
    original = getattr(model.forward, "crossfuse_unheld", model.forward)
    if not arguments:
        model.forward = original
        return model
    fixed = dict(arguments)

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        return original(*args, **{**fixed, **given})

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    takes = inspect.signature(original).parameters.values()
    forward.__signature__ = inspect.Signature([own, *takes])  # type: ignore[attr-defined]
    forward.crossfuse_unheld = original  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    return model
