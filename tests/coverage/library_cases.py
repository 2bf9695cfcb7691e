"""The coverage suite's cases of other libraries: modules that the registry has, tiny and random.

``open_clip``, ``timm`` and ``vit-pytorch`` are not among them: these packages install torchvision.
So is ``segment-anything``, which imports it; its decoder stands here as kornia has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coverage.cases import Case, perturbed
from coverage.listing import case_into
from crossfuse import ModelSpec

CASES: dict[str, Case] = {}

case = case_into(CASES)

BATCH = {0: "batch"}


def spec(
    module: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: dict[str, dict[int, str]],
    context: tuple[str, ...] = (),
) -> ModelSpec:
    return ModelSpec(
        perturbed(module).requires_grad_(False), inputs, dynamic, context, type(module).__name__
    )


class Called(nn.Module):
    """A module whose arguments get names, and whose first result is kept."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__()
        self.module = module
        self.options = options

    def forward(self, **tensors: Tensor) -> Any:
        return self.module(**tensors, **self.options)


@case("x-transformers, a decoder with cross-attention to padded states", own=2, cross=2)
def x_transformers_decoder() -> ModelSpec:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, cross_attend=True)
    model = TransformerWrapper(num_tokens=99, max_seq_len=32, attn_layers=layers)
    inputs = {
        "x": torch.randint(1, 99, (2, 7)),
        "context": torch.randn(2, 9, 32),
        "context_mask": torch.arange(9) < torch.tensor([[9], [5]]),
    }
    keys = {0: "batch", 1: "keys:1:32"}
    dynamic = {"x": {0: "batch", 1: "text:1:32"}, "context": keys, "context_mask": keys}
    return spec(model, inputs, dynamic, ("context", "context_mask"))


@case("x-transformers, an encoder with rotary positions and grouped heads", own=2)
def x_transformers_encoder() -> ModelSpec:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    layers = Encoder(
        dim=32, depth=2, heads=4, attn_dim_head=8, attn_kv_heads=2, rotary_pos_emb=True
    )
    model = ContinuousTransformerWrapper(dim_in=12, dim_out=5, max_seq_len=32, attn_layers=layers)
    inputs = {"x": torch.randn(2, 7, 12)}
    return spec(model, inputs, {"x": {0: "batch", 1: "length:1:32"}})


@case("perceiver-pytorch, latents over an image, twice", own=2, cross=2)
def perceiver_image() -> ModelSpec:
    from perceiver_pytorch import Perceiver

    model = Perceiver(
        num_freq_bands=3,
        depth=2,
        max_freq=10.0,
        num_latents=6,
        latent_dim=32,
        cross_heads=2,
        latent_heads=4,
        cross_dim_head=8,
        latent_dim_head=8,
        num_classes=5,
    )
    return spec(model, {"data": torch.randn(2, 6, 5, 3)}, {"data": BATCH})


@case("perceiver-pytorch, Perceiver IO: padded data, queries of an output", own=2, cross=2)
def perceiver_io() -> ModelSpec:
    from perceiver_pytorch import PerceiverIO

    model = PerceiverIO(
        depth=2,
        dim=24,
        queries_dim=16,
        logits_dim=9,
        num_latents=6,
        latent_dim=32,
        cross_heads=2,
        latent_heads=4,
        cross_dim_head=8,
        latent_dim_head=8,
    )
    inputs = {
        "data": torch.randn(2, 7, 24),
        "mask": torch.arange(7) < torch.tensor([[7], [4]]),
        "queries": torch.randn(2, 3, 16),
    }
    data = {0: "batch", 1: "data:1:32"}
    dynamic = {"data": data, "mask": data, "queries": {0: "batch", 1: "queries:1:16"}}
    return spec(model, inputs, dynamic, ("data", "mask"))


@case("flamingo-pytorch, the resampler: latents over frames and themselves", cross=2)
def flamingo_resampler() -> ModelSpec:
    from flamingo_pytorch import PerceiverResampler

    model = PerceiverResampler(
        dim=32, depth=2, dim_head=8, heads=4, num_latents=5, num_media_embeds=2
    )
    return spec(model, {"x": torch.randn(2, 2, 9, 32)}, {"x": {0: "batch", 2: "tokens:1:32"}})


@case("flamingo-pytorch, gated cross-attention to the media before each word", cross=1)
def flamingo_block() -> ModelSpec:
    from flamingo_pytorch import GatedCrossAttentionBlock

    model = GatedCrossAttentionBlock(dim=32, dim_head=8, heads=4)
    places = torch.zeros(2, 7, dtype=torch.bool)
    places[0, [0, 4]] = places[1, [2, 5]] = True
    inputs = {
        "x": torch.randn(2, 7, 32),
        "media": torch.randn(2, 2, 5, 32),
        "media_locations": places,
    }
    text = {0: "batch", 1: "text:2:32"}
    dynamic = {"x": text, "media": {0: "batch"}, "media_locations": text}
    return spec(model, inputs, dynamic, ("media",))


