"""Modules of PyTorch itself, and blocks of well-known architectures, written here from their
mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec

WIDTH, HEADS = 16, 4
TARGETS = ["onnx", "ort-cpu", "ort-cuda"]
BATCH, LENGTH, KEYS = "batch:1:8", "length:1:64", "keys:1:64"


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters everywhere, biases too: zeros hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def check(
    spec: ModelSpec,
    path: Path,
    kinds: dict[str, str],
    heads: int = HEADS,
    *,
    quick: bool = False,
) -> crossfuse.Bundle:
    bundle = crossfuse.export(spec, path / "b", TARGETS, quick=quick)
    assert {row.site: row.kind for row in bundle.ledger} == kinds
    assert all(all(row.fused.values()) and len(row.fused) == 3 for row in bundle.ledger)
    assert {row.num_heads for row in bundle.ledger} == {heads}
    assert all(bundle.manifest.targets[t].parity["passed"] for t in TARGETS)
    return bundle


class Attend(nn.Module):
    """`nn.MultiheadAttention` as a model of three inputs."""

    def __init__(self, attention: nn.MultiheadAttention, mask: str, need_weights: bool) -> None:
        super().__init__()
        self.attention, self.mask, self.need_weights = attention, mask, need_weights

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        options = {}
        length, keys = (t.shape[1 if self.attention.batch_first else 0] for t in (x, y))
        if "padding" in self.mask:
            options["key_padding_mask"] = mask == 0
        if "bool" in self.mask:
            options["attn_mask"] = torch.ones(length, keys, dtype=torch.bool).triu(2)
        if "float" in self.mask:
            options["attn_mask"] = (
                torch.linspace(-1, 1, 64)[:length, None] * torch.linspace(-2, 2, 64)[None, :keys]
            )
        if "per head" in self.mask:
            per_head = torch.linspace(-1, 1, HEADS).repeat(
                x.shape[0 if self.attention.batch_first else 1]
            )
            options["attn_mask"] = per_head[:, None, None] * torch.linspace(-1, 1, 64)[
                :keys
            ].expand(1, length, -1)
        key, value = (y[..., :width] for width in (self.attention.kdim, self.attention.vdim))
        return self.attention(x, key, value, need_weights=self.need_weights, **options)[0]


MULTIHEAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"batch_first": True}, "none"),
    ({"batch_first": False}, "none"),
    ({"batch_first": True}, "padding"),
    ({"batch_first": False}, "padding"),
    ({"batch_first": True}, "bool"),
    ({"batch_first": True}, "float"),
    ({"batch_first": True}, "per head"),
    ({"batch_first": True}, "padding and bool"),
    ({"batch_first": False, "bias": False}, "padding and float"),
    ({"batch_first": True, "kdim": 12, "vdim": 10}, "padding"),
    ({"batch_first": False, "kdim": 12, "vdim": 12}, "none"),
    ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, "none"),
)
"""Options of `nn.MultiheadAttention`, and the masks that it is called with."""


def attend(case: int, need_weights: bool) -> Attend:
    options, mask = MULTIHEAD[case]
    attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
    return Attend(perturbed(attention, case), mask, need_weights).eval()


class All(nn.Module):
    """All options on the same inputs, of one export; every second one is asked for its weights."""

    def __init__(self, first_with_weights: int) -> None:
        super().__init__()
        self.cases = nn.ModuleList(
            attend(case, (case + first_with_weights) % 2 == 0) for case in range(len(MULTIHEAD))
        )

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {
            f"case_{i}": case(x, y, mask)
            if case.attention.batch_first
            else case(x.transpose(0, 1), y.transpose(0, 1), mask)
            for i, case in enumerate(self.cases)
        }


MASK = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("first_with_weights", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_multihead_attention(tmp_path: Path, first_with_weights: int) -> None:
    spec = ModelSpec(
        All(first_with_weights).eval(),
        {"x": randn(2, 3, WIDTH), "y": randn(2, 5, WIDTH), "mask": MASK},
        {"x": {0: BATCH, 1: LENGTH}, "y": {0: "batch", 1: KEYS}, "mask": {0: "batch", 1: "keys"}},
    )
    sites = [f"cases.{i}.attention" for i in range(len(MULTIHEAD))]
    kinds = dict.fromkeys(sites, "cross")
    bundle = check(spec, tmp_path, kinds, quick=first_with_weights == 0)
    captured = {row.site: row.captured for row in bundle.ledger}
    assert captured == {
        site: "pattern" if (i + first_with_weights) % 2 == 0 else "sdpa"
        for i, site in enumerate(sites)
    }


@pytest.mark.parametrize("case", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_batch_is_the_second_axis(tmp_path: Path, case: int) -> None:
    """Of the model's own inputs."""
    spec = ModelSpec(
        attend(case, need_weights=True),
        {"x": randn(3, 2, WIDTH), "y": randn(5, 2, WIDTH), "mask": MASK},
        {"x": {1: BATCH, 0: LENGTH}, "y": {1: "batch", 0: KEYS}, "mask": {0: "batch", 1: "keys"}},
    )
    check(spec, tmp_path, {"attention": "cross"})


