"""The Q-Former's own promises; that it equals `transformers` is in `test_zoo`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossfuse.models.qformer import SIZES, QFormer, QFormerLayer, spec
from crossfuse.models.sampling import initialised
from unit.models import float64_formulas as f

TINY = SIZES["tiny"]
IMAGE = torch.randn(2, 11, TINY.image_width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cross", [True, False])
def test_a_layer_is_its_formula(cross: bool) -> None:
    """Queries and text share self-attention; the queries alone look at the image."""
    layer = initialised(lambda: QFormerLayer(TINY, cross=cross), 0)
    x = torch.randn(2, TINY.queries + 3, TINY.width, generator=torch.Generator().manual_seed(1))
    all_keys, all_image = torch.ones(2, 1, 1, x.shape[1]).bool(), torch.ones(2, 1, 1, 11).bool()
    with torch.no_grad():
        got = layer(x, all_keys, IMAGE, all_image)
    own = layer.self_attention
    y = f.layer_norm(own.norm, f.array(x) + f.attention(own.attention, f.array(x)))
    queries, text = y[:, : TINY.queries], y[:, TINY.queries :]
    if cross:
        part = layer.cross_attention
        looked = f.attention(part.attention, queries, f.array(IMAGE))
        queries = f.layer_norm(part.norm, queries + looked)
    done = [
        f.layer_norm(part.norm, side + f.feed_forward(part.feed_forward, side))
        for part, side in ((layer.query_feed_forward, queries), (layer.text_feed_forward, text))
    ]
    np.testing.assert_allclose(got, np.concatenate(done, 1), atol=5e-6, rtol=0)


def test_text_that_is_masked_leaves_the_queries_as_they_are_alone() -> None:
    module = initialised(lambda: QFormer(TINY), 0)
    ids, none = torch.randint(1, 99, (2, 4)), torch.zeros(2, 4, dtype=torch.long)
    mask = torch.ones(2, 11)
    with torch.no_grad():
        alone = module(IMAGE, mask)
        beside = module(IMAGE, mask, ids, none)
    assert set(alone) == {"query_states"}
    torch.testing.assert_close(beside["query_states"], alone["query_states"], atol=1e-5, rtol=0)
    assert beside["text_states"].shape == (2, 4, TINY.width)


def test_every_second_layer_looks_at_the_image() -> None:
    module = QFormer(TINY)
    assert [layer.cross_attention is not None for layer in module.layers] == [True, False] * 2
    made = spec("tiny")
    hidden = made.inputs["image_mask"] == 0
    assert hidden.any()
    changed = dict(made.inputs) | {
        "image_features": torch.where(hidden[..., None], 50.0, made.inputs["image_features"])
    }
    with torch.no_grad():
        first, second = made.module(**made.inputs), made.module(**changed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoints_for_captions_have_no_text() -> None:
    module = QFormer(replace(TINY, text=False))
    assert not any("text_feed_forward" in name or "words" in name for name in module.state_dict())
