"""The halves of an autoencoder as models of their own: images to latents, and latents to images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.sources.diffusers.input_plan import find
from crossfuse.export.sources.diffusers.locate import HALVES

__all__ = ["Decoder", "Encoder", "half_of", "is_autoencoder"]


class Encoder(nn.Module):
    """Images to latents.

    Attributes:
        config: the autoencoder's.
        input_factor: by how much images are made smaller, where the autoencoder says so.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = autoencoder.config
        self.input_factor = getattr(autoencoder, "spatial_compression_ratio", None)

    def forward(self, sample: Tensor) -> dict[str, Tensor]:
        """``[B, channels, H, W]`` → the latents' ``mean`` and ``logvar``, or the latents themselves
        where the autoencoder has no distribution of them. Neither shifted nor scaled."""
        found = self.autoencoder.encode(sample)
        distribution = getattr(found, "latent_dist", None)
        if distribution is not None:
            return {"mean": distribution.mean, "logvar": distribution.logvar}
        for name in ("latents", "latent"):
            if isinstance(getattr(found, name, None), Tensor):
                return {"latents": getattr(found, name)}
        raise InputError("the autoencoder's encoder gives no latents", got=", ".join(found.keys()))


class Decoder(nn.Module):
    """Latents to images.

    Attributes:
        config: the autoencoder's.
        input_channels: of latents.
        input_factor: 1, as latents are not made smaller.
    """

    input_factor = 1

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = autoencoder.config
        self.input_channels = find(self.config, "latent_channels", "z_dim")

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Latents, shifted and scaled back already, → ``sample``, ``[B, channels, H, W]``."""
        return {"sample": self.autoencoder.decode(latents).sample}


def is_autoencoder(model: nn.Module) -> bool:
    """Whether a model has two halves, whose whole gives its own input again."""
    return callable(getattr(model, "encode", None)) and callable(getattr(model, "decode", None))


def half_of(model: nn.Module, half: str | None) -> nn.Module:
    """A half of an autoencoder, or another model as it is.

    Raises:
        InputError: an autoencoder without a half, a half of something else, or no such half.
    """
    name = type(model).__name__
    if not is_autoencoder(model):
        if half is None:
            return model
        raise InputError("the model is no autoencoder, which alone has halves", got=name)
    if half not in HALVES:
        raise InputError(
            "an autoencoder is two models, each a source of its own",
            where=name,
            got=half,
            expected=" or ".join(HALVES),
            do="Name the half behind the folder: diffusers:FOLDER/encoder or "
            "diffusers:FOLDER/decoder",
        )
    return Encoder(model) if half == HALVES[0] else Decoder(model)
