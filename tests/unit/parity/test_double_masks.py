"""Attention in float64 over masks in other dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossfuse.parity.double_masks import DoubleMasks


@pytest.mark.parametrize("keys", [9, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("named", [False, True])
def test_a_mask_is_read_as_it_is_written(keys: int, dtype: torch.dtype, named: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, keys, 8, dtype=torch.float64)
    hidden = torch.ones(keys, keys).triu(1).bool()
    low = torch.zeros(keys, keys).masked_fill(hidden, -1e9)
    mask = (~hidden if dtype == torch.bool else low.to(dtype))[None, None]
    with DoubleMasks():
        if named:
            found: Tensor = F.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=mask)
        else:
            found = F.scaled_dot_product_attention(x, x, x, mask)
    scores = x @ x.transpose(-1, -2) / 8**0.5 + low.double()
    torch.testing.assert_close(found, scores.softmax(-1) @ x)


def test_other_calls_are_left() -> None:
    x = torch.randn(1, 1, 16, 8)
    with DoubleMasks():
        plain = F.scaled_dot_product_attention(x, x, x)
    torch.testing.assert_close(plain, F.scaled_dot_product_attention(x, x, x))
