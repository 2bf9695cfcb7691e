"""What models of ``diffusers`` need to be traced.

The library copies tensors into another memory layout where kernels of older PyTorch versions failed
on large ones. Whether it does is asked of sizes, which would limit the batch, and changes no
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from crossfuse.spec.model_spec import Tracing

__all__ = ["tracing"]


@contextmanager
def tracing(model: Any) -> Iterator[Tracing]:
    """Make a model of diffusers traceable for a while."""
    from diffusers.models.upsampling import Upsample2D

    with patch.object(Upsample2D, "forward", _upsample):
        yield Tracing()


def _upsample(
    module: Any, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """``[B, C, H, W]`` → twice the size or ``output_size``, as the library's module, without its
    copies."""
    x = hidden_states
    if module.norm is not None:
        x = module.norm(x.movedim(1, -1)).movedim(-1, 1)
    if module.use_conv_transpose:
        return module.conv(x)  # type: ignore[no-any-return]
    if module.interpolate:
        if output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=tuple(output_size), mode="nearest")
    if module.use_conv:
        x = (module.conv if module.name == "conv" else module.Conv2d_0)(x)
    return x
