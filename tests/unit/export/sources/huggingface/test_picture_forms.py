"""Forms in which models take images."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.picture_forms import PICTURE_FORMS


def plans(name: str, *takes: str, **config: Any) -> list[InputPlan]:
    """The plans of all forms that fit a configuration."""
    made = []
    for form in PICTURE_FORMS[name]:
        plan = InputPlan()
        plan.dim("batch", 2)
        part = SimpleNamespace(model_type="part", **config)
        form(plan, SimpleNamespace(config=part), {name, *takes})
        if plan.shapes:
            made.append(plan)
    return made


@pytest.mark.parametrize(
    ("takes", "config", "shape"),
    [
        ((), {"image_size": 16, "num_channels": 1}, ("batch", 1, 16, 16)),
        (("pixel_mask",), {}, ("batch", 3, 128, 96)),
        (
            ("image_grid_thw",),
            {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 1},
            (24, 32),
        ),
        (("image_grid_hw",), {"patch_size": 4}, (6, 48)),
        (("image_position_ids",), {"patch_size": 4}, ("batch", 4, 48)),
        (("target_sizes",), {"patch_size": 4}, (1, 3, 4, 64)),
        (
            ("image_sizes",),
            {"image_size": 16, "image_grid_pinpoints": [[16, 32], [32, 32]]},
            (1, 3, 3, 16, 16),
        ),
    ],
)
def test_what_other_arguments_say_comes_first(
    takes: tuple[str, ...], config: dict[str, Any], shape: tuple[int | str, ...]
) -> None:
    assert plans("pixel_values", *takes, **config)[0].shapes["pixel_values"] == shape


def test_stacks_follow_single_images() -> None:
    found = plans("pixel_values", image_size=8, num_frames=5)
    shapes = [plan.shapes["pixel_values"] for plan in found]
    assert shapes[0] == ("batch", 3, 8, 8)
    assert shapes[1] == ("batch", 5, 3, 8, 8)
    assert ("batch", 2, 3, 8, 8) in shapes
    assert ("batch", 3, 5, 8, 8) in shapes


def test_grids_are_held_and_fit_the_patches() -> None:
    plan = plans("pixel_values", "image_grid_thw", patch_size=4, spatial_merge_size=3)[0]
    grid = plan.held["image_grid_thw"]
    assert grid == [[1, 6, 9]]
    assert math.prod(grid[0]) == plan.shapes["pixel_values"][0]
    assert plan.fixed == {"batch": 1}


def test_crops_are_shown_as_a_whole() -> None:
    takes = ("image_sizes", "image_attention_mask")
    plan = plans("image_pixel_values", *takes, crop_size=24, patch_size=6)[0]
    assert plan.shapes["image_pixel_values"] == (1, 2, 3, 24, 24)
    assert plan.held["image_sizes"] == [[24, 24]]
    assert torch.tensor(plan.held["image_attention_mask"]).equal(torch.ones(1, 2, 4, 4).long())
    for fewer, config in ((takes, {"image_size": 24}), (takes[:1], {"crop_size": 24})):
        plan = plans("image_pixel_values", *fewer, **config)[0]
        assert plan.shapes["image_pixel_values"][0] == "batch"
        assert not plan.held


def test_stacked_patches_follow_packed_ones() -> None:
    found = plans("pixel_values", "image_grid_thw", patch_size=4)
    shapes = [plan.shapes["pixel_values"] for plan in found[:3]]
    assert shapes == [(6, 48), (6, 3, 4, 4), (1, 6, 48)]
    assert found[2].held == {"image_grid_thw": [[1, 2, 3]]}


@pytest.mark.parametrize(("patches", "tokens"), [(16, 4), (49, 9)])
def test_tokens_are_pooled_from_squares_of_patches(patches: int, tokens: int) -> None:
    takes = ("image_token_pooling", "image_grids")
    plan = plans("pixel_values", *takes, patch_size=2, num_position_embeddings=patches)[0]
    pooling, grid = plan.held["image_token_pooling"], plan.held["image_grids"][0]
    assert plan.shapes["pixel_values"] == (1, patches, 12)
    assert len(pooling) == tokens == grid[0] * grid[1] + grid[2] * grid[3]
    side = math.isqrt(patches)
    for token, places in enumerate(pooling):
        row, column = divmod(token, grid[1])
        found = {divmod(place, side) for place in places}
        assert found == {(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)}


def test_patches_carry_their_places() -> None:
    plan = plans("flattened_patches", "attention_mask", patch_size=4, seq_len=64)[0]
    made = plan.sample({"batch": 2, "patches": 6}, torch.Generator().manual_seed(0))
    patches = made["flattened_patches"]
    assert patches.shape == (2, 6, 2 + 48)
    assert patches[0, :, :2].tolist() == [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2]]
    assert made["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


def test_points_lie_on_the_image() -> None:
    plan = plans("input_points", "input_labels", image_size=16)[0]
    made = plan.sample({**plan.example, "points": 40}, torch.Generator().manual_seed(0))
    assert made["input_points"].shape == (2, 2, 40, 2)
    assert 8 < made["input_points"].max() <= 16
    assert set(made["input_labels"].flatten().tolist()) == {0, 1}
