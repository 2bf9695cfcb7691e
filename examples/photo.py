"""Image features from a real photograph, with NumPy and Pillow alone.

The Q-Former reads 257 features of width 1408 from a vision encoder. Here a fixed random projection
of the photograph's 14×14 patches stands in for that encoder (the published Q-Former's own encoder
has a billion weights).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).with_name("chelsea.jpg")


def image_features(path: Path = PHOTO, width: int = 1408, patch: int = 14) -> np.ndarray:
    """``[1, 257, width]`` float32: a mean token and 16×16 patches, projected and normalised."""
    pixels = (
        np.asarray(Image.open(path).convert("RGB").resize((224, 224)), dtype=np.float32) / 127.5 - 1
    )
    grid = pixels.reshape(16, patch, 16, patch, 3).swapaxes(1, 2).reshape(256, -1)
    tokens = np.concatenate([grid.mean(0, keepdims=True), grid])
    projection = np.random.default_rng(0).standard_normal(
        (tokens.shape[1], width), dtype=np.float32
    )
    features = tokens @ projection
    features = (features - features.mean(-1, keepdims=True)) / features.std(-1, keepdims=True)
    return features[None].astype(np.float32)


def inputs() -> dict[str, np.ndarray]:
    """The Q-Former's inputs: the photograph, and a text of 12 arbitrary token ids."""
    ids = np.random.default_rng(1).integers(1, 30_000, (1, 12))
    return {
        "image_features": image_features(),
        "image_mask": np.ones((1, 257), dtype=np.int64),
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
    }
