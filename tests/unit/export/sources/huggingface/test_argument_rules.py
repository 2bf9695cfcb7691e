"""Forms of arguments that belong to texts, pages, tasks, actions and series."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossfuse.export.sources.huggingface.argument_rules import ASKED_FOR, FORMS, USUAL
from crossfuse.export.sources.huggingface.input_plan import InputPlan

CONFIG = {"model_type": "mine", "vocab_size": 20, "max_position_embeddings": 12}


def plan_of(name: str, *takes: str, form: int = 0, **config: Any) -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    model = SimpleNamespace(config=SimpleNamespace(**CONFIG | config))
    if name == "bbox":
        FORMS["input_ids"][0](plan, model, {"input_ids"})
    FORMS[name][form](plan, model, {name, *takes})
    return plan


def sample(plan: InputPlan) -> dict[str, torch.Tensor]:
    return plan.sample(plan.example, torch.Generator().manual_seed(0))


def test_what_is_planned_has_forms() -> None:
    assert {*USUAL, *ASKED_FOR} <= FORMS.keys()
    assert all(FORMS.values())


@pytest.mark.parametrize(("form", "highest"), [(0, 63), (1, 1)])
def test_boxes_have_their_corners_in_order(form: int, highest: int) -> None:
    plan = plan_of("bbox", form=form, max_2d_position_embeddings=64)
    boxes = sample(plan)["bbox"]
    assert boxes.shape == (2, 7, 4)
    assert bool((boxes[..., :2] <= boxes[..., 2:]).all())
    assert boxes.min() >= 0
    assert highest / 2 < boxes.max() <= highest
    assert boxes.is_floating_point() == (form == 1)


def test_a_task_has_the_configuration_s_length() -> None:
    plan = plan_of("task_inputs", task_seq_len=6, text_encoder_vocab_size=11)
    task = sample(plan)["task_inputs"]
    assert task.shape == (2, 6)
    assert int(task.max()) < 11


@pytest.mark.parametrize(
    ("name", "form", "books"),
    [("input_ids", 1, 3), ("input_ids", 2, 4), ("decoder_input_ids", 1, 3)],
)
def test_sound_in_codes_has_an_id_of_each_codebook(name: str, form: int, books: int) -> None:
    plan = InputPlan()
    plan.dim("batch", 2)
    config = SimpleNamespace(**CONFIG, num_codebooks=3, codebook_vocab_size=5)
    config.get_text_config = lambda decoder: config
    FORMS[name][form](plan, SimpleNamespace(config=config), {name})
    codes = sample(plan)[name]
    assert codes.shape == (2, 7, books)
    assert int(codes.max()) < 5


def test_numbers_of_classes_are_held_where_they_are_read() -> None:
    free = plan_of("classes_input_ids")
    assert (free.shapes["classes_input_ids"], free.held) == (("classes", 5), {})
    plan = plan_of("classes_input_ids", "classes_structure")
    made = sample(plan)
    assert sum(plan.held["classes_structure"]) == len(made["classes_input_ids"]) == 4
    assert len(plan.held["classes_structure"]) == len(made["tasks_input_ids"]) == 1


def test_a_robot_s_state_comes_with_actions_noise_and_time() -> None:
    sizes = {"max_state_dim": 5, "max_action_dim": 3, "chunk_size": 4}
    plan = plan_of("state", "actions", "noise", "timestep", **sizes)
    assert plan.shapes == {
        "state": ("batch", 5),
        "actions": ("batch", 4, 3),
        "noise": ("batch", 4, 3),
        "timestep": ("batch",),
    }
    assert not plan_of("state").shapes  # a state of another kind


def test_a_series_reaches_back_to_its_lags() -> None:
    plan = plan_of(
        "past_values", "past_time_features", "past_observed_mask", context_length=8,
        lags_sequence=[1, 5], num_time_features=2, prediction_length=3, input_size=1,
    )  # fmt: skip
    assert plan.shapes == {
        "past_values": ("batch", 13),
        "past_time_features": ("batch", 13, 2),
        "future_time_features": ("batch", 3, 2),
        "future_values": ("batch", 3),
        "past_observed_mask": ("batch", 13),
    }
    assert plan_of("past_values", num_input_channels=4).shapes == {"past_values": ("batch", 32, 4)}


def test_a_second_text_has_its_own_length() -> None:
    part = SimpleNamespace(model_type="part", vocab_size=7, max_position_embeddings=9)
    plan = plan_of("qformer_input_ids", "qformer_attention_mask", qformer_config=part)
    assert plan.shapes == {
        "qformer_input_ids": ("batch", "instruction"),
        "qformer_attention_mask": ("batch", "instruction"),
    }
    assert plan.dims["instruction"].max == 9
    assert int(sample(plan)["qformer_input_ids"].max()) < 7


def test_states_of_another_encoder_have_its_width() -> None:
    plan = plan_of(
        "encoder_hidden_states", "encoder_attention_mask", hidden_size=8,
        cross_attention_hidden_size=6,
    )  # fmt: skip
    assert plan.shapes == {
        "encoder_hidden_states": ("batch", "encoder_length", 6),
        "encoder_attention_mask": ("batch", "encoder_length"),
    }
