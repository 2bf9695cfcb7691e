"""A DALL-E: text steers an image through discrete codes (Ramesh et al. 2021, arXiv:2102.12092).

    codes = argmin_k ‖Encoder(image) − e_k‖²
    text ← Transformer(ids),  text ← text + Attention(text, e[codes])
    logits over the codebook = Transformer(e[codes], text),  image' = Decoder(e[codes])

The tokenizer is a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937). One pass gives the codes,
the image decoded from them, the text states that have looked at the image, and the logits with
which the transformer scores a codebook entry at every image position given the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.core.tensors import Dim
from crossfuse.models import sampling
from crossfuse.models.layers import PreNormBlock, key_mask
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["DALLE", "EXAMPLES", "SIZES", "Config", "spec", "spec_of"]


@dataclass(frozen=True)
class Config:
    """Sizes; the image is downsampled by ``2 ** downsamplings`` to the grid of codes."""

    width: int = 768
    heads: int = 12
    hidden: int = 3072
    text_layers: int = 6
    cross_layers: int = 6
    vocabulary: int = 16384
    text_length: int = 256
    image_size: int = 128
    downsamplings: int = 3
    channels: int = 128
    codebook: int = 8192
    code_width: int = 256


SIZES = {
    "tiny": Config(
        width=32,
        heads=4,
        hidden=64,
        text_layers=2,
        cross_layers=2,
        vocabulary=99,
        text_length=16,
        image_size=16,
        downsamplings=2,
        channels=8,
        codebook=32,
        code_width=16,
    ),
    "published": Config(),
}
EXAMPLES = {"tiny": {"batch": 2, "text": 9}, "published": {"batch": 2, "text": 32}}


class ResidualBlock(nn.Module):
    """x + Conv1×1(ReLU(Conv3×3(ReLU x))), as in VQ-VAE (van den Oord et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[B, channels, H, W]`` → the same."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Tokenizer(nn.Module):
    """VQ-VAE (arXiv:1711.00937): strided convolutions to a grid of vectors, each replaced by its
    nearest codebook entry, and back."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, code = config.channels, config.code_width
        down: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(code, channels, 3, padding=1), ResidualBlock(channels)]
        for _ in range(config.downsamplings):
            down += [nn.ReLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1)]
            up += [nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*down, ResidualBlock(channels), nn.Conv2d(channels, code, 1))
        self.decoder = nn.Sequential(*up, nn.Conv2d(channels, 3, 3, padding=1))
        self.codebook = nn.Embedding(config.codebook, code)

    def encode(self, image: Tensor) -> Tensor:
        """Float ``[B, 3, H, W]`` → int64 codes ``[B, h, w]``, where h = H / 2^downsamplings.

        The argmin over entries e of ‖z‖² − 2 z·e + ‖e‖², ‖z‖² left out.
        """
        z = self.encoder(image).permute(0, 2, 3, 1)
        entries = self.codebook.weight
        return (entries.square().sum(dim=1) - 2 * F.linear(z, entries)).argmin(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Int64 codes ``[B, h, w]`` → float image ``[B, 3, H, W]`` in (−1, 1)."""
        return torch.tanh(self.decoder(self.codebook(codes).permute(0, 3, 1, 2)))


class DALLE(nn.Module):
    """Text encoder, image tokenizer, cross-attention both ways, and the decoder back to pixels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, grid = config.width, config.image_size // 2**config.downsamplings
        self.tokenizer = Tokenizer(config)
        self.words = nn.Embedding(config.vocabulary, width)
        self.text_positions = nn.Embedding(config.text_length, width)
        self.code_projection = nn.Linear(config.code_width, width)
        self.image_positions = nn.Embedding(grid * grid, width)
        self.text_layers = nn.ModuleList(
            PreNormBlock(width, config.heads, config.hidden) for _ in range(config.text_layers)
        )
        self.cross_layers = nn.ModuleList(
            PreNormBlock(width, config.heads, config.hidden, context_width=width)
            for _ in range(config.cross_layers)
        )
        self.image_layer = PreNormBlock(width, config.heads, config.hidden, context_width=width)
        self.final_norm = nn.LayerNorm(width)
        self.code_head = nn.Linear(width, config.codebook)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor
    ) -> dict[str, Tensor]:
        """Codes, the image that they decode to, and text and image looked at by each other.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: int64 or bool ``[B, T]``, non-zero = attend.
            pixel_values: float ``[B, 3, image_size, image_size]`` in (−1, 1).

        Returns:
            ``codes [B, h·w]`` int64, ``image [B, 3, H, W]`` decoded from them, ``text_states [B, T,
            width]`` after attending to the image tokens, and ``code_logits [B, h·w, codebook]``
            given the text.
        """
        grid = self.tokenizer.encode(pixel_values)
        codes = grid.flatten(1)
        tokens = self.code_projection(self.tokenizer.codebook(codes)) + self.image_positions.weight
        mask = key_mask(attention_mask)
        text = self.words(input_ids) + self.text_positions.weight[: input_ids.shape[1]]
        for layer in self.text_layers:
            text = layer(text, mask=mask)
        for layer in self.cross_layers:
            text = layer(text, tokens, mask=mask)
        scored = self.image_layer(tokens, text, context_mask=mask)
        return {
            "codes": codes,
            "image": self.tokenizer.decode(grid),
            "text_states": text,
            "code_logits": self.code_head(self.final_norm(scored)),
        }


def spec(size: str = "published", seed: int = 0) -> ModelSpec:
    """Export spec with seeded random weights; the image is the context, the text the query.

    Raises:
        KeyError: a size other than ``tiny`` and ``published``.
    """
    config = SIZES[size]
    return spec_of(sampling.initialised(lambda: DALLE(config), seed), config, EXAMPLES[size])


def spec_of(module: DALLE, config: Config, example: dict[str, int]) -> ModelSpec:
    """Export spec of a module with weights of its own.

    Args:
        module: takes ``input_ids``, ``attention_mask`` ``[batch, text]`` and ``pixel_values
            [batch, 3, image_size, image_size]``.
        config: of the module.
        example: sizes of the example inputs: ``batch`` and ``text``.
    """
    batch, length = Dim("batch", 1, 64), Dim("text", 1, config.text_length)

    def sample(dims: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        n, t, size = dims["batch"], dims["text"], config.image_size
        return {
            "input_ids": sampling.tokens(generator, config.vocabulary, n, t),
            "attention_mask": sampling.padding(generator, n, t),
            "pixel_values": torch.tanh(sampling.features(generator, n, 3, size, size)),
        }

    return ModelSpec.from_sampler(
        module,
        sample,
        dynamic={
            "input_ids": {0: batch, 1: length},
            "attention_mask": {0: batch, 1: length},
            "pixel_values": {0: batch},
        },
        example=example,
        context=("pixel_values",),
        name="dalle",
    )
