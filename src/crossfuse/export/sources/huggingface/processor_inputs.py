"""Rows of samples → a model's inputs, by the checkpoint's own processor.

How a processor wants to be called is tried rather than known: prompts by the chat template, with
placeholders before the text, or plain; images one per row, nested by row, or in pairs; settings by
kind, or all together. What the processor makes and the model's ``forward`` doesn't take is left
out.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.processor import Processor, quietly
from crossfuse.export.sources.huggingface.sample_inputs import Row

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Recipe", "kinds_taken", "marks_of", "processed", "recipes", "taken_by"]

_TRIGGERS = {
    "images": ("pixel_values", "images", "image_patches", "flattened_patches", "image"),
    "text": ("input_ids", "text_input_ids"),
    "videos": ("pixel_values_videos", "video", "videos"),
    "audio": ("input_features", "input_values", "audio_values", "audio_features", "waveform"),
}
"""Kind → names of inputs that come of it, their beginnings too."""

_NEVER = ("labels", "return_loss", "past_key_values", "cache_position", "use_cache")
_PLACEHOLDERS = {
    "placeholders": {"images": "image_token", "videos": "video_token", "audio": "audio_token"},
    "openings": {"images": "boi_token", "audio": "boa_token"},
}
"""Style of a prompt → by kind the processor's attribute with the text that stands for one."""

_ROLE = {"images": "image", "videos": "video", "audio": "audio"}


@dataclass(frozen=True)
class Recipe:
    """A way to call a processor.

    Attributes:
        kinds: what of the rows it is given.
        prompt: ``chat``, ``plain``, one of `_PLACEHOLDERS`, or ``sentence``: with a full stop,
            without which a processor may take several texts for the words of one.
        images: ``flat``, ``nested`` or ``pairs``.
        settings: ``by kind``, ``together`` or ``none``.
        padding_side: of texts; the tokenizer's own where None.
    """

    kinds: tuple[str, ...]
    prompt: str = "plain"
    images: str = "flat"
    settings: str = "by kind"
    padding_side: str | None = None


