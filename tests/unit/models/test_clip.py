"""CLIP's own promises; that it equals `transformers` is in `test_zoo`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from crossfuse.models.clip import CLIP, SIZES, TextTower, spec
from crossfuse.models.sampling import initialised
from unit.models import float64_formulas as f

TINY = SIZES["tiny"]


def outputs(module: CLIP, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return module(**inputs)


def test_logits_are_scaled_cosines_of_all_pairs() -> None:
    made = spec("tiny")
    got = outputs(made.module, dict(made.inputs))
    text, image = f.array(got["text_embeds"]), f.array(got["image_embeds"])
    assert (text.shape, image.shape) == ((3, TINY.projection), (2, TINY.projection))
    for embeds in (text, image):
        np.testing.assert_allclose((embeds**2).sum(-1), 1, atol=1e-6)
    expected = np.exp(f.array(made.module.logit_scale)) * text @ image.T
    np.testing.assert_allclose(got["logits_per_text"], expected, atol=1e-5)
    assert torch.equal(got["logits_per_image"], got["logits_per_text"].t())


def test_a_text_ends_at_its_token() -> None:
    """What follows the end-of-text token is neither looked at nor read out."""
    made = spec("tiny")
    inputs = dict(made.inputs)
    after = (inputs["input_ids"] == TINY.eot_token).cumsum(1) - (
        inputs["input_ids"] == TINY.eot_token
    ).long()
    assert after.any()
    changed = inputs | {"input_ids": torch.where(after.bool(), 5, inputs["input_ids"])}
    first, second = outputs(made.module, inputs), outputs(made.module, changed)
    torch.testing.assert_close(first["text_embeds"], second["text_embeds"])
    earlier = inputs | {"input_ids": torch.where(after.bool(), inputs["input_ids"], 7)}
    earlier["input_ids"] = torch.where(
        inputs["input_ids"] == TINY.eot_token, TINY.eot_token, earlier["input_ids"]
    )
    assert not torch.allclose(first["text_embeds"], outputs(made.module, earlier)["text_embeds"])


def test_old_configurations_end_at_the_highest_id() -> None:
    config = replace(TINY, eot_token=2)
    tower = initialised(lambda: TextTower(config), 0)
    ids = torch.tensor([[5, 9, 98, 2, 2], [5, 98, 3, 2, 2]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        got = tower(ids, mask)
        ends = [
            tower(ids[i : i + 1, : end + 1], mask[i : i + 1, : end + 1])
            for i, end in ((0, 2), (1, 1))
        ]
    torch.testing.assert_close(got, torch.cat(ends), atol=1e-5, rtol=0)


def test_images_are_patches_in_reading_order() -> None:
    module = initialised(lambda: CLIP(TINY), 0)
    pixels = torch.randn(1, 3, TINY.image_size, TINY.image_size)
    with torch.no_grad():
        whole = module.vision.patch_embedding(pixels).flatten(2).transpose(1, 2)
        corner = pixels[:, :, : TINY.patch_size, TINY.patch_size : 2 * TINY.patch_size]
        second = module.vision.patch_embedding(corner).flatten(2).transpose(1, 2)
    torch.testing.assert_close(whole[:, 1], second[:, 0])
    assert whole.shape[1] + 1 == module.vision.position_embedding.num_embeddings
