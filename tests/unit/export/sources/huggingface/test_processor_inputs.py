"""Rows to inputs: which kinds, which ways, which names."""

from __future__ import annotations

import torch
import transformers

from crossfuse.export.sources.huggingface.processor import Processor, as_processor
from crossfuse.export.sources.huggingface.processor_inputs import (
    Recipe,
    kinds_taken,
    processed,
    recipes,
    taken_by,
)
from crossfuse.export.sources.huggingface.sample_inputs import Row, made_row
from processor_checkpoints import tokenizer

ROWS = [Row("a photo of the cat"), Row("what is this")]
TAKES = ("input_ids", "attention_mask")


def test_names_that_a_model_takes() -> None:
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    names = taken_by(model)
    assert names[:3] == ("input_ids", "attention_mask", "token_type_ids")
    assert "labels" not in names


def test_kinds_that_a_model_has_an_input_for() -> None:
    words = as_processor(tokenizer())
    assert kinds_taken(words, TAKES) == ("text",)
    assert kinds_taken(words, ("pixel_values",)) == ()


def test_frames_are_what_images_are_called_where_no_images_are_read() -> None:
    module = transformers.models.videomae.image_processing_pil_videomae
    square = {"height": 16, "width": 16}
    frames = as_processor(module.VideoMAEImageProcessorPil(size=square, crop_size=square))
    assert frames.kinds == ("videos",)
    assert kinds_taken(frames, ("pixel_values",)) == ("videos",)
    rows = [made_row(("videos",), None, index, frames=3) for index in (0, 1)]
    recipe = next(iter(recipes(frames, frames.kinds)))
    made = processed(frames, recipe, rows, ("pixel_values",))
    assert made["pixel_values"].shape == (2, 3, 3, 16, 16)
    images = as_processor(transformers.CLIPImageProcessor())
    assert images.kinds == ("images",)


def test_texts_are_padded_at_the_side_that_is_asked_for() -> None:
    words = as_processor(tokenizer())
    own = processed(words, Recipe(("text",), settings="none"), ROWS, TAKES)
    left = processed(words, Recipe(("text",), settings="none", padding_side="left"), ROWS, TAKES)
    assert list(own) == ["input_ids", "attention_mask"]
    assert own["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert left["attention_mask"].tolist() == [[1] * 7, [0] * 2 + [1] * 5]
    assert words.words.padding_side == "right"


def test_a_tokenizer_without_padding_pads_with_the_end() -> None:
    made = tokenizer()
    made.pad_token = None
    found = processed(as_processor(made), Recipe(("text",), settings="none"), ROWS, TAKES)
    assert found["input_ids"][1, -2:].tolist() == [made.eos_token_id] * 2


def test_parts_are_called_one_by_one() -> None:
    sounds = transformers.Wav2Vec2FeatureExtractor(sampling_rate=1000)
    parts = Processor(None, {"tokenizer": tokenizer(), "feature_extractor": sounds})
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0)).numpy()
    rows = [Row("a cat", audio=(noise,)), Row("the mat", audio=(noise,))]
    recipe = Recipe(("text", "audio"), settings="none")
    made = processed(parts, recipe, rows, ("input_values", "input_ids"))
    assert {name: tuple(t.shape) for name, t in made.items()} == {
        "input_values": (2, 50),
        "input_ids": (2, 4),
    }


def test_a_sentence_ends_with_a_full_stop() -> None:
    recipe = Recipe(("text",), prompt="sentence", settings="none")
    made = processed(as_processor(tokenizer()), recipe, [Row("a cat"), Row("a cat.")], TAKES)
    assert made["input_ids"][0].tolist() == made["input_ids"][1].tolist()


def test_the_chat_template_goes_first_and_pairs_have_no_text() -> None:
    images = transformers.CLIPImageProcessor()
    words = tokenizer(
        "<image>", chat_template="{{ messages }}", extra_special_tokens={"image_token": "<image>"}
    )
    both = Processor(None, {"image_processor": images, "tokenizer": words})
    found = list(recipes(both, ("images", "text")))
    assert list(dict.fromkeys(r.prompt for r in found)) == [
        "chat",
        "placeholders",
        "plain",
        "sentence",
    ]
    assert {r.images for r in found} == {"flat", "nested"}
    assert {r.images for r in recipes(as_processor(images), ("images",))} == {
        "flat",
        "nested",
        "pairs",
    }
