"""Tiny models of any type of ``transformers``, from its own configuration class.

The classes declare their fields with defaults; `tiny_config` makes each small by what its name says
(layers, widths, heads, vocabulary, images, parts recursively), and leaves the rest. `tiny_model`
takes the class that does most with such a configuration, looks at it on the meta device first, and
gives random parameters from a fixed seed. Nothing here knows a type by its name, except those whose
configuration has no default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["LARGEST", "CannotShrink", "model_class", "tiny_config", "tiny_model"]

LARGEST = 5_000_000
"""Parameters that a tiny model has at most."""

LAYERS, WIDTH, HEADS, HEAD, VOCABULARY, POSITIONS = 2, 64, 4, 16, 160, 160

HEADS_BY_TASK = (
    "MODEL_FOR_MULTIMODAL_LM",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "MODEL_FOR_VISUAL_QUESTION_ANSWERING",
    "MODEL_FOR_RETRIEVAL",
    "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION",
    "MODEL_FOR_KEYPOINT_MATCHING",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION",
    "MODEL_FOR_OBJECT_DETECTION",
    "MODEL_FOR_MASK_GENERATION",
    "MODEL_FOR_DOCUMENT_QUESTION_ANSWERING",
    "MODEL_FOR_CAUSAL_LM",
    "MODEL_FOR_MASKED_LM",
    "MODEL_FOR_CTC",
    "MODEL_FOR_DEPTH_ESTIMATION",
    "MODEL_FOR_INSTANCE_SEGMENTATION",
    "MODEL_FOR_SEMANTIC_SEGMENTATION",
    "MODEL_FOR_VIDEO_CLASSIFICATION",
    "MODEL_FOR_AUDIO_CLASSIFICATION",
    "MODEL_FOR_TIME_SERIES_PREDICTION",
    "MODEL",
    "MODEL_FOR_IMAGE_CLASSIFICATION",
    "MODEL_FOR_TEXT_TO_SPECTROGRAM",
    "MODEL_FOR_TEXT_TO_WAVEFORM",
    "MODEL_FOR_PRETRAINING",
)
"""The library's tables of classes, those that combine most first."""

_PAIRS = {
    "encoder-decoder": {"encoder": "bert", "decoder": "bert"},
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "bert"},
    "speech-encoder-decoder": {"encoder": "wav2vec2", "decoder": "bert"},
    "vision-text-dual-encoder": {"vision_config": "clip_vision_model", "text_config": "bert"},
}
"""Types whose parts have no defaults."""


class CannotShrink(Exception):
    """Why there is no tiny model of a type."""


@dataclass
class Sizes:
    """What is chosen for one model."""

    image: int = 32
    ids: dict[int, int] = field(default_factory=dict)

    def token(self, value: int) -> int:
        """An id within the vocabulary: small ones stay, each other gets its own."""
        if 0 <= value < 100 or value < 0:
            return value
        return self.ids.setdefault(value, VOCABULARY - 1 - len(self.ids))


