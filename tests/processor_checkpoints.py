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
_QWEN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}"
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


def _qwen2_vl() -> Sequence[Any]:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    text = {
        **_LLAMA, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=6, video_token_id=7,
        vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    made = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 256}
    )
    words = tokenizer(*marks, padding_side="left", chat_template=_QWEN_TEMPLATE)
    return transformers.Qwen2VLForConditionalGeneration(config), made, words


def _paligemma() -> Sequence[Any]:
    vision = {**_VISION, "projection_dim": 32, "vision_use_head": False}
    text = {**_LLAMA, "head_dim": 8, "vocab_size": 1280}
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision),
        text_config=transformers.GemmaConfig(**text),
        image_token_index=4, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    images = transformers.SiglipImageProcessor(size=_SQUARE)
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tokenizer("<image>"))
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def _florence2() -> Sequence[Any]:
    vision = transformers.Florence2VisionConfig(
        depths=[1, 1, 1, 1], embed_dim=[8, 16, 16, 32], num_heads=[1, 2, 2, 4],
        num_groups=[1, 2, 2, 4], window_size=2, projection_dim=32, max_temporal_embeddings=4,
        max_position_embeddings=8,
    )  # fmt: skip
    text = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    config = transformers.Florence2Config(vision_config=vision, text_config=text, image_token_id=4)
    images = transformers.CLIPImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=False, image_seq_length=5
    )
    words = tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    processor = transformers.Florence2Processor(images, words)
    return transformers.Florence2ForConditionalGeneration(config), processor


def _idefics3() -> Sequence[Any]:
    config = transformers.Idefics3Config(
        vision_config={**_VISION, "image_size": 32}, text_config=transformers.LlamaConfig(**_LLAMA),
        image_token_id=5, scale_factor=2,
    )  # fmt: skip
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
    )
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    processor = transformers.Idefics3Processor(
        images, tokenizer(*marks), image_seq_len=4, chat_template=_LLAVA_TEMPLATE
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _grounding_dino() -> Sequence[Any]:
    backbone = transformers.SwinConfig(
        image_size=128, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
        window_size=2, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, num_queries=5, max_text_len=24,
    )  # fmt: skip
    images = transformers.GroundingDinoImageProcessor(
        size={"height": 128, "width": 128}, do_pad=True
    )
    words = tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    processor = transformers.GroundingDinoProcessor(images, words)
    return transformers.GroundingDinoForObjectDetection(config), processor


def _wav2vec2_seq2seq() -> Sequence[Any]:
    encoder = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
    )  # fmt: skip
    decoder = transformers.BartConfig(
        vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=4,
        decoder_ffn_dim=48, max_position_embeddings=32, is_decoder=True,
        add_cross_attention=True, pad_token_id=0,
    )  # fmt: skip
    config = transformers.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    sounds = transformers.Wav2Vec2FeatureExtractor(sampling_rate=1000, return_attention_mask=True)
    return transformers.SpeechEncoderDecoderModel(config), sounds, tokenizer()


def _lightglue() -> Sequence[Any]:
    detector = transformers.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=16, keypoint_decoder_dim=65,
        descriptor_decoder_dim=32, keypoint_threshold=0.0, max_keypoints=16,
        border_removal_distance=2,
    )  # fmt: skip
    config = transformers.LightGlueConfig(
        keypoint_detector_config=detector, descriptor_dim=32, num_hidden_layers=2,
        num_attention_heads=4, depth_confidence=-1.0, width_confidence=-1.0,
    )  # fmt: skip
    images = transformers.LightGlueImageProcessor(size={"height": 32, "width": 48})
    model = transformers.LightGlueForKeypointMatching(config)
    with torch.no_grad():
        for weight in model.keypoint_detector.parameters():  # scores differ beyond rounding
            weight.mul_(10)
    return model, images


def _bert() -> Sequence[Any]:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    words = tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    return transformers.BertForSequenceClassification(config), words


def _pix2struct() -> Sequence[Any]:
    text = {
        "vocab_size": 64, "hidden_size": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "patch_embed_hidden_size": 48, "d_ff": 48, "d_kv": 8,
        "num_hidden_layers": 1, "num_attention_heads": 4, "seq_len": 4096, "patch_size": 4,
    }  # fmt: skip
    config = transformers.Pix2StructConfig(text_config=text, vision_config=vision)
    images = transformers.Pix2StructImageProcessor(
        patch_size={"height": 4, "width": 4}, max_patches=16
    )
    processor = transformers.Pix2StructProcessor(images, tokenizer())
    return transformers.Pix2StructForConditionalGeneration(config), processor


def _vilt() -> Sequence[Any]:
    config = transformers.ViltConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, image_size=32, patch_size=8, max_position_embeddings=24,
    )  # fmt: skip
    images = transformers.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
    processor = transformers.ViltProcessor(images, tokenizer())
    return transformers.ViltForQuestionAnswering(config), processor


def _clap() -> Sequence[Any]:
    audio = {
        "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_hidden_layers": 2,
        "num_attention_heads": [2, 2], "spec_size": 16, "num_mel_bins": 8, "patch_size": 2,
        "window_size": 4, "patch_stride": [2, 2], "projection_dim": 16,
    }  # fmt: skip
    text = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 32, "projection_dim": 16,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    sounds = transformers.ClapFeatureExtractor(
        feature_size=8, sampling_rate=1000, hop_length=64, max_length_s=1, fft_window_size=128,
        frequency_max=500, truncation="rand_trunc",
    )  # fmt: skip
    return transformers.ClapModel(config), transformers.ClapProcessor(sounds, tokenizer())


def _videomae() -> Sequence[Any]:
    config = transformers.VideoMAEConfig(**_VISION, num_frames=4, tubelet_size=2, num_labels=3)
    module = transformers.models.videomae.image_processing_pil_videomae
    frames = module.VideoMAEImageProcessorPil(size=_SQUARE, crop_size=_SQUARE)
    return transformers.VideoMAEForVideoClassification(config), frames


CHECKPOINTS: dict[str, Callable[[], Sequence[Any]]] = {
    "bert": _bert,
    "clap": _clap,
    "clip": _clip,
    "florence2": _florence2,
    "grounding_dino": _grounding_dino,
    "idefics3": _idefics3,
    "lightglue": _lightglue,
    "llava": _llava,
    "paligemma": _paligemma,
    "pix2struct": _pix2struct,
    "qwen2_vl": _qwen2_vl,
    "videomae": _videomae,
    "vilt": _vilt,
    "wav2vec2_seq2seq": _wav2vec2_seq2seq,
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
