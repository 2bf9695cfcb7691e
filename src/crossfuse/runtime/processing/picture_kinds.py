"""Kinds of image processors, by name: the inputs that each makes of one image, and its layout.

The layout is what a prompt's places depend on besides the settings: rows and columns of tiles or of
patches. It follows from the image's size alone. Two images of one layout have the same places; a
bundle whose first tokens are part of it takes images of one layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.errors import InputError
from crossfuse.runtime.processing.patches import (
    fitted,
    fitted_size,
    flattened,
    packed,
    packed_grid,
)
from crossfuse.runtime.processing.pixels import ALIKE, Pixels
from crossfuse.runtime.processing.resizing import (
    centred,
    height_and_width,
    plain_size,
    require_room,
    squared,
)
from crossfuse.runtime.processing.tiles import (
    any_resolution,
    best_grid,
    grid_tiles,
    panned,
    quarters,
    resolution_tiles,
    scans,
    square_grid,
    square_tiles,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Picture", "PictureKind", "kind_of"]

_PIXELS = "pixel_values"

Inputs = dict[str, "NDArray[Any]"]
_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb")
"""Steps that each kind takes or has no use for."""


def _no_layout(pixels: Pixels, height: int, width: int) -> tuple[int, ...]:
    return ()


class Picture(NamedTuple):
    """One image as a model takes it.

    Attributes:
        inputs: by name, its pixels first.
        height, width: of the image before.
    """

    inputs: Inputs
    height: int
    width: int


@dataclass(frozen=True)
class PictureKind:
    """What one kind of image processor does.

    Attributes:
        made: settings and an image ``[height, width, 3]`` uint8 → inputs by name.
        layout: settings, height and width → the layout.
        told: a text for people with a layout's numbers.
        flags: steps that it takes besides the usual ones.
    """

    made: Callable[[Pixels, NDArray[np.uint8]], Inputs]
    layout: Callable[[Pixels, int, int], tuple[int, ...]] = _no_layout
    told: str = "one size"
    flags: tuple[str, ...] = ()

    def words(self, layout: Sequence[int]) -> str:
        """A layout for people."""
        return self.told.format(*layout)


def kind_of(pixels: Pixels, given: Mapping[str, Any]) -> PictureKind:
    """The kind of an image processor.

    Args:
        pixels: its settings.
        given: all that they say.

    Raises:
        InputError: naming what is not known here.
    """
    found = _KINDS.get(pixels.kind)
    asks = (key for key in sorted(given) if key.startswith("do_") or key == "is_vqa")
    known = (*_FLAGS, *found.flags) if found is not None else _FLAGS
    more = [key for key in asks if given[key] and key not in known]
    if found is not None and not more:
        return found
    raise InputError(
        "images of this processor can't be prepared here",
        where="image_processor_type" if found is None else more[0],
        got=pixels.kind if found is None else "true",
        expected=", ".join(sorted(_KINDS)) if found is None else None,
        do="Prepare them with the model's own processor, and give the arrays",
    )


def _plain(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    return {_PIXELS: pixels(image)[None]}


def _in_square(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    """LLaVA's: made square in front of all else, where it is padded."""
    first = squared(image, pixels.image_mean) if pixels.do_pad else image
    return _plain(replace(pixels, do_pad=None), first)


