"""Kinds of image processors, each against the library's own."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from crossfuse import InputError
from crossfuse.core.json_reader import Origin, decode
from crossfuse.runtime.processing.picture_kinds import PictureKind, kind_of
from crossfuse.runtime.processing.pixels import Pixels, in_full
from processor_checkpoints import tokenizer

SIZES = ((64, 48), (31, 90), (20, 20), (7, 201), (201, 7), (1, 1), (33, 34), (320, 190), (3, 2))
GRIDS = [[16, 32], [32, 16], [32, 32], [16, 48]]
SQUARE = {"height": 16, "width": 16}
SPLIT = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
SCANS = {
    "size": SQUARE, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8,
    "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2,
}  # fmt: skip
EDGES = {"shortest_edge": 20, "longest_edge": 60}
PAGE = {"height": 40, "width": 30}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("Donut", {"size": PAGE}),
    ("Donut", {"size": PAGE, "do_align_long_axis": True, "resample": 0}),
    ("Donut", {"size": PAGE, "do_thumbnail": False, "do_resize": False, "do_pad": False}),
    ("Gemma3", {"size": SQUARE}),
    ("Gemma3", SCANS),
    ("GotOcr2", {"size": SQUARE}),
    ("GotOcr2", {"size": SQUARE, "crop_to_patches": True}),
    (
        "GotOcr2",
        {"size": {"height": 16, "width": 24}, "crop_to_patches": True, "min_patches": 3,
         "max_patches": 6},
    ),
    ("Idefics2", {"size": EDGES}),
    ("Idefics2", {"size": EDGES, "do_image_splitting": True}),
    ("Idefics3", SPLIT),
    ("Idefics3", {**SPLIT, "do_resize": False}),
    ("Idefics3", {**SPLIT, "do_image_splitting": False, "do_normalize": False}),
    ("Idefics3", {**SPLIT, "size": PAGE, "do_pad": False}),
    ("Janus", {"size": {"height": 32, "width": 32}}),
    ("Llava", {"size": {"shortest_edge": 20}, "crop_size": SQUARE}),
    ("Llava", {"size": {"shortest_edge": 20}, "crop_size": SQUARE, "do_pad": True}),
    (
        "LlavaNext",
        {"size": {"shortest_edge": 16}, "crop_size": SQUARE, "image_grid_pinpoints": GRIDS},
    ),
    ("LlavaOnevision", {"size": SQUARE, "image_grid_pinpoints": GRIDS}),
    ("Pix2Struct", {"patch_size": {"height": 4, "width": 4}, "max_patches": 16}),
    ("Pix2Struct", {"patch_size": {"height": 4, "width": 6}, "max_patches": 50}),
    ("Pixtral", {"size": {"longest_edge": 64}, "patch_size": 8}),
    ("Pixtral", {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 4}}),
    ("Qwen2VL", {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 1024}}),
    (
        "Qwen2VL",
        {"patch_size": 2, "temporal_patch_size": 3, "merge_size": 3,
         "size": {"shortest_edge": 400, "longest_edge": 4096}},
    ),
    ("SmolVLM", SPLIT),
]  # fmt: skip


def photo(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width)
    coarse = generator.integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def both(name: str, settings: dict[str, Any]) -> tuple[Pixels, PictureKind, Any]:
    theirs = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    given = json.loads(theirs.to_json_string())
    pixels = decode(Pixels, in_full(given), Origin("the settings", "here"))
    return pixels, kind_of(pixels, given), theirs


def named(case: int) -> str:
    return f"{CASES[case][0]}-{case}"


@pytest.mark.parametrize("case", range(len(CASES)), ids=named)
def test_inputs_are_the_librarys(case: int) -> None:
    pixels, kind, theirs = both(*CASES[case])
    compared = 0
    for size in SIZES:
        image = photo(*size)
        try:
            expected = dict(theirs([image], return_tensors="np"))
        except ZeroDivisionError:
            with pytest.raises(InputError, match="too narrow"):
                kind.made(pixels, np.asarray(image))
            continue
        found = kind.made(pixels, np.asarray(image))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], np.asarray(array), atol=1e-5, err_msg=str(size))
        compared += 1
    assert compared > 1


def idefics3() -> Any:
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    images = transformers.Idefics3ImageProcessorPil(**SPLIT)
    return transformers.Idefics3Processor(images, tokenizer(*marks), image_seq_len=2)


def llava_next() -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=GRIDS
    )
    return transformers.LlavaNextProcessor(
        images, tokenizer("<image>"), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


@pytest.mark.parametrize("made", [idefics3, llava_next])
def test_images_of_one_layout_have_the_same_places(made: Any) -> None:
    """The text that the library's processor writes follows from the layout."""
    theirs = made()
    given = json.loads(theirs.image_processor.to_json_string())
    given |= {"patch_size": 4} if made is llava_next else {}
    pixels = decode(Pixels, in_full(given), Origin("the settings", "here"))
    kind = kind_of(pixels, given)
    written: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for width, height in [(w, h) for w in (20, 33, 47, 64, 130) for h in (18, 40, 64, 99)]:
        ids = theirs(text=["<image> a cat"], images=[photo(width, height)])["input_ids"][0]
        written.setdefault(kind.layout(pixels, height, width), set()).add(tuple(ids))
    assert all(len(texts) == 1 for texts in written.values())
    assert len({next(iter(texts)) for texts in written.values()}) > 4
    assert all(kind.words(layout) for layout in written)


