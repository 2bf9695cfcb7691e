"""Forms in which models take images, videos and what belongs to them: whole, in stacks, as patches
with a grid, as pairs, with points on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.input_fillers import (
    Filler,
    Shape,
    classes,
    fixed,
    grid_mask,
    grid_places,
    normal,
    ones,
    there,
    uniform,
)
from crossfuse.export.sources.huggingface.input_plan import (
    FRAMES,
    InputPlan,
    find,
    sizes_of,
    vision_config,
)

__all__ = ["PICTURE_FORMS"]

_ANY_SIZE = (128, 96)
"""Height and width of images where a configuration says none and the model takes any."""


def _whole(name: str = "pixel_values") -> Callable[[InputPlan, Any, set[str]], None]:
    """``[batch, channels, height, width]``."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        channels, height, width = _sizes(model.config, takes)
        plan.add(name, ("batch", channels, height, width), normal)
        if "pixel_mask" in takes and name == "pixel_values":
            plan.add("pixel_mask", ("batch", height, width), grid_mask)

    return plan_it


def _sizes(config: Any, takes: set[str], *, pair: bool = False) -> tuple[int, int, int]:
    channels, height, width = sizes_of(config)
    if ("pixel_mask" in takes or pair) and find(vision_config(config), "image_size") is None:
        height, width = _ANY_SIZE
    return channels, height, width


def _stack(
    count: int | None, name: str = "pixel_values", *, shown: Filler | None = None
) -> Callable[..., None]:
    """``[batch, images, channels, height, width]``: so many images, frames or tiles; with a mask of
    pixels, or of images where it says how these are ``shown``."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        config = model.config
        images = count if count is not None else find(config, *FRAMES)
        if not isinstance(images, int):
            return
        channels, height, width = _sizes(config, takes, pair=images == 2)
        plan.add(name, ("batch", images, channels, height, width), normal)
        if "pixel_attention_mask" in takes:
            axes = () if shown is not None else (height, width)
            plan.add("pixel_attention_mask", ("batch", images, *axes), shown or ones)

    return plan_it


def _frames_first_channels(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """``[batch, channels, frames, height, width]``."""
    frames = find(model.config, *FRAMES)
    channels, height, width = _sizes(model.config, takes)
    if isinstance(frames, int):
        plan.add("pixel_values", ("batch", channels, frames, height, width), normal)


def _tiles(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """An image in tiles, as one of the layouts that the configuration lists, and its own size."""
    layouts = find(model.config, "image_grid_pinpoints")
    if not layouts or "image_sizes" not in takes:
        return
    channels, height, width = sizes_of(model.config)
    high, wide = (int(size) for size in min(layouts, key=math.prod))
    tiles = -(-high // height) * -(-wide // width) + 1
    plan.fix("batch", 1)
    plan.add("pixel_values", (1, tiles, channels, height, width), normal)
    plan.held["image_sizes"] = [[high, wide]]


def _sized(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Whole images, and their sizes."""
    if "image_sizes" not in takes:
        return
    channels, height, width = sizes_of(model.config)
    plan.fix("batch", 1)
    plan.add("pixel_values", (1, channels, height, width), normal)
    plan.held["image_sizes"] = [[height, width]]


def _side(config: Any) -> tuple[int, int, int, int]:
    """Channels, patch size, frames in a patch, and patches along a side that become one feature."""
    part = vision_config(config)
    channels = int(find(part, "in_channels", "num_channels", "in_chans") or 3)
    patch = _one(find(part, "patch_size", "spatial_patch_size") or 14)
    frames = _one(find(part, "temporal_patch_size", "patch_temporal") or 1)
    merged = find(config, "spatial_merge_size", "merge_size", "merge_kernel_size") or 1
    return channels, patch, frames, _one(merged)