def taken_by(model: nn.Module) -> tuple[str, ...]:
    """Names of the inputs that a model's ``forward`` takes."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return tuple(name for name in named if name not in _NEVER)


def kinds_taken(processor: Processor, takes: Sequence[str]) -> tuple[str, ...]:
    """What a processor reads and a model has a use for. Frames become what images are called where
    the processor reads no images."""
    frames = _TRIGGERS["videos"] + _TRIGGERS["images"] * ("images" not in processor.kinds)
    triggers = {**_TRIGGERS, "videos": frames}
    return tuple(
        kind for kind in processor.kinds if any(name.startswith(triggers[kind]) for name in takes)
    )


def recipes(processor: Processor, kinds: Sequence[str]) -> Iterator[Recipe]:
    """Ways to call a processor, the likeliest first."""
    media = [kind for kind in kinds if kind != "text"]
    prompts = ["plain"]
    if "text" in kinds and media:
        marked = [
            style
            for style in _PLACEHOLDERS
            if any(_placeholder(processor, style, kind) for kind in media)
        ]
        prompts = ["chat"] * (_chat_of(processor) is not None) + marked + prompts + ["sentence"]
    layouts = ["flat"] + ["nested", "pairs"] * ("images" in kinds)
    if "text" in kinds:
        layouts = [layout for layout in layouts if layout != "pairs"]
    whole = processor.call is not None and not processor.is_part
    settings = ["by kind", "together", "none"] if whole else ["none", "together"]
    for prompt, layout, how in itertools.product(prompts, layouts, settings):
        yield Recipe(tuple(kinds), prompt, layout, how)


def processed(
    processor: Processor,
    recipe: Recipe,
    rows: Sequence[Row],
    takes: Sequence[str],
    texts: Sequence[Row] | None = None,
) -> dict[str, Tensor]:
    """What the processor makes of rows: tensors by the names of the model's inputs, in its order.

    Args:
        processor: the checkpoint's.
        recipe: how to call it.
        rows: what it is given.
        takes: names of the model's inputs.
        texts: rows whose texts are taken; where omitted, ``rows``.

    Raises:
        Exception: whatever the processor raises.
    """
    texts = rows if texts is None else texts
    if processor.call is None:
        made: dict[str, Any] = {}
        for kind in recipe.kinds:
            made = {
                **_made(processor.alone(kind), replace(recipe, kinds=(kind,)), rows, texts),
                **made,
            }
    else:
        made = _made(processor, recipe, rows, texts)
    found = {name: _tensor(made[name]) for name in takes if name in made}
    return {name: tensor for name, tensor in found.items() if tensor is not None and tensor.numel()}


def _made(
    processor: Processor, recipe: Recipe, rows: Sequence[Row], texts: Sequence[Row]
) -> dict[str, Any]:
    """What one call of a processor, or of a part, returns."""
    given = _arguments(processor, recipe, rows, texts)
    settings = _settings(processor, recipe)
    with quietly(), _padding(processor, recipe.padding_side):
        if processor.is_part:
            return dict(processor.call(next(iter(given.values())), **settings, return_tensors="pt"))
        return dict(processor.call(**given, **settings, return_tensors="pt"))


def _arguments(
    processor: Processor, recipe: Recipe, rows: Sequence[Row], texts: Sequence[Row]
) -> dict[str, Any]:
    """What the processor is given, by the names of its arguments."""
    given: dict[str, Any] = {}
    if "images" in recipe.kinds:
        by_row = [list(row.images) for row in rows]
        flat = [image for images in by_row for image in images]
        pairs = [(images + flat[::-1])[:2] for images in by_row]
        given["images"] = {"flat": flat, "nested": by_row, "pairs": pairs}[recipe.images]
    if "text" in recipe.kinds:
        given["text"] = [_prompt(processor, recipe, row) for row in texts]
    if "videos" in recipe.kinds:
        given["videos"] = [list(video) for row in rows for video in row.videos]
    if "audio" in recipe.kinds:
        given["audio"] = [sound for row in rows for sound in row.audio]
    return given


def _prompt(processor: Processor, recipe: Recipe, row: Row) -> str:
    media = [kind for kind in recipe.kinds for _ in getattr(row, kind) if kind != "text"]
    if recipe.prompt == "chat":
        content: list[dict[str, str]] = [{"type": _ROLE[kind]} for kind in media]
        content.append({"type": "text", "text": row.text})
        conversation = [{"role": "user", "content": content}]
        text = _chat_of(processor).apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        return str(text)
    if recipe.prompt in _PLACEHOLDERS:
        marks = [_placeholder(processor, recipe.prompt, kind) or "" for kind in media]
        return "".join(marks) + " " + row.text
    if recipe.prompt == "sentence" and not row.text.rstrip().endswith("."):
        return f"{row.text.rstrip()}."
    return row.text


def _chat_of(processor: Processor) -> Any:
    """What has a chat template: the processor, its tokenizer, or None."""
    for owner in (processor.call, processor.words):
        if getattr(owner, "chat_template", None):
            return owner
    return None


def _placeholder(processor: Processor, style: str, kind: str) -> str | None:
    name = _PLACEHOLDERS[style].get(kind, "")
    for owner in (processor.call, processor.words):
        found = getattr(owner, name, None) if name else None
        if found:
            return str(found)
    return None


def marks_of(processor: Processor, kinds: Sequence[str]) -> list[str]:
    """Texts that stand for an image, a video or a sound in a prompt, the likeliest first."""
    found = (
        _placeholder(processor, style, kind) for style in reversed(_PLACEHOLDERS) for kind in kinds
    )
    return list(dict.fromkeys(mark for mark in found if mark))


def _settings(processor: Processor, recipe: Recipe) -> dict[str, Any]:
    texts = {"padding": True} if "text" in recipe.kinds else {}
    rate = {"sampling_rate": processor.rate} if "audio" in recipe.kinds and processor.rate else {}
    if processor.is_part:
        return texts | rate | ({"padding": True} if rate and recipe.settings == "together" else {})
    if recipe.settings == "by kind":
        return ({"text_kwargs": texts} if texts else {}) | rate
    return {"padding": True, **rate} if recipe.settings == "together" else rate


@contextmanager
def _padding(processor: Processor, side: str | None) -> Iterator[None]:
    """Texts padded on a side, for a while; with the end of texts where nothing pads them."""
    words = processor.words
    if words is None:
        yield
        return
    if getattr(words, "pad_token", None) is None and getattr(words, "eos_token", None):
        words.pad_token = words.eos_token
    own = words.padding_side
    words.padding_side = side or own
    try:
        yield
    finally:
        words.padding_side = own


def _tensor(value: Any) -> Any:
    """A tensor, where a value is one or can be joined to one; half floats in single precision."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        same = all(v.shape == value[0].shape for v in value)
        value = torch.stack(list(value)) if same else None
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float().contiguous()
    return value.contiguous() if isinstance(value, Tensor) else None
