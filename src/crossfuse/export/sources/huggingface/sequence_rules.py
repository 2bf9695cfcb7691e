"""Inputs of models that hear, or read states of others, whose signature doesn't say enough by
itself: one rule each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from crossfuse.export.sources.huggingface.input_fillers import classes, half_mask, mask, normal
from crossfuse.export.sources.huggingface.input_plan import (
    InputPlan,
    InputRule,
    TextInput,
    add_text,
    find,
    ids,
)

__all__ = ["SEQUENCE_RULES"]

_STRIDES = (64, 3, 2)
"""Of Moonshine's convolutions, which its configuration doesn't tell."""


def _whisper(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Whisper: 30 seconds of log-mel spectrum."""
    config = model.config
    frames = 2 * config.max_source_positions
    if "input_features" in takes:
        plan.add("input_features", ("batch", config.num_mel_bins, frames), normal)
    if "decoder_input_ids" in takes:
        _add_decoder(plan, config, config.max_target_positions)
    plan.context = ("input_features",)


def _speech_to_text(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Speech2Text: frames of filter-bank features with a mask."""
    config = model.config
    plan.dim("frames", 24, 8, config.max_source_positions)
    width = config.input_feat_per_channel * config.input_channels
    plan.add("input_features", ("batch", "frames", width), normal)
    plan.add("attention_mask", ("batch", "frames"), half_mask)
    _add_decoder(plan, config, config.max_target_positions)
    plan.context = ("input_features", "attention_mask")


def _speecht5(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """SpeechT5 and Moonshine: samples of sound, with a mask where the model takes one; or a text
    that is to be spoken."""
    config = model.config
    if "input_values" in takes:
        stride = math.prod(int(step) for step in getattr(config, "conv_stride", _STRIDES))
        plan.dim("samples", 20 * stride, 10 * stride)
        plan.add("input_values", ("batch", "samples"), normal)
        if "attention_mask" in takes:
            plan.add("attention_mask", ("batch", "samples"), half_mask)
        plan.context = ("input_values",)
    else:
        add_text(plan, config, TextInput(masked=True, high=config.max_text_positions))
        plan.context = ("input_ids", "attention_mask")
    if "decoder_input_ids" in takes:
        _add_decoder(plan, config)
    if "decoder_input_values" in takes:
        plan.dim("decoder_frames", 4, 1)
        plan.add("decoder_input_values", ("batch", "decoder_frames", config.num_mel_bins), normal)
        if config.speaker_embedding_dim:
            plan.add("speaker_embeddings", ("batch", config.speaker_embedding_dim), normal)


def _trocr(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """TrOCR: a decoder that looks at another model's states."""
    config = model.config
    add_text(plan, config, TextInput(masked=True))
    width = find(config, "cross_attention_hidden_size", "encoder_hidden_size") or config.hidden_size
    _add_states(plan, int(width))
    plan.decode = "input_ids"


def _musicgen(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """MusicGen: one row of ids per codebook, over states of a text encoder."""
    config = model.config
    plan.dim("text", 7, 1, find(config, "max_position_embeddings"))
    codes = classes(0, config.vocab_size)
    plan.add("input_ids", ("batch", config.num_codebooks, "text"), codes)
    _add_states(plan, config.hidden_size)


def _perceiver(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Perceiver: bytes with a mask."""
    config = model.config
    plan.dim("text", 9, 1, config.max_position_embeddings)
    plan.add("inputs", ("batch", "text"), ids(config))
    plan.add("attention_mask", ("batch", "text"), mask)


def _add_decoder(plan: InputPlan, config: Any, high: int | None = None) -> None:
    add_text(plan, config, TextInput("decoder_text", "decoder_", high=high))


def _add_states(plan: InputPlan, width: int) -> None:
    """States of another model's encoder, with a mask."""
    plan.dim("encoder_length", 9)
    plan.add("encoder_hidden_states", ("batch", "encoder_length", width), normal)
    plan.add("encoder_attention_mask", ("batch", "encoder_length"), mask)
    plan.context = ("encoder_hidden_states", "encoder_attention_mask")


SEQUENCE_RULES: Mapping[str, InputRule] = {
    "whisper": _whisper,
    "speech_to_text": _speech_to_text,
    **dict.fromkeys(("speecht5", "moonshine"), _speecht5),
    "trocr": _trocr,
    "musicgen_decoder": _musicgen,
    "perceiver": _perceiver,
}
"""By model type."""
