"""Models whose export is timed (`export_time.py`), written as their kinds are; random weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import ModelSpec, huggingface_spec


def split(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, width] → [batch, heads, tokens, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """[batch, heads, tokens, size] → [batch, tokens, width]."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of split heads, merged."""
    return merge(F.scaled_dot_product_attention(query, key, value))


def quarter_turn(x: Tensor) -> Tensor:
    """Pairs (a, b) → (-b, a)."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-second, first), -1).flatten(-2)


def rotated(x: Tensor, waves: Tensor) -> Tensor:
    """Rotary positions applied."""
    return x * waves[0] + quarter_turn(x) * waves[1]


def joined(width: int) -> nn.Sequential:
    """A layer over tokens beside their messages."""
    wide = 2 * width
    return nn.Sequential(
        nn.Linear(wide, wide), nn.LayerNorm(wide), nn.GELU(), nn.Linear(wide, width)
    )


class Within(nn.Module):
    """Self-attention of one image's points, with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = joined(width)

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        """Of one image."""
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1, 3)).transpose(1, 2).unbind(-1)
        message = self.out(attend(rotated(q, waves), rotated(k, waves), v))
        return x + self.ffn(torch.cat([x, message], -1))


class Between(nn.Module):
    """Cross-attention of two images' points, both ways."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qk, self.v = heads, nn.Linear(width, width), nn.Linear(width, width)
        self.out, self.ffn = nn.Linear(width, width), joined(width)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Of both images."""
        (qa, qb), (va, vb) = (
            (split(part(a), self.heads), split(part(b), self.heads)) for part in (self.qk, self.v)
        )
        ma, mb = self.out(attend(qa, qb, vb)), self.out(attend(qb, qa, va))
        return (
            a + self.ffn(torch.cat([a, ma], -1)),
            b + self.ffn(torch.cat([b, mb], -1)),
        )


class Matcher(nn.Module):
    """Points of two images matched: layers of self- and cross-attention, and an assignment."""

    def __init__(self, width: int = 256, heads: int = 4, layers: int = 9) -> None:
        super().__init__()
        self.width, self.waves = width, nn.Linear(2, width // heads // 2, bias=False)
        self.within = nn.ModuleList(Within(width, heads) for _ in range(layers))
        self.between = nn.ModuleList(Between(width, heads) for _ in range(layers))
        self.project, self.matchability = nn.Linear(width, width), nn.Linear(width, 1)

    def positions(self, points: Tensor) -> Tensor:
        """Cosines and sines of learned frequencies."""
        angles = self.waves(points)
        waves = torch.stack([angles.cos(), angles.sin()])
        return waves.unsqueeze(2).repeat_interleave(2, dim=-1)

    def forward(
        self, keypoints0: Tensor, keypoints1: Tensor, descriptors0: Tensor, descriptors1: Tensor
    ) -> dict[str, Tensor]:
        """Scores of all pairs."""
        at0, at1 = self.positions(keypoints0), self.positions(keypoints1)
        a, b = descriptors0, descriptors1
        for within, between in zip(self.within, self.between, strict=True):
            a, b = between(within(a, at0), within(b, at1))
        return {"scores": self.assignment(a, b)}

    def assignment(self, a: Tensor, b: Tensor) -> Tensor:
        """Log-probabilities of matches, and of points without one in the last row and column."""
        pa, pb = (self.project(x) / self.width**0.25 for x in (a, b))
        similar = torch.einsum("bmd,bnd->bmn", pa, pb)
        za, zb = self.matchability(a), self.matchability(b)
        sure = F.logsigmoid(za) + F.logsigmoid(zb).transpose(1, 2)
        rows, columns = F.log_softmax(similar, 2), F.log_softmax(similar, 1)
        m, n = similar.shape[1:]
        scores = similar.new_zeros((similar.shape[0], m + 1, n + 1))
        scores[:, :m, :n] = rows + columns + sure
        scores[:, :-1, -1] = F.logsigmoid(-za.squeeze(-1))
        scores[:, -1, :-1] = F.logsigmoid(-zb.squeeze(-1))
        return scores


class Step(nn.Module):
    """A block of a diffusion transformer: modulated self-attention, attention over a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross, self.modulation = nn.Linear(width, width), nn.Linear(width, 6 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def norm(self, x: Tensor) -> Tensor:
        """Without weights."""
        return F.layer_norm(x, (self.width,))

    def forward(self, x: Tensor, context: Tensor, time: Tensor) -> Tensor:
        """One block at one time."""
        a, b, gate, c, d, last = self.modulation(F.silu(time))[:, None].chunk(6, -1)
        parts = self.qkv(self.norm(x) * (1 + a) + b).chunk(3, -1)
        x = x + gate * self.out(attend(*(split(part, self.heads) for part in parts)))
        parts = (self.query(self.norm(x)), *self.key_value(context).chunk(2, -1))
        x = x + self.cross(attend(*(split(part, self.heads) for part in parts)))
        return x + last * self.mlp(self.norm(x) * (1 + c) + d)


class Policy(nn.Module):
    """Actions denoised in a loop, over what a robot sees."""

    def __init__(self, width: int = 128, heads: int = 4, blocks: int = 3, steps: int = 10) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        self.enter, self.leave = nn.Linear(7, width), nn.Linear(width, 7)
        self.blocks = nn.ModuleList(Step(width, heads) for _ in range(blocks))
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)

    def embedded(self, time: float, like: Tensor) -> Tensor:
        """A time as a vector per sample."""
        half = self.width // 2
        angles = time * torch.exp(-math.log(1e4) * torch.arange(half) / half)
        waves = torch.cat([angles.cos(), angles.sin()]).to(like)[None]
        return self.time(waves).expand(like.shape[0], -1)

    def forward(self, context: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Actions."""
        context = context + self.pool(context, context, context, need_weights=False)[0]
        x = noise
        for step in range(self.steps):
            time = self.embedded(1 - step / self.steps, noise)
            hidden = self.enter(x) + self.places
            for block in self.blocks:
                hidden = block(hidden, context, time)
            x = x - self.leave(hidden) / self.steps
        return {"actions": x}


def matcher() -> ModelSpec:
    """36 attentions over 50 and 60 points."""
    torch.manual_seed(0)
    inputs = {
        "keypoints0": torch.rand(1, 50, 2),
        "keypoints1": torch.rand(1, 60, 2),
        "descriptors0": torch.randn(1, 50, 256),
        "descriptors1": torch.randn(1, 60, 256),
    }
    axes = {name: {0: "batch", 1: "m" if name.endswith("0") else "n"} for name in inputs}
    return ModelSpec(Matcher().eval(), inputs, axes)


def policy() -> ModelSpec:
    """61 attentions: 2 in each of 3 blocks, 10 times, and one over the context."""
    torch.manual_seed(0)
    inputs = {"context": torch.randn(2, 20, 128), "noise": torch.randn(2, 16, 7)}
    axes = {"context": {0: "batch", 1: "tokens"}, "noise": {0: "batch"}}
    return ModelSpec(Policy().eval(), inputs, axes)


def whisper_base() -> ModelSpec:
    """Whisper at the size of base."""
    import transformers as hf

    torch.manual_seed(0)
    size = {"d_model": 512, "num_mel_bins": 80, "vocab_size": 51865, "use_cache": False}
    for part in ("encoder", "decoder"):
        size |= {
            f"{part}_layers": 6,
            f"{part}_attention_heads": 8,
            f"{part}_ffn_dim": 2048,
        }
    return huggingface_spec(hf.WhisperForConditionalGeneration(hf.WhisperConfig(**size)).eval())
