"""Patches of images; their numbers are compared with the library's in `test_picture_kinds`."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.processing.patches import (
    fitted,
    fitted_size,
    flattened,
    packed,
    packed_grid,
)
from crossfuse.runtime.processing.pixels import Pixels

EDGES = {"height": 2, "width": 2}


def test_patches_of_one_token_stand_side_by_side() -> None:
    pixels = Pixels("x", patch_size=EDGES, merge_size=2, temporal_patch_size=2)
    image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    assert packed_grid(pixels, 4, 8) == (2, 4)
    found = packed(pixels, image)
    assert found.shape == (8, 3 * 2 * 4)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (0, 4), (0, 6), (2, 4), (2, 6)]
    assert found[:, 0].tolist() == [image[place][0] for place in corners]
    frames = found.reshape(8, 3, 2, 4)
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    with pytest.raises(InputError, match="no multiple of the patches"):
        packed(pixels, image[:, :6])


def test_an_image_that_is_too_narrow() -> None:
    size = {"shortest_edge": 16, "longest_edge": 256}
    pixels = Pixels("x", do_resize=True, size=size, patch_size=EDGES, merge_size=1)
    assert packed_grid(pixels, 2, 400) == (1, 113)
    with pytest.raises(InputError, match="too narrow for this image processor"):
        packed_grid(pixels, 2, 401)


def test_flattened_patches_know_their_place() -> None:
    pixels = Pixels("x", patch_size=EDGES, max_patches=8)
    found = flattened(pixels, np.full((6, 9, 3), 7, np.uint8))
    assert found.shape == (8, 2 + 12)
    assert found[:6, :2].tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
    assert (found[:6, 2:] == 7).all()
    assert not found[6:].any()


def test_sizes_are_multiples_of_a_patch() -> None:
    pixels = Pixels(
        "x", do_resize=True, size={"longest_edge": 10}, patch_size={"height": 4, "width": 2}
    )
    assert fitted_size(pixels, 7, 3) == (8, 4)
    assert fitted_size(pixels, 40, 20) == (12, 6)
    assert fitted(pixels, np.zeros((40, 20, 3), np.uint8)).shape == (3, 12, 6)
