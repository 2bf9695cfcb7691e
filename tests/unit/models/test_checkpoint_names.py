"""Names of `transformers`' tensors, each with one place in the zoo."""

from __future__ import annotations

import pytest

from crossfuse.models.checkpoint_names import (
    CLIP_RULES,
    QFORMER_RULES,
    VILT_RULES,
    Rules,
    translate,
)


@pytest.mark.parametrize(
    ("rules", "theirs", "ours"),
    [
        (CLIP_RULES, "logit_scale", "logit_scale"),
        (
            CLIP_RULES,
            "text_model.encoder.layers.11.self_attn.k_proj.bias",
            "text.layers.11.attention.key.bias",
        ),
        (
            CLIP_RULES,
            "vision_model.encoder.layers.0.layer_norm2.weight",
            "vision.layers.0.norm2.weight",
        ),
        (CLIP_RULES, "vision_model.pre_layrnorm.weight", "vision.pre_norm.weight"),
        (VILT_RULES, "vilt.pooler.dense.weight", "pooler.weight"),
        (VILT_RULES, "embeddings.cls_token", "image.class_token"),
        (QFORMER_RULES, "query_tokens", "query_tokens"),
        (
            QFORMER_RULES,
            "qformer.encoder.layer.2.crossattention.output.LayerNorm.bias",
            "layers.2.cross_attention.norm.bias",
        ),
        (
            QFORMER_RULES,
            "encoder.layer.1.output.dense.weight",
            "layers.1.text_feed_forward.feed_forward.down.weight",
        ),
    ],
)
def test_names(rules: Rules, theirs: str, ours: str) -> None:
    assert translate(theirs, rules) == ours


@pytest.mark.parametrize("rules", [CLIP_RULES, VILT_RULES, QFORMER_RULES])
@pytest.mark.parametrize(
    "name", ["", "more", "xlogit_scale", "encoder.layer.x.output.dense.weight"]
)
def test_what_no_rule_knows(rules: Rules, name: str) -> None:
    assert translate(name, rules) is None
