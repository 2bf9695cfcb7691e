"""The DALL-E-like system against what it promises: nearest codes, and both modalities seen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from crossfuse.models.dalle import DALLE, SIZES, ResidualBlock, Tokenizer, spec
from crossfuse.models.sampling import initialised
from unit.models import float64_formulas as f

TINY = SIZES["tiny"]
SIDE = TINY.image_size // 2**TINY.downsamplings
PIXELS = torch.tanh(
    torch.randn(2, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(0))
)


def test_codes_are_the_nearest_entries() -> None:
    tokenizer = initialised(lambda: Tokenizer(TINY), 0)
    with torch.no_grad():
        codes = tokenizer.encode(PIXELS)
        z = f.array(tokenizer.encoder(PIXELS).permute(0, 2, 3, 1))
    assert (codes.shape, codes.dtype) == ((2, SIDE, SIDE), torch.int64)
    apart = ((z[..., None, :] - f.array(tokenizer.codebook.weight)) ** 2).sum(-1)
    np.testing.assert_array_equal(codes, apart.argmin(-1))
    assert len(codes.unique()) > 1


def test_codes_become_pixels() -> None:
    tokenizer = initialised(lambda: Tokenizer(TINY), 0)
    codes = torch.randint(
        0, TINY.codebook, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        image = tokenizer.decode(codes)
        other = tokenizer.decode(codes.flip(0))
    assert image.shape == (2, 3, TINY.image_size, TINY.image_size)
    assert float(image.abs().max()) < 1
    torch.testing.assert_close(image.flip(0), other)


def test_a_residual_block_is_its_formula() -> None:
    block = initialised(lambda: ResidualBlock(4), 0)
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inner = F.conv2d(x.relu(), block.conv1.weight, block.conv1.bias, padding=1).relu()
        expected = x + F.conv2d(inner, block.conv2.weight, block.conv2.bias)
        torch.testing.assert_close(block(x), expected)


def test_text_and_image_look_at_each_other() -> None:
    made = spec("tiny")
    module, inputs = made.module, dict(made.inputs)
    words = torch.where(inputs["input_ids"] == 5, 6, 5)
    with torch.no_grad():
        first = module(**inputs)
        other_image = module(**inputs | {"pixel_values": -inputs["pixel_values"]})
        other_text = module(**inputs | {"input_ids": words})
    assert not torch.equal(first["codes"], other_image["codes"])
    assert not torch.allclose(first["text_states"], other_image["text_states"], atol=1e-4)
    assert not torch.allclose(first["code_logits"], other_text["code_logits"], atol=1e-4)
    assert torch.equal(first["codes"], other_text["codes"]), "codes are of the image alone"
    assert torch.equal(first["image"], other_text["image"])
    assert first["code_logits"].shape == (2, SIDE * SIDE, TINY.codebook)


def test_padded_words_do_not_matter() -> None:
    made = spec("tiny")
    inputs = dict(made.inputs)
    hidden = inputs["attention_mask"] == 0
    assert hidden.any()
    changed = inputs | {"input_ids": torch.where(hidden, 7, inputs["input_ids"])}
    with torch.no_grad():
        first, second = made.module(**inputs), made.module(**changed)
    torch.testing.assert_close(first["code_logits"], second["code_logits"])
    torch.testing.assert_close(first["text_states"][~hidden], second["text_states"][~hidden])


def test_the_image_reconstructed_is_that_of_the_codes() -> None:
    module = initialised(lambda: DALLE(TINY), 0)
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    with torch.no_grad():
        got = module(ids, mask, PIXELS)
        again = module.tokenizer.decode(got["codes"].unflatten(1, (SIDE, SIDE)))
    assert torch.equal(got["image"], again)
