"""Sizes read off inputs, and shapes at sizes; axes may be multiples of a dimension."""

from __future__ import annotations

import pytest
import torch

from crossfuse import InputError
from crossfuse.spec.sizes import shape_at, sizes_in

AXES = {"image": {0: "batch", 2: "8*height"}, "latent": {0: "batch", 1: "height"}}


def given(batch: int, pixels: int, latents: int) -> dict[str, torch.Tensor]:
    return {"image": torch.zeros(batch, 3, pixels), "latent": torch.zeros(batch, latents)}


def test_sizes_and_shapes() -> None:
    sizes = sizes_in(given(2, 24, 3), AXES, "the example")
    assert sizes == {"batch": 2, "height": 3}
    assert shape_at((9, 3, 9), AXES["image"], sizes) == (2, 3, 24)
    assert shape_at((9, 9, 7), {}, sizes) == (9, 9, 7)
    with pytest.raises(KeyError):
        shape_at((9,), {0: "2*other"}, sizes)


def test_what_does_not_agree() -> None:
    with pytest.raises(InputError, match=r"no multiple of 8 in x \(image, axis 2\): got 25"):
        sizes_in(given(2, 25, 3), AXES, "x")
    with pytest.raises(InputError, match="'height' has two sizes in x"):
        sizes_in(given(2, 24, 4), AXES, "x")
