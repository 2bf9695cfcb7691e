"""Inputs of models whose signature doesn't say enough by itself: one rule per model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.input_plan import (
    Filling,
    Plan,
    add_text,
    find,
    grid_mask,
    ids,
    mask,
    normal,
    ones,
    sizes_of,
    text_config,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RULES"]

Rule = Callable[[Plan, "nn.Module", set[str]], None]


def _contrastive(plan: Plan, model: Any, takes: set[str]) -> None:
    """Two towers that meet in a matrix of similarities: as many texts as one likes beside the
    images."""
    config = model.config
    if "input_ids" in takes:
        plan.dim("texts", 3)
        if "pixel_values" not in takes:
            plan.forget("batch")
        add_text(
            plan,
            text_config(config),
            "text",
            batch="texts",
            attention_mask="attention_mask" in takes,
        )
    if "pixel_values" in takes:
        channels, height, width = sizes_of(config)
        plan.add("pixel_values", ("batch", channels, height, width), normal)


def _detector(plan: Plan, model: Any, takes: set[str]) -> None:
    """Images of any size, padded, with a mask of their pixels."""
    stride = 32
    size = find(model.config, "image_size")
    height, width = (size, size) if isinstance(size, int) else (4 * stride, 3 * stride)
    plan.add(
        "pixel_values",
        ("batch", int(find(model.config, "num_channels") or 3), height, width),
        normal,
    )
    if "pixel_mask" in takes:
        plan.add("pixel_mask", ("batch", height, width), grid_mask)


def _grounding(plan: Plan, model: Any, takes: set[str]) -> None:
    high = model.config.max_text_len - 1
    add_text(plan, text_config(model.config), "text", attention_mask=True, low=3, high=high)
    plan.add(
        "token_type_ids",
        ("batch", "text"),
        lambda shape, g, made: torch.zeros(shape, dtype=torch.long),
    )
    _detector(plan, model, takes)


def _image_and_text(plan: Plan, model: Any, takes: set[str]) -> None:
    """One stream of text and image tokens; images padded where the model takes a mask of pixels."""
    add_text(plan, text_config(model.config), "text", attention_mask=True)
    channels, height, width = sizes_of(model.config)
    plan.add("pixel_values", ("batch", channels, height, width), normal)
    if "pixel_mask" in takes and model.config.model_type == "vilt":
        plan.add("pixel_mask", ("batch", height, width), grid_mask)


def _mask_of_question(plan: Plan, model: Any, takes: set[str]) -> None:
    """BLIP: question or caption, image, and an answer where the model generates one."""
    config = model.config
    add_text(plan, text_config(config), "text", attention_mask="attention_mask" in takes)
    channels, height, width = sizes_of(config)
    plan.add("pixel_values", ("batch", channels, height, width), normal)
    if "decoder_input_ids" in takes:
        add_text(plan, text_config(config), "decoder_text", prefix="decoder_", example=5)


def _audio_features(plan: Plan, model: Any, takes: set[str]) -> None:
    """Whisper: 30 seconds of log-mel spectrum."""
    config = model.config
    frames = 2 * config.max_source_positions
    if "input_features" in takes:
        plan.add("input_features", ("batch", config.num_mel_bins, frames), normal)
    if "decoder_input_ids" in takes:
        add_text(plan, config, "decoder_text", prefix="decoder_", high=config.max_target_positions)
    plan.context = ("input_features",)


def _filter_banks(plan: Plan, model: Any, takes: set[str]) -> None:
    """Speech2Text: frames of filter-bank features with a mask."""
    config = model.config
    plan.dim("frames", 24, 8, config.max_source_positions)
    plan.add(
        "input_features",
        ("batch", "frames", config.input_feat_per_channel * config.input_channels),
        normal,
    )
    plan.add("attention_mask", ("batch", "frames"), _half_mask)
    add_text(plan, config, "decoder_text", prefix="decoder_", high=config.max_target_positions)
    plan.context = ("input_features", "attention_mask")


def _half_mask(
    shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]
) -> Tensor:
    """As `mask`, at least half of each row kept: what is left after strided convolutions is not
    empty."""
    kept = torch.randint((shape[-1] + 1) // 2, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    kept[0] = shape[-1]
    return (torch.arange(shape[-1]) < kept).long()


def _waveform(plan: Plan, model: Any, takes: set[str]) -> None:
    """Samples of sound, with a mask where the model takes one."""
    config = model.config
    stride = 1
    for step in getattr(config, "conv_stride", (64, 3, 2)):
        stride *= int(step)
    plan.dim("samples", 20 * stride, 10 * stride)
    if "input_values" in takes:
        plan.add("input_values", ("batch", "samples"), normal)
        if "attention_mask" in takes:
            plan.add("attention_mask", ("batch", "samples"), _half_mask)
        plan.context = ("input_values",)
    else:
        plan.forget("samples")
        add_text(plan, config, "text", attention_mask=True, high=config.max_text_positions)
        plan.context = ("input_ids", "attention_mask")
    if "decoder_input_ids" in takes:
        add_text(plan, config, "decoder_text", prefix="decoder_")
    if "decoder_input_values" in takes:
        plan.dim("decoder_frames", 4, 1)
        plan.add("decoder_input_values", ("batch", "decoder_frames", config.num_mel_bins), normal)
        if config.speaker_embedding_dim:
            plan.add("speaker_embeddings", ("batch", config.speaker_embedding_dim), normal)


def _cross_decoder(plan: Plan, model: Any, takes: set[str]) -> None:
    """A decoder that looks at another model's states."""
    config = model.config
    add_text(plan, config, "text", attention_mask=True)
    width = find(config, "cross_attention_hidden_size", "encoder_hidden_size") or config.hidden_size
    plan.dim("encoder_length", 9)
    plan.add("encoder_hidden_states", ("batch", "encoder_length", int(width)), normal)
    plan.add("encoder_attention_mask", ("batch", "encoder_length"), mask)
    plan.context = ("encoder_hidden_states", "encoder_attention_mask")


