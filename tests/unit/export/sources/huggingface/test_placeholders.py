"""Placeholders: as many as the model makes features, counted by asking it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.input_plan import InputPlan, TextInput, add_text
from crossfuse.export.sources.huggingface.placeholders import (
    SENSES,
    counted_in,
    put_placeholders,
    sense_of,
    token_of,
    told_counts,
)

IMAGE, VIDEO, AUDIO = SENSES


@pytest.mark.parametrize(
    ("argument", "sense"),
    [
        ("pixel_values", IMAGE),
        ("image_grid_thw", IMAGE),
        ("spatial_shapes", IMAGE),
        ("pixel_values_videos", VIDEO),
        ("video_grid_thw", VIDEO),
        ("input_features_mask", AUDIO),
        ("input_values", AUDIO),
        ("input_ids", None),
        ("attention_mask", None),
    ],
)
def test_arguments_belong_to_senses(argument: str, sense: Any) -> None:
    assert sense_of(argument) is sense


def test_ids_are_found_by_the_configuration_s_own_name() -> None:
    assert token_of(SimpleNamespace(image_token_index=7), IMAGE) == 7
    assert token_of(SimpleNamespace(audio_token_id=0), AUDIO) == 0
    assert token_of(SimpleNamespace(image_token_id="<image>"), IMAGE) is None
    assert token_of(SimpleNamespace(), VIDEO) is None


class Eye(nn.Module):
    """Makes features in one of the ways in which models return them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def get_image_features(self, pixel_values: Tensor, image_sizes: Any = None) -> Any:
        if self.way == "refused":
            raise ValueError("no")
        features = pixel_values.flatten(2).transpose(1, 2)  # [batch, places, channels]
        return {
            "tensor": features,
            "list": list(features),
            "output": SimpleNamespace(pooler_output=tuple(features), last_hidden_state=None),
            "last": SimpleNamespace(last_hidden_state=features),
        }[self.way]


@pytest.mark.parametrize("way", ["tensor", "list", "output", "last"])
def test_features_are_counted_however_they_are_returned(way: str) -> None:
    given = {"pixel_values": torch.zeros(2, 3, 4, 5), "input_ids": torch.zeros(2, 7)}
    assert counted_in(Eye(way), IMAGE, given) == 40
    owner = nn.Module()
    owner.model = Eye(way)
    assert counted_in(owner, IMAGE, given) == 40


def test_a_model_that_can_t_be_asked_counts_nothing() -> None:
    given = {"pixel_values": torch.zeros(2, 3, 4, 5)}
    assert counted_in(Eye("refused"), IMAGE, given) is None
    assert counted_in(Eye("tensor"), AUDIO, given) is None
    assert counted_in(Eye("tensor"), IMAGE, {"input_ids": torch.zeros(2, 7)}) is None


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "ValueError: Image features and image tokens do not match, tokens: 14, features: 32",
            ("image", 14, 32),
        ),
        ("Audio features and audio tokens do not match: tokens: 0, features 9", ("audio", 0, 9)),
        ("shapes do not match: 3, 4", None),
        (
            "shape mismatch: value tensor of shape [25, 64] cannot be broadcast to indexing result "
            "of shape [1, 64]",
            ("", 1, 25),
        ),
    ],
)
def test_a_refusal_tells_counts(message: str, told: Any) -> None:
    assert told_counts(message) == told


def planned(**fields: Any) -> tuple[InputPlan, Any]:
    config = SimpleNamespace(
        model_type="mine", vocab_size=30, eos_token_id=2, pad_token_id=0, **fields
    )
    plan = InputPlan()
    plan.dim("batch", 3)
    add_text(plan, config, TextInput(masked=True))
    plan.add("mm_token_type_ids", ("batch", "text"), plan.fillers["attention_mask"])
    plan.add("pixel_attention_mask", ("batch", 4), plan.fillers["attention_mask"])
    return plan, config


def test_placeholders_stand_first_between_their_edges_and_masks_show_them() -> None:
    plan, config = planned(
        image_token_id=20, vision_start_token_id=21, vision_end_token_id=22, audio_token_id=23,
        max_position_embeddings=40,
    )  # fmt: skip
    put_placeholders(plan, config, {"image": 3, "audio": 2})
    front = [21, 20, 20, 20, 22, 23, 23]
    assert (plan.dims["text"].min, plan.dims["text"].max) == (8, 40)
    made = plan.sample({"batch": 50, "text": 12}, torch.Generator().manual_seed(0))
    ids, mask = made["input_ids"], made["attention_mask"]
    assert ids[:, :7].tolist() == [front] * 50
    assert not torch.isin(ids[:, 7:], torch.tensor(front)).any()
    assert mask[:, :8].all()
    assert not mask.all()
    assert made["mm_token_type_ids"].tolist() == [[0, 1, 1, 1, 0, 3, 3, 0, 0, 0, 0, 0]] * 50
    assert plan.settled == {
        "input_ids": (20, 21, 22, 23),
        "mm_token_type_ids": (),
        "pixel_attention_mask": (),
    }


def test_without_counts_nothing_is_put() -> None:
    plan, config = planned(image_token_id=20)
    put_placeholders(plan, config, {"image": 0, "audio": 4})
    assert (plan.settled, plan.dims["text"].min) == ({}, 1)


def test_rows_are_counted_where_there_is_one_image() -> None:
    """Of several, a model may take other numbers in each row."""
    for batch, counts in ((3, {}), (1, {"input_ids": {20: 3}})):
        plan, config = planned(image_token_id=20, max_position_embeddings=40)
        plan.example["batch"] = batch
        if batch == 1:
            plan.fix("batch")
        put_placeholders(plan, config, {"image": 3})
        assert plan.counts == counts