@case("CoCa-pytorch, captions over pooled image tokens, one key for all heads", own=2, cross=2)
def coca() -> ModelSpec:
    from coca_pytorch.coca_pytorch import CoCa

    model = CoCa(
        dim=32,
        num_tokens=99,
        unimodal_depth=1,
        multimodal_depth=1,
        image_dim=24,
        num_img_queries=5,
        dim_head=8,
        heads=4,
    )
    inputs = {"text": torch.randint(1, 99, (2, 7)), "image_tokens": torch.randn(2, 9, 24)}
    dynamic = {"text": {0: "batch", 1: "text:2:32"}, "image_tokens": {0: "batch", 1: "image:1:32"}}
    return spec(Called(model), inputs, dynamic, ("image_tokens",))


class LightGlueLayers(nn.Module):
    """Layers of LightGlue between the points of two images, and the scores of their pairs."""

    def __init__(self) -> None:
        super().__init__()
        from kornia.feature.lightglue import (
            LearnableFourierPositionalEncoding,
            MatchAssignment,
            TransformerLayer,
        )

        self.places = LearnableFourierPositionalEncoding(2, 8, 8)
        self.layers = nn.ModuleList(TransformerLayer(32, 4, False) for _ in range(2))
        self.scores = MatchAssignment(32)

    def forward(
        self, first: Tensor, second: Tensor, first_places: Tensor, second_places: Tensor
    ) -> Tensor:
        one, other = self.places(first_places), self.places(second_places)
        for layer in self.layers:
            first, second = layer(first, second, one, other)
        return self.scores(first, second)[0]


@case("kornia's LightGlue, its layers between the points of two images", own=4, cross=4)
def lightglue_layers() -> ModelSpec:
    inputs = {
        "first": torch.randn(2, 7, 32),
        "second": torch.randn(2, 9, 32),
        "first_places": torch.rand(2, 7, 2),
        "second_places": torch.rand(2, 9, 2),
    }
    first, second = {0: "batch", 1: "first:2:64"}, {0: "batch", 1: "second:2:64"}
    dynamic = {
        "first": first,
        "second": second,
        "first_places": first,
        "second_places": second,
    }
    return spec(LightGlueLayers(), inputs, dynamic)


@case("kornia's Segment Anything, the decoder's two-way transformer", own=2, cross=5)
def sam_two_way() -> ModelSpec:
    from kornia.models.sam.architecture.transformer import TwoWayTransformer

    model = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=48)
    inputs = {
        "image_embedding": torch.randn(2, 32, 5, 6),
        "image_pe": torch.randn(2, 32, 5, 6),
        "point_embedding": torch.randn(2, 4, 32),
    }
    image = {0: "batch", 2: "height:2:32", 3: "width:2:32"}
    dynamic = {
        "image_embedding": image,
        "image_pe": image,
        "point_embedding": {0: "batch", 1: "points:1:32"},
    }
    return spec(model, inputs, dynamic, ("image_embedding", "image_pe"))


@case("MONAI's diffusion UNet of medical images, conditioned", own=4, cross=4)
def monai_diffusion() -> ModelSpec:
    from monai.networks.nets import DiffusionModelUNet

    model = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        num_res_blocks=1,
        channels=(16, 32),
        attention_levels=(False, True),
        norm_num_groups=8,
        num_head_channels=8,
        with_conditioning=True,
        cross_attention_dim=24,
    )
    inputs = {
        "x": torch.randn(2, 1, 12, 8),
        "timesteps": torch.tensor([3, 700]),
        "context": torch.randn(2, 7, 24),
    }
    dynamic = {
        "x": {0: "batch", 2: "2*height:2:32", 3: "2*width:2:32"},
        "timesteps": BATCH,
        "context": {0: "batch", 1: "text:1:32"},
    }
    return spec(model, inputs, dynamic, ("context",))


@case("MONAI's cross-attention block", cross=1)
def monai_cross_attention() -> ModelSpec:
    from monai.networks.blocks import CrossAttentionBlock

    model = CrossAttentionBlock(hidden_size=32, num_heads=4, context_input_size=24)
    inputs = {"x": torch.randn(2, 7, 32), "context": torch.randn(2, 9, 24)}
    dynamic = {"x": {0: "batch", 1: "length:1:64"}, "context": {0: "batch", 1: "keys:1:64"}}
    return spec(model, inputs, dynamic, ("context",))


@case("conformer, a block with Shaw's relative positions, padded", own=1)
def conformer_block() -> ModelSpec:
    from conformer import ConformerBlock

    model = ConformerBlock(dim=32, dim_head=8, heads=4, conv_kernel_size=5)
    inputs = {
        "x": torch.randn(2, 7, 32),
        "mask": torch.arange(7) < torch.tensor([[7], [4]]),
    }
    length = {0: "batch", 1: "length:2:64"}
    return spec(model, inputs, {"x": length, "mask": length})
