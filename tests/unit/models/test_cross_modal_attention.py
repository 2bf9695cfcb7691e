"""The mechanism against its formula in float64."""

from __future__ import annotations

import numpy as np
import torch

from crossfuse.models.cross_modal_attention import SIZES, CrossModalAttention, spec
from unit.models import float64_formulas as f


def test_tokens_are_gated_into_their_embeddings() -> None:
    made = spec("tiny")
    module, inputs = made.module, made.inputs
    with torch.no_grad():
        got = module(**inputs)
    a, b, keep = f.array(inputs["a"]), f.array(inputs["b"]), inputs["b_mask"].bool().numpy()
    keep = np.broadcast_to(keep[:, None], (a.shape[0], a.shape[1], b.shape[1]))
    context = f.attention(
        module.attention, f.layer_norm(module.norm_a, a), f.layer_norm(module.norm_b, b), keep
    )
    gate = f.sigmoid(f.linear(module.gate, np.concatenate([a, context], -1)))
    np.testing.assert_allclose(got["context"], context, atol=2e-6, rtol=0)
    np.testing.assert_allclose(got["fused"], a + gate * context, atol=2e-6, rtol=0)


def test_masked_tokens_do_not_matter() -> None:
    made = spec("tiny")
    changed = dict(made.inputs)
    hidden = made.inputs["b_mask"] == 0
    assert hidden.any()
    changed["b"] = torch.where(hidden[..., None], 100.0, made.inputs["b"])
    with torch.no_grad():
        first, second = made.module(**made.inputs), made.module(**changed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sizes_are_the_configuration() -> None:
    config = SIZES["published"]
    module = CrossModalAttention(config)
    assert module.attention.key.weight.shape == (config.width, config.context_width)
    assert spec("tiny").context == ("b", "b_mask")