def _codebooks(plan: Plan, model: Any, takes: set[str]) -> None:
    """MusicGen: one row of ids per codebook, over states of a text encoder."""
    config = model.config
    plan.dim("text", 7, 1, find(config, "max_position_embeddings"))
    plan.dim("encoder_length", 9)

    def codes(
        shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]
    ) -> Tensor:
        return torch.randint(config.vocab_size, shape, generator=generator)

    plan.add("input_ids", ("batch", config.num_codebooks, "text"), codes)
    plan.add("encoder_hidden_states", ("batch", "encoder_length", config.hidden_size), normal)
    plan.add("encoder_attention_mask", ("batch", "encoder_length"), mask)
    plan.context = ("encoder_hidden_states", "encoder_attention_mask")


def _regions(plan: Plan, model: Any, takes: set[str]) -> None:
    """LXMERT: text, and features of regions of an image with their boxes."""
    config = model.config
    add_text(plan, config, "text", attention_mask=True)
    plan.dim("regions", 5)
    plan.add("visual_feats", ("batch", "regions", config.visual_feat_dim), normal)
    plan.add(
        "visual_pos",
        ("batch", "regions", config.visual_pos_dim),
        lambda s, g, m: torch.rand(s, generator=g),
    )
    plan.add("visual_attention_mask", ("batch", "regions"), mask)
    plan.context = ("visual_feats", "visual_pos", "visual_attention_mask")


def _prompts(plan: Plan, model: Any, takes: set[str]) -> None:
    """SAM: an image, and points on it with labels."""
    channels, height, width = sizes_of(model.config)
    plan.dim("prompts", 2)
    plan.dim("points", 3)
    plan.add("pixel_values", ("batch", channels, height, width), normal)
    plan.add(
        "input_points",
        ("batch", "prompts", "points", 2),
        lambda s, g, m: torch.rand(s, generator=g) * height,
    )
    plan.add(
        "input_labels",
        ("batch", "prompts", "points"),
        lambda s, g, m: torch.randint(0, 2, s, generator=g),
    )
    plan.context = ("pixel_values",)