def _one(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _packed(name: str, grid: str, flat: bool, *, stacked: bool = False) -> Callable[..., None]:
    """All patches of one image behind each other, with its grid: ``[patches, numbers]``, or as
    little images; with an axis of images before, where these are stacked."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        if grid not in takes:
            return
        channels, patch, frames, merge = _side(model.config)
        rows, columns = 2 * merge, 3 * merge
        plan.fix("batch", 1)
        numbers = (channels * frames * patch * patch,) if flat else (channels, patch, patch)
        plan.add(name, (*[1] * stacked, rows * columns, *numbers), normal)
        axes = [rows, columns] if grid.endswith("_hw") else [1, rows, columns]
        plan.held[grid] = [axes]
        for given in ("image_merge_sizes", "video_merge_sizes", "merge_sizes"):
            if given in takes and given.partition("_")[0] in (*grid.split("_"), "merge"):
                plan.held[given] = [merge]

    return plan_it


def _masked_crops(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """An image as a whole and as one crop, ``[1, 2, channels, size, size]``, with its size and the
    patches that are shown of both."""
    crop = find(vision_config(model.config), "crop_size")
    if not isinstance(crop, int) or not {"image_sizes", "image_attention_mask"} <= takes:
        return
    channels, patch, _, _ = _side(model.config)
    plan.fix("batch", 1)
    plan.add("image_pixel_values", (1, 2, channels, crop, crop), normal)
    plan.held["image_sizes"] = [[crop, crop]]
    side = crop // patch
    plan.held["image_attention_mask"] = torch.ones(1, 2, side, side, dtype=torch.int64).tolist()


def _pooled_crops(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """One crop in patches ``[1, patches, numbers]``, with the patches that each token is pooled
    from, four at a time, and the grid of these tokens."""
    if not {"image_token_pooling", "image_grids"} <= takes:
        return
    channels, patch, _, _ = _side(model.config)
    patches = int(find(vision_config(model.config), "num_position_embeddings"))
    columns = math.isqrt(patches)
    half = range(columns // 2)
    if not half:
        return
    plan.fix("batch", 1)
    plan.add("pixel_values", (1, patches, channels * patch * patch), normal)
    plan.held["image_token_pooling"] = [
        [(2 * row + down) * columns + 2 * column + right for down in (0, 1) for right in (0, 1)]
        for row in half
        for column in half
    ]
    plan.held["image_grids"] = [[len(half), len(half), 0, 0]]


def _padded_patches(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """``[batch, patches, numbers]``, with a mask of the patches and the shape of their grid where
    the model takes these."""
    config = model.config
    channels, patch, _, _ = _side(config)
    places = find(vision_config(config), "num_patches") or 16
    side = max(math.isqrt(int(places)), 1)
    side -= side % int(find(config, "downsample_factor") or 1)
    if "spatial_shapes" in takes:
        plan.fix("batch", 1)
        plan.held["spatial_shapes"] = [[side, side]]
    plan.add("pixel_values", ("batch", side * side, channels * patch * patch), normal)
    for name in ("pixel_attention_mask", "pixel_mask"):
        if name in takes:
            plan.add(name, ("batch", side * side), ones)


def _placed_patches(places: str) -> Callable[..., None]:
    """``[batch, patches, numbers]``, with the place of each in its grid."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        if places not in takes:
            return
        channels, patch, _, _ = _side(model.config)
        patch = _one(find(vision_config(model.config), "model_patch_size") or patch)
        pool = _one(find(model.config, "pooling_kernel_size") or 1)
        side = 2 * pool
        plan.add("pixel_values", ("batch", side * side, channels * patch * patch), uniform())
        plan.add(places, ("batch", side * side, 2), grid_places(side))

    return plan_it


def _loose_patches(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """``[batch, patches, numbers]``, and nothing with them."""
    channels, patch, _, _ = _side(model.config)
    plan.add("image_patches", ("batch", 6, channels * patch * patch), normal)


def _strip(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """One row of patches ``[1, channels, patch, patches · patch]``, with its grid's sizes."""
    if "target_sizes" not in takes:
        return
    channels, patch, _, _ = _side(model.config)
    rows = columns = 4
    plan.fix("batch", 1)
    plan.add("pixel_values", (1, channels, patch, rows * columns * patch), normal)
    plan.held["target_sizes"] = [[rows, columns]]


def _flattened(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """``[batch, patches, 2 + numbers]``: row, column, and what the patch shows; with a mask."""
    part = vision_config(model.config)
    channels, patch, _, _ = _side(model.config)
    columns = 4
    plan.dim("patches", 3 * columns, 1, find(part, "seq_len", "max_num_patches"))
    width = 2 + int(find(part, "patch_embed_hidden_size") or channels * patch * patch)
    plan.add("flattened_patches", ("batch", "patches", width), _with_places(columns))
    if "attention_mask" in takes and "attention_mask" not in plan.shapes:
        plan.add("attention_mask", ("batch", "patches"), _first_shown)


def _with_places(columns: int) -> Callable[..., Tensor]:
    places = grid_places(columns)

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        shown = torch.randn((*shape[:-1], shape[-1] - 2), generator=generator)
        return torch.cat([places((*shape[:-1], 2), generator, made) + 1.0, shown], dim=-1)

    return fill


def _first_shown(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    shown = torch.ones(shape)
    shown[1:, (shape[-1] + 1) // 2 :] = 0
    return shown


def _points(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Points on an image, with labels."""
    plan.dim("prompts", 2)
    plan.dim("points", 3)
    _, height, _ = sizes_of(model.config)
    plan.add("input_points", ("batch", "prompts", "points", 2), uniform(height))
    if "input_labels" in takes:
        plan.add("input_labels", ("batch", "prompts", "points"), classes(0, 2))


def _prompted(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """An image that shows what to do, with its mask."""
    channels, height, width = sizes_of(model.config)
    for name in ("prompt_pixel_values", "prompt_masks"):
        plan.add(name, ("batch", channels, height, width), normal)


def _depth(plan: InputPlan, model: Any, takes: set[str]) -> None:
    _, height, width = sizes_of(model.config)
    plan.add("prompt_depth", ("batch", 1, height, width), uniform())


def _order_of_patches(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """A number for each patch, by which a masked autoencoder chooses those that it sees."""
    _, height, width = sizes_of(model.config)
    _, patch, _, _ = _side(model.config)
    plan.add("noise", ("batch", (height // patch) * (width // patch)), uniform())


def _tile_sizes(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Tiles of images with the embeddings of their layout, ``[batch, 1, tiles, …]``."""
    part = vision_config(model.config)
    tiles = find(part, "max_num_tiles")
    if not isinstance(tiles, int) or "aspect_ratio_ids" not in takes:
        return
    channels, height, width = sizes_of(model.config)
    plan.add("pixel_values", ("batch", 1, tiles, channels, height, width), normal)
    plan.add("aspect_ratio_ids", ("batch", 1), fixed(torch.ones(1, dtype=torch.long)))
    plan.add("aspect_ratio_mask", ("batch", 1, tiles), ones)


PICTURE_FORMS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "pixel_values": (
        _packed("pixel_values", "image_grid_thw", True),
        _packed("pixel_values", "image_grid_thw", False),
        _packed("pixel_values", "image_grid_thw", True, stacked=True),
        _packed("pixel_values", "image_grid_thw", False, stacked=True),
        _packed("pixel_values", "grid_thw", True),
        _packed("pixel_values", "grid_thw", False),
        _packed("pixel_values", "image_grid_hw", True),
        _pooled_crops,
        _placed_patches("image_position_ids"),
        _placed_patches("pixel_position_ids"),
        _tile_sizes,
        _tiles,
        _strip,
        _whole(),
        _stack(None),
        _stack(1),
        _stack(1, shown=ones),
        _stack(1, shown=there),
        _stack(2),
        _padded_patches,
        _sized,
        _frames_first_channels,
        _stack(4),
        _stack(16),
    ),
    "hidden_states": (
        _packed("hidden_states", "grid_thw", True),
        _packed("hidden_states", "grid_thw", False),
    ),
    "pixel_values_images": (_whole("pixel_values_images"),),
    "image_patches": (_loose_patches,),
    "image_pixel_values": (_masked_crops, _whole("image_pixel_values")),
    "pixel_values_videos": (
        _packed("pixel_values_videos", "video_grid_thw", True),
        _stack(None, "pixel_values_videos"),
        _stack(2, "pixel_values_videos"),
        _stack(8, "pixel_values_videos"),
    ),
    "high_res_pixel_values": (_whole("high_res_pixel_values"),),
    "flattened_patches": (_flattened,),
    "input_points": (_points,),
    "prompt_pixel_values": (_prompted,),
    "prompt_depth": (_depth,),
    "noise": (_order_of_patches,),
}
"""Forms by the argument's name, those that say by other arguments that they are meant first."""
