"""Cross-modal attention, the mechanism itself: one modality's tokens look at another's.

    Q = LN(a) W_q,  K = LN(b) W_k,  V = LN(b) W_v
    scores = Q Kᵀ / √D,  weights = softmax(scores),  context = weights V
    fused = a + g ⊙ (context W_o),  g = σ([a, context W_o] W_g)

The gate decides per token and channel how much of the other modality enters (Arevalo et al. 2017,
arXiv:1702.01992); attention after Vaswani et al. 2017 (arXiv:1706.03762), used across modalities as
in Lu et al. 2019 (arXiv:1908.02265).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossfuse.core.tensors import Dim
from crossfuse.models import sampling
from crossfuse.models.layers import Attention, key_mask
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["EXAMPLES", "SIZES", "Config", "CrossModalAttention", "spec", "spec_of"]


@dataclass(frozen=True)
class Config:
    """Widths of the two modalities and the number of heads."""

    width: int = 768
    context_width: int = 1024
    num_heads: int = 12


SIZES = {"tiny": Config(width=32, context_width=24, num_heads=4), "published": Config()}
EXAMPLES = {
    "tiny": {"batch": 2, "length": 7, "context_length": 11},
    "published": {"batch": 2, "length": 20, "context_length": 197},
}


class CrossModalAttention(nn.Module):
    """Tokens of modality A enriched with what they find in modality B: a + g ⊙ context."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_a = nn.LayerNorm(config.width)
        self.norm_b = nn.LayerNorm(config.context_width)
        self.attention = Attention(config.width, config.num_heads, config.context_width)
        self.gate = nn.Linear(2 * config.width, config.width)

    def forward(self, a: Tensor, b: Tensor, b_mask: Tensor) -> dict[str, Tensor]:
        """Tokens of ``a`` with what they find in ``b``.

        Args:
            a: float ``[B, L, width]``.
            b: float ``[B, S, context_width]``.
            b_mask: int64 or bool ``[B, S]``, non-zero = attend.

        Returns:
            ``fused`` and ``context``, float ``[B, L, width]``.
        """
        context = self.attention(self.norm_a(a), self.norm_b(b), key_mask(b_mask))
        gate = torch.sigmoid(self.gate(torch.cat([a, context], dim=-1)))
        return {"fused": a + gate * context, "context": context}


def spec(size: str = "published", seed: int = 0) -> ModelSpec:
    """Export spec with seeded random weights.

    At the published size ``a`` has 20 tokens and ``b`` 197.

    Raises:
        KeyError: a size other than ``tiny`` and ``published``.
    """
    config = SIZES[size]
    return spec_of(
        sampling.initialised(lambda: CrossModalAttention(config), seed), config, EXAMPLES[size]
    )


def spec_of(module: CrossModalAttention, config: Config, example: dict[str, int]) -> ModelSpec:
    """Export spec of a module with weights of its own.

    Args:
        module: takes ``a [batch, length, width]``, ``b [batch, context_length, context_width]``
            and ``b_mask [batch, context_length]``.
        config: of the module.
        example: sizes of the example inputs: ``batch``, ``length`` and
            ``context_length``.
    """
    batch, length, keys = Dim("batch", 1, 64), Dim("length", 1, 512), Dim("context_length", 1, 4096)

    def sample(dims: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        n, length_a, s = dims["batch"], dims["length"], dims["context_length"]
        return {
            "a": sampling.features(generator, n, length_a, config.width),
            "b": sampling.features(generator, n, s, config.context_width),
            "b_mask": sampling.padding(generator, n, s),
        }

    return ModelSpec.from_sampler(
        module,
        sample,
        dynamic={
            "a": {0: batch, 1: length},
            "b": {0: batch, 1: keys},
            "b_mask": {0: batch, 1: keys},
        },
        example=example,
        context=("b", "b_mask"),
        name="cross_modal_attention",
    )