def test_self_attention_of_one_batch(tmp_path: Path) -> None:
    """Without a batch axis."""
    attention = perturbed(nn.MultiheadAttention(WIDTH, HEADS))

    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    check(
        ModelSpec(Unbatched().eval(), {"x": randn(5, WIDTH)}, {"x": {0: LENGTH}}),
        tmp_path,
        {"attention": "self"},
    )


@pytest.mark.parametrize("norm_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transformer_decoder(tmp_path: Path, norm_first: bool) -> None:
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=norm_first)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = perturbed(nn.TransformerDecoder(layer, 2))

        def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.decoder(
                tokens,
                memory,
                tgt_mask=causal,
                memory_key_padding_mask=mask == 0,
                tgt_is_causal=True,
            )

    spec = ModelSpec(
        Decoder().eval(),
        {
            "tokens": randn(2, 3, WIDTH),
            "memory": randn(2, 5, WIDTH),
            "mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        },
        {
            "tokens": {0: BATCH, 1: LENGTH},
            "memory": {0: "batch", 1: KEYS},
            "mask": {0: "batch", 1: "keys"},
        },
    )
    kinds = {f"decoder.layers.{i}.{name}": kind for i in range(2)
             for name, kind in (("self_attn", "self"), ("multihead_attn", "cross"))}  # fmt: skip
    check(spec, tmp_path, kinds)


def test_transformer(tmp_path: Path) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = perturbed(nn.Transformer(WIDTH, HEADS, 1, 1, 32, batch_first=True))

        def forward(self, source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
            hidden = mask == 0
            return self.transformer(
                source, target, src_key_padding_mask=hidden, memory_key_padding_mask=hidden
            )

    spec = ModelSpec(
        Whole().eval(),
        {
            "source": randn(2, 5, WIDTH),
            "target": randn(2, 3, WIDTH),
            "mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        },
        {
            "source": {0: BATCH, 1: KEYS},
            "target": {0: "batch", 1: LENGTH},
            "mask": {0: "batch", 1: "keys"},
        },
    )
    names = {"encoder.layers.0.self_attn": "self", "decoder.layers.0.self_attn": "self",
             "decoder.layers.0.multihead_attn": "cross"}  # fmt: skip
    check(spec, tmp_path, {f"transformer.{name}": kind for name, kind in names.items()})


class Latents(nn.Module):
    """Perceiver: a fixed array of latents attends to inputs of any length and width, by hand, then
    to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(6, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(10, WIDTH),
            nn.Linear(10, WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        q, k, v = (
            f(t).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for f, t in ((self.q, self.norm(latents)), (self.k, x), (self.v, x))
        )
        scores = (
            q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
            + (1.0 - mask[:, None, None, :]) * torch.finfo(x.dtype).min
        )
        latents = latents + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return latents + self.own(latents, latents, latents)[0]


def test_perceiver_latents(tmp_path: Path) -> None:
    spec = ModelSpec(
        perturbed(Latents()),
        {"x": randn(2, 5, 10), "mask": torch.tensor([[1.0] * 5, [1, 1, 0, 0, 0]])},
        {"x": {0: BATCH, 1: KEYS}, "mask": {0: "batch", 1: "keys"}},
    )
    check(spec, tmp_path, {"(root)": "cross", "own": "self"})


class Spatial(nn.Module):
    """Diffusion UNet: pixels of a feature map attend to each other, then to the tokens of a
    prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.enter, self.leave = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.own = nn.ModuleDict(
            {n: nn.Linear(WIDTH, WIDTH, bias=n == "out") for n in ["q", "k", "v", "out"]}
        )
        self.cross = nn.ModuleDict(
            {
                n: nn.Linear(WIDTH if n in ("q", "out") else 12, WIDTH, bias=n == "out")
                for n in ["q", "k", "v", "out"]
            }
        )

    @staticmethod
    def attend(layers: nn.ModuleDict, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (layers[n](t) for n, t in (("q", x), ("k", y), ("v", y)))
        batch, length, _ = q.shape
        q, k, v = (
            t.reshape(batch, -1, HEADS, WIDTH // HEADS)
            .permute(0, 2, 1, 3)
            .reshape(batch * HEADS, -1, WIDTH // HEADS)
            for t in (q, k, v)
        )
        weights = (
            torch.einsum("b i d, b j d -> b i j", q, k)
            .mul((WIDTH // HEADS) ** -0.5)
            .softmax(dim=-1)
        )
        out = torch.einsum("b i j, b j d -> b i d", weights, v)
        return layers["out"](
            out.reshape(batch, HEADS, length, -1).permute(0, 2, 1, 3).reshape(batch, length, WIDTH)
        )

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        batch, _, height, width = image.shape
        x = self.enter(self.norm(image)).permute(0, 2, 3, 1).reshape(batch, height * width, WIDTH)
        x = x + self.attend(self.own, x, x)
        x = x + self.attend(self.cross, x, prompt)
        return self.leave(x.reshape(batch, height, width, WIDTH).permute(0, 3, 1, 2)) + image


def test_spatial_cross_attention(tmp_path: Path) -> None:
    spec = ModelSpec(
        perturbed(Spatial()),
        {"image": randn(2, WIDTH, 4, 6), "prompt": randn(2, 5, 12)},
        {"image": {0: BATCH, 2: "height:1:32", 3: "width:1:32"}, "prompt": {0: "batch", 1: KEYS}},
    )
    check(spec, tmp_path, {"(root)": "self", "(root)#2": "cross"})


class Windows(nn.Module):
    """Swin, second version: cosine attention with a learned temperature and a bias by relative
    position, in windows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Parameter(torch.empty(HEADS, 1, 1))
        self.table = nn.Parameter(torch.empty(7 * 7, HEADS))
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + 3
        self.register_buffer("index", offset[0] * 7 + offset[1])

    def forward(self, image: Tensor) -> Tensor:
        batch, height, width, _ = image.shape
        x = (
            image.view(batch, height // 4, 4, width // 4, 4, WIDTH)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, 16, WIDTH)
        )
        q, k, v = self.qkv(x).reshape(x.shape[0], 16, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.temperature, max=4.6).exp()
        scores = scores + 16 * torch.sigmoid(self.table[self.index].permute(2, 0, 1)).unsqueeze(0)
        x = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, WIDTH))
        return (
            x.view(batch, height // 4, width // 4, 4, 4, WIDTH)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(image.shape)
        )


def test_cosine_attention_with_relative_bias(tmp_path: Path) -> None:
    spec = ModelSpec(perturbed(Windows()), {"image": randn(2, 8, 12, WIDTH)}, {"image": {0: BATCH}})
    check(spec, tmp_path, {"(root)": "self"})


class BothWays(nn.Module):
    """Grounding: one product of image and text, normalised both ways, clamped far out."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("image", "text", "image_value", "text_value"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        def split(t: Tensor) -> Tensor:
            return (
                t.view(t.shape[0], -1, HEADS, WIDTH // HEADS)
                .transpose(1, 2)
                .reshape(-1, t.shape[1], WIDTH // HEADS)
            )

        def join(t: Tensor) -> Tensor:
            return (
                t.view(-1, HEADS, t.shape[1], WIDTH // HEADS)
                .transpose(1, 2)
                .reshape(-1, t.shape[1], WIDTH)
            )

        scores = torch.bmm(split(self.image(image) * 0.5), split(self.text(text)).transpose(1, 2))
        scores = torch.clamp(scores - scores.max(), min=-50000, max=50000)
        back = scores.transpose(1, 2)
        back = torch.clamp(back - back.max(dim=-1, keepdim=True)[0], min=-50000, max=50000).softmax(
            -1
        )
        hidden = (mask == 0)[:, None, None, :].repeat(1, HEADS, 1, 1).flatten(0, 1)
        there = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return join(torch.bmm(there, split(self.text_value(text)))), join(
            torch.bmm(back, split(self.image_value(image)))
        )


def test_one_product_for_both_directions(tmp_path: Path) -> None:
    spec = ModelSpec(
        perturbed(BothWays()),
        {
            "image": randn(2, 7, WIDTH),
            "text": randn(2, 5, WIDTH),
            "mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        },
        {
            "image": {0: BATCH, 1: LENGTH},
            "text": {0: "batch", 1: KEYS},
            "mask": {0: "batch", 1: "keys"},
        },
    )
    check(spec, tmp_path, {"(root)": "cross", "(root)#2": "cross"})
