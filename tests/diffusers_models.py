"""Tiny models of ``diffusers``, random everywhere, for tests."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from coverage.cases import perturbed

__all__ = ["UNET", "VAE", "pixart", "random_model", "unet", "vae"]

UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 16,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (16, 32),
    "latent_channels": 4,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}


def random_model(made_by: Any, **config: Any) -> Any:
    """A model whose every parameter matters, the same each time."""
    torch.manual_seed(0)
    return perturbed(made_by(**config)).requires_grad_(False)


def unet(**config: Any) -> nn.Module:
    """A UNet of two levels: four self-attentions and four cross-attentions."""
    return random_model(diffusers.UNet2DConditionModel, **(UNET | config))


def vae(**config: Any) -> nn.Module:
    """An autoencoder of two levels, with an attention in each half."""
    return random_model(diffusers.AutoencoderKL, **(VAE | config))


def pixart(**config: Any) -> nn.Module:
    """A transformer with a self- and a cross-attention per block."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 1,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 8,
        "patch_size": 2,
        "norm_num_groups": 4,
    }
    return random_model(diffusers.PixArtTransformer2DModel, **(sizes | config))
