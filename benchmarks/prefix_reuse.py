"""Questions on one image, where the image's tokens stand in front of the text's: a LLaVA-like
model, random weights.

A tower of 4 layers (width 256) over 336 × 336 pixels, 576 image tokens, a language model of 8
layers (width 512, 8 heads, rotary positions), and 4 questions of 20 tokens. Logits of the
questions' tokens.

    python benchmarks/prefix_reuse.py [--json FILE] [--rounds N]

All in one run, in the same rounds; medians, and ratios round by round with their 95% intervals:

* ``crossfuse``: `session.query` on an encoded context: keys and values of the image's tokens are
  there in every layer.
* ``unsplit, tower cached``: the same language model as one graph of the same target; the image's
  tokens are kept by hand and repeated for the questions.
* ``eager, tower cached``: PyTorch, with the image's tokens kept by hand.
* ``crossfuse, encoding``: a new image each time: encode, then ask all questions.
* ``unsplit, encoding``: a new image each time: the tower once, then the unsplit language model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

PIXELS, PATCH, TOWER, WIDTH, LAYERS, HEADS, VOCABULARY = 336, 14, 256, 512, 8, 8, 4096
IMAGE_TOKENS = (PIXELS // PATCH) ** 2
QUESTIONS, TOKENS = 4, 20


def rotated(x: Tensor) -> Tensor:
    """Rotary positions of ``[B, H, N, D]``."""
    size = x.shape[-1]
    rates = 10000 ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rates
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a normalization."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, W]`` → ``[B, N, W]``."""
        batch, count, width = x.shape
        qkv = self.qkv(self.before(x)).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.causal:
            q, k = rotated(q), rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.down(F.silu(self.up(self.between(x))))


class Vision(nn.Module):
    """Pixels → image tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, TOWER, PATCH, PATCH)
        self.layers = nn.ModuleList(Layer(TOWER, 4, causal=False) for _ in range(4))
        self.projector = nn.Sequential(nn.Linear(TOWER, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, 336, 336]`` → ``[B, 576, 512]``."""
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.projector(x)


class Language(nn.Module):
    """Image tokens in front of a text → logits of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, HEADS, causal=True) for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
        """``[B, 576, 512]`` and ``[B, T]`` → ``[B, T, V]``."""
        x = torch.cat([image_tokens, self.embed(input_ids)], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, image_tokens.shape[1] :]))


class Model(nn.Module):
    """The whole."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.language = Vision(), Language()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """``[B, 3, 336, 336]`` and ``[B, T]`` → ``[B, T, V]``."""
        return self.language(self.vision(pixel_values), input_ids)


def export_all(folder: Path) -> Model:
    """The model; its split bundle, and its parts as bundles in one piece."""
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False)
    pixels, ids = torch.randn(1, 3, PIXELS, PIXELS), torch.randint(0, VOCABULARY, (1, TOKENS))
    image, text = {0: "batch"}, {0: "batch", 1: "text:1:128"}
    inputs, dynamic = {"input_ids": ids}, {"input_ids": text}
    spec = ModelSpec(
        model,
        {"pixel_values": pixels, **inputs},
        {"pixel_values": image, **dynamic},
        context=("pixel_values",),
    )
    bundle = crossfuse.export(spec, folder / "split", quick=True)
    assert bundle.manifest.prefix is not None
    assert len(bundle.manifest.prefix.attentions) == LAYERS
    tokens = {"image_tokens": torch.randn(1, IMAGE_TOKENS, WIDTH)}
    language = ModelSpec(model.language, {**tokens, **inputs}, {"image_tokens": image, **dynamic})
    crossfuse.export(language, folder / "language", quick=True)
    vision = ModelSpec(model.vision, {"pixel_values": pixels}, {"pixel_values": image})
    crossfuse.export(vision, folder / "vision", quick=True)
    return model


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        model = export_all(Path(name))
        split, language, vision = (
            runtime.load(Path(name) / part, "ort-cpu") for part in ("split", "language", "vision")
        )
        pixels = torch.randn(1, 3, PIXELS, PIXELS)
        ids = torch.randint(0, VOCABULARY, (QUESTIONS, TOKENS))
        image, text = pixels.numpy(), ids.numpy()
        tokens = model.vision(pixels).expand(QUESTIONS, -1, -1).contiguous()
        context, output = split.encode(pixel_values=image), split.outputs[0].name

        def unsplit(states: np.ndarray) -> np.ndarray:
            return next(iter(language.run(image_tokens=states, input_ids=text).values()))

        def unsplit_encoding() -> np.ndarray:
            (found,) = vision.run(pixel_values=image).values()
            return unsplit(np.repeat(found, QUESTIONS, 0))

        ways: dict[str, Callable[[], Any]] = {
            "crossfuse": lambda: split.query(context, input_ids=text)[output],
            "unsplit, tower cached": lambda: unsplit(tokens.numpy()),
            "eager, tower cached": lambda: model.language(tokens, ids),
            "crossfuse, encoding": lambda: split.query(
                split.encode(pixel_values=image), input_ids=text
            )[output],
            "unsplit, encoding": unsplit_encoding,
        }
        expected = ways["eager, tower cached"]().numpy()
        errors = {way: float(np.abs(run() - expected).max()) for way, run in ways.items()}
        taken = sample(ways, Plan(rounds=options.rounds))
    rounds = {way: taken[way].rounds for way in ways}
    pairs = {
        "unsplit, tower cached / crossfuse": ("unsplit, tower cached", "crossfuse"),
        "eager, tower cached / crossfuse": ("eager, tower cached", "crossfuse"),
        "unsplit, encoding / crossfuse, encoding": ("unsplit, encoding", "crossfuse, encoding"),
    }
    result = {
        "questions": QUESTIONS,
        "image_tokens": IMAGE_TOKENS,
        "text_tokens": TOKENS,
        "context_mb": round(context.nbytes / 1e6, 2),
        "median_ms": {
            way: round(summarize(times).median.value * 1e3, 2) for way, times in rounds.items()
        },
        "ratio": {
            words: [round(end, 3) for end in paired_ratio(rounds[one], rounds[other]).to_json()]
            for words, (one, other) in pairs.items()
        },
        "largest_difference_from_eager": errors,
        "environment": environment(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
