"""Images cut into tiles, as image processors of vision-language models do: how many rows and
columns an image of a size gets, and the tiles.

1. Squares (Idefics3, SmolVLM): the longer edge is as long as asked, both become multiples of a
   square's, and the whole in one square stands behind the squares.
2. The best grid (GotOcr2, InternVL): of all grids of at most so many tiles the one whose aspect
   ratio is nearest; the whole stands behind.
3. Any resolution (LLaVA-NeXT, LLaVA-OneVision): of the sizes that are named the one that shows
   most, with bars; the whole stands in front.
4. Pan and scan (Gemma3): long images along their longer edge; the whole stands in front.
5. Quarters (Idefics2), and the whole behind them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import InputError
from crossfuse.runtime.processing.pixels import Pixels
from crossfuse.runtime.processing.resizing import (
    centred,
    height_and_width,
    require_room,
    require_setting,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "any_resolution",
    "best_grid",
    "grid_tiles",
    "panned",
    "quarters",
    "resolution_tiles",
    "scans",
    "square_grid",
    "square_tiles",
]

_MOST_TILES = 1024
_MOST_GRIDS = 256
_LONGEST = 4096
"""Edges of images that are cut into squares."""

Tiles = list["NDArray[np.uint8]"]
Size = tuple[int, int]


def square_grid(pixels: Pixels, height: int, width: int) -> Size:
    """Rows and columns of squares; none where the image is one square."""
    if not pixels.do_image_splitting:
        return 0, 0
    edge = _square(pixels)
    tall, wide = _in_squares(_longest(pixels, height, width), edge)
    if max(tall, wide) <= edge:
        return 0, 0
    return tall // edge, wide // edge


def square_tiles(pixels: Pixels, image: NDArray[np.uint8]) -> Tiles:
    """Squares row by row, and the whole."""
    edge = _square(pixels)
    whole = image
    if pixels.do_resize:
        whole = pixels.at(whole, _longest(pixels, *whole.shape[:2]))
    if not pixels.do_image_splitting:
        return [pixels.at(whole, (edge, edge))]
    whole = pixels.at(whole, _in_squares((whole.shape[0], whole.shape[1]), edge))
    if max(whole.shape[:2]) <= edge:
        return [whole]
    return [*_cut(whole, edge, edge), pixels.at(whole, (edge, edge))]


def _square(pixels: Pixels) -> int:
    found = require_setting((pixels.max_image_size or {}).get("longest_edge"), "max_image_size")
    return int(found)


def _longest(pixels: Pixels, height: int, width: int) -> Size:
    """The size at which the longer edge is as long as asked; the other is even."""
    longest = (pixels.size or {}).get("longest_edge")
    if not pixels.do_resize:
        return height, width
    if not longest:
        return height_and_width(pixels.size, "size")
    tall, wide = _scaled(height, width, longest)
    tall, wide = (tall, wide + wide % 2) if tall > wide else (tall + tall % 2, wide)
    tall, wide = max(tall, 1), max(wide, 1)
    if max(tall, wide) > _LONGEST:
        tall, wide = _scaled(tall, wide, _LONGEST)
    return max(tall, 1), max(wide, 1)


def _scaled(height: int, width: int, longest: int) -> Size:
    """The size at which the longer edge is so long."""
    ratio = width / height
    if width >= height:
        return int(longest / ratio), longest
    return longest, int(longest * ratio)


def _in_squares(size: Size, edge: int) -> Size:
    """The least multiples of an edge that hold a size of the same aspect."""
    height, width = size
    ratio = width / height
    if width >= height:
        wide = math.ceil(width / edge) * edge
        return math.ceil(int(wide / ratio) / edge) * edge, wide
    tall = math.ceil(height / edge) * edge
    return tall, math.ceil(int(tall * ratio) / edge) * edge


def best_grid(pixels: Pixels, height: int, width: int) -> Size:
    """Rows and columns of the grid whose aspect ratio is nearest to the image's.

    Among grids of one aspect ratio a larger one is taken where the image has more than half of its
    pixels.
    """
    most = pixels.max_patches or 1
    if not pixels.crop_to_patches or most < 2:
        return 1, 1
    if most > _MOST_GRIDS:
        raise InputError(
            "the image processor asks for more tiles than are prepared here",
            where="max_patches", got=most, expected=f"at most {_MOST_GRIDS}",
        )  # fmt: skip
    tall, wide = height_and_width(pixels.size, "size")
    least = pixels.min_patches or 1
    grids = [
        (rows, columns)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if rows * columns >= least
    ]
    best, nearest = (1, 1), math.inf
    for rows, columns in sorted(grids, key=math.prod):
        distance = abs(width / height - columns / rows)
        fills = width * height > 0.5 * tall * wide * columns * rows
        if distance < nearest or (distance == nearest and fills):
            best, nearest = (rows, columns), distance
    return best


def grid_tiles(pixels: Pixels, image: NDArray[np.uint8]) -> Tiles:
    """Tiles of the best grid row by row, and the whole where there are several."""
    rows, columns = best_grid(pixels, *image.shape[:2])
    if not pixels.crop_to_patches or (pixels.max_patches or 1) < 2:
        return [pixels.resized(image)]
    tall, wide = height_and_width(pixels.size, "size")
    found = _cut(pixels.at(image, (rows * tall, columns * wide)), tall, wide)
    return found if len(found) == 1 else [*found, pixels.at(image, (tall, wide))]


def any_resolution(pixels: Pixels, height: int, width: int) -> tuple[int, ...]:
    """Height and width of the size that an image is shown at, and rows and columns of the patches
    that are left there without the bars; of an image processor that doesn't say how many patches a
    tile has, the image's own size."""
    tall, wide = _best_resolution(pixels, height, width)
    _, edge = _whole_and_tile(pixels)
    side = _patches_along(pixels, edge)
    if side is None:
        return tall, wide, height, width
    rows, columns = side * (tall // edge), side * (wide // edge)
    if not rows or not columns:
        return tall, wide, height, width
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return tall, wide, rows, columns


def resolution_tiles(pixels: Pixels, image: NDArray[np.uint8]) -> Tiles:
    """The whole, and tiles of the image at the size that shows most of it, row by row."""
    height, width = image.shape[:2]
    tall, wide = _best_resolution(pixels, height, width)
    whole, edge = _whole_and_tile(pixels)
    if wide / width < tall / height:
        inner = (min(math.ceil(height * (wide / width)), tall), wide)
    else:
        inner = (tall, min(math.ceil(width * (tall / height)), wide))
    shown = centred(pixels.at(image, inner), tall, wide)
    found = [pixels.at(image, whole), *_cut(shown, edge, edge)]
    return [pixels.cut(pixels.resized(tile)) for tile in found]


def _best_resolution(pixels: Pixels, height: int, width: int) -> Size:
    """Of the sizes that are named the one at which most pixels are shown, and of these the one with
    the fewest others."""

    def shows(size: Size) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - size[0] * size[1]

    found: Size = max(
        require_setting(pixels.image_grid_pinpoints, "image_grid_pinpoints"), key=shows
    )
    return require_room(*found, "image_grid_pinpoints")


def _whole_and_tile(pixels: Pixels) -> tuple[Size, int]:
    """The size of the whole in one tile, and a tile's edge."""
    size, crop = pixels.size or {}, pixels.crop_size or {}
    shortest = size.get("shortest_edge")
    if size.get("height") and size.get("width"):
        whole = height_and_width(size, "size")
    else:
        edge = require_setting(shortest, "size")
        whole = require_room(edge, edge, "size")
    return whole, int(crop.get("height") or whole[0])


def _patches_along(pixels: Pixels, edge: int) -> int | None:
    if pixels.num_image_tokens:
        return math.isqrt(pixels.num_image_tokens)
    patch = (pixels.patch_size or {}).get("height")
    return edge // patch if patch else None


def scans(pixels: Pixels, height: int, width: int) -> Size:
    """Rows and columns of the parts that a long image is shown in besides; none of others."""
    least = pixels.pan_and_scan_min_crop_size
    most, ratio = pixels.pan_and_scan_max_num_crops, pixels.pan_and_scan_min_ratio_to_activate
    if not pixels.do_pan_and_scan:
        return 0, 0
    least = require_setting(least, "pan_and_scan_min_crop_size")
    most = require_setting(most, "pan_and_scan_max_num_crops")
    short, long = min(height, width), max(height, width)
    if long / short < require_setting(ratio, "pan_and_scan_min_ratio_to_activate"):
        return 0, 0
    count = min(max(2, min(long // least, math.floor(long / short + 0.5))), most)
    if min(math.ceil(long / count), short) < least:
        return 0, 0
    return (1, count) if width >= height else (count, 1)


def panned(pixels: Pixels, image: NDArray[np.uint8]) -> Tiles:
    """The whole, and its parts, each resized."""
    height, width = image.shape[:2]
    rows, columns = scans(pixels, height, width)
    parts = [image]
    if rows:
        tall, wide = math.ceil(height / rows), math.ceil(width / columns)
        parts += [
            image[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
            for row in range(rows)
            for column in range(columns)
        ]
    if not all(part.size for part in parts):
        raise InputError("the image is too narrow to be cut", got=f"{width}×{height}")
    _require_few(len(parts))
    return [pixels.resized(part) for part in parts]


def quarters(pixels: Pixels, image: NDArray[np.uint8]) -> Tiles:
    """The four quarters and the whole, or the whole alone, each resized within two edges."""
    parts = [image]
    if pixels.do_image_splitting:
        row, column = image.shape[0] // 2, image.shape[1] // 2
        upper, lower = image[:row], image[row:]
        parts = [upper[:, :column], upper[:, column:], lower[:, :column], lower[:, column:], image]
    if not all(part.size for part in parts):
        raise InputError(
            "the image is too narrow to be cut", got=f"{image.shape[1]}×{image.shape[0]}"
        )
    if not pixels.do_resize:
        return parts
    return [pixels.at(part, _between(pixels, *part.shape[:2])) for part in parts]


def _between(pixels: Pixels, height: int, width: int) -> Size:
    """The size with the longer edge at most so long, and no edge shorter than asked."""
    size = pixels.size or {}
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if not shortest or not longest:
        return height_and_width(size, "size")
    if max(height, width) > longest:
        height, width = _scaled(height, width, longest)
    return max(height, shortest), max(width, shortest)


def _cut(image: NDArray[Any], height: int, width: int) -> list[NDArray[Any]]:
    """Tiles of a size, row by row; at the right and below what is left."""
    starts: Sequence[Size] = [
        (top, left)
        for top in range(0, image.shape[0], height)
        for left in range(0, image.shape[1], width)
    ]
    _require_few(len(starts))
    return [image[top : top + height, left : left + width] for top, left in starts]


def _require_few(count: int) -> None:
    if count > _MOST_TILES:
        raise InputError(
            "the image processor asks for more tiles than are prepared here",
            got=count, expected=f"at most {_MOST_TILES}",
        )  # fmt: skip
