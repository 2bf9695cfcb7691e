"""Tiny random checkpoints with a processor, whose tokenizer is made here: folders as they are
published, without anything that has to be downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["CHECKPOINTS", "save_checkpoint", "tokenizer"]

_WORDS = (
    "a photo of the cat what is in this picture describe it sound image two small on red . , ? !"
)
_LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}ASSISTANT:"
)
_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
_SQUARE = {"height": 16, "width": 16}


def tokenizer(*more: str, **settings: Any) -> Any:
    """A tokenizer of whole words, which begins with padding, start, end and the unknown word.

    Args:
        more: further special tokens.
        settings: of the tokenizer.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", *more]
    words += [word for word in _WORDS.split() if word not in words]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", additional_special_tokens=list(more), **settings,
    )  # fmt: skip


def _clip() -> Sequence[Any]:
    text = {**_LLAMA, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    text = {name: text[name] for name in text if name != "num_key_value_heads"}
    config = transformers.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SQUARE)
    words = tokenizer(model_max_length=16)
    return transformers.CLIPModel(config), transformers.CLIPProcessor(images, words)


def _llava() -> Sequence[Any]:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.LlamaConfig(**_LLAMA),
        image_token_index=4,
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SQUARE)
    processor = transformers.LlavaProcessor(
        images, tokenizer("<image>", padding_side="left"), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config), processor


def _whisper() -> Sequence[Any]:
    config = transformers.WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_source_positions=50, max_target_positions=24, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    sounds = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    words = tokenizer()
    return transformers.WhisperForConditionalGeneration(config), transformers.WhisperProcessor(
        sounds, words
    )


CHECKPOINTS: dict[str, Callable[[], Sequence[Any]]] = {
    "clip": _clip,
    "llava": _llava,
    "whisper": _whisper,
}
"""Makers of a model and of what else its folder holds, by name."""


def save_checkpoint(name: str, folder: Path) -> Path:
    """Save one of `CHECKPOINTS`."""
    torch.manual_seed(0)
    model, *others = CHECKPOINTS[name]()
    for part in (model, *others):
        part.save_pretrained(folder)
    return folder
