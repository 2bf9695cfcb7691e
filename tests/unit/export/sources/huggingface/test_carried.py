"""What of a processor a bundle carries: as the library reads it, and no code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from crossfuse.core.processor_files import PARTS
from crossfuse.export.sources.huggingface.carried import carried
from crossfuse.export.sources.huggingface.processor import (
    NoProcessorError,
    as_processor,
    load_processor,
)
from crossfuse.runtime.processing.processor import Processor
from processor_checkpoints import tokenizer
from vlm_checkpoints import save_vlm


def opened(files: dict[str, str]) -> Processor:
    assert set(files) <= set(PARTS)
    return Processor(Path("here"), {name: text.encode() for name, text in files.items()})


def test_words_and_images() -> None:
    words = tokenizer(model_max_length=16)
    words.init_kwargs["auto_map"] = {"AutoTokenizer": "theirs.Tokenizer"}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=12)
    theirs = transformers.CLIPProcessor(images, words)
    theirs(text=["a cat", "the"], padding=True, truncation=True, max_length=3)  # leaves marks
    files = carried(as_processor(theirs), SimpleNamespace())
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert not any("auto_map" in text or "processor_class" in text for text in files.values())
    mine = opened(files)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8))
    both = theirs(text=["a photo of the cat", "a"], images=image, padding=True, return_tensors="np")
    np.testing.assert_array_equal(mine.texts("a photo of the cat", "a")[0], both["input_ids"])
    np.testing.assert_allclose(mine.images(image), both["pixel_values"], atol=1e-5)
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 16
    mine.require_no_places()


def test_images_are_prepared_as_the_processor_around_asks(tmp_path: Path) -> None:
    """InternVL's asks for tiles, whatever the image processor's own settings are."""
    folder = save_vlm("internvl", tmp_path)
    theirs = load_processor(folder)
    assert theirs.parts["image_processor"].crop_to_patches is False
    mine = opened(carried(theirs, SimpleNamespace()))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8))
    both = theirs.call(text=["<IMG_CONTEXT> a cat"], images=[image], return_tensors="np")
    assert both["pixel_values"].shape[0] == 7
    np.testing.assert_allclose(mine.images(image), both["pixel_values"], atol=1e-5)


def test_what_the_processor_alone_knows_of_tiles(tmp_path: Path) -> None:
    for name, known in (("llava_next", "patch_size"), ("llava_onevision", "num_image_tokens")):
        folder = save_vlm(name, tmp_path / name)
        files = carried(load_processor(folder), SimpleNamespace())
        expected = {"patch_size": 4, "num_image_tokens": 16}[known]
        assert json.loads(files["preprocessor_config.json"])[known] == expected


def test_sounds_and_images_stand_in_one_file() -> None:
    both: Any = SimpleNamespace(
        call=None,
        words=None,
        parts={
            "image_processor": transformers.ViTImageProcessor(),
            "feature_extractor": transformers.WhisperFeatureExtractor(feature_size=8),
        },
    )
    files = carried(both, None)
    assert set(files) == {"processor_config.json"}
    mine = opened(files)
    assert (mine.log_mel.feature_size, mine.pixels.size) == (8, {"height": 224, "width": 224})


@pytest.mark.parametrize("name", ["image_token_id", "audio_token_index"])
def test_places_in_prompts_are_named(name: str) -> None:
    files = carried(as_processor(tokenizer("<image>")), SimpleNamespace(**{name: 4}))
    assert json.loads(files["tokenizer_config.json"])["placeholder_token_ids"] == {name: 4}


def test_nothing_where_there_is_none() -> None:
    assert carried(NoProcessorError("none"), None) == {}
    broken: Any = SimpleNamespace(words=SimpleNamespace(backend_tokenizer=3), parts={})
    assert carried(broken, None) == {}
