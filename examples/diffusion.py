"""An image from text without PyTorch: the text is encoded once, its keys and values in every
cross-attention once for all steps, and the steps are DDIM's, in NumPy.

python examples/diffusion.py TEXT DENOISER DECODER SCHEDULER.json IDS.npz IMAGE.npy

TEXT, DENOISER and DECODER are bundles of a pipeline's text encoder, UNet and autoencoder's decoder.
IDS.npz holds the token ids of the text and of the negative text, ``[1, tokens]`` each, and the
noise to begin with, ``[1, channels, height, width]``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "diffusers"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError from here on

import numpy as np  # noqa: E402

from crossfuse import runtime  # noqa: E402

SCALING = 0.18215
"""What latents were multiplied with when the UNet was trained: ``scaling_factor`` of the
autoencoder's configuration."""


@dataclass(frozen=True)
class Ddim:
    """The deterministic steps of denoising diffusion implicit models (Song et al., 2020), for
    models that predict the noise.

    Attributes:
        kept: how much of the image is left after each training step, ``[steps]``, float64.
        last: the same after the last step to take.
        offset: added to the steps.
    """

    kept: np.ndarray
    last: float
    offset: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Ddim:
        """From a scheduler's configuration."""
        start, end, steps = (
            config[key] for key in ("beta_start", "beta_end", "num_train_timesteps")
        )
        power = 2 if config["beta_schedule"] == "scaled_linear" else 1
        betas = np.linspace(start ** (1 / power), end ** (1 / power), steps) ** power
        kept = np.cumprod(1 - betas)
        last = 1.0 if config["set_alpha_to_one"] else float(kept[0])
        return cls(kept, last, config["steps_offset"])

    def times(self, steps: int) -> np.ndarray:
        """The training steps to visit, from noise to image."""
        return np.arange(steps)[::-1] * (len(self.kept) // steps) + self.offset

    def step(self, latents: np.ndarray, noise: np.ndarray, time: int, steps: int) -> np.ndarray:
        """The latents one step on, given the noise that the model sees in them."""
        before = time - len(self.kept) // steps
        now, then = self.kept[time], self.kept[before] if before >= 0 else self.last
        image = (latents - np.sqrt(1 - now) * noise) / np.sqrt(now)
        return (np.sqrt(then) * image + np.sqrt(1 - then) * noise).astype(np.float32)


def image_of(
    bundles: tuple[str, str, str],
    scheduler: Ddim,
    given: dict[str, np.ndarray],
    *,
    steps: int = 4,
    guidance: float = 7.5,
    scaling: float = SCALING,
) -> np.ndarray:
    """An image, ``[1, height, width, 3]`` from 0 to 1.

    Args:
        bundles: of the text encoder, the UNet and the autoencoder's decoder.
        scheduler: the steps.
        given: ``ids``, ``negative`` and ``noise``.
        steps: how many.
        guidance: how far to go beyond the prediction without the text.
        scaling: of latents.
    """
    ids = np.concatenate([given["negative"], given["ids"]])
    with runtime.load(bundles[0]) as session:
        text = session.run(input_ids=ids, attention_mask=np.ones_like(ids))
    latents = given["noise"]
    with runtime.load(bundles[1]) as session:
        context = session.encode(encoder_hidden_states=text["last_hidden_state"])
        for time in scheduler.times(steps):
            moment = np.full(2, time, np.float32)
            both = np.concatenate([latents, latents])
            free, led = session.query(context, sample=both, timestep=moment)["sample_out"]
            noise = (free + np.float32(guidance) * (led - free))[None]
            latents = scheduler.step(latents, noise, int(time), steps)
    with runtime.load(bundles[2]) as session:
        image = session.run(latents=(latents / scaling).astype(np.float32))["sample"]
    return np.clip(image / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)


def main(arguments: list[str]) -> None:
    """Read, denoise, write."""
    text, denoiser, decoder, config, ids, image = arguments
    scheduler = Ddim.of(json.loads(Path(config).read_text()))
    with np.load(ids) as file:
        given = dict(file)
    np.save(image, image_of((text, denoiser, decoder), scheduler, given))
    print(f"{image}: {len(given['ids'][0])} tokens, without PyTorch")


if __name__ == "__main__":
    main(sys.argv[1:])
