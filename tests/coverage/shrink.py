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
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

__all__ = ["LARGEST", "CannotShrinkError", "model_class", "tiny_config", "tiny_model"]

LARGEST = 5_000_000
"""Parameters that a tiny model has at most."""

LAYERS, WIDTH, HEADS, HEAD, VOCABULARY, POSITIONS = 2, 64, 4, 16, 160, 160
CODES, GROUPS = 32, 32
"""Entries of codebooks, and groups of the norms of convolutional encoders, which no field says."""

HEADS_BY_TASK = (
    "MODEL_FOR_MULTIMODAL_LM",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "MODEL_FOR_VISUAL_QUESTION_ANSWERING",
    "MODEL_FOR_RETRIEVAL",
    "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION",
    "MODEL_FOR_KEYPOINT_MATCHING",
    "MODEL_FOR_OBJECT_DETECTION",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION",
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


class CannotShrinkError(Exception):
    """Why there is no tiny model of a type."""


@dataclass
class Sizes:
    """What is chosen for one model.

    Attributes:
        image: height and width of images.
        kv_heads: heads of keys.
        patch: height and width of patches at most.
        ids: small ids of tokens by those of the defaults.
    """

    image: int = 32
    kv_heads: int = 2
    patch: int = 8
    ids: dict[int, int] = field(default_factory=dict)

    def token(self, value: int) -> int:
        """An id within the vocabulary: small ones stay, each other gets its own."""
        if value < 100:
            return value
        return self.ids.setdefault(value, VOCABULARY - 1 - len(self.ids))


@dataclass(frozen=True)
class Part:
    """What the fields of one part are made small by.

    Attributes:
        sizes: of the whole model.
        layers: of this part: as many as it gives states of.
        width: of its layers; of its first stage, where stages widen.
    """

    sizes: Sizes
    layers: int
    width: int


def _least(limit: int) -> Callable[[int, Part], int]:
    return lambda value, part: min(value, limit)


def _width(value: int, part: Part) -> int:
    return value if value <= part.width * 4 // 3 else part.width


def _kept(value: Any, part: Part) -> Any:
    return value


_NUMBERS: tuple[tuple[str, Callable[[int, Part], int]], ...] = (
    (r"^type_vocab_size$|token_type", _least(2)),
    (r"^num_embeddings$|^codebook_size$", _least(CODES)),
    (r"vocab(ulary)?(_size)?$|^(vocab_size_per|src_vocab|tgt_vocab)", _least(VOCABULARY)),
    (r"num_embeddings$", _least(VOCABULARY)),
    (r"^first_k_dense_replace$|^num_nextn|mtp_layers$", _least(1)),
    (r"^(n_group|topk_group)$", lambda value, part: 1),
    (r"^index_topk$", _kept),
    (r"(experts_per_tok|_topk|^moe_topk|^moe_k|^top_k|num_selected_experts)$", _least(2)),
    (r"shared_experts$", _least(1)),
    (r"experts$", _least(4)),
    (r"^pos_emb_(height|width)$|num_grid_per_side", _least(8)),
    (r"^num_position_embeddings$", _least(64)),
    (r"^max_source_positions$", _least(32)),
    (r"^coordinate_size$", _least(WIDTH // 8)),
    (r"^shape_size$", _least(WIDTH // 4)),
    (
        r"(position_embeddings|_positions|^n_ctx|_length|seq_len|^context_length)$",
        _least(POSITIONS),
    ),
    (r"(_|^n_|^linear_num_)(key_value|kv|key)_heads$", lambda v, part: min(v, part.sizes.kv_heads)),
    (r"heads$|n_head$", _least(HEADS)),
    (r"^(rotary_dim|qk_rope_head_dim)$", _least(HEAD // 2)),
    (r"(head_dim|^d_kv|head_size)$", _least(HEAD)),
    (r"(pattern|interval|period|_freq|_frequency|every_n_layers)$", _least(2)),
    (r"offset$", _least(1)),
    (
        r"(^|_)(n_)?layers?$|(^|_)depth$|^num_blocks$|max_window_layers$|^num_hidden_layers",
        lambda value, part: min(value, part.layers),
    ),
    (r"^sliding_window|attention_window|local_window", _least(8)),
    (r"rank$|groups$", _least(HEAD)),
    (r"^num_queries$|query_tokens$|query_num$|(num|n)_latents$", _least(6)),
    (r"^num_conv_pos_embeddings$", _least(16)),
    (r"^chunk_size$|^context_size$|^attention_chunk_size$|mamba_chunk_size$", _least(16)),
    (r"^num_mel_bins$|^input_feat_per_channel$", _least(16)),
    (r"^image_seq_length$|mm_tokens_per_image$", _least(16)),
    (r"^patch_size$", lambda value, part: min(value, part.sizes.patch)),
    (r"^visual_prompt_size$", _least(4)),
    (r"^num_pos_feats$", _least(WIDTH // 2)),
    (
        r"(patch|kernel|window|chunk|group|batch|pool|stride|state|grid|crop|tile|block|hop|frame"
        r"|bucket|sample|step|beam|conv_kernel|pool)_?(size|dim)$",
        _kept,
    ),
    (r"proj|output|text|^d_model$|^(decoder|encoder)_hidden|^hidden_dim$", _least(WIDTH)),
    (r"(size|dim|dims|features|channels|width|units|filters|inner|_ff|n_embd)$", _width),
    (r"^(n_embd|d_latents|mlp_hidden|hidden_size_per_layer_input|projection)$", _width),
)
"""Names of numbers, and what becomes of them; the first that fits."""


def _places(given: list[int], part: Part) -> list[int]:
    """Which layers: as many, as far as there are; those counted from the end are the last one."""
    if part.width != WIDTH:
        return given  # stages, all of which are there
    distinct = len(set(given)) > 1 and min(given) >= 0
    if distinct and len(given) <= part.layers:
        return list(range(part.layers - len(given), part.layers))
    return [i * part.layers // (max(given) + 1) if i >= 0 else -1 for i in given]


def _scaled(given: list[int], part: Part) -> list[int]:
    most = max(*given, WIDTH) if len(given) > 1 else max(given[0], 1)
    return [max(16, -(-n * WIDTH // most // 8) * 8) if n > 16 else n for n in given]


_LISTS: tuple[tuple[str, Callable[[list[int], Part], list[int]]], ...] = (
    (r"projection_indices$", _kept),
    (r"^(intermediate_layers_indices|global_attention_blocks)$", lambda given, part: [0]),
    (r"deepstack", lambda given, part: list(range(min(len(given), LAYERS)))),
    (r"^(fullatt_block|global_attn)_ind", lambda given, part: [LAYERS - 1]),
    (r"cross_attention_layers|^full_attention_layers", lambda given, part: [LAYERS - 1]),
    (r"(indexes|indices|feature_layers?)$", _places),
    (
        r"^depths?$|^num_blocks$|_depths$|^layers$|^(stage_num_)?blocks(_per_stage)?|^layer_repeats",
        lambda given, part: [1] * len(given),
    ),
    (r"heads(_per_stage)?$", lambda given, part: [min(n, 2) for n in given]),
    (r"^patch_size$", lambda given, part: [min(n, part.sizes.patch) for n in given]),
    (r"(patch|kernel|pool|stride|window|image)_?(size|dim)s?$", _kept),
    (
        r"^embed_dim_per_stage$|^backbone_channel_list$",
        lambda given, part: [n * WIDTH // max(given) for n in given],
    ),
    (r"(size|dim|channel|feature|width)s?(_per_stage|_list)?$", _scaled),
)
"""Names of lists of numbers likewise."""

_TOKENS = (
    r"(token|patch|start|end|newline|pad|mask)_(id|index|ids|idx)$"
    r"|^(image|audio|video)_token$|_codes$"
)
"""Names of fields that hold ids of tokens."""

_UNSET = {"head_dim": HEAD, "num_key_value_heads": HEADS, "prediction_length": 4}
"""Fields that are None by default, which some models don't stand."""


def model_class(config: Any) -> Any:
    """The class of the library that does most with a configuration of this type.

    Raises:
        CannotShrinkError: it has none: a part of other models; or it has one without a ``forward``,
            whose parts generate after each other.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    why = "no class of its own: a part of other models"
    for table in HEADS_BY_TASK:
        names = getattr(modeling_auto, f"{table}_MAPPING_NAMES", {}).get(config.model_type)
        for name in (names,) if isinstance(names, str) else names or ():
            found = getattr(transformers, name, None)
            if found is None:
                continue
            if found.forward is not nn.Module.forward:
                return found
            why = f"{name} has no forward: its parts generate after each other"
    raise CannotShrinkError(why)


def tiny_config(kind: Any, image: int = 32, kv_heads: int = 2, **given: Any) -> Any:
    """A small configuration of a class of configurations.

    Args:
        kind: the class.
        image: height and width of its images.
        kv_heads: heads of keys, where the class has its own number of them.
        given: fields that are set as they are.
    """
    return _config(kind, {}, Sizes(image, kv_heads), given)


def _config(kind: Any, defaults: Mapping[str, Any], sizes: Sizes, given: Mapping[str, Any]) -> Any:
    parts = getattr(kind, "sub_configs_defaults", None) or {}
    own = kind.default_config_fields() | dict(defaults)
    own |= _derived_lists(kind, own, parts)
    part = _shape(own, sizes)
    if "prompt_encoder_config" in parts and not _has_patches(parts):
        sizes = replace(sizes, patch=16)  # of the stages, whatever prompts say
    made = {name: value for name, value in defaults.items() if name not in parts}
    made |= {
        name: small
        for name, value in own.items()
        if name not in parts and (small := _small(name, value, part)) is not None
    }
    for name, spec in parts.items():
        made[name] = _sub_config(spec, own.get(name), sizes)
        if name == "backbone_config" and "use_timm_backbone" in own:
            made |= {"use_timm_backbone": False, "backbone": None}
    made |= {
        name: _config(alone, {}, sizes, {})
        for name, alone in (getattr(kind, "sub_configs", None) or {}).items()
        if name not in parts and hasattr(alone, "default_config_fields")
    }
    made |= _unset(kind, own, sizes)
    made |= _composed(kind, sizes) | _rotary(kind, own) | _told_by_others(own, made)
    return _with_all_layers(kind, made | dict(given))


def _with_all_layers(kind: Any, made: Mapping[str, Any]) -> Any:
    """The configuration, with a layer of each kind that the class has by default, those of
    attention first, where it chooses them itself."""
    config = kind(**made)
    own = getattr(config, "layer_types", None)
    if not isinstance(own, list) or "layer_types" in made:
        return config
    try:
        kinds = list(dict.fromkeys(kind().layer_types))
        kinds.sort(key=lambda name: "attention" not in name)
        chosen = (kinds * len(own))[: len(own)]
        return config if set(kinds) <= set(own) else kind(**made, layer_types=chosen)
    except Exception:  # noqa: BLE001 -- checks of the library's configurations
        return config


def _derived_lists(kind: Any, own: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of numbers that a class puts in the place of None: by default they fit its own
    sizes."""
    unset = [f.name for f in fields(kind) if f.name not in own and f.name not in parts]
    try:
        full = kind()
    except Exception:  # noqa: BLE001 -- a class whose parts have no defaults, or that checks them
        return {}
    values = {name: getattr(full, name, None) for name in unset if not name.startswith("_")}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and value and all(_is_numbers(v) for v in value)
    }


def _is_numbers(value: Any) -> bool:
    """An integer, or a list of some."""
    if isinstance(value, list | tuple):
        return all(_is_numbers(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _has_patches(parts: Mapping[str, Any]) -> bool:
    """The part for images says how large its patches are."""
    vision = parts.get("vision_config")
    return vision is not None and "patch_size" in vision.default_config_fields()


def _unset(kind: Any, own: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Values of fields that are None by default, where models don't stand that."""
    unset = {f.name for f in fields(kind)} - set(own)
    made: dict[str, Any] = {name: value for name, value in _UNSET.items() if name in unset}
    if "vocab_size" in unset:
        made["vocab_size"] = VOCABULARY
    if "image_grid_pinpoints" in unset:
        made["image_grid_pinpoints"] = [[sizes.image, 2 * sizes.image]]
    if "projector_patch_to_query_dict" in unset:
        made["projector_patch_to_query_dict"] = {(sizes.image // 8) ** 2: 4}
    if "vocabulary_map" in unset:
        made["vocabulary_map"] = _words_of_images(sizes)
    for name in sorted(unset):
        if re.search(r"^(image|video|audio)_token_(id|index)$", name):
            made[name] = sizes.token(1_000_000 + len(sizes.ids))
    return made


def _words_of_images(sizes: Sizes) -> dict[str, int]:
    """A vocabulary with a word for each entry of a codebook, as Chameleon's and Emu3's are
    called."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    first = 40  # behind plain words, before special ones
    words = {f"IMGIMG{str(i).translate(letters)}Z": first + i for i in range(CODES)}
    words |= {f"<|visual token {i:06d}|>": first + CODES + i for i in range(CODES)}
    return words | {"<image>": sizes.token(1_000_000), "<|extra_200|>": sizes.token(1_000_001)}


def _told_by_others(own: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Widths that have to be what other fields of a part say, by default or not."""
    told: dict[str, Any] = {}
    if "channel_multiplier" in own:
        told["base_channels"] = GROUPS
        if "hidden_size" in own:
            told["hidden_size"] = GROUPS * own["channel_multiplier"][-1]
    if "embed_dim_per_stage" in own:
        told["hidden_size"] = made["embed_dim_per_stage"][0]
    if "width_coefficient" in own and "in_channels" in own:
        told |= {"width_coefficient": 0.1, "depth_coefficient": 0.1}
        told |= {name: own[name] for name in ("in_channels", "out_channels")}
    vision = made.get("vision_config")
    if hasattr(vision, "width_coefficient"):
        told["projection_dim"] = int(vision.out_channels[-1] * vision.width_coefficient)
    if "class_embed_dim" in own:
        told |= {"encoder_hidden_dim": WIDTH // 2, "decoder_hidden_dim": WIDTH // 2}
        told["vision_features_channels"] = [WIDTH // 2] * len(own["vision_features_channels"])
    if "use_rotary_embedding" in own:
        told["num_attention_heads"] = 2  # at least 32 numbers are turned, whatever a head has
    if "apply_layernorm_after_vision_backbone" in own:
        told["apply_layernorm_after_vision_backbone"] = False  # it wants the axes of timm's
    if "position_id_per_seconds" in own:
        told |= {"vision_start_token_id": 3, "vision_end_token_id": 4}  # read, but not declared
    if "pixel_shuffle_ratio" in own and "projector_input_dim" in own:
        told["intermediate_size"] = int(made["hidden_size"] / own["pixel_shuffle_ratio"] ** 2)
    if "intermediate_layers_indices" in own and "vision_output_dim" in own:
        told["vision_output_dim"] = made["hidden_size"] * 2
    inner, width = (own.get(name) for name in ("intermediate_size", "hidden_size"))
    if isinstance(inner, int) and isinstance(width, int) and 0 < 2 * inner <= width:
        told["intermediate_size"] = max(made["hidden_size"] * inner // width, 1)
    backbone = made.get("backbone_config")
    if "encoder_in_channels" in own and hasattr(backbone, "embed_dim"):
        told["encoder_in_channels"] = [
            backbone.embed_dim * 2 ** (stage - 1) for stage in backbone.out_indices
        ]
    return told


def _shape(own: Mapping[str, Any], sizes: Sizes) -> Part:
    """How many layers a part has, and how wide it is."""
    staged = any(
        isinstance(own.get(name), list | tuple) for name in ("depths", "depth", "blocks_per_stage")
    )
    states = max((len(own.get(n) or ()) for n in ("out_indices", "out_features")), default=0)
    layers = LAYERS if staged else max(LAYERS, states)
    return Part(sizes, layers, 16 if staged else WIDTH)


def _sub_config(part: Any, value: Any, sizes: Sizes) -> Any:
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
    by_layer = any(f.name == "rope_parameters" and "dict[str" in str(f.type) for f in fields(kind))
    if by_layer:
        return _rotary_by_layer(kind)
    if "mrope_section" not in (getattr(kind, "ignore_keys_at_rope_validation", None) or ()):
        return {}
    set_by_default = own.get("rope_parameters")
    base = set_by_default if isinstance(set_by_default, dict) else {"rope_type": "default"}
    turned = int(HEAD // 2 * _turned_part(kind))
    side = turned * 3 // 8
    sections = [side, side, turned - 2 * side]
    return {"rope_parameters": {"rope_theta": 10000.0, **base, "mrope_section": sections}}


def _rotary_by_layer(kind: Any) -> dict[str, Any]:
    """Rotary positions for each kind of layer, where a class has none by default."""
    try:
        full = kind()
        kinds = set(full.layer_types)
        missing = not kinds <= set(full.rope_parameters or {})
    except Exception:  # noqa: BLE001 -- a class that checks its defaults, or has one kind of layer
        return {}
    plain = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
    return {"rope_parameters": {name: dict(plain) for name in kinds}} if missing else {}


def _turned_part(kind: Any) -> float:
    """How much of a head is turned by default."""
    try:
        found = kind().rope_parameters.get("partial_rotary_factor")
    except Exception:  # noqa: BLE001 -- a class that checks its defaults
        return 1.0
    return 1.0 if found is None else float(found)


def _small(name: str, value: Any, part: Part) -> Any:
    """A field's small value; None to leave it."""
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return None
    if re.search(_TOKENS, name):
        token = part.sizes.token
        return token(value) if isinstance(value, int) else [token(v) for v in value]
    if re.search(r"^(image|img|max_img|input_image|pretrain_image|crop)_size$|^resolution$", name):
        image = part.sizes.image
        return image if isinstance(value, int) else type(value)([image] * len(value))
    if isinstance(value, int):
        if name.endswith("feature_layer"):
            return -1 if value < 0 else min(value, part.layers - 1)
        return next((to(value, part) for what, to in _NUMBERS if re.search(what, name)), None)
    return _small_list(name, value, part)


def _small_list(name: str, value: Any, part: Part) -> Any:
    if name.endswith("feature_sizes") and all(isinstance(v, list | tuple) for v in value):
        return [[max(n * part.sizes.image // 1024, 1) for n in sides] for sides in value]
    if name == "image_grid_pinpoints":
        return [[side * part.sizes.image // min(value[0]) for side in sides] for sides in value[:3]]
    if name == "attention_types":
        return [[value[0][0], LAYERS // len(value[0][0])]]
    if value and all(isinstance(v, str) for v in value):
        if name.endswith("layer_types"):
            return (list(dict.fromkeys(value)) * LAYERS)[:LAYERS]
        staged = part.width != WIDTH
        if name == "out_features" and not staged:
            return [f"stage{i + 1}" for i in range(part.layers - len(value), part.layers)]
        return None
    if not value or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return None
    found = next((to(list(value), part) for what, to in _LISTS if re.search(what, name)), None)
    return None if found is None else type(value)(found)


def tiny_model(model_type: str, image: int = 32) -> nn.Module:
    """A tiny model of a type, in evaluation mode on the CPU, random from a fixed seed.

    Raises:
        CannotShrinkError: there is none, with the reason.
    """
    failed: Exception | None = None
    for kv_heads in (2, HEADS):
        try:
            return _tiny(model_type, image, kv_heads)
        except CannotShrinkError:
            raise
        except Exception as error:  # noqa: BLE001 -- checks of the library's configurations
            failed = failed or error
    raise CannotShrinkError(f"{type(failed).__name__}: {failed}") from failed


def _tiny(model_type: str, image: int, kv_heads: int) -> nn.Module:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = tiny_config(CONFIG_MAPPING[model_type], image, kv_heads)
    made_by = model_class(config)
    with torch.device("meta"):
        planned = made_by(config)
    count = sum(p.numel() for p in planned.parameters())
    if count > LARGEST:
        raise CannotShrinkError(f"{count / 1e6:.0f} million parameters are left")
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
                fan_in = (
                    parameter.numel() // max(parameter.shape[0], 1) if parameter.ndim > 1 else 25
                )
                parameter.add_(noise * 0.7 / max(fan_in, 1) ** 0.5)
    return model.eval()
