"""The halves of an autoencoder."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from crossfuse import InputError
from crossfuse.export.sources.diffusers.autoencoder import half_of, is_autoencoder
from diffusers_models import pixart, vae


def test_halves_are_what_the_autoencoder_does() -> None:
    model = vae()
    images, latents = torch.randn(2, 3, 10, 6), torch.randn(2, 4, 5, 3)
    made = half_of(model, "encoder")(images)
    distribution = model.encode(images).latent_dist
    assert list(made) == ["mean", "logvar"]
    assert torch.equal(made["mean"], distribution.mean)
    assert torch.equal(made["logvar"], distribution.logvar)
    assert torch.equal(half_of(model, "decoder")(latents)["sample"], model.decode(latents).sample)


def test_what_has_halves() -> None:
    other = pixart()
    assert (is_autoencoder(vae()), is_autoencoder(other)) == (True, False)
    assert half_of(other, None) is other
    for model, half, message in (
        (vae(), None, "diffusers:FOLDER/encoder"),
        (vae(), "middle", "got middle"),
        (other, "decoder", "no autoencoder"),
    ):
        with pytest.raises(InputError, match=message):
            half_of(model, half)


class Other(nn.Module):
    """Encodes into something that has no tensor of latents."""

    config: ClassVar[dict[str, int]] = {"latent_channels": 2}

    def encode(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"codes": sample}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def test_an_encoder_without_latents() -> None:
    with pytest.raises(InputError, match="gives no latents: got codes"):
        half_of(Other(), "encoder")(torch.zeros(1))
