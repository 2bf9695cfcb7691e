"""The Q-Former of BLIP-2: learned queries that read an image for a language model (Li et al. 2023,
arXiv:2301.12597).

    x = LN([queries ; Text(ids)]),  each layer:
      x ← LN(x + Attention(x)),  every other layer, queries only: x ← LN(x + Attention(x, image)),
      x ← LN(x + FeedForward(x))

Post-norm as in BERT; queries and text share self-attention and have feed-forwards of their own. The
published size has 32 queries over 257 image features of width 1408 and 12 layers of width 768.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossfuse.core.tensors import Dim
from crossfuse.models import sampling
from crossfuse.models.layers import Attention, FeedForward, key_mask
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["EXAMPLES", "SIZES", "Config", "QFormer", "spec", "spec_of"]


@dataclass(frozen=True)
class Config:
    """Sizes of the Q-Former; published ones are BLIP-2's.

    ``text`` False leaves out word embeddings and the text feed-forwards (checkpoints for
    captioning).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    image_width: int = 1408
    queries: int = 32
    cross_every: int = 2
    vocabulary: int = 30523
    text_length: int = 512
    eps: float = 1e-12
    text: bool = True


SIZES = {
    "tiny": Config(
        width=32,
        layers=4,
        heads=4,
        hidden=64,
        image_width=24,
        queries=5,
        vocabulary=99,
        text_length=16,
    ),
    "published": Config(),
}
EXAMPLES = {
    "tiny": {"batch": 2, "image_tokens": 11, "text": 7},
    "published": {"batch": 2, "image_tokens": 257, "text": 20},
}


class PostNormAttention(nn.Module):
    """LN(x + Attention(x, context)), post-norm as in BERT (arXiv:1810.04805)."""

    def __init__(self, config: Config, context_width: int | None = None) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, context_width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Float ``x [B, L, width]``, ``context [B, S, context_width]`` or None for ``x``, bool mask
        ``[B, 1, 1, S]`` or None → ``[B, L, width]``."""
        return self.norm(x + self.attention(x, context, mask))


class PostNormFeedForward(nn.Module):
    """LN(x + FeedForward(x)), post-norm as in BERT."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.feed_forward = FeedForward(config.width, config.hidden)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[B, L, width]`` → ``[B, L, width]``."""
        return self.norm(x + self.feed_forward(x))


class QFormerLayer(nn.Module):
    """Self-attention over queries and text, cross-attention of the queries to the image, two
    feed-forwards."""

    def __init__(self, config: Config, *, cross: bool) -> None:
        super().__init__()
        self.queries = config.queries
        self.self_attention = PostNormAttention(config)
        self.cross_attention = PostNormAttention(config, config.image_width) if cross else None
        self.query_feed_forward = PostNormFeedForward(config)
        self.text_feed_forward = PostNormFeedForward(config) if config.text else None

    def forward(self, x: Tensor, mask: Tensor | None, image: Tensor, image_mask: Tensor) -> Tensor:
        """One layer.

        Args:
            x: float ``[B, queries (+ T), width]``.
            mask: of the self-attention, bool ``[B, 1, 1, queries + T]``; None without text.
            image: float ``[B, S, image_width]``.
            image_mask: bool ``[B, 1, 1, S]``.

        Returns:
            float, as ``x``; without text the queries alone.
        """
        x = self.self_attention(x, None, mask)
        queries, text = x[:, : self.queries], x[:, self.queries :]
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, image, image_mask)
        queries = self.query_feed_forward(queries)
        if self.text_feed_forward is None or mask is None:
            return queries
        return torch.cat([queries, self.text_feed_forward(text)], dim=1)


class QFormer(nn.Module):
    """Learned queries, optional text, and an image to read."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, config.queries, config.width))
        if config.text:
            self.words = nn.Embedding(config.vocabulary, config.width)
            self.positions = nn.Embedding(config.text_length, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.layers = nn.ModuleList(
            QFormerLayer(config, cross=i % config.cross_every == 0) for i in range(config.layers)
        )

    def forward(
        self,
        image_features: Tensor,
        image_mask: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the queries (and the text) read from the image.

        Args:
            image_features: float ``[B, S, image_width]``.
            image_mask: int64 or bool ``[B, S]``, non-zero = attend.
            input_ids: int64 ``[B, T]``, or None for the image alone.
            attention_mask: int64 or bool ``[B, T]``.

        Returns:
            ``query_states [B, queries, width]`` and, with text, ``text_states [B, T, width]``.
        """
        batch, count = image_features.shape[0], self.query_tokens.shape[1]
        x, mask = self.query_tokens.expand(batch, -1, -1), None
        if input_ids is not None and attention_mask is not None:
            text = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
            x = torch.cat([x, text], dim=1)
            mask = key_mask(
                torch.cat([attention_mask.new_ones(batch, count), attention_mask], dim=1)
            )
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask, image_features, key_mask(image_mask))
        if mask is None:
            return {"query_states": x}
        return {"query_states": x[:, :count], "text_states": x[:, count:]}


def spec(size: str = "published", seed: int = 0) -> ModelSpec:
    """Export spec with seeded random weights; the image is the context, the text the query.

    Raises:
        KeyError: a size other than ``tiny`` and ``published``.
    """
    config = SIZES[size]
    return spec_of(sampling.initialised(lambda: QFormer(config), seed), config, EXAMPLES[size])


def spec_of(module: QFormer, config: Config, example: dict[str, int]) -> ModelSpec:
    """Export spec of a module with weights of its own.

    Args:
        module: takes ``image_features [batch, image_tokens, image_width]``, ``image_mask [batch,
            image_tokens]`` and, with text, ``input_ids``, ``attention_mask`` ``[batch, text]``.
        config: of the module.
        example: sizes of the example inputs: ``batch``, ``image_tokens`` and ``text``.
    """
    batch, keys, length = (
        Dim("batch", 1, 64),
        Dim("image_tokens", 1, 1024),
        Dim("text", 1, min(config.text_length, 128)),
    )
    image: dict[str, dict[int, str | Dim]] = {
        "image_features": {0: batch, 1: keys},
        "image_mask": {0: batch, 1: keys},
    }
    text: dict[str, dict[int, str | Dim]] = {
        "input_ids": {0: batch, 1: length},
        "attention_mask": {0: batch, 1: length},
    }

    def sample(dims: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        n, s = dims["batch"], dims["image_tokens"]
        inputs = {
            "image_features": sampling.features(generator, n, s, config.image_width),
            "image_mask": sampling.padding(generator, n, s),
        }
        if config.text:
            inputs["input_ids"] = sampling.tokens(generator, config.vocabulary, n, dims["text"])
            inputs["attention_mask"] = sampling.padding(generator, n, dims["text"])
        return inputs

    return ModelSpec.from_sampler(
        module,
        sample,
        dynamic={**image, **(text if config.text else {})},
        example=example,
        context=("image_features", "image_mask"),
        name="qformer",
    )
