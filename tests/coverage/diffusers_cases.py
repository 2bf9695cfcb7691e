"""The coverage suite's cases of ``diffusers``: tiny and random, frozen here."""

from __future__ import annotations

from typing import Any

import diffusers

from coverage.cases import Case
from coverage.listing import case_into
from crossfuse import ModelSpec, diffusers_spec
from diffusers_models import pixart, random_model, unet, vae

CASES: dict[str, Case] = {}

case = case_into(CASES)

JOINT: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
}
TOKENS: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
}


@case("UNet2DConditionModel, Stable Diffusion's", own=4, cross=4)
def diffusers_unet() -> ModelSpec:
    return diffusers_spec(unet())


@case("UNet2DConditionModel, Stable Diffusion XL's: pooled text and sizes", own=8, cross=8)
def diffusers_unet_xl() -> ModelSpec:
    return diffusers_spec(
        unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=68,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        )
    )


@case("ControlNetModel, an image of twice the size controls", own=2, cross=2)
def diffusers_controlnet() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.ControlNetModel,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=16,
            conditioning_embedding_out_channels=(8, 16),
        )
    )


@case("PixArtTransformer2DModel, padded text", own=2, cross=2)
def diffusers_pixart() -> ModelSpec:
    return diffusers_spec(pixart(num_layers=2))


@case("SD3Transformer2DModel, text and image attend to each other jointly", own=2)
def diffusers_sd3() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.SD3Transformer2DModel,
            **JOINT,
            sample_size=16,
            num_layers=2,
            caption_projection_dim=32,
            pooled_projection_dim=20,
            pos_embed_max_size=16,
        )
    )


@case("FluxTransformer2DModel, rotary positions of three axes", own=2)
def diffusers_flux() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.FluxTransformer2DModel,
            **TOKENS,
            pooled_projection_dim=20,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        )
    )


@case("AuraFlowTransformer2DModel, joint and single blocks", own=2)
def diffusers_auraflow() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.AuraFlowTransformer2DModel,
            **JOINT,
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            caption_projection_dim=32,
            pos_embed_max_size=64,
        )
    )


@case("SanaTransformer2DModel, linear self-attention, cross-attention to padded text", cross=1)
def diffusers_sana() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.SanaTransformer2DModel,
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=24,
            sample_size=8,
            patch_size=1,
        )
    )


@case("WanTransformer3DModel, video", own=1, cross=1)
def diffusers_wan() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.WanTransformer3DModel,
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )
    )


@case("DiTTransformer2DModel, classes", own=2)
def diffusers_dit() -> ModelSpec:
    return diffusers_spec(
        random_model(
            diffusers.DiTTransformer2DModel,
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
        )
    )


@case("AutoencoderKL, encoder", own=1)
def diffusers_vae_encoder() -> ModelSpec:
    return diffusers_spec(vae(), half="encoder")


@case("AutoencoderKL, decoder", own=1)
def diffusers_vae_decoder() -> ModelSpec:
    return diffusers_spec(vae(), half="decoder")
