"""What is patched while a model is traced gives the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from crossfuse.export.sources.diffusers.patches import tracing


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_conv": True},
        {"use_conv": True, "name": "Conv2d_0"},
        {"use_conv_transpose": True},
        {"interpolate": False, "use_conv": True},
        {"norm_type": "ln_norm", "eps": 1e-5, "elementwise_affine": True},
    ],
)
@pytest.mark.parametrize("size", [None, (7, 9)])
def test_upsampling(options: dict[str, Any], size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    module, x = Upsample2D(6, **options), torch.randn(2, 6, 4, 5)
    own = Upsample2D.forward
    with torch.no_grad():
        expected = module(x, size)
        with tracing(module):
            assert Upsample2D.forward is not own
            assert torch.equal(module(x, size), expected)
    assert Upsample2D.forward is own
