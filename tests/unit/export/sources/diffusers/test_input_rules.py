"""Inputs that models are found to take: names, shapes, what is the context."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from crossfuse import InputError
from crossfuse.export.sources.diffusers.input_rules import RULES, plan_inputs
from diffusers_models import pixart, random_model, unet

FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": (4, 4, 8),
}


def test_a_transformer_with_text() -> None:
    plan = plan_inputs(pixart())
    assert plan.shapes == {
        "hidden_states": ("batch", 4, "height", "width"),
        "encoder_hidden_states": ("batch", "text", 12),
        "timestep": ("batch",),
        "encoder_attention_mask": ("batch", "text"),
    }
    assert plan.context == ["encoder_hidden_states", "encoder_attention_mask"]


def test_more_conditions() -> None:
    sizes = {"num_attention_heads": 3, "cross_attention_dim": 24}
    plan = plan_inputs(pixart(**sizes, use_additional_conditions=True))
    assert plan.shapes["added_cond_kwargs.resolution"] == ("batch", 2)
    assert plan.shapes["added_cond_kwargs.aspect_ratio"] == ("batch", 1)


@pytest.mark.slow
def test_unets() -> None:
    plain = plan_inputs(unet())
    assert plain.shapes["sample"] == ("batch", 4, "height", "width")
    # Where a size is no multiple of the factor, the way is taken that is right for every size.
    assert all(plain.example[name] % 2 for name in ("height",))
    pooled = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68}
    large = plan_inputs(unet(addition_embed_type="text_time", **pooled))
    assert large.shapes["added_cond_kwargs.text_embeds"] == ("batch", 20)
    assert large.shapes["added_cond_kwargs.time_ids"] == ("batch", 6)
    assert "class_labels" in plan_inputs(unet(num_class_embeds=10)).context


@pytest.mark.slow
def test_tokens_and_their_places() -> None:
    plan = plan_inputs(random_model(diffusers.FluxTransformer2DModel, **FLUX, guidance_embeds=True))
    assert plan.shapes["hidden_states"] == ("batch", "tokens", 16)
    assert plan.shapes["img_ids"] == ("tokens", 3)
    assert plan.shapes["txt_ids"] == ("text", 3)
    assert plan.shapes["guidance"] == ("batch",)
    assert plan.context == ["encoder_hidden_states", "pooled_projections", "txt_ids"]
    made = plan.sample(plan.example, torch.Generator().manual_seed(0))
    assert float(made["timestep"].max()) <= 1
    assert len({tuple(place) for place in made["img_ids"].tolist()}) == plan.example["tokens"]


@pytest.mark.slow
def test_images_that_must_be_square() -> None:
    """A DiT takes the root of the number of its tokens for their rows: where images aren't square,
    samples are joined. No trace follows a root, so it has its configuration's size."""
    dit = random_model(
        diffusers.DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )
    assert plan_inputs(dit).shapes["hidden_states"] == ("batch", 4, 8, 8)


@pytest.mark.slow
def test_an_image_that_controls() -> None:
    control = random_model(
        diffusers.ControlNetModel,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=16,
        conditioning_embedding_out_channels=(8, 8, 16),
    )
    plan = plan_inputs(control)
    assert plan.shapes["controlnet_cond"] == ("batch", 3, "4*height", "4*width")
    assert plan.context == ["encoder_hidden_states", "controlnet_cond"]


class Strange(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, hidden_states: Tensor, weather: Tensor) -> Tensor:
        return hidden_states + weather


class Picky(Strange):
    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        raise ValueError("not on Sundays")


def test_what_can_not_be_told() -> None:
    with pytest.raises(InputError, match="arguments weather"):
        plan_inputs(Strange())
    with pytest.raises(InputError, match=r"not on Sundays.*diffusers_spec\(model, inputs"):
        plan_inputs(Picky(in_channels=4))
    assert "weather" not in RULES
