"""CLIP: two towers trained so that matching images and texts point the same way (Radford et al.
2021, arXiv:2103.00020).

    t = normalize(W_t · Text(ids)[eot]),  v = normalize(W_v · Vision(pixels)[cls])
    logits_per_text = exp(τ) · t vᵀ

Text is a causal pre-norm transformer, vision a ViT; both use quick-GELU. The published size is
ViT-B/32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossfuse.core.tensors import Dim
from crossfuse.models import sampling
from crossfuse.models.layers import PreNormBlock, key_mask, quick_gelu
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["CLIP", "EXAMPLES", "SIZES", "Config", "spec", "spec_of"]


@dataclass(frozen=True)
class Config:
    """Sizes of both towers; heads are 64 wide in the published models."""

    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    vocabulary: int = 49408
    text_length: int = 77
    eot_token: int = 49407
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_hidden: int = 3072
    image_size: int = 224
    patch_size: int = 32
    projection: int = 512
    eps: float = 1e-5
    activation: str = "quick_gelu"

    @property
    def act(self) -> Callable[[Tensor], Tensor]:
        """The feed-forwards' activation: ``quick_gelu`` in the original, ``gelu`` in some later
        checkpoints."""
        return quick_gelu if self.activation == "quick_gelu" else nn.functional.gelu


SIZES = {
    "tiny": Config(
        text_width=32,
        text_layers=2,
        text_heads=4,
        text_hidden=64,
        vocabulary=99,
        text_length=16,
        eot_token=98,
        vision_width=48,
        vision_layers=2,
        vision_heads=4,
        vision_hidden=96,
        image_size=32,
        patch_size=8,
        projection=24,
    ),
    "published": Config(),
}
EXAMPLES = {
    "tiny": {"texts": 3, "images": 2, "text": 9},
    "published": {"texts": 3, "images": 2, "text": 20},
}


class TextTower(nn.Module):
    """Causal transformer (Radford et al. 2019).

    The state of the end-of-text token stands for the text.

        x = E[ids] + P,  x ← blocks(x),  text = LN(x)[eot]
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.eot_token = config.eot_token
        self.token_embedding = nn.Embedding(config.vocabulary, config.text_width)
        self.position_embedding = nn.Embedding(config.text_length, config.text_width)
        self.layers = nn.ModuleList(
            PreNormBlock(
                config.text_width,
                config.text_heads,
                config.text_hidden,
                activation=config.act,
                eps=config.eps,
            )
            for _ in range(config.text_layers)
        )
        self.final_norm = nn.LayerNorm(config.text_width, eps=config.eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts as vectors.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: int64 or bool ``[B, T]``, non-zero = attend.

        Returns:
            float ``[B, text_width]``.
        """
        x = self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask=key_mask(attention_mask), causal="upper_left")
        x = self.final_norm(x)
        # Checkpoints converted before the token id was corrected say 2: there, the end-of-text
        # token has the highest id.
        end = (input_ids if self.eot_token == 2 else (input_ids == self.eot_token).int()).argmax(
            dim=-1
        )
        return x[torch.arange(x.shape[0], device=x.device), end]


class VisionTower(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929).

    The class token stands for the image.

        x = LN([class ; Conv(pixels)] + P),  x ← blocks(x),  image = LN(x[0])
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.class_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)
        self.pre_norm = nn.LayerNorm(width, eps=config.eps)
        self.layers = nn.ModuleList(
            PreNormBlock(
                width,
                config.vision_heads,
                config.vision_hidden,
                activation=config.act,
                eps=config.eps,
            )
            for _ in range(config.vision_layers)
        )
        self.post_norm = nn.LayerNorm(width, eps=config.eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images as vectors: float ``[B, 3, image_size, image_size]`` → ``[B, vision_width]``."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        x = self.pre_norm(x + self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x)
        return self.post_norm(x[:, 0])


class CLIP(nn.Module):
    """Scores every text against every image: exp(τ) · t vᵀ of unit-length t and v."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.text = TextTower(config)
        self.vision = VisionTower(config)
        self.text_projection = nn.Linear(config.text_width, config.projection, bias=False)
        self.visual_projection = nn.Linear(config.vision_width, config.projection, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor
    ) -> dict[str, Tensor]:
        """Scores of all pairs.

        Args:
            input_ids: int64 ``[texts, T]``.
            attention_mask: int64 or bool ``[texts, T]``, non-zero = attend.
            pixel_values: float ``[images, 3, image_size, image_size]``.

        Returns:
            ``logits_per_image [images, texts]``, ``logits_per_text [texts, images]``, and the
            unit-length ``text_embeds [texts, projection]``, ``image_embeds [images, projection]``.
        """
        text = self.text_projection(self.text(input_ids, attention_mask))
        image = self.visual_projection(self.vision(pixel_values))
        text = text / text.norm(dim=-1, keepdim=True)
        image = image / image.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * text @ image.t()
        return {
            "logits_per_image": logits.t(),
            "logits_per_text": logits,
            "text_embeds": text,
            "image_embeds": image,
        }


def spec(size: str = "published", seed: int = 0) -> ModelSpec:
    """Export spec with seeded random weights; the image is the context.

    Raises:
        KeyError: a size other than ``tiny`` and ``published``.
    """
    config = SIZES[size]
    return spec_of(sampling.initialised(lambda: CLIP(config), seed), config, EXAMPLES[size])


def spec_of(module: CLIP, config: Config, example: dict[str, int]) -> ModelSpec:
    """Export spec of a module with weights of its own.

    Args:
        module: takes ``input_ids``, ``attention_mask`` ``[texts, text]`` and ``pixel_values
            [images, 3, image_size, image_size]``.
        config: of the module.
        example: sizes of the example inputs: ``texts``, ``images`` and ``text``.
    """
    texts, images, length = (
        Dim("texts", 1, 1024),
        Dim("images", 1, 256),
        Dim("text", 1, config.text_length),
    )

    def sample(dims: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        mask = sampling.padding(generator, dims["texts"], dims["text"])
        ids = sampling.tokens(generator, config.eot_token, dims["texts"], dims["text"])
        ids = ids.scatter(1, mask.sum(1, keepdim=True) - 1, config.eot_token) * mask
        pixels = sampling.features(
            generator, dims["images"], 3, config.image_size, config.image_size
        )
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}

    return ModelSpec.from_sampler(
        module,
        sample,
        dynamic={
            "input_ids": {0: texts, 1: length},
            "attention_mask": {0: texts, 1: length},
            "pixel_values": {0: images},
        },
        example=example,
        context=("pixel_values",),
        name="clip",
    )
