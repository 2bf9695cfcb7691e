"""Inputs of models that see images, whose signature doesn't say enough by itself: one rule each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossfuse.export.sources.huggingface.input_fillers import (
    classes,
    grid_mask,
    ids_behind,
    mask,
    mask_from,
    normal,
    ones,
    span,
    uniform,
    zeros,
)
from crossfuse.export.sources.huggingface.input_plan import (
    InputPlan,
    InputRule,
    TextInput,
    add_image,
    add_text,
    find,
    ids,
    sizes_of,
    text_config,
)

__all__ = ["IMAGE_RULES"]


def _clip(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """CLIP and its kin: two towers that meet in a matrix of similarities, as many texts as one
    likes beside the images."""
    config = model.config
    if "input_ids" in takes:
        plan.dim("texts", 3)
        if "pixel_values" not in takes:
            plan.forget("batch")
        text = TextInput(batch="texts", masked="attention_mask" in takes)
        add_text(plan, text_config(config), text)
    if "pixel_values" in takes:
        add_image(plan, config)


def _xclip(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """X-CLIP: as CLIP, with a fixed number of frames."""
    _clip(plan, model, takes)
    frames = model.config.vision_config.num_frames
    plan.shapes["pixel_values"] = ("batch", frames, *plan.shapes["pixel_values"][1:])


def _detr(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """DETR and its kin: images of any size, padded, with a mask of their pixels."""
    stride = 32
    size = find(model.config, "image_size")
    height, width = (size, size) if isinstance(size, int) else (4 * stride, 3 * stride)
    channels = int(find(model.config, "num_channels") or 3)
    plan.add("pixel_values", ("batch", channels, height, width), normal)
    if "pixel_mask" in takes:
        plan.add("pixel_mask", ("batch", height, width), grid_mask)


def _grounding_dino(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Grounding DINO: a text of three ids at least, and an image as of DETR."""
    high = model.config.max_text_len - 1
    add_text(plan, text_config(model.config), TextInput(masked=True, low=3, high=high))
    plan.add("token_type_ids", ("batch", "text"), zeros)
    _detr(plan, model, takes)


