"""Images as patches in a row, as image processors of vision-language models give them.

1. Packed (Qwen2-VL): edges become multiples of what one token covers, the number of pixels is kept
   between two; patches of one token stand side by side, each as often behind itself as a video has
   frames there.
2. Flattened (Pix2Struct): as many patches as fit in a number, row by row, with their row and column
   in front, and zeros behind; normalised by the image's own mean and deviation.
3. Whole (Pixtral): edges become multiples of a patch, and the image stays one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from crossfuse.core.requirements import needed
from crossfuse.errors import InputError
from crossfuse.runtime.processing.pixels import Pixels
from crossfuse.runtime.processing.resizing import height_and_width, require_room, require_setting

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fitted", "fitted_size", "flattened", "packed", "packed_grid"]

_MOST_ASPECT = 200

Size = tuple[int, int]


def packed_grid(pixels: Pixels, height: int, width: int) -> Size:
    """Rows and columns of the patches of an image."""
    edge = height_and_width(pixels.patch_size, "patch_size")[0]
    tall, wide = _smart_size(pixels, height, width)
    return tall // edge, wide // edge


def packed(pixels: Pixels, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Patches ``[patches, channels × frames × height × width]``."""
    height, width = image.shape[:2]
    rows, columns = packed_grid(pixels, height, width)
    edge = height_and_width(pixels.patch_size, "patch_size")[0]
    merged = require_setting(pixels.merge_size, "merge_size")
    frames = require_setting(pixels.temporal_patch_size, "temporal_patch_size")
    if pixels.do_resize:
        image = pixels.at(image, (rows * edge, columns * edge))
    if image.shape[:2] != (rows * edge, columns * edge) or rows % merged or columns % merged:
        raise InputError(
            "the image is no multiple of the patches that make one token",
            got=f"{width}×{height}", expected=f"multiples of {edge * merged}",
        )  # fmt: skip
    require_room(rows * edge * frames, columns * edge, "temporal_patch_size")
    cut = pixels.numbers(image).reshape(
        3, rows // merged, merged, edge, columns // merged, merged, edge
    )
    cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    found: NDArray[np.float32] = np.repeat(cut, frames, 5).reshape(rows * columns, -1)
    return found


def _smart_size(pixels: Pixels, height: int, width: int) -> Size:
    """Both edges as multiples of what one token covers, their product between two numbers."""
    if not pixels.do_resize:
        return height, width
    size = pixels.size or {}
    least = require_setting(size.get("shortest_edge"), "size.shortest_edge")
    most = require_setting(size.get("longest_edge"), "size.longest_edge")
    edge = height_and_width(pixels.patch_size, "patch_size")[0]
    unit = edge * require_setting(pixels.merge_size, "merge_size")
    if max(height, width) > _MOST_ASPECT * min(height, width):
        raise InputError(
            "the image is too narrow for this image processor",
            got=f"{width}×{height}",
            expected=f"one edge at most {_MOST_ASPECT} times as long as the other",
        )
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if tall * wide > most:
        scale = math.sqrt(height * width / most)
        tall = max(unit, math.floor(height / scale / unit) * unit)
        wide = max(unit, math.floor(width / scale / unit) * unit)
    elif tall * wide < least:
        scale = math.sqrt(least / (height * width))
        tall = math.ceil(height * scale / unit) * unit
        wide = math.ceil(width * scale / unit) * unit
    return tall, wide


def flattened(pixels: Pixels, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Patches ``[most patches, 2 + height × width × channels]``: row and column from 1, and the
    patch; zeros behind the last."""
    most = require_setting(pixels.max_patches, "max_patches")
    tall, wide = height_and_width(pixels.patch_size, "patch_size")
    require_room(most * tall, wide, "max_patches")
    height, width = image.shape[:2]
    scale = math.sqrt(most * (tall / height) * (wide / width))
    rows = max(min(int(scale * height / tall), most), 1)
    columns = max(min(int(scale * width / wide), most), 1)
    values = image.astype(np.float64)
    if pixels.do_normalize:
        deviation = max(values.std(), 1 / math.sqrt(values.size))
        values = (values - values.mean()) / deviation
    shown = _resized_numbers(values, (rows * tall, columns * wide))
    cut = shown.reshape(rows, tall, columns, wide, 3).transpose(0, 2, 1, 3, 4)
    found = np.zeros((most, 2 + tall * wide * 3), np.float32)
    kept = rows * columns
    found[:kept, :2] = np.indices((rows, columns)).reshape(2, -1).T + 1
    found[:kept, 2:] = cut.reshape(kept, -1)
    return found


def _resized_numbers(image: NDArray[np.float64], size: Size) -> NDArray[np.float32]:
    """Numbers ``[height, width, channels]`` at another size, by the bilinear filter."""
    require_room(*size, "patch_size")
    with needed("PIL", "resizing images"):
        from PIL import Image
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(
                (size[1], size[0]), Image.Resampling.BILINEAR
            )
        )
        for c in range(image.shape[-1])
    ]
    found: NDArray[np.float32] = np.stack(channels, -1)
    return found


def fitted_size(pixels: Pixels, height: int, width: int) -> Size:
    """The size of an image that is made smaller where it is larger than asked, at multiples of a
    patch."""
    if not pixels.do_resize:
        return height, width
    size = pixels.size or {}
    longest = size.get("longest_edge")
    tall, wide = (longest, longest) if longest else height_and_width(size, "size")
    scale = max(height / tall, width / wide)
    if scale > 1:
        height, width = math.floor(height / scale), math.floor(width / scale)
    rows, columns = height_and_width(pixels.patch_size, "patch_size")
    return ((height - 1) // rows + 1) * rows, ((width - 1) // columns + 1) * columns


def fitted(pixels: Pixels, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image ``[3, height, width]`` whose edges are multiples of a patch."""
    if pixels.do_resize:
        image = pixels.at(image, fitted_size(pixels, *image.shape[:2]))
    return pixels.numbers(pixels.cut(image))
