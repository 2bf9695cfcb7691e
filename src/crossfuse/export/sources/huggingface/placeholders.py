"""Placeholders in a text: as many ids of an image, a sound or a video as features that the model
makes of it, counted by asking the model.

A model that puts features in the place of ids names the id in its configuration
(``image_token_id`` and the like) and has a method that makes the features
(``get_image_features``); it is called with what was planned, and its rows are counted.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.input_fillers import (
    Segment,
    ids_with_segments,
    mask_from,
    token_kinds,
)
from crossfuse.export.sources.huggingface.input_plan import InputPlan, find, ids, text_config

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SENSES",
    "Sense",
    "counted_in",
    "makes",
    "put_placeholders",
    "sense_of",
    "token_of",
    "told_counts",
]


@dataclass(frozen=True)
class Sense:
    """One kind of what stands beside a text.

    Attributes:
        name: its name.
        tokens: attributes of a configuration that may hold its placeholder's id.
        starts, ends: those of the ids that stand around its placeholders, where there are any.
        methods: of models that make its features.
        inputs: names of arguments that belong to it, as a pattern.
        kind: the number that stands for it where kinds of tokens are an input.
    """

    name: str
    tokens: tuple[str, ...]
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    methods: tuple[str, ...]
    inputs: str
    kind: int


SENSES = (
    Sense(
        "image",
        ("image_token_id", "image_token_index", "image_patch_id", "media_token_id"),
        ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index"),
        ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index"),
        ("get_image_features", "get_vision_features"),
        r"^(pixel_|image_|spatial_|target_sizes|high_res_|patch_|flattened_)(?!.*videos)",
        1,
    ),
    Sense(
        "video",
        ("video_token_id", "video_token_index"),
        ("vision_start_token_id", "video_start_token_id"),
        ("vision_end_token_id", "video_end_token_id"),
        ("get_video_features",),
        r"videos?(_|$)",
        2,
    ),
    Sense(
        "audio",
        ("audio_token_id", "audio_token_index", "audio_token_idx", "speech_token_id"),
        ("audio_start_token_id", "audio_bos_token_id", "boa_token_id"),
        ("audio_end_token_id", "audio_eos_token_id", "eoa_token_index"),
        ("get_audio_features", "get_speech_features"),
        r"^(input_features|input_values|feature_|audio_|padding_mask)",
        3,
    ),
)
"""What may stand beside a text, in the order in which it stands before it."""

_TOLD = re.compile(
    r"(?P<sense>\w+) features and (?P=sense) tokens do not match\D*(\d+)\D+(\d+)", re.IGNORECASE
)
_PUT = re.compile(
    r"value tensor of shape \[(\d+), \d+\] cannot be broadcast to indexing result of shape "
    r"\[(\d+), \d+\]"
)
"""What PyTorch says where rows are put in other places than there are."""


def token_of(config: Any, sense: Sense) -> int | None:
    """The id that stands for a sense's features; None where the configuration names none."""
    found = find(config, *sense.tokens)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def sense_of(name: str) -> Sense | None:
    """The sense that an argument belongs to."""
    return next((sense for sense in SENSES if re.search(sense.inputs, name)), None)


def counted_in(model: nn.Module, sense: Sense, given: Mapping[str, Any]) -> int | None:
    """Rows of features that the model makes of what is given; None where it has no such method, or
    refuses.

    Args:
        model: that is asked.
        sense: what its features are of.
        given: arguments by name, as ``forward`` takes them.
    """
    for method in _methods(model, sense):
        takes = inspect.signature(method).parameters
        own = {
            name: value for name, value in given.items()
            if name in takes and sense_of(name) is sense
        }  # fmt: skip
        if not own:
            continue
        try:
            with torch.no_grad():
                found = method(**own)
        except Exception:  # noqa: BLE001 -- the model's own code; it is asked again when it is run
            continue
        rows = _rows(found)
        if rows:
            return rows
    return None


def makes(model: nn.Module, sense: Sense) -> bool:
    """Whether the model has a method that makes a sense's features."""
    return any(True for _ in _methods(model, sense))


def _methods(model: Any, sense: Sense) -> Iterator[Any]:
    for owner in (model, getattr(model, "model", None), getattr(model, "thinker", None)):
        for name in sense.methods:
            if callable(getattr(owner, name, None)):
                yield getattr(owner, name)


def _rows(found: Any) -> int:
    """Rows of width of the last axis in what a model made: a tensor, several, or an output that
    holds them."""
    for name in ("pooler_output", "last_hidden_state"):
        held = getattr(found, name, None)
        if held is not None:
            return _rows(held)
    if isinstance(found, Tensor):
        return found.numel() // found.shape[-1] if found.ndim > 1 else 0
    if isinstance(found, list | tuple):
        if found and isinstance(found[0], Tensor) and isinstance(found, tuple) and len(found) == 1:
            return _rows(found[0])
        return sum(_rows(part) for part in found)
    return 0


def put_placeholders(
    plan: InputPlan, config: Any, counts: Mapping[str, int], name: str = "input_ids"
) -> None:
    """Let the ids of the plan's text begin with placeholders, and its masks show them.

    Args:
        plan: that has the text.
        config: of the model.
        counts: how many ids of each sense stand in each row.
        name: of the text's ids.
    """
    segments = []
    for sense in SENSES:
        token = token_of(config, sense)
        if counts.get(sense.name) and token is not None:
            segments.append(
                Segment(
                    counts[sense.name], token, sense.kind,
                    _edge(config, sense.starts), _edge(config, sense.ends),
                )
            )  # fmt: skip
    if not segments:
        return
    text = text_config(config)
    least = sum(segment.length for segment in segments) + 1
    high = plan.dims["text"].max
    plan.forget("text")
    plan.dim("text", least + 7, least, high)
    rest = ids(text, "attention_mask")
    plan.fillers[name] = ids_with_segments(segments, rest)
    plan.settled[name] = tuple(sorted({token for segment in segments for token in segment.row}))
    if plan.fixed.get("batch") == 1:  # with others the model itself would refuse the row
        plan.counts[name] = {part.token: part.count for part in segments if part.count > 1}
    for other in plan.shapes:
        if "mask" in other and sense_of(other) is not None:
            plan.settled[other] = ()  # the model counts what it shows
    if "attention_mask" in plan.fillers:
        plan.fillers["attention_mask"] = mask_from(lambda length: least)
    for kinds in ("mm_token_type_ids", "token_type_ids"):
        if kinds in plan.shapes:
            plan.fillers[kinds] = token_kinds(name, segments, numbered=kinds.startswith("mm_"))
            plan.settled[kinds] = ()


def _edge(config: Any, names: tuple[str, ...]) -> int | None:
    found = find(config, *names)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def told_counts(message: str) -> tuple[str, int, int] | None:
    """The sense, tokens and features that a model's own refusal speaks of; the sense is empty where
    it names none."""
    found = _TOLD.search(message)
    if found is not None:
        return found["sense"].lower(), int(found[2]), int(found[3])
    put = _PUT.search(message)
    return None if put is None else ("", int(put[2]), int(put[1]))
