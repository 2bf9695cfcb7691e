"""Rows and columns that images are cut into; the tiles are compared with the library's in
`test_picture_kinds`."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.processing.pixels import Pixels
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

SQUARE = {"height": 8, "width": 8}


def numbered(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An image of nothing but its rows and columns."""
    rows, columns = np.indices((height, width), np.uint8)
    return np.stack([rows, columns, rows], -1)


def test_squares_stand_row_by_row_in_front_of_the_whole() -> None:
    pixels = Pixels(
        "x", do_image_splitting=True, max_image_size={"longest_edge": 8}, do_resize=None
    )
    assert square_grid(pixels, 16, 24) == (2, 3)
    tiles = square_tiles(pixels, numbered(16, 24))
    assert [tile[0, 0, :2].tolist() for tile in tiles[:-1]] == [
        [0, 0], [0, 8], [0, 16], [8, 0], [8, 8], [8, 16]
    ]  # fmt: skip
    assert tiles[-1].shape == (8, 8, 3)
    assert square_grid(pixels, 8, 5) == (0, 0)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((8, 8), (1, 1)),
        ((8, 16), (1, 2)),
        ((40, 8), (4, 1)),
        ((200, 200), (2, 2)),
        ((8, 99), (1, 4)),
    ],
)
def test_the_grid_of_the_nearest_aspect(size: tuple[int, int], grid: tuple[int, int]) -> None:
    pixels = Pixels("x", size=SQUARE, crop_to_patches=True, max_patches=4)
    assert best_grid(pixels, *size) == grid
    count = grid[0] * grid[1]
    assert len(grid_tiles(pixels, numbered(*size))) == count + (count > 1)


def test_any_resolution_shows_the_whole_first() -> None:
    pixels = Pixels(
        "x", size=SQUARE, patch_size={"height": 2}, image_grid_pinpoints=((8, 16), (16, 16))
    )
    assert any_resolution(pixels, 4, 10) == (8, 16, 3 + 1, 8)
    assert any_resolution(pixels, 20, 20) == (16, 16, 8, 8)
    tiles = resolution_tiles(pixels, numbered(4, 10))
    assert [tile.shape for tile in tiles] == [(8, 8, 3)] * 3
    assert not tiles[1][-1].any(), "a bar below"
    assert tiles[1][-2].any()


def test_long_images_are_seen_in_parts_besides() -> None:
    pixels = Pixels(
        "x", do_pan_and_scan=True, pan_and_scan_min_crop_size=4, pan_and_scan_max_num_crops=3,
        pan_and_scan_min_ratio_to_activate=1.5,
    )  # fmt: skip
    assert (scans(pixels, 10, 40), scans(pixels, 40, 10), scans(pixels, 10, 12)) == (
        (1, 3),
        (3, 1),
        (0, 0),
    )
    parts = panned(pixels, numbered(10, 40))
    assert [part.shape[1] for part in parts] == [40, 14, 14, 12]


def test_quarters_and_the_whole() -> None:
    parts = quarters(Pixels("x", do_image_splitting=True), numbered(5, 6))
    assert [part.shape[:2] for part in parts] == [(2, 3), (2, 3), (3, 3), (3, 3), (5, 6)]
    with pytest.raises(InputError, match="too narrow to be cut"):
        quarters(Pixels("x", do_image_splitting=True), numbered(1, 6))
