"""ViLT: one transformer over words and image patches side by side (Kim et al. 2021,
arXiv:2102.03334).

    x = [Text(ids) + type₀ ; ViT-patches(pixels) + type₁]
    x ← x + Attention(LN x),  x ← x + FeedForward(LN x)

Every token attends to every token, so text meets image in each self-attention. Images smaller than
the canvas are padded; ``pixel_mask`` marks the real pixels, and position embeddings are stretched
to them. The published size is B/32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossfuse.core.tensors import Dim
from crossfuse.models import sampling
from crossfuse.models.layers import PreNormBlock, key_mask
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["EXAMPLES", "SIZES", "Config", "ViLT", "spec", "spec_of"]


@dataclass(frozen=True)
class Config:
    """Sizes of the one transformer and of both embeddings."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 30522
    text_length: int = 40
    image_size: int = 384
    patch_size: int = 32
    eps: float = 1e-12
    modality_types: int = 2


SIZES = {
    "tiny": Config(
        width=32,
        layers=2,
        heads=4,
        hidden=64,
        vocabulary=99,
        text_length=16,
        image_size=64,
        patch_size=16,
    ),
    "published": Config(),
}
EXAMPLES = {"tiny": {"batch": 2, "text": 9}, "published": {"batch": 2, "text": 20}}


class TextEmbeddings(nn.Module):
    """Word, position and token-type embeddings as in BERT (Devlin et al. 2018, arXiv:1810.04805):
    LN(E[ids] + type₀ + P)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.text_length, config.width)
        self.token_types = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Int64 ids ``[B, T]`` → float ``[B, T, width]``."""
        x = (
            self.words(input_ids)
            + self.token_types.weight[0]
            + self.positions.weight[: input_ids.shape[1]]
        )
        return self.norm(x)


class ImageEmbeddings(nn.Module):
    """Patches, a class token, and position embeddings stretched to the image's real extent."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.grid = config.image_size // config.patch_size
        self.patches = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.grid**2 + 1, config.width))

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images as tokens.

        Args:
            pixel_values: float ``[B, 3, H, W]``.
            pixel_mask: int64 ``[B, H, W]``, 1 for real pixels, which are at the top left.

        Returns:
            tokens ``[B, 1+P, width]`` and their mask ``[B, 1+P]``, the class token first, then the
            patches row by row.
        """
        patches = self.patches(pixel_values)
        step = self.patches.kernel_size[0]
        real = pixel_mask[:, ::step, ::step]
        x = patches.flatten(2).transpose(1, 2) + self._stretched_positions(real)
        first = (self.class_token + self.positions[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([first, x], dim=1), torch.cat([real[:, 0, :1], real.flatten(1)], dim=1)

    def _stretched_positions(self, real: Tensor) -> Tensor:
        """Bilinear interpolation, corners aligned, of the square grid of positions to each image's
        real patches: ``[B, rows, columns]`` → ``[B, rows·columns, width]``.

        Linear interpolation at coordinate y is Σ_k max(0, 1 − |y − k|) · position_k, so that images
        of different extents need no loop and no data-dependent shape.
        """
        rows = self._hats(real[:, :, 0].sum(dim=1), real.shape[1])
        columns = self._hats(real[:, 0, :].sum(dim=1), real.shape[2])
        weights = (
            (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
        )
        return weights @ self.positions[0, 1:]

    def _hats(self, extent: Tensor, size: int) -> Tensor:
        """``[B]`` extents → interpolation weights ``[B, size, grid]``."""
        dtype, device = self.positions.dtype, self.positions.device
        stretch = (self.grid - 1) / (extent - 1).clamp(min=1).to(dtype)
        where = torch.arange(size, device=device, dtype=dtype) * stretch[:, None]
        return (
            1 - (where[:, :, None] - torch.arange(self.grid, device=device, dtype=dtype)).abs()
        ).clamp(min=0)


class ViLT(nn.Module):
    """The single-stream encoder with its pooler."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.text = TextEmbeddings(config)
        self.image = ImageEmbeddings(config)
        self.modalities = nn.Embedding(config.modality_types, config.width)
        self.layers = nn.ModuleList(
            PreNormBlock(config.width, config.heads, config.hidden, eps=config.eps)
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.pooler = nn.Linear(config.width, config.width)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, pixel_mask: Tensor
    ) -> dict[str, Tensor]:
        """Words and patches that have looked at each other.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: int64 ``[B, T]``, 1 = attend.
            pixel_values: float ``[B, 3, H, W]``.
            pixel_mask: int64 ``[B, H, W]``, 1 for real pixels.

        Returns:
            ``last_hidden_state [B, T+1+P, width]`` (text, class token, patches in row-major order)
            and ``pooler_output [B, width]``.
        """
        text = self.text(input_ids) + self.modalities.weight[0]
        image, image_mask = self.image(pixel_values, pixel_mask)
        x = torch.cat([text, image + self.modalities.weight[1]], dim=1)
        mask = key_mask(torch.cat([attention_mask, image_mask], dim=1))
        for layer in self.layers:
            x = layer(x, mask=mask)
        x = self.final_norm(x)
        return {"last_hidden_state": x, "pooler_output": torch.tanh(self.pooler(x[:, 0]))}


def spec(size: str = "published", seed: int = 0) -> ModelSpec:
    """Export spec with seeded random weights; samples hold images of different real extents.

    Raises:
        KeyError: a size other than ``tiny`` and ``published``.
    """
    config = SIZES[size]
    return spec_of(sampling.initialised(lambda: ViLT(config), seed), config, EXAMPLES[size])


def spec_of(module: ViLT, config: Config, example: dict[str, int]) -> ModelSpec:
    """Export spec of a module with weights of its own.

    Args:
        module: takes ``input_ids``, ``attention_mask`` ``[batch, text]``, ``pixel_values [batch, 3,
            image_size, image_size]`` and ``pixel_mask [batch, image_size, image_size]``.
        config: of the module.
        example: sizes of the example inputs: ``batch`` and ``text``.
    """
    batch, length = Dim("batch", 1, 64), Dim("text", 1, config.text_length)

    def sample(dims: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        n, grid, step = dims["batch"], config.image_size // config.patch_size, config.patch_size
        rows, columns = (
            sampling.padding(generator, n, grid).repeat_interleave(step, dim=1) for _ in range(2)
        )
        pixel_mask = rows[:, :, None] * columns[:, None, :]
        pixels = sampling.features(generator, n, 3, config.image_size, config.image_size)
        return {
            "input_ids": sampling.tokens(generator, config.vocabulary, n, dims["text"]),
            "attention_mask": sampling.padding(generator, n, dims["text"]),
            "pixel_values": pixels * pixel_mask[:, None],
            "pixel_mask": pixel_mask,
        }

    return ModelSpec.from_sampler(
        module,
        sample,
        dynamic={
            "input_ids": {0: batch, 1: length},
            "attention_mask": {0: batch, 1: length},
            "pixel_values": {0: batch},
            "pixel_mask": {0: batch},
        },
        example=example,
        context=("pixel_values", "pixel_mask"),
        name="vilt",
    )
