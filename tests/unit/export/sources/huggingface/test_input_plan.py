"""Plans: dimensions, shapes, and what a configuration tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.input_fillers import normal
from crossfuse.export.sources.huggingface.input_plan import (
    InputPlan,
    TextInput,
    add_image,
    add_text,
    find,
    ids,
    sizes_of,
    text_config,
)


def config(**fields: Any) -> Any:
    return SimpleNamespace(model_type="mine", **fields)


def test_dimensions_stay_in_their_ranges() -> None:
    plan = InputPlan()
    assert plan.dim("batch", 2) == "batch"
    plan.dim("text", 7, 3, 5)
    plan.dim("text", 1, 1, 1)  # the first stands
    plan.dim("narrow", 7, 4, 2)
    assert plan.dims == {
        "batch": Dim("batch", 1, None),
        "text": Dim("text", 3, 5),
        "narrow": Dim("narrow", 4, 4),
    }
    assert plan.example == {"batch": 2, "text": 5, "narrow": 4}
    plan.forget("narrow")
    assert set(plan.dims) == set(plan.example) == {"batch", "text"}


def test_inputs_have_their_order_and_fillers_theirs() -> None:
    plan = InputPlan()
    plan.dim("batch", 2)
    plan.dim("n", 3)
    order: list[str] = []

    def noted(name: str) -> Any:
        def fill(shape: Any, generator: Any, made: Any) -> torch.Tensor:
            order.append(f"{name} after {sorted(made)}")
            return torch.zeros(shape)

        return fill

    plan.fillers["mask"] = noted("mask")
    plan.add("ids", ("batch", "n"), noted("ids"))
    plan.shapes["mask"] = ("batch", "n", 4)
    made = plan.sample({"batch": 5, "n": 2}, torch.Generator())
    assert order == ["mask after []", "ids after ['mask']"]
    assert {name: tuple(t.shape) for name, t in made.items()} == {"ids": (5, 2), "mask": (5, 2, 4)}
    assert list(made) == ["ids", "mask"]
    assert plan.dynamic["mask"] == {0: plan.dims["batch"], 1: plan.dims["n"]}


@pytest.mark.parametrize(
    ("fields", "high"),
    [
        ({"max_position_embeddings": 20}, 20),
        ({"n_positions": 30}, 30),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
        ({"max_position_embeddings": 20, "model_type": "roberta"}, 18),
    ],
)
def test_a_text_is_as_long_as_the_configuration_allows(
    fields: dict[str, Any], high: int | None
) -> None:
    plan = InputPlan()
    add_text(
        plan, SimpleNamespace(**{"vocab_size": 9, "model_type": "mine", **fields}), TextInput()
    )
    assert plan.dims["text"].max == high
    assert list(plan.shapes) == ["input_ids"]


def test_a_masked_text() -> None:
    plan = InputPlan()
    plan.dim("rows", 4)
    text = TextInput("answer", "decoder_", "rows", masked=True, low=2, high=6, example=9)
    add_text(plan, config(vocab_size=9, eos_token_id=[8, 7], pad_token_id=0), text)
    assert list(plan.shapes) == ["decoder_input_ids", "decoder_attention_mask"]
    assert (plan.dims["answer"], plan.example["answer"]) == (Dim("answer", 2, 6), 6)
    made = plan.sample({"rows": 40, "answer": 5}, torch.Generator().manual_seed(0))
    lengths = made["decoder_attention_mask"].sum(-1)
    last = made["decoder_input_ids"].gather(1, lengths[:, None] - 1)
    assert last.eq(8).all()
    behind = torch.arange(5) >= lengths[:, None]
    assert made["decoder_input_ids"][behind].eq(0).all()
    assert behind.any()


def test_ids_avoid_what_is_special() -> None:
    special = config(vocab_size=6, bos_token_id=0, pad_token_id=1, eos_token_id=9, sep_token_id=4)
    made = ids(special, "mask")((50, 4), torch.Generator(), {"mask": torch.ones(50, 4).long()})
    # An end that the vocabulary doesn't hold ends nothing.
    assert set(made.flatten().tolist()) == {2, 3, 5}


def test_parts_of_a_real_configuration() -> None:
    size = {"hidden_size": 16, "num_attention_heads": 2}
    clip = transformers.CLIPConfig(
        text_config={**size, "vocab_size": 11, "max_position_embeddings": 13},
        vision_config={**size, "image_size": 24, "num_channels": 1},
    )
    assert text_config(clip).vocab_size == 11
    assert find(clip, "vocab_size") == 11
    assert find(clip, "nothing", "max_position_embeddings") == 13
    assert find(clip, "nothing") is None
    assert sizes_of(clip) == (1, 24, 24)
    vision = config(image_size=[24, 32], num_channels=1)
    assert sizes_of(config(vision_config=vision)) == (1, 24, 32)
    assert sizes_of(config()) == (3, 224, 224)
    assert sizes_of(config(vq_config=config(resolution=40))) == (3, 40, 40)
    assert sizes_of(config(max_img_size=48)) == (3, 48, 48)
    assert sizes_of(config(input_size=56)) == (3, 56, 56)
    assert sizes_of(config(input_size=1, image_size=64)) == (3, 64, 64)
    plan = InputPlan()
    plan.dim("batch", 2)
    add_image(plan, clip)
    assert plan.shapes["pixel_values"] == ("batch", 1, 24, 24)
    assert plan.fillers["pixel_values"] is normal