def _mask_from(least: int) -> Filling:
    """As `mask`, with at least so many ones in each row."""

    def fill(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        kept = torch.randint(least, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
        kept[0] = shape[-1]
        return (torch.arange(shape[-1]) < kept).long()

    return fill


def _placeholders(count: int, token: int, config: Any) -> Filling:
    """Ids that begin with the places that the image's features take."""

    def fill(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        values = ids(config)(shape, generator, made)
        values = torch.where(values == token, 3, values)
        values[:, :count] = token
        return values

    return fill


def _behind_placeholders(
    plan: Plan, model: Any, count: int, token: int, pixels: tuple[int | str, ...]
) -> None:
    config = text_config(model.config)
    high = find(config, "max_position_embeddings")
    plan.dim("text", count + 7, count + 1, high)
    plan.add("pixel_values", pixels, normal)
    plan.add("input_ids", ("batch", "text"), _placeholders(count, token, config))
    plan.add("attention_mask", ("batch", "text"), _mask_from(count + 1))


def _query_tokens(plan: Plan, model: Any, takes: set[str]) -> None:
    """BLIP-2: images behind as many placeholders as the Q-Former has queries; or the Q-Former's own
    inputs."""
    config = model.config
    if "query_embeds" in takes:
        plan.dim("encoder_length", 9)
        width, queries = config.hidden_size, 4
        plan.add("query_embeds", ("batch", queries, width), normal)
        if "input_ids" in takes:
            add_text(plan, config, "text", attention_mask=True)
        plan.add(
            "encoder_hidden_states", ("batch", "encoder_length", config.encoder_hidden_size), normal
        )
        plan.add("encoder_attention_mask", ("batch", "encoder_length"), mask)
        plan.context = ("encoder_hidden_states", "encoder_attention_mask")
        return
    channels, height, width = sizes_of(config)
    pixels = ("batch", channels, height, width)
    if (
        getattr(config, "image_token_index", None) is None
        or "use_image_text_matching_head" in takes
    ):
        add_text(plan, config.qformer_config, "text", attention_mask=True)
        plan.add("pixel_values", pixels, normal)
        return
    _behind_placeholders(plan, model, config.num_query_tokens, config.image_token_index, pixels)


def _kosmos(plan: Plan, model: Any, takes: set[str]) -> None:
    config = model.config
    channels, height, width = sizes_of(config)
    count = config.latent_query_num
    plan.dim("text", count + 7, count + 2, find(text_config(config), "max_position_embeddings"))
    plan.add("pixel_values", ("batch", channels, height, width), normal)
    plan.add("input_ids", ("batch", "text"), ids(text_config(config)))

    def places(
        shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]
    ) -> Tensor:
        found = torch.zeros(shape, dtype=torch.long)
        found[:, 1 : count + 1] = 1
        return found

    plan.add("image_embeds_position_mask", ("batch", "text"), places)
    plan.add("attention_mask", ("batch", "text"), _mask_from(count + 1))


def _tiles(plan: Plan, model: Any, takes: set[str]) -> None:
    """Llama 3.2 Vision: tiles of images, and which text looks at which."""
    config = model.config
    if "pixel_values" not in takes:
        add_text(plan, config, "text")
        plan.dim("encoder_length", 9)
        plan.add("cross_attention_states", ("batch", "encoder_length", config.hidden_size), normal)
        plan.context = ("cross_attention_states",)
        return
    vision = config.vision_config
    tiles, size = vision.max_num_tiles, vision.image_size
    add_text(plan, config.text_config, "text", attention_mask=True)
    plan.add("pixel_values", ("batch", 1, tiles, vision.num_channels, size, size), normal)
    plan.add("aspect_ratio_ids", ("batch", 1), lambda s, g, m: torch.randint(1, 4, s, generator=g))
    plan.add("aspect_ratio_mask", ("batch", 1, tiles), mask)
    plan.add("cross_attention_mask", ("batch", "text", 1, tiles), ones)
    plan.context = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


def _frames(plan: Plan, model: Any, takes: set[str]) -> None:
    """X-CLIP: a fixed number of frames."""
    config = model.config
    _contrastive(plan, model, takes)
    vision = config.vision_config
    plan.shapes["pixel_values"] = ("batch", vision.num_frames, *plan.shapes["pixel_values"][1:])


def _bytes(plan: Plan, model: Any, takes: set[str]) -> None:
    """Perceiver: ids in a fixed or free number, with a mask."""
    config = model.config
    if config.model_type == "perceiver":
        plan.dim("text", 9, 1, config.max_position_embeddings)
        plan.add("inputs", ("batch", "text"), ids(config))
        plan.add("attention_mask", ("batch", "text"), mask)
        plan.context = ()


def _pixels_only(plan: Plan, model: Any, takes: set[str]) -> None:
    channels, height, width = sizes_of(model.config)
    plan.add("pixel_values", ("batch", channels, height, width), normal)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("clip", "siglip", "groupvit", "chinese_clip", "align", "altclip"), _contrastive
    ),
    **dict.fromkeys(("detr", "conditional_detr", "table-transformer", "dab-detr"), _detector),
    **dict.fromkeys(("mask2former",), _pixels_only),
    "grounding-dino": _grounding,
    **dict.fromkeys(("vilt", "bridgetower", "flava", "owlvit", "owlv2"), _image_and_text),
    "blip": _mask_of_question,
    "whisper": _audio_features,
    "speech_to_text": _filter_banks,
    **dict.fromkeys(("speecht5", "moonshine"), _waveform),
    **dict.fromkeys(("trocr",), _cross_decoder),
    "musicgen_decoder": _codebooks,
    "lxmert": _regions,
    **dict.fromkeys(("sam", "sam2"), _prompts),
    **dict.fromkeys(("blip-2", "blip_2_qformer", "instructblip_qformer"), _query_tokens),
    "kosmos-2": _kosmos,
    **dict.fromkeys(("mllama", "mllama_text_model"), _tiles),
    "xclip": _frames,
    "perceiver": _bytes,
}
