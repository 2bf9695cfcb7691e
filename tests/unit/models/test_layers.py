"""The shared layers against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crossfuse.models.layers import Attention, FeedForward, PreNormBlock, key_mask, quick_gelu
from crossfuse.models.sampling import initialised
from unit.models import float64_formulas as f

X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
C = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(1))
TOLERANCE = dict(atol=2e-6, rtol=0)


def close(got: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, **TOLERANCE)


def test_attention_looks_at_itself_or_at_a_context() -> None:
    own, cross = Attention(12, 3).eval(), Attention(12, 3, 10).eval()
    close(own(X), f.attention(own, f.array(X)))
    close(cross(X, C), f.attention(cross, f.array(X), f.array(C)))


def test_masks_and_causality_take_keys_away() -> None:
    layer = Attention(12, 3).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    keep = mask.bool().numpy()[:, None, :].repeat(5, 1)
    close(layer(X, mask=key_mask(mask)), f.attention(layer, f.array(X), keep=keep))
    causal = np.tril(np.ones((5, 5), bool))[None]
    close(layer(X, causal="upper_left"), f.attention(layer, f.array(X), keep=causal))


@pytest.mark.parametrize("context", [None, C])
def test_a_block_is_its_formula(context: torch.Tensor | None) -> None:
    width = None if context is None else 10
    block = initialised(lambda: PreNormBlock(12, 3, 20, context_width=width, eps=1e-3), 0)
    x = f.array(X)
    x = x + f.attention(block.attention, f.layer_norm(block.norm1, x))
    if context is not None:
        x = x + f.attention(
            block.cross_attention, f.layer_norm(block.norm_cross, x), f.array(context)
        )
    x = x + f.feed_forward(block.feed_forward, f.layer_norm(block.norm2, x))
    close(block(X, context), x)
    assert block.norm1.eps == 1e-3


def test_activations() -> None:
    close(quick_gelu(X), f.array(X) * f.sigmoid(1.702 * f.array(X)))
    layer = FeedForward(12, 20, quick_gelu).eval()
    expected = f.feed_forward(layer, f.array(X), lambda x: x * f.sigmoid(1.702 * x))
    close(layer(X), expected)


@pytest.mark.parametrize(
    "mask", [torch.tensor([[1, 0], [2, 1]]), torch.tensor([[True, False]] * 2)]
)
def test_key_masks_are_what_the_operator_takes(mask: torch.Tensor) -> None:
    found = key_mask(mask)
    assert (found.shape, found.dtype) == ((2, 1, 1, 2), torch.bool)
    assert torch.equal(found[:, 0, 0], mask != 0)
