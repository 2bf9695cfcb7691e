"""The parts that the five systems share: one attention class for self and cross, and transformer
blocks around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossfuse.ops.torch_op import fused_attention

__all__ = ["Attention", "FeedForward", "PreNormBlock", "key_mask", "quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """x · σ(1.702 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415), the activation of the original
    CLIP; any shape."""
    return x * torch.sigmoid(1.702 * x)


def key_mask(attention_mask: Tensor) -> Tensor:
    """``[B, S]`` integers or bools, non-zero = attend → bool ``[B, 1, 1, S]`` as the operator takes
    it."""
    return attention_mask.to(torch.bool)[:, None, None, :]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762), self or cross.

    softmax(Q Kᵀ / √D) V per head, with Q = x W_q, K = c W_k, V = c W_v and an output projection;
    the context ``c`` is ``x`` itself for self-attention.

    Args:
        width: of ``x`` and of the output.
        num_heads: heads; divides ``width``.
        context_width: of ``c``; ``width`` where omitted.
    """

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: str = "none",
    ) -> Tensor:
        """Attend from ``x`` to ``context``, or to ``x`` itself.

        Args:
            x: float ``[Bq, L, width]``.
            context: float ``[Bk, S, context_width]``; Bk divides Bq.
            mask: bool ``[1|Bk|Bq, 1|heads, 1|L, S]``, True = attend.
            causal: ``none``, ``upper_left`` or ``lower_right``.

        Returns:
            float ``[Bq, L, width]``.
        """
        source = x if context is None else context
        attended = fused_attention(
            self.query(x),
            self.key(source),
            self.value(source),
            mask,
            num_heads=self.num_heads,
            causal=causal,
        )
        return self.out(attended)


class FeedForward(nn.Module):
    """act(x W₁ + b₁) W₂ + b₂ (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(
        self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = nn.functional.gelu
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[..., width]`` → ``[..., width]``."""
        return self.down(self.activation(self.up(x)))


class PreNormBlock(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020, arXiv:2002.04745).

        x ← x + Attention(LN x),  with a context: x ← x + Attention(LN x, c),
        x ← x + FeedForward(LN x)

    Args:
        width: of ``x``.
        num_heads: heads; divides ``width``.
        hidden: width inside the feed-forward.
        context_width: width of the context for a cross-attention between self-attention and
            feed-forward; None for none.
        activation: of the feed-forward.
        eps: of the layer norms.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        *,
        context_width: int | None = None,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, num_heads)
        if context_width is not None:
            self.norm_cross = nn.LayerNorm(width, eps=eps)
            self.cross_attention = Attention(width, num_heads, context_width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.feed_forward = FeedForward(width, hidden, activation)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        causal: str = "none",
    ) -> Tensor:
        """One block.

        Args:
            x: float ``[B, L, width]``.
            context: float ``[B, S, context_width]``.
            mask: of the self-attention, bool ``[1|B, 1|heads, 1|L, L]``.
            context_mask: of the cross-attention, bool ``[1|B, 1|heads, 1|L, S]``.
            causal: of the self-attention.

        Returns:
            float ``[B, L, width]``.
        """
        x = x + self.attention(self.norm1(x), mask=mask, causal=causal)
        if context is not None:
            x = x + self.cross_attention(self.norm_cross(x), context, context_mask)
        return x + self.feed_forward(self.norm2(x))
