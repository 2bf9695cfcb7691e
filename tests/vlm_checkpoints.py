"""Tiny random checkpoints of vision-language models with their processors: a picture is cut into
tiles or patches, and its places are written into the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from processor_checkpoints import tokenizer

__all__ = ["VLMS", "model_of", "save_vlm"]

_WORDS = 128
_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
_TEXT = {
    "vocab_size": _WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_SQUARE = {"height": 16, "width": 16}


def _template(picture: str) -> str:
    return (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + picture + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %} {% endfor %}ASSISTANT:"
    )


def _pil(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


def _idefics3() -> Sequence[Any]:
    config = transformers.Idefics3Config(
        vision_config=_VISION, text_config=transformers.LlamaConfig(**_TEXT), image_token_id=5,
        scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    images = _pil("Idefics3", size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    processor = transformers.Idefics3Processor(
        images, tokenizer(*marks), image_seq_len=4, chat_template=_template("<image>")
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _internvl() -> Sequence[Any]:
    config = transformers.InternVLConfig(
        vision_config={
            **_VISION, "image_size": [16, 16], "patch_size": [4, 4], "num_hidden_layers": 1,
        },
        text_config=transformers.Qwen2Config(**_TEXT), image_token_id=6, image_seq_length=4,
    )  # fmt: skip
    images = _pil("GotOcr2", size=_SQUARE, max_patches=6)
    words = tokenizer(
        "<img>", "</img>", "<IMG_CONTEXT>", "<video>",
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
        },
        chat_template=_template("<IMG_CONTEXT>"),
    )  # fmt: skip
    whole = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    return transformers.InternVLForConditionalGeneration(config), images, words, whole


def _qwen2_vl() -> Sequence[Any]:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    text = {**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=6, video_token_id=7,
        vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    images = _pil("Qwen2VL", patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    words = tokenizer(
        *marks, padding_side="left",
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config), images, words


def _llava_next() -> Sequence[Any]:
    grids = [[16, 32], [32, 16], [32, 32], [16, 48]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.LlamaConfig(**_TEXT), image_token_index=4,
        image_grid_pinpoints=grids,
    )  # fmt: skip
    images = _pil(
        "LlavaNext", size={"shortest_edge": 16}, crop_size=_SQUARE, image_grid_pinpoints=grids
    )
    processor = transformers.LlavaNextProcessor(
        images, tokenizer("<image>", padding_side="left"), patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _gemma3() -> Sequence[Any]:
    config = transformers.Gemma3Config(
        vision_config={**_VISION, "vision_use_head": False},
        text_config={
            **_TEXT, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16, "tie_word_embeddings": False,
        },
        image_token_index=4, boi_token_index=5, eoi_token_index=6, mm_tokens_per_image=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    images = _pil("Gemma3", size=_SQUARE)
    marks = {"image_token": "<image>", "boi_token": "<begin>", "eoi_token": "<end>"}
    words = tokenizer(*marks.values(), padding_side="left", extra_special_tokens=marks)
    processor = transformers.Gemma3Processor(
        images, words, image_seq_length=4, chat_template=_template("<begin>")
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _llava_onevision() -> Sequence[Any]:
    grids = [[16, 32], [32, 16], [32, 32], [16, 48]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=transformers.Qwen2Config(**_TEXT), image_token_index=4, video_token_index=5,
        image_grid_pinpoints=grids, vision_feature_select_strategy="full",
    )  # fmt: skip
    images = _pil("LlavaOnevision", size=_SQUARE, image_grid_pinpoints=grids)
    words = tokenizer("<image>", "<video>", padding_side="left", chat_template=_template("<image>"))
    whole = {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
    }  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), images, words, whole


VLMS: dict[str, Callable[[], Sequence[Any]]] = {
    "gemma3": _gemma3,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
}
"""Makers of a model and of what else its folder holds, by name."""


def save_vlm(name: str, folder: Path) -> Path:
    """Save one of `VLMS`, with weights that make its words differ."""
    torch.manual_seed(3)
    model, *others = VLMS[name]()
    for parameter in model.parameters():
        parameter.data *= 4
    for part in (model, *others):
        if isinstance(part, dict):
            (folder / "processor_config.json").write_text(json.dumps(part))
        else:
            part.save_pretrained(folder)
    return folder


def model_of(name: str, folder: Path) -> Any:
    """The model that `save_vlm` saved."""
    return type(VLMS[name]()[0]).from_pretrained(folder).eval()
