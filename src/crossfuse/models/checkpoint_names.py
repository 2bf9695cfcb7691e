"""Names of tensors in ``transformers`` checkpoints, and the zoo's names for them.

Each rule is a pattern of the checkpoint's name and what it becomes here. Checkpoints with a head
name the base model in front (``vilt.``, ``qformer.``); that is taken away first.
"""

from __future__ import annotations

import re

__all__ = ["CLIP_RULES", "QFORMER_RULES", "VILT_RULES", "Rules", "translate"]

Rules = tuple[tuple[str, str], ...]

CLIP_RULES: Rules = (
    (r"text_model\.embeddings\.(token|position)_embedding\.weight", r"text.\1_embedding.weight"),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)",
        r"\1.layers.\2.attention.query.\3",
    ),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.k_proj\.(\w+)",
        r"\1.layers.\2.attention.key.\3",
    ),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.v_proj\.(\w+)",
        r"\1.layers.\2.attention.value.\3",
    ),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)",
        r"\1.layers.\2.attention.out.\3",
    ),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.layer_norm(1|2)\.(\w+)",
        r"\1.layers.\2.norm\3.\4",
    ),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(\w+)",
        r"\1.layers.\2.feed_forward.up.\3",
    ),
    (
        r"(text|vision)_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(\w+)",
        r"\1.layers.\2.feed_forward.down.\3",
    ),
    (r"text_model\.final_layer_norm\.(\w+)", r"text.final_norm.\1"),
    (r"vision_model\.embeddings\.class_embedding", r"vision.class_embedding"),
    (
        r"vision_model\.embeddings\.(patch|position)_embedding\.weight",
        r"vision.\1_embedding.weight",
    ),
    (r"vision_model\.pre_layrnorm\.(\w+)", r"vision.pre_norm.\1"),
    (r"vision_model\.post_layernorm\.(\w+)", r"vision.post_norm.\1"),
    (r"(visual_projection|text_projection)\.weight", r"\1.weight"),
    (r"logit_scale", r"logit_scale"),
)

VILT_RULES: Rules = (
    (r"embeddings\.text_embeddings\.(word|position)_embeddings\.weight", r"text.\1s.weight"),
    (r"embeddings\.text_embeddings\.token_type_embeddings\.weight", r"text.token_types.weight"),
    (r"embeddings\.text_embeddings\.LayerNorm\.(\w+)", r"text.norm.\1"),
    (r"embeddings\.cls_token", r"image.class_token"),
    (r"embeddings\.position_embeddings", r"image.positions"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"image.patches.\1"),
    (r"embeddings\.token_type_embeddings\.weight", r"modalities.weight"),
    (
        r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)",
        r"layers.\1.attention.\2.\3",
    ),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"layers.\1.attention.out.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"layers.\1.feed_forward.up.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"layers.\1.feed_forward.down.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"layers.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"layers.\1.norm2.\2"),
    (r"layernorm\.(\w+)", r"final_norm.\1"),
    (r"pooler\.dense\.(\w+)", r"pooler.\1"),
)

_SELF, _CROSS = r"encoder\.layer\.(\d+)\.attention\.", r"encoder\.layer\.(\d+)\.crossattention\."
QFORMER_RULES: Rules = (
    (r"query_tokens", r"query_tokens"),
    (r"embeddings\.word_embeddings\.weight", r"words.weight"),
    (r"embeddings\.position_embeddings\.weight", r"positions.weight"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (_SELF + r"attention\.(query|key|value)\.(\w+)", r"layers.\1.self_attention.attention.\2.\3"),
    (_SELF + r"output\.dense\.(\w+)", r"layers.\1.self_attention.attention.out.\2"),
    (_SELF + r"output\.LayerNorm\.(\w+)", r"layers.\1.self_attention.norm.\2"),
    (_CROSS + r"attention\.(query|key|value)\.(\w+)", r"layers.\1.cross_attention.attention.\2.\3"),
    (_CROSS + r"output\.dense\.(\w+)", r"layers.\1.cross_attention.attention.out.\2"),
    (_CROSS + r"output\.LayerNorm\.(\w+)", r"layers.\1.cross_attention.norm.\2"),
    (
        r"encoder\.layer\.(\d+)\.intermediate_query\.dense\.(\w+)",
        r"layers.\1.query_feed_forward.feed_forward.up.\2",
    ),
    (
        r"encoder\.layer\.(\d+)\.output_query\.dense\.(\w+)",
        r"layers.\1.query_feed_forward.feed_forward.down.\2",
    ),
    (
        r"encoder\.layer\.(\d+)\.output_query\.LayerNorm\.(\w+)",
        r"layers.\1.query_feed_forward.norm.\2",
    ),
    (
        r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)",
        r"layers.\1.text_feed_forward.feed_forward.up.\2",
    ),
    (
        r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)",
        r"layers.\1.text_feed_forward.feed_forward.down.\2",
    ),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"layers.\1.text_feed_forward.norm.\2"),
)


def translate(key: str, rules: Rules) -> str | None:
    """The zoo's name for a checkpoint's tensor, or None where no rule knows it."""
    key = re.sub(r"^(vilt|qformer)\.", "", key)
    for pattern, target in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(target)
    return None