def _behind_square(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    """Janus': the longer edge as asked, and made square behind that."""
    if pixels.do_resize:
        edge, other = height_and_width(pixels.size, "size")
        if edge != other:
            raise InputError("the size is no square", where="size", got=f"{other}×{edge}")
        scale = edge / max(image.shape[:2])
        least = pixels.min_size or 1
        tall, wide = (max(round(one * scale), least) for one in image.shape[:2])
        image = pixels.at(image, (tall, wide))
    mean = pixels.image_mean or (0.5, 0.5, 0.5)
    return {_PIXELS: pixels.numbers(squared(image, mean) if pixels.do_pad else image)[None]}


def _document(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    """Donut's: turned, resized, made smaller, and padded to one size."""
    tall, wide = height_and_width(pixels.size, "size")
    height, width = image.shape[:2]
    if pixels.do_align_long_axis and (
        (wide < tall and width > height) or (wide > tall and width < height)
    ):
        image = np.rot90(image, 3)
    if pixels.do_resize:
        edge = {"shortest_edge": min(tall, wide)}
        image = pixels.at(image, plain_size(edge, *image.shape[:2]))
    if pixels.do_thumbnail:
        image = _thumbnail(pixels, image, tall, wide)
    if pixels.do_pad:
        image = centred(image, tall, wide)
    return {_PIXELS: pixels.numbers(pixels.cut(image))[None]}


def _thumbnail(pixels: Pixels, image: NDArray[np.uint8], tall: int, wide: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    to_height, to_width = min(height, tall), min(width, wide)
    if (to_height, to_width) == (height, width):
        return image
    if height > width:
        to_width = int(width * to_height / height)
    elif width > height:
        to_height = int(height * to_width / width)
    filtered = pixels if pixels.resample else replace(pixels, resample=3)
    return filtered.at(image, (to_height, to_width))


def _squares(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    return _with_masks(pixels, square_tiles(pixels, image))


def _quarters(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    return _with_masks(pixels, quarters(pixels, image))


def _with_masks(pixels: Pixels, tiles: Sequence[NDArray[np.uint8]]) -> Inputs:
    """Tiles along an axis of their own, with masks of what is no padding, where they are padded."""
    if not pixels.do_pad:
        return {_PIXELS: _stacked(pixels, tiles)[None]}
    tall, wide = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    require_room(len(tiles) * tall, wide, "size")
    values = np.zeros((1, len(tiles), 3, tall, wide), np.float32)
    masks = np.zeros((1, len(tiles), tall, wide), np.int64)
    for place, tile in enumerate(tiles):
        height, width = tile.shape[:2]
        values[0, place, :, :height, :width] = pixels.numbers(tile)
        masks[0, place, :height, :width] = 1
    return {_PIXELS: values, "pixel_attention_mask": masks}


def _stacked(pixels: Pixels, tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Tiles as numbers ``[tiles, 3, height, width]``."""
    sizes = {tile.shape for tile in tiles}
    if len(sizes) != 1:
        told = ", ".join(sorted(f"{width}×{height}" for height, width, _ in sizes))
        raise InputError("tiles of an image come out at different sizes", got=told)
    height, width, _ = sizes.pop()
    require_room(len(tiles) * height, width, "size")
    return np.stack([pixels.numbers(tile) for tile in tiles])


def _grid(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    tiles = grid_tiles(pixels, image)
    return {_PIXELS: _stacked(pixels, tiles), "num_patches": np.array([len(tiles)])}


def _grid_layout(pixels: Pixels, height: int, width: int) -> tuple[int, ...]:
    """How many tiles: their arrangement is not written into prompts."""
    rows, columns = best_grid(pixels, height, width)
    count = rows * columns
    return (count + (count > 1),)


def _panned(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    tiles = panned(pixels, image)
    return {_PIXELS: _stacked(pixels, tiles), "num_crops": np.array([len(tiles) - 1])}


def _panned_layout(pixels: Pixels, height: int, width: int) -> tuple[int, ...]:
    rows, columns = scans(pixels, height, width)
    return (rows * columns,)


def _resolutions(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    values = _stacked(pixels, resolution_tiles(pixels, image))[None]
    sizes = np.array([image.shape[:2]], np.int64)
    return {_PIXELS: values, "image_sizes": sizes}


def _counted_resolutions(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    """LLaVA-OneVision's, with the number of images of a prompt."""
    return {**_resolutions(pixels, image), "batch_num_images": np.ones(1, np.int64)}


def _packed(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    grid = np.array([[1, *packed_grid(pixels, *image.shape[:2])]], np.int64)
    return {_PIXELS: packed(pixels, image), "image_grid_thw": grid}


def _fitted(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    values = fitted(pixels, image)
    return {_PIXELS: values[None], "image_sizes": np.array([values.shape[1:]], np.int64)}


def _fitted_layout(pixels: Pixels, height: int, width: int) -> tuple[int, ...]:
    tall, wide = height_and_width(pixels.patch_size, "patch_size")
    height, width = fitted_size(pixels, height, width)
    return height // tall, width // wide


def _flattened(pixels: Pixels, image: NDArray[np.uint8]) -> Inputs:
    values = flattened(pixels, image)[None]
    mask = (values.sum(-1) != 0).astype(np.float32)
    return {"flattened_patches": values, "attention_mask": mask}


_SQUARES = PictureKind(
    _squares, square_grid, "{} rows of {} tiles, and the whole", ("do_image_splitting",)
)
_RESOLUTIONS = PictureKind(
    _resolutions, any_resolution, "{} by {} pixels in tiles, {} rows of {} places"
)
_KINDS: Mapping[str, PictureKind] = {
    **dict.fromkeys(ALIKE, PictureKind(_plain)),
    "DonutImageProcessor": PictureKind(_document, flags=("do_thumbnail", "do_align_long_axis")),
    "Gemma3ImageProcessor": PictureKind(
        _panned, _panned_layout, "the whole and {} crops", ("do_pan_and_scan",)
    ),
    "GotOcr2ImageProcessor": PictureKind(_grid, _grid_layout, "{} tiles"),
    "Idefics2ImageProcessor": PictureKind(_quarters, flags=("do_image_splitting",)),
    "Idefics3ImageProcessor": _SQUARES,
    "JanusImageProcessor": PictureKind(_behind_square),
    "LlavaImageProcessor": PictureKind(_in_square),
    "LlavaNextImageProcessor": _RESOLUTIONS,
    "LlavaOnevisionImageProcessor": replace(_RESOLUTIONS, made=_counted_resolutions),
    "Pix2StructImageProcessor": PictureKind(_flattened),
    "PixtralImageProcessor": PictureKind(_fitted, _fitted_layout, "{} rows of {} patches"),
    "Qwen2VLImageProcessor": PictureKind(_packed, packed_grid, "{} rows of {} patches"),
    "SmolVLMImageProcessor": _SQUARES,
}
