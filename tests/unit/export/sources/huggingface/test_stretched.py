"""Samples at other sizes: what stays, what comes and goes, and what goes with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.stretched import Stretched

PAD, START, END, IMAGE = 0, 1, 2, 9
PLAIN = torch.arange(3, 9)


def text(*, left: bool) -> dict[str, Tensor]:
    """A start, three places of an image, words and an end; the second row is shorter."""
    rows = [
        [START, IMAGE, IMAGE, IMAGE, 3, 4, 5, 6, END],
        [START, IMAGE, IMAGE, IMAGE, 7, END, PAD, PAD, PAD],
    ]
    if left:
        rows[1] = rows[1][6:] + rows[1][:6]
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    }


def stretched(base: dict[str, Tensor]) -> Stretched:
    axes = {
        name: {0: "batch", 1: "text"} if tensor.ndim == 2 else {0: "batch"}
        for name, tensor in base.items()
    }
    return Stretched(base, axes, ("batch", "texts"), ("input_ids",), PLAIN)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 6), (2, 9), (5, 7), (3, 20)])
def test_special_places_stay_and_words_come_and_go(left: bool, batch: int, length: int) -> None:
    maker = stretched(text(left=left))
    assert maker.least("text") == 6
    made = maker.sample({"batch": batch, "text": length}, torch.Generator().manual_seed(3))
    assert made["input_ids"].shape == (batch, length)
    assert made["pixel_values"].shape == (batch, 3, 4, 4)
    for ids, mask, types in zip(
        made["input_ids"], made["attention_mask"], made["mm_token_type_ids"], strict=True
    ):
        kept = ids[mask != 0].tolist()
        assert [i for i in kept if i not in PLAIN.tolist()] == [START, *[IMAGE] * 3, END]
        assert (kept[0], kept[-1]) == (START, END)
        assert torch.equal(types == 1, ids == IMAGE)
        assert torch.equal(mask == 0, ids == PAD)
        shown = mask.tolist()
        assert shown == sorted(shown, reverse=not left)
    assert bool((made["attention_mask"][0] == 1).all())


def test_samples_differ_by_seed_and_are_the_same_again() -> None:
    maker, sizes = stretched(text(left=False)), {"batch": 2, "text": 12}
    one, two, again = (maker.sample(sizes, torch.Generator().manual_seed(s)) for s in (1, 2, 1))
    for name in ("input_ids", "pixel_values"):
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], two[name])


def test_a_text_of_special_places_alone_has_no_other_length() -> None:
    base = {"input_ids": torch.tensor([[START, IMAGE, END]])}
    assert stretched(base).least("text") is None


def test_a_mask_of_image_places_is_no_padding() -> None:
    base = text(left=False)
    base = {"image_embeds_position_mask": (base["input_ids"] == IMAGE), **base}
    made = stretched(base).sample({"batch": 2, "text": 13}, torch.Generator().manual_seed(0))
    assert torch.equal(made["image_embeds_position_mask"], made["input_ids"] == IMAGE)


def test_sounds_and_pictures_are_stretched_and_whole_numbers_kept() -> None:
    patches = torch.cat([torch.arange(6.0).reshape(1, 6, 1), torch.rand(1, 6, 2)], dim=-1)
    base = {
        "input_values": torch.rand(2, 10),
        "attention_mask": torch.tensor([[1] * 10, [1] * 6 + [0] * 4]),
        "flattened_patches": patches,
    }
    axes = {
        "input_values": {0: "batch", 1: "samples"},
        "attention_mask": {0: "batch", 1: "samples"},
    }
    maker = Stretched(base, axes, ("batch",), (), torch.zeros(0, dtype=torch.long))
    made = maker.sample({"batch": 3, "samples": 15}, torch.Generator().manual_seed(0))
    assert made["input_values"].shape == made["attention_mask"].shape == (3, 15)
    assert bool(made["attention_mask"][0].all())
    assert torch.equal(made["flattened_patches"][..., 0], patches[..., 0])
    assert not torch.equal(made["flattened_patches"][..., 1:], patches[..., 1:])
