"""Sizes by settings, and images cropped and padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.processing.resizing import (
    centred,
    height_and_width,
    middle,
    padded,
    plain_size,
    require_room,
    require_setting,
    resized,
    squared,
)

IMAGE = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 5, "width": 6}, (5, 6)),
        ({"shortest_edge": 10}, (10, 20)),
        ({"shortest_edge": 10, "longest_edge": 15}, (8, 15)),
        ({"max_height": 9, "max_width": 8}, (4, 8)),
    ],
)
def test_sizes_by_what_settings_say(size: dict[str, int], expected: tuple[int, int]) -> None:
    assert plain_size(size, 40, 80) == expected
    assert resized(np.zeros((40, 80, 3), np.uint8), expected, 0).shape == (*expected, 3)


def test_the_middle_with_zeros_around() -> None:
    assert middle(IMAGE, 2, 2).tolist() == IMAGE[:, 1:3].tolist()
    found = middle(IMAGE, 4, 6)
    assert found[1:3, 1:5].tolist() == IMAGE.tolist()
    assert found.sum() == IMAGE.sum()


def test_padding() -> None:
    planes = IMAGE.transpose(2, 0, 1)
    assert padded(planes, 3, 5)[:, :2, :4].tolist() == planes.tolist()
    assert centred(IMAGE, 4, 4)[1:3].tolist() == IMAGE.tolist()
    square = squared(IMAGE, (1.0, 0.5, 0.0))
    assert square[0, 0].tolist() == [255, 127, 0]
    assert square[1:3].tolist() == IMAGE.tolist()
    assert squared(IMAGE, None)[0].sum() == 0


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no size": (lambda: height_and_width({}, "size"), "can't be told"),
    "no setting": (lambda: require_setting(None, "size"), "missing"),
    "no room": (lambda: require_room(1 << 14, 1 << 14, "size"), "more pixels"),
    "a long edge": (lambda: resized(IMAGE, (1, 1 << 15), None), "too narrow"),
    "nothing left": (lambda: resized(IMAGE, (0, 4), None), "too narrow"),
    "a small square": (lambda: centred(IMAGE, 1, 4), "larger than what"),
    "small padding": (lambda: padded(IMAGE.transpose(2, 0, 1), 2, 3), "larger than what"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    call, why = REFUSED[name]
    with pytest.raises(InputError, match=why):
        call()
