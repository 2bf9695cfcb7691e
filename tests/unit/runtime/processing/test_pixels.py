"""Images as models take them, against the library's image processors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from crossfuse import InputError
from crossfuse.core.json_reader import Origin, decode
from crossfuse.runtime.processing.picture_kinds import kind_of
from crossfuse.runtime.processing.pixels import ALIKE, Pixels

ORIGIN = Origin("the settings", "here")
SIZES = ((64, 48), (31, 90), (20, 20), (7, 201))


def photo(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width)
    coarse = generator.integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def both(name: str, **settings: Any) -> tuple[Pixels, Any]:
    theirs = getattr(transformers, f"{name}Pil")(**settings)
    given = json.loads(theirs.to_json_string())
    mine = decode(Pixels, given, ORIGIN)
    assert kind_of(mine, given).layout(mine, 20, 30) == ()
    return mine, theirs


def compare(mine: Pixels, theirs: Any) -> None:
    for size in SIZES:
        image = photo(*size)
        expected = theirs(image, return_tensors="np")["pixel_values"][0]
        found = mine(image)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_images_are_the_librarys(name: str) -> None:
    compare(*both(name))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 15}},
        {"size": {"shortest_edge": 20}, "do_center_crop": False},
        {"size": {"shortest_edge": 24, "longest_edge": 40}, "do_center_crop": False},
        {"size": {"max_height": 30, "max_width": 50}, "do_center_crop": False},
        {"size": {"height": 12, "width": 19}, "do_center_crop": False, "resample": 0},
        {"size": {"height": 12, "width": 19}, "resample": 1, "image_mean": [0.1, 0.2, 0.3]},
        {"do_resize": False, "crop_size": {"height": 21, "width": 21}, "do_normalize": False},
        {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False},
    ],
)
def test_settings_are_the_librarys(settings: dict[str, Any]) -> None:
    compare(*both("CLIPImageProcessor", **settings))


def test_padding_to_a_size() -> None:
    mine, theirs = both(
        "ViTImageProcessor", do_resize=False, do_pad=True, pad_size={"height": 90, "width": 210},
    )  # fmt: skip
    for size in ((64, 48), (20, 20)):
        expected = theirs(photo(*size), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(mine(photo(*size)), expected, atol=1e-5)
    with pytest.raises(InputError, match="larger than what it is padded to"):
        mine(photo(211, 5))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": {"height": 0, "width": 3}}, "height"),
        ({"size": {}}, "size"),
        ({"image_mean": [0.5]}, "3 numbers"),
        ({"image_mean": None}, "image_mean"),
        ({"resample": 9}, "resample"),
        ({"size": {"height": 30000, "width": 30000}}, "more pixels"),
        ({"size": {"shortest_edge": 30000}}, "more pixels"),
    ],
)
def test_what_is_wrong_is_refused(changed: dict[str, Any], words: str) -> None:
    theirs = transformers.ViTImageProcessorPil()
    given = json.loads(theirs.to_json_string()) | changed

    def made() -> None:
        decode(Pixels, given, ORIGIN)(photo(20, 20))

    with pytest.raises(InputError, match=words):
        made()


def test_an_image_that_nothing_is_left_of_is_refused() -> None:
    size = {"max_height": 2, "max_width": 2}
    mine, _ = both("CLIPImageProcessor", size=size, do_center_crop=False)
    with pytest.raises(InputError, match="too narrow"):
        mine(photo(200, 20))


def test_other_arrays_are_refused() -> None:
    mine, _ = both("ViTImageProcessor")
    for wrong in (np.zeros((3, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(InputError, match="three channels"):
            mine(wrong)
