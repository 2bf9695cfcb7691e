"""Rules of models that see images, on configurations of the library and on models themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from crossfuse.export.sources.huggingface.image_rules import IMAGE_RULES
from crossfuse.export.sources.huggingface.input_plan import InputPlan

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 17,
}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}


def plan_of(model_type: str, config: Any, *takes: str) -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    IMAGE_RULES[model_type](plan, SimpleNamespace(config=config), set(takes))  # type: ignore[arg-type]
    return plan


def sample(plan: InputPlan, **sizes: int) -> dict[str, torch.Tensor]:
    return plan.sample({**plan.example, **sizes}, torch.Generator().manual_seed(0))


def test_towers_have_batches_of_their_own() -> None:
    text = {**SIZES, "vocab_size": 30, "max_position_embeddings": 12, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    plan = plan_of("clip", config, "input_ids", "attention_mask", "pixel_values")
    assert plan.shapes["input_ids"] == plan.shapes["attention_mask"] == ("texts", "text")
    assert plan.shapes["pixel_values"] == ("batch", 3, 16, 16)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        logits = model(**sample(plan, texts=3, batch=4)).logits_per_image
    assert logits.shape == (4, 3)
    alone = plan_of("clip", config, "input_ids")
    assert (set(alone.shapes), set(alone.dims)) == ({"input_ids"}, {"texts", "text"})


@pytest.mark.parametrize("model_type", ["detr", "conditional_detr", "dab-detr"])
def test_a_detector_s_images_are_padded_at_any_size(model_type: str) -> None:
    config = SimpleNamespace(model_type=model_type, num_channels=3)
    plan = plan_of(model_type, config, "pixel_values", "pixel_mask")
    assert plan.shapes == {
        "pixel_values": ("batch", 3, 128, 96),
        "pixel_mask": ("batch", 128, 96),
    }
    assert sample(plan)["pixel_mask"].min() == 0
    config.image_size = 64
    assert plan_of(model_type, config).shapes == {"pixel_values": ("batch", 3, 64, 64)}


def test_placeholders_hold_as_many_places_as_there_are_queries() -> None:
    text = SimpleNamespace(model_type="opt", vocab_size=30, max_position_embeddings=40)
    config = SimpleNamespace(
        model_type="blip-2", text_config=text, vision_config=SimpleNamespace(image_size=16),
        num_query_tokens=5, image_token_index=29, qformer_config=text,
    )  # fmt: skip
    plan = plan_of("blip-2", config, "input_ids", "pixel_values")
    assert (plan.dims["text"].min, plan.dims["text"].max) == (6, 40)
    made = sample(plan, text=9, batch=20)
    assert made["input_ids"].eq(29).sum(1).eq(5).all()
    assert made["input_ids"][:, :5].eq(29).all()
    assert made["attention_mask"][:, :6].all()
    assert not made["attention_mask"].all()
    matching = plan_of("blip-2", config, "use_image_text_matching_head")
    assert not sample(matching, batch=20)["input_ids"].eq(29).sum(1).eq(5).all()


def test_a_mask_says_where_kosmos_2_puts_its_image() -> None:
    text = SimpleNamespace(model_type="part", vocab_size=30, max_position_embeddings=40)
    config = SimpleNamespace(
        model_type="kosmos-2", text_config=text, vision_config=SimpleNamespace(image_size=16),
        latent_query_num=4,
    )  # fmt: skip
    made = sample(plan_of("kosmos-2", config), text=8)
    assert made["image_embeds_position_mask"].tolist() == [[0, 1, 1, 1, 1, 0, 0, 0]] * 2


def test_context_is_what_an_encoder_gave() -> None:
    config = SimpleNamespace(
        model_type="instructblip_qformer", hidden_size=16, encoder_hidden_size=8, vocab_size=30
    )
    plan = plan_of("instructblip_qformer", config, "query_embeds", "input_ids")
    assert plan.context == ("encoder_hidden_states", "encoder_attention_mask")
    assert plan.shapes["query_embeds"] == ("batch", 4, 16)
    assert plan.shapes["encoder_hidden_states"] == ("batch", "encoder_length", 8)
    text = SimpleNamespace(model_type="mllama_text_model", hidden_size=16, vocab_size=30)
    plan = plan_of("mllama_text_model", text, "input_ids")
    assert plan.context == ("cross_attention_states",)


def test_points_lie_on_the_image() -> None:
    config = SimpleNamespace(model_type="sam", vision_config=SimpleNamespace(image_size=16))
    made = sample(plan_of("sam", config), prompts=30, points=30)
    points = made["input_points"]
    assert points.shape == (2, 30, 30, 2)
    assert (bool(points.min() >= 0), bool(points.max() < 16), bool(points.max() > 8)) == (
        True,
        True,
        True,
    )
    assert set(made["input_labels"].flatten().tolist()) == {0, 1}
