"""Forms in which models take sound: samples, and features of frames, along either axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from crossfuse.export.sources.huggingface.input_fillers import half_mask, normal, ones
from crossfuse.export.sources.huggingface.input_plan import InputPlan, find

__all__ = ["MASKS", "SOUND_FORMS"]

_PARTS = (
    "audio_config",
    "audio_encoder",
    "audio_encoder_config",
    "encoder_config",
    "speech_config",
    "thinker_config",
)
_FEATURES = (
    "num_mel_bins", "n_mels", "input_feat_per_channel", "feature_projection_input_dim",
    "feature_size", "num_mel_filters", "input_dim", "input_feat_size", "mel_bins", "input_size",
    "feat_size", "input_features", "num_mels", "in_channels",
)  # fmt: skip
MASKS = ("input_features_mask", "feature_attention_mask", "padding_mask", "audio_attention_mask")
"""Names of masks of sound."""


def _part(config: Any) -> Any:
    found = (getattr(config, name, None) for name in _PARTS)
    return next((part for part in found if part is not None), config)


def _frames(plan: InputPlan, config: Any) -> str | int:
    """Frames: as many as there are positions behind a stride of two, or any."""
    positions = find(_part(config), "max_source_positions", "max_frames")
    if isinstance(positions, int):
        return 2 * positions
    length = find(_part(config), "max_length")
    if isinstance(length, int) and length > 32:
        return length
    return plan.dim("frames", 96, 32)


def _spectrum(
    frames_last: bool, name: str = "input_features", *, masked: bool = True
) -> Callable[..., None]:
    """``[batch, features, frames]``, or ``[batch, frames, features]``, with a mask of the frames
    where the model takes one; without, where its mask is of something else."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        config = model.config
        features = find(_part(config), *_FEATURES) or find(config, *_FEATURES)
        if not isinstance(features, int):
            return
        frames = _frames(plan, config)
        axes = (features, frames) if frames_last else (frames, features)
        plan.add(name, ("batch", *axes), normal)
        if masked:
            _add_mask(plan, takes, frames, text="input_ids" in takes)

    return plan_it


def _add_mask(plan: InputPlan, takes: set[str], length: str | int, text: bool) -> None:
    """The mask of sound; it is called as a text's where there is no text. A model that puts the
    sound into a text counts what is shown, so there all of it is."""
    for name in MASKS:
        if name in takes:
            plan.add(name, ("batch", length), ones if text else half_mask)
            return
    if "attention_mask" in takes and not text:
        plan.add("attention_mask", ("batch", length), half_mask)


def _samples(channels: int | None) -> Callable[..., None]:
    """``[batch, samples]``, or with an axis of channels."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        stride = _stride(model.config)
        samples = plan.dim("samples", 20 * stride, 10 * stride)
        axes = (samples,) if channels is None else (channels, samples)
        plan.add("input_values", ("batch", *axes), normal)
        if channels is None:
            _add_mask(plan, takes, samples, text="input_ids" in takes)

    return plan_it


def _stride(config: Any) -> int:
    """Samples that become one frame."""
    for name in ("conv_stride", "upsampling_ratios", "downsampling_ratios"):
        steps = find(_part(config), name)
        if isinstance(steps, list | tuple):
            return math.prod(int(step) for step in steps)
    found = find(_part(config), "hop_length", "frame_length")
    return int(found) if isinstance(found, int) else 384


SOUND_FORMS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "input_features": (
        _spectrum(frames_last=True),
        _spectrum(frames_last=False),
        _spectrum(frames_last=True, masked=False),
        _spectrum(frames_last=False, masked=False),
    ),
    "input_values": (
        _samples(None),
        _samples(1),
        _spectrum(False, "input_values"),
        _spectrum(True, "input_values"),
        _spectrum(False, "input_values", masked=False),
        _spectrum(True, "input_values", masked=False),
    ),
}
"""Forms by the argument's name."""
