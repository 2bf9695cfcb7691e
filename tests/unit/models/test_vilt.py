"""ViLT's own promises; that it equals `transformers` is in `test_zoo`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from crossfuse.models.sampling import initialised
from crossfuse.models.vilt import SIZES, ImageEmbeddings, spec

TINY = SIZES["tiny"]
GRID, STEP = TINY.image_size // TINY.patch_size, TINY.patch_size


def masked(rows: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(1, TINY.image_size, TINY.image_size, dtype=torch.long)
    mask[:, : rows * STEP, : columns * STEP] = 1
    return mask


@pytest.mark.parametrize(("rows", "columns"), [(GRID, GRID), (3, GRID), (2, 3), (1, 4), (1, 1)])
def test_positions_are_stretched_to_the_real_extent(rows: int, columns: int) -> None:
    """As PyTorch's bilinear interpolation with aligned corners, in float64."""
    image = initialised(lambda: ImageEmbeddings(TINY), 0).double()
    grid = image.positions[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (rows, columns), mode="bilinear", align_corners=True)
    real = masked(rows, columns)[:, ::STEP, ::STEP]
    with torch.no_grad():
        got = image._stretched_positions(real).unflatten(1, (GRID, GRID))[:, :rows, :columns]
    torch.testing.assert_close(got, expected.permute(0, 2, 3, 1), atol=1e-12, rtol=0)


def test_tokens_are_a_class_and_patches_with_their_mask() -> None:
    image = initialised(lambda: ImageEmbeddings(TINY), 0)
    pixels, mask = torch.randn(1, 3, TINY.image_size, TINY.image_size), masked(2, 3)
    with torch.no_grad():
        tokens, kept = image(pixels, mask)
        patch = image.patches(pixels[:, :, :STEP, STEP : 2 * STEP]).flatten(1)
        place = image._stretched_positions(mask[:, ::STEP, ::STEP])[:, 1]
    assert tokens.shape == (1, 1 + GRID * GRID, TINY.width)
    torch.testing.assert_close(tokens[:, 0], (image.class_token + image.positions[:, :1])[:, 0])
    torch.testing.assert_close(tokens[:, 2], patch + place)
    assert kept.sum() == 1 + 2 * 3
    assert kept[0, : 1 + GRID].tolist() == [1, 1, 1, 1, 0]


def test_padded_words_and_pixels_do_not_matter() -> None:
    made = spec("tiny")
    inputs = dict(made.inputs)
    words, pixels = inputs["attention_mask"] == 0, inputs["pixel_mask"] == 0
    assert words.any()
    assert pixels.any()
    changed = inputs | {
        "input_ids": torch.where(words, 7, inputs["input_ids"]),
        "pixel_values": torch.where(pixels[:, None], 9.0, inputs["pixel_values"]),
    }
    with torch.no_grad():
        first, second = made.module(**inputs), made.module(**changed)
    torch.testing.assert_close(first["pooler_output"], second["pooler_output"])
    length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(
        first["last_hidden_state"][:, length], second["last_hidden_state"][:, length]
    )


def test_words_meet_the_image() -> None:
    made = spec("tiny")
    other = dict(made.inputs) | {"pixel_values": -made.inputs["pixel_values"]}
    with torch.no_grad():
        first, second = (
            made.module(**inputs)["last_hidden_state"] for inputs in (made.inputs, other)
        )
    assert not torch.allclose(first[:, 0], second[:, 0], atol=1e-4)