def _least(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


_NUMBERS: tuple[tuple[str, Callable[[int], int]], ...] = (
    (r"^type_vocab_size$|token_type", _least(2)),
    (r"vocab(ulary)?_size|^(src|tgt)_vocab|num_embeddings$", _least(VOCABULARY)),
    (r"^first_k_dense_replace$|^num_nextn|mtp_layers$", _least(1)),
    (r"^(n_group|topk_group)$", lambda value: 1),
    (r"(experts_per_tok|_topk|^moe_topk|^top_k|num_selected_experts)$", _least(2)),
    (r"shared_experts$", _least(1)),
    (r"experts$", _least(4)),
    (r"^pos_emb_(height|width)$|num_grid_per_side", _least(8)),
    (r"^num_position_embeddings$", lambda value: 64),
    (r"(position_embeddings|_positions|^n_ctx|_length|seq_len|^context_length)$", _least(POSITIONS)),
    (r"_(key_value|kv|k)_heads$|^n_kv_heads$|^linear_num_key_heads$", _least(2)),
    (r"(^|_)(attention|attn|n|num|mamba_n|index_n|self_attention)_heads?$", _least(HEADS)),
    (r"heads$", _least(HEADS)),
    (r"^(rotary_dim|qk_rope_head_dim)$", _least(HEAD // 2)),
    (r"(head_dim|^d_kv|head_size)$", _least(HEAD)),
    (r"(pattern|interval|period|_freq|_frequency|every_n_layers)$", _least(2)),
    (r"offset$", _least(1)),
    (r"(^|_)(layers?|n_layers?|depth|num_blocks|max_window_layers)$|^num_hidden_layers", _least(LAYERS)),
    (r"^sliding_window|attention_window|local_window", _least(8)),
    (r"rank$", _least(HEAD)),
    (r"^num_queries$|query_tokens$|num_latents$|n_latents$", _least(6)),
    (r"^num_conv_pos_embeddings$", _least(16)),
    (r"chunk_size$|^context_size$", _least(16)),
    (r"^num_mel_bins$|^feature_size$|^input_feat_per_channel$", _least(16)),
    (r"^image_seq_length$|mm_tokens_per_image$", _least(16)),
    (r"^(fpn|bi_hidden|max_2d).*", lambda value: value),
    (r"^patch_size$", _least(8)),
    (r"(encoder|decoder)_hidden_size$|^(encoder|decoder)_hidden_dim$", _least(WIDTH)),
    (
        r"(hidden|intermediate|ffn|mlp|feedforward|_ff|inner|proj|embed|embd|embedding|bottleneck"
        r"|classifier|_in|_out|output|state|text|vision|audio|latent|codevector|query|key|value|fpn"
        r"|qk|v|kernel|channel|feature|feat|mask|base|token|adapter|backbone)s?_?"
        r"(size|dim|dims|features|channels|width|units)s?$",
        _least(WIDTH),
    ),
    (r"^(d_model|n_embd|dim|emb_dim|n_inner|d_ff|width|d_latents|mlp_hidden|filters|num_filters)$", _least(WIDTH)),
    (r"(channels|codebook_size|d_inner|units)$", _least(WIDTH)),
)
"""Names of numbers, and what becomes of them; the first that fits."""

_LISTS: tuple[tuple[str, Callable[[list[int]], list[int]]], ...] = (
    (r"deepstack", lambda given: list(range(min(len(given), LAYERS)))),
    (r"^(fullatt_block|global_attn)_ind", lambda given: [LAYERS - 1]),
    (r"cross_attention_layers|^full_attention_layers", lambda given: [LAYERS - 1]),
    (
        r"(indexes|indices|feature_layers?)$",
        lambda given: [i * LAYERS // (max(given) + 1) if i >= 0 else -1 for i in given],
    ),
    (r"^depths?$|^num_blocks$|_depths$|^layers$|^stage_num_blocks|^layer_repeats", lambda given: [1] * len(given)),
    (r"heads$", lambda given: [min(n, 2) for n in given]),
    (r"^patch_size$", lambda given: [min(n, 8) for n in given]),
    (
        r"(hidden|embed|embed_dim|conv|tdnn|neck_hidden|in|out|encoder_in|channel|dim)_?"
        r"(size|dim|channel)s$|^conv_dim$|^tdnn_dim$|^embed_dims$|channels$",
        lambda given: [max(16, -(-n * WIDTH // max(*given, WIDTH) // 8) * 8) for n in given],
    ),
)
"""Names of lists of numbers likewise."""


def model_class(config: Any) -> Any:
    """The class of the library that does most with a configuration of this type.

    Raises:
        CannotShrink: it has none: a part of other models.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    for table in HEADS_BY_TASK:
        names = getattr(modeling_auto, f"{table}_MAPPING_NAMES", {}).get(config.model_type)
        for name in (names,) if isinstance(names, str) else names or ():
            if hasattr(transformers, name):
                return getattr(transformers, name)
    raise CannotShrink("no class of its own: a part of other models")


def tiny_config(kind: Any, image: int = 32, **given: Any) -> Any:
    """A small configuration of a class of configurations.

    Args:
        kind: the class.
        image: height and width of its images.
        given: fields that are set as they are.
    """
    return _config(kind, {}, Sizes(image), given)


def _config(kind: Any, defaults: Mapping[str, Any], sizes: Sizes, given: Mapping[str, Any]) -> Any:
    own = kind.default_config_fields() | dict(defaults)
    parts = getattr(kind, "sub_configs_defaults", None) or {}
    made = {
        name: small
        for name, value in own.items()
        if name not in parts and (small := _small(name, value, sizes)) is not None
    }
    for name, part in parts.items():
        made[name] = _part(part, own.get(name), sizes)
        if name == "backbone_config" and "use_timm_backbone" in own:
            made |= {"use_timm_backbone": False, "backbone": None}
    made |= _composed(kind, sizes) | _rotary(kind, own)
    return kind(**(made | dict(given)))


def _part(part: Any, value: Any, sizes: Sizes) -> Any:
    """A part's configuration; None where there is none by default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if part.optional and value is None:
        return None
    kind = part.config_class
    if not hasattr(kind, "default_config_fields"):
        kind = CONFIG_MAPPING[part.model_type]
    return _config(kind, part.init_kwargs, sizes, {})


def _composed(kind: Any, sizes: Sizes) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = {}
    for name, model_type in _PAIRS.get(kind.model_type, {}).items():
        part = {"is_decoder": True, "add_cross_attention": True} if name == "decoder" else {}
        made[name] = _config(CONFIG_MAPPING[model_type], {}, sizes, part)
    return made


def _rotary(kind: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions of three axes whose parts fit the head."""
    if "mrope_section" not in (getattr(kind, "ignore_keys_at_rope_validation", None) or ()):
        return {}
    set_by_default = own.get("rope_parameters")
    base = set_by_default if isinstance(set_by_default, dict) else {"rope_type": "default"}
    return {"rope_parameters": {"rope_theta": 10000.0, **base, "mrope_section": [2, 3, 3]}}


def _small(name: str, value: Any, sizes: Sizes) -> Any:
    """A field's small value; None to leave it."""
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return None
    if re.search(r"token_(id|index|ids)$|_token_idx$|^(image|audio|video)_token$", name):
        return [sizes.token(v) for v in value] if not isinstance(value, int) else sizes.token(value)
    if re.search(r"^(image|img|input_image|pretrain_image)_size$", name):
        return sizes.image if isinstance(value, int) else type(value)([sizes.image] * len(value))
    if isinstance(value, int):
        if re.search(r"feature_layer$", name):
            return -1 if value < 0 else min(value, LAYERS - 1)
        return next((to(value) for what, to in _NUMBERS if re.search(what, name)), None)
    if name.endswith("layer_types") and value and all(isinstance(v, str) for v in value):
        kinds = list(dict.fromkeys(value))
        return (kinds * LAYERS)[:LAYERS]
    if not value or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return None
    found = next((to(list(value)) for what, to in _LISTS if re.search(what, name)), None)
    return None if found is None else type(value)(found)


def tiny_model(model_type: str, image: int = 32) -> nn.Module:
    """A tiny model of a type, in evaluation mode on the CPU, random from a fixed seed.

    Raises:
        CannotShrink: there is none, with the reason.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = tiny_config(CONFIG_MAPPING[model_type], image)
    made_by = model_class(config)
    expected = getattr(made_by, "config_class", None)
    if expected is not None and not isinstance(config, expected):
        raise CannotShrink(f"{made_by.__name__} takes {expected.__name__}")
    with torch.device("meta"):
        planned = made_by(config)
    count = sum(p.numel() for p in planned.parameters())
    if count > LARGEST:
        raise CannotShrink(f"{count / 1e6:.0f} million parameters are left")
    torch.manual_seed(0)
    return perturbed(made_by(config))


def perturbed(model: nn.Module) -> nn.Module:
    """Random parameters everywhere: initial zeros and ones hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
                parameter.add_(noise * 0.7 / max(fan_in, 1) ** 0.5)
    return model.eval()