def _mask2former(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Mask2Former: images alone."""
    add_image(plan, model.config)


def _vilt(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """ViLT and its kin: one stream of text and image tokens; ViLT's images are padded."""
    add_text(plan, text_config(model.config), TextInput(masked=True))
    add_image(plan, model.config)
    if "pixel_mask" in takes and model.config.model_type == "vilt":
        _, height, width = sizes_of(model.config)
        plan.add("pixel_mask", ("batch", height, width), grid_mask)


def _blip(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """BLIP: question or caption, image, and an answer where the model generates one."""
    text = text_config(model.config)
    add_text(plan, text, TextInput(masked="attention_mask" in takes))
    add_image(plan, model.config)
    if "decoder_input_ids" in takes:
        add_text(plan, text, TextInput("decoder_text", "decoder_", example=5))
    elif type(model).__name__ == "BlipForConditionalGeneration":
        plan.decode = "input_ids"


def _blip2(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """BLIP-2: an image behind as many placeholders as the Q-Former has queries, or beside a text
    to match; or the Q-Former's own inputs."""
    config = model.config
    if "query_embeds" in takes:
        _qformer(plan, config, takes)
        return
    token = getattr(config, "image_token_index", None)
    if token is None or "use_image_text_matching_head" in takes:
        add_text(plan, config.qformer_config, TextInput(masked=True))
        add_image(plan, config)
        return
    count, text = config.num_query_tokens, text_config(config)
    plan.dim("text", count + 7, count + 1, find(text, "max_position_embeddings"))
    add_image(plan, config)
    plan.add("input_ids", ("batch", "text"), ids_behind(count, token, ids(text)))
    plan.add("attention_mask", ("batch", "text"), mask_from(lambda length: count + 1))


def _qformer(plan: InputPlan, config: Any, takes: set[str]) -> None:
    """A Q-Former alone: queries, perhaps an instruction, and states of an image's encoder."""
    plan.dim("encoder_length", 9)
    plan.add("query_embeds", ("batch", 4, config.hidden_size), normal)
    if "input_ids" in takes:
        add_text(plan, config, TextInput(masked=True))
    states = ("batch", "encoder_length", config.encoder_hidden_size)
    plan.add("encoder_hidden_states", states, normal)
    plan.add("encoder_attention_mask", ("batch", "encoder_length"), mask)
    plan.context = ("encoder_hidden_states", "encoder_attention_mask")


def _kosmos2(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """KOSMOS-2: a mask says which ids the image's features take the place of."""
    config = model.config
    count, text = config.latent_query_num, text_config(config)
    plan.dim("text", count + 7, count + 2, find(text, "max_position_embeddings"))
    add_image(plan, config)
    plan.add("input_ids", ("batch", "text"), ids(text))
    plan.add("image_embeds_position_mask", ("batch", "text"), span(1, count + 1))
    plan.add("attention_mask", ("batch", "text"), mask_from(lambda length: count + 1))


def _mllama(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Llama 3.2 Vision: tiles of images, and which text looks at which."""
    config = model.config
    if "pixel_values" not in takes:
        add_text(plan, config, TextInput())
        plan.dim("encoder_length", 9)
        states = ("batch", "encoder_length", config.hidden_size)
        plan.add("cross_attention_states", states, normal)
        plan.context = ("cross_attention_states",)
        return
    vision = config.vision_config
    tiles, size = vision.max_num_tiles, vision.image_size
    add_text(plan, config.text_config, TextInput(masked=True))
    plan.add("pixel_values", ("batch", 1, tiles, vision.num_channels, size, size), normal)
    plan.add("aspect_ratio_ids", ("batch", 1), classes(1, 4))
    plan.add("aspect_ratio_mask", ("batch", 1, tiles), mask)
    plan.add("cross_attention_mask", ("batch", "text", 1, tiles), ones)
    plan.context = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


def _sam(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """SAM: an image, and points on it with labels."""
    plan.dim("prompts", 2)
    plan.dim("points", 3)
    add_image(plan, model.config)
    _, height, _ = sizes_of(model.config)
    plan.add("input_points", ("batch", "prompts", "points", 2), uniform(height))
    plan.add("input_labels", ("batch", "prompts", "points"), classes(0, 2))
    plan.context = ("pixel_values",)


def _lxmert(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """LXMERT: text, and features of regions of an image with their boxes."""
    config = model.config
    add_text(plan, config, TextInput(masked=True))
    plan.dim("regions", 5)
    plan.add("visual_feats", ("batch", "regions", config.visual_feat_dim), normal)
    plan.add("visual_pos", ("batch", "regions", config.visual_pos_dim), uniform())
    plan.add("visual_attention_mask", ("batch", "regions"), mask)
    plan.context = ("visual_feats", "visual_pos", "visual_attention_mask")


IMAGE_RULES: Mapping[str, InputRule] = {
    **dict.fromkeys(("clip", "siglip", "groupvit", "chinese_clip", "align", "altclip"), _clip),
    "xclip": _xclip,
    **dict.fromkeys(("detr", "conditional_detr", "table-transformer", "dab-detr"), _detr),
    "grounding-dino": _grounding_dino,
    "mm-grounding-dino": _grounding_dino,
    "mask2former": _mask2former,
    **dict.fromkeys(("vilt", "bridgetower", "flava", "owlvit", "owlv2"), _vilt),
    "blip": _blip,
    **dict.fromkeys(("blip-2", "blip_2_qformer", "instructblip_qformer"), _blip2),
    "kosmos-2": _kosmos2,
    **dict.fromkeys(("mllama", "mllama_text_model"), _mllama),
    **dict.fromkeys(("sam", "sam2"), _sam),
    "lxmert": _lxmert,
}
"""By model type."""
