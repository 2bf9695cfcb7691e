"""A small model that writes about images, exported: for servers and jobs that generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import crossfuse

__all__ = ["IMAGES", "Captioner", "export_captioner"]

IMAGES = np.random.default_rng(0).standard_normal((4, 9, 24), dtype=np.float32)


class Captioner(nn.Module):
    """Tokens that attend to those before them, and to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.read = nn.Linear(32, 96)
        self.look = nn.Linear(32, 32)
        self.image = nn.Linear(24, 64)
        self.write = nn.Linear(32, 50)

    def forward(self, ids: Tensor, image: Tensor) -> dict[str, Tensor]:
        x = self.words(ids)
        query, key, value = self.read(x).chunk(3, -1)
        x = x + crossfuse.fused_attention(query, key, value, num_heads=4, causal="upper_left")
        key, value = self.image(image).chunk(2, -1)
        x = x + crossfuse.fused_attention(self.look(x), key, value, num_heads=4)
        return {"logits": self.write(x) * 9}


def export_captioner(path: Path, longest: int) -> Path:
    """Takes images ``[batch, 9, 24]`` and ids; sequences have at most so many tokens."""
    torch.manual_seed(0)
    spec = crossfuse.ModelSpec(
        Captioner().eval(),
        inputs={"ids": torch.randint(0, 50, (2, 6)), "image": torch.randn(2, 9, 24)},
        dynamic={"ids": {0: "batch:1:8", 1: f"tokens:1:{longest}"}, "image": {0: "batch"}},
        context=("image",),
        decode="ids",
    )
    crossfuse.export(spec, path, targets=["ort-cpu"], quick=True)
    return path
