"""A bundle's processor: its files, read when they are needed and refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from crossfuse import BundleError, InputError
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.runtime.processing.processor import Processor, load_processor
from unit.runtime.speech.toy_speech import speech_processor

BUNDLE = Path(__file__).parents[3] / "data" / "bundle-0.1.0"
FILES = dict(speech_processor().files)


def bundle_with(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.copytree(BUNDLE, folder)
    with write_bundle(folder, modify=True) as writer:
        old = open_bundle(folder)
        writer.adopt(old, sorted(old.manifest.files))
        for name, content in files.items():
            writer.file(name).write_bytes(content)
        writer.commit(old.manifest)
    return folder


def of(**files: Any) -> Processor:
    named = {f"{name}.json": json.dumps(data).encode() for name, data in files.items()}
    return Processor(Path("here"), named)


def test_files_of_a_bundle(tmp_path: Path) -> None:
    path = bundle_with(tmp_path / "b", FILES)
    for given in (path, str(path), open_bundle(path)):
        found = load_processor(given)
        assert dict(found.files) == FILES
        assert found.decode([0, 1, 2]) == "the cat sat"
        assert (found.texts("the cat")[0] == [[0, 1]]).all()
        assert found.sounds(np.ones(500), np.ones(3)).shape == (2, 4, 100)
    changed = path / "tokenizer.json"
    changed.write_bytes(changed.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(BundleError, match="was changed"):
        load_processor(path)


def test_a_bundle_without() -> None:
    found = load_processor(BUNDLE)
    assert not found.files
    for use in (lambda: found.words, lambda: found.pixels, lambda: found.log_mel):
        with pytest.raises(BundleError, match="holds no"):
            use()


def test_images_from_files_and_memory(tmp_path: Path) -> None:
    theirs = transformers.ViTImageProcessorPil(size={"height": 12, "width": 16})
    settings = json.loads(theirs.to_json_string())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 20, 3), np.uint8))
    image.save(tmp_path / "a.png")
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    alone = of(preprocessor_config=settings)
    beside = of(processor_config={"image_processor": settings, "feature_extractor": {}})
    for found in (alone, beside):
        made = found.images(tmp_path / "a.png", image, np.asarray(image))
        assert made.shape == (3, 3, 12, 16)
        np.testing.assert_allclose(made, np.stack([expected] * 3), atol=1e-5)
    one = of(preprocessor_config={**settings, "image_mean": 0.5, "image_std": 0.5})
    np.testing.assert_allclose(one.images(image)[0], expected, atol=1e-5)
    with pytest.raises(BundleError, match="holds no settings for sounds"):
        _ = alone.log_mel
    fixed = of(preprocessor_config={**settings, "do_resize": False})
    with pytest.raises(InputError, match="one size"):
        fixed.images(image, image.resize((4, 4)))
    with pytest.raises(InputError, match=r"none\.png"):
        alone.images(tmp_path / "none.png")


def test_pictures_of_other_modes_are_on_white_as_the_librarys() -> None:
    theirs = transformers.ViTImageProcessorPil(
        size={"height": 12, "width": 16}, do_convert_rgb=True
    )
    mine = of(preprocessor_config=json.loads(theirs.to_json_string()))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 20, 4), np.uint8)
    layers = Image.fromarray(pixels)
    palette = layers.convert("RGB").convert("P")
    palette.info["transparency"] = 3
    for image in (layers, layers.convert("LA"), layers.convert("L"), palette, layers.convert("1")):
        expected = theirs(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(mine.images(image), expected, atol=1e-5)


def test_a_picture_in_tiles() -> None:
    theirs = transformers.GotOcr2ImageProcessorPil(
        size={"height": 8, "width": 8}, crop_to_patches=True
    )
    mine = of(preprocessor_config=json.loads(theirs.to_json_string()))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 20, 3), np.uint8))
    made = mine.picture(image)
    assert (made.height, made.width, list(made.inputs)) == (9, 20, ["pixel_values", "num_patches"])
    expected = theirs([image, image], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(mine.images(image, np.asarray(image)), expected, atol=1e-5)
    packed = transformers.Qwen2VLImageProcessorPil(patch_size=4)
    assert of(preprocessor_config=json.loads(packed.to_json_string())).pixels.patch_size == {
        "height": 4, "width": 4
    }  # fmt: skip


def test_broken_files() -> None:
    for content in (b"[" * 100000, b"{", b"[]", b'{"image_processor_type": 3}'):
        broken = Processor(Path("here"), {"preprocessor_config.json": content})
        with pytest.raises(BundleError, match="here"):
            _ = broken.pixels
    other = {**json.loads(FILES["preprocessor_config.json"]), "dither": 1.0}
    with pytest.raises(BundleError, match="dither"):
        _ = of(preprocessor_config=other).log_mel


def test_places_in_prompts_are_refused() -> None:
    of(tokenizer_config={}).require_no_places()
    with pytest.raises(InputError, match="image_token_id"):
        of(tokenizer_config={"placeholder_token_ids": {"image_token_id": 4}}).require_no_places()


def test_no_sound_at_all() -> None:
    with pytest.raises(InputError, match="no sound"):
        speech_processor().sounds()
