"""An action head, as in robot policies: tokens denoised in steps over a context of vision and text.

The context's K and V are the same at every step, so the split computes them once per inference
instead of once per step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import ModelSpec

STEPS = 4


@dataclass(frozen=True)
class Config:
    """Sizes; the defaults are those of a published policy."""

    layers: int = 16
    width: int = 1536
    heads: int = 24
    context_width: int = 2048
    context_tokens: int = 256
    action_tokens: int = 16
    action_size: int = 32


class Attention(nn.Module):
    """Self-attention, or cross-attention to tokens of another width."""

    def __init__(self, config: Config, key_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.out = (
            nn.Linear(config.width, config.width),
            nn.Linear(config.width, config.width),
        )
        self.k, self.v = nn.Linear(key_width, config.width), nn.Linear(key_width, config.width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``[B, L, width]``, ``[B, S, key_width]`` → ``[B, L, width]``."""
        q, k, v = (
            f(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, t in ((self.q, x), (self.k, y), (self.v, y))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Adaptive norm by the time step, attention (to the context in every second block), MLP."""

    def __init__(self, config: Config, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        self.shift = nn.Linear(config.width, 2 * config.width)
        self.norm, self.second = (
            nn.LayerNorm(config.width, elementwise_affine=False) for _ in range(2)
        )
        self.attention = Attention(config, config.context_width if cross else config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """``[B, L, width]`` → the same."""
        scale, shift = self.shift(F.silu(time))[:, None].chunk(2, dim=-1)
        normed = self.norm(x) * (1 + scale) + shift
        x = x + self.attention(normed, context if self.cross else normed)
        return x + self.mlp(self.second(x))


class ActionHead(nn.Module):
    """Velocity of the noisy actions at a time in [0, 1]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width
        self.enter, self.leave = (
            nn.Linear(config.action_size, config.width),
            nn.Linear(config.width, config.action_size),
        )
        self.time = nn.Sequential(
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(config.action_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config, cross=i % 2 == 0) for i in range(config.layers))

    def forward(self, actions: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """``[B, 16, size]``, ``[B]``, ``[B, 256, width]`` → ``[B, 16, size]``."""
        frequencies = torch.exp(
            -math.log(10000) * torch.arange(self.width // 2, dtype=time.dtype) / (self.width // 2)
        )
        angles = time[:, None] * 1000 * frequencies
        moment = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1))
        x = self.enter(actions) + self.positions
        for block in self.blocks:
            x = block(x, moment, context)
        return self.leave(x)


def spec(config: Config | None = None) -> ModelSpec:
    """The head with the vision-language tokens as context."""
    config = config or Config()
    torch.manual_seed(0)
    head = ActionHead(config).eval().requires_grad_(False)
    inputs = {
        "actions": torch.randn(2, config.action_tokens, config.action_size),
        "time": torch.rand(2),
        "context": torch.randn(2, config.context_tokens, config.context_width),
    }
    dynamic = {"actions": {0: "batch:1:16"}, "time": {0: "batch"}, "context": {0: "batch"}}
    return ModelSpec(head, inputs, dynamic, ("context",), "action head")


def denoise(velocity, noise: np.ndarray) -> np.ndarray:
    """Euler steps from noise to actions; ``velocity(actions, time)``."""
    actions = noise
    for i in range(STEPS):
        time = np.full(len(noise), i / STEPS, np.float32)
        actions = actions + velocity(actions, time) / np.float32(STEPS)
    return actions