def test_packed_patches_have_the_grids_layout() -> None:
    pixels, kind, theirs = both(*CASES[-3])
    for width, height in SIZES[:3]:
        grid = theirs([photo(width, height)], return_tensors="np")["image_grid_thw"][0]
        assert kind.layout(pixels, height, width) == tuple(grid[1:])


def test_fitted_images_have_the_layout_of_their_patches() -> None:
    pixels, kind, theirs = both("Pixtral", {"size": {"longest_edge": 64}, "patch_size": 8})
    for width, height in SIZES:
        size = theirs([photo(width, height)], return_tensors="np")["image_sizes"][0]
        assert kind.layout(pixels, height, width) == (size[0] // 8, size[1] // 8)


def test_places_of_any_resolution_are_those_of_the_layout() -> None:
    """By the number of a tile's tokens, or by the image's own size where that isn't known."""
    settings = {"size": SQUARE, "image_grid_pinpoints": GRIDS}
    pixels, kind, theirs = both("LlavaOnevision", settings)
    known = replace(pixels, num_image_tokens=25)
    count = transformers.LlavaOnevisionProcessor._get_number_of_features
    unpadded = transformers.LlavaOnevisionProcessor._get_unpadded_features
    around = SimpleNamespace(
        image_processor=theirs, num_image_tokens=25, vision_aspect_ratio="anyres_max_9"
    )
    around._get_unpadded_features = MethodType(unpadded, around)
    found: dict[tuple[int, ...], set[int]] = {}
    for width, height in [(w, h) for w in (20, 33, 47, 130) for h in (18, 40, 64, 99)]:
        layout = kind.layout(known, height, width)
        rows, columns = layout[2:]
        assert count(around, height, width, 16, 16) == 25 + rows * columns + rows
        found.setdefault(layout, set()).add(height)
        assert kind.layout(pixels, height, width)[2:] == (height, width)
    assert len(found) > 4


def test_squares_are_of_an_edge_that_is_not_too_long() -> None:
    long = {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 700}}
    pixels, kind, theirs = both("Idefics3", long)
    assert kind.layout(pixels, 3, 400) == theirs.get_number_of_image_patches(3, 400)[1:] == (1, 6)


def test_tiles_have_a_layout_of_their_number() -> None:
    pixels, kind, theirs = both("GotOcr2", {"size": SQUARE, "crop_to_patches": True})
    for width, height in SIZES:
        count = theirs.get_number_of_image_patches(height, width)
        assert kind.layout(pixels, height, width) == (count,)
    assert kind.words((3,)) == "3 tiles"


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("ViT", {"image_processor_type": "FuyuImageProcessor"}, "FuyuImageProcessor"),
        ("ViT", {"do_thumbnail": True}, "do_thumbnail"),
        ("Pix2Struct", {"is_vqa": True}, "is_vqa"),
        ("GotOcr2", {"crop_to_patches": True, "max_patches": 60000}, "more tiles"),
        ("Idefics3", {"max_image_size": {"longest_edge": 1}}, "more tiles"),
        ("Idefics3", {"max_image_size": None}, "max_image_size"),
        ("LlavaNext", {"image_grid_pinpoints": [[16384, 16384]]}, "more pixels"),
        ("LlavaNext", {"image_grid_pinpoints": []}, "1 to 256"),
        ("LlavaNext", {"crop_size": {"height": 1, "width": 1}}, "more tiles"),
        ("LlavaNext", {"size": {}}, "size"),
        ("Gemma3", {**SCANS, "pan_and_scan_max_num_crops": None}, "max_num_crops"),
        ("Qwen2VL", {"temporal_patch_size": 400}, "temporal_patch_size"),
        ("Qwen2VL", {"merge_size": None}, "merge_size"),
        ("Qwen2VL", {"do_resize": False}, "no multiple"),
        ("Qwen2VL", {"size": {"shortest_edge": 1 << 27, "longest_edge": 1 << 27}}, "more pixels"),
        ("Janus", {"size": {"height": 16, "width": 20}}, "no square"),
        ("Pix2Struct", {"max_patches": 60000, "patch_size": {"height": 64, "width": 64}}, "more"),
        ("Donut", {"do_thumbnail": False, "size": {"height": 10, "width": 10}}, "larger than what"),
    ],
)  # fmt: skip
def test_what_is_not_known_or_wrong_is_refused(
    name: str, changed: dict[str, Any], words: str
) -> None:
    theirs = getattr(transformers, f"{name}ImageProcessorPil")()
    given = json.loads(theirs.to_json_string()) | changed

    def made() -> None:
        pixels = decode(Pixels, in_full(given), Origin("the settings", "here"))
        kind_of(pixels, given).made(pixels, np.asarray(photo(90, 41)))

    with pytest.raises(InputError, match=words):
        made()
