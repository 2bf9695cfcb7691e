"""What is asked in words, an image or a sound, as inputs: what fits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from crossfuse import BundleError, InputError
from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.runtime.processing.asked import asked
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from processor_checkpoints import tokenizer
from unit.runtime.speech.toy_speech import speech_processor, speech_session
from unit.runtime.stub_stage import StubStage

SPECS = {
    "pixel_values": TensorSpec("pixel_values", "float32", ("contexts", 3, "height", "width")),
    "pixel_mask": TensorSpec("pixel_mask", "int64", ("contexts", "height", "width")),
    "input_features": TensorSpec("input_features", "float32", ("contexts", 4, "frames")),
    "input_ids": TensorSpec("input_ids", "int64", ("contexts", "text")),
    "attention_mask": TensorSpec("attention_mask", "int64", ("contexts", "text")),
    "flattened_patches": TensorSpec("flattened_patches", "float32", ("contexts", 9, 14)),
    "boxes": TensorSpec("boxes", "float32", ("contexts", 4)),
}
PROCESSOR = Processor(
    Path("here"),
    {
        **speech_processor().files,
        "processor_config.json": json.dumps(
            {
                "image_processor": json.loads(
                    transformers.ViTImageProcessorPil(
                        size={"height": 8, "width": 6}
                    ).to_json_string()
                ),
                "feature_extractor": json.loads(
                    speech_processor().files["preprocessor_config.json"]
                ),
            }
        ).encode(),
    },
)


def session(*names: str, **generation: Any) -> Session:
    """One that takes these inputs as its context."""
    context = StageSpec(tuple(SPECS[name] for name in names), (TensorSpec("k", "float32", (1,)),))
    query = StageSpec((TensorSpec("k", "float32", (1,)),), (TensorSpec("out", "float32", (1,)),))
    stages = {"context": context, "query": query} if names else {"model": query}
    engines = {name: StubStage([], [], lambda feeds: []) for name in stages}
    dims = {name: Dim(name) for name in ("contexts", "text", "height", "width", "frames")}
    return Session("stub", stages, dims, engines, generation=generation)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.ones(300, np.float32))
    return tmp_path / "a.npy"


def test_a_text_that_is_read() -> None:
    found = asked(session("input_ids", "attention_mask"), PROCESSOR, text="the cat")
    assert found.prompt is None
    assert {name: array.tolist() for name, array in found.inputs.items()} == {
        "input_ids": [[0, 1]],
        "attention_mask": [[1, 1]],
    }


def test_an_image_and_what_the_answer_begins_with(image: Path) -> None:
    alone = asked(session("pixel_values"), PROCESSOR, image=image)
    assert alone.inputs["pixel_values"].shape == (1, 3, 8, 6)
    assert alone.prompt is None
    named = session("pixel_values", "pixel_mask", bos_token_id=9)
    found = asked(named, PROCESSOR, image=image, text="the cat")
    assert found.prompt == [9, 0, 1]
    assert found.inputs["pixel_mask"].shape == (1, 8, 6)
    first = asked(
        session("pixel_values", bos_token_id=9, decoder_start_token_id=7), PROCESSOR,
        image=image, text="the",
    )  # fmt: skip
    assert first.prompt == [7, 0]


def test_an_image_and_a_text_that_are_both_read(image: Path) -> None:
    names = ("pixel_values", "input_ids", "attention_mask")
    found = asked(session(*names), PROCESSOR, image=image, text="the cat")
    assert tuple(found.inputs) == names
    assert found.prompt is None


def test_an_image_as_patches(image: Path) -> None:
    theirs = transformers.Pix2StructImageProcessorPil(
        patch_size={"height": 2, "width": 2}, max_patches=9
    )
    settings = {
        **speech_processor().files,
        "preprocessor_config.json": theirs.to_json_string().encode(),
    }
    asks = session("flattened_patches", "attention_mask", decoder_start_token_id=7)
    found = asked(asks, Processor(Path("here"), settings), image=image, text="the cat")
    assert found.inputs["flattened_patches"].shape == (1, 9, 14)
    assert found.inputs["attention_mask"].dtype == np.int64
    assert found.prompt == [7, 0, 1]


def test_a_sound(audio: Path) -> None:
    found = asked(speech_session(), PROCESSOR, audio=audio)
    np.testing.assert_array_equal(found.inputs["input_features"], PROCESSOR.sounds(np.ones(300)))


def test_refusals(image: Path, audio: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", np.ones(1300, np.float32))
    cases: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
        (("pixel_values",), {}, "no image"),
        (("pixel_values",), {"text": "the cat"}, "no image"),
        (("pixel_values",), {"audio": audio}, "takes no audio"),
        (("input_ids",), {"image": image}, "takes no image"),
        (("input_ids", "attention_mask"), {}, "no text"),
        (("pixel_values", "boxes"), {"image": image}, "boxes"),
        (("flattened_patches", "attention_mask"), {}, "no image"),
        (("flattened_patches",), {"image": image}, "takes no image"),
        (("input_features", "attention_mask"), {"audio": audio}, "attention_mask"),
        (("input_features",), {"audio": tmp_path / "long.npy"}, "longer than the model hears"),
        ((), {"text": "the"}, "no context stage"),
    ]
    for names, given, words in cases:
        with pytest.raises(InputError, match=words):
            asked(session(*names), PROCESSOR, **given)


def test_a_question_about_an_image(tmp_path: Path) -> None:
    words = tokenizer("<image>")
    form = {
        "before": "<image><image> ", "after": " ?", "special": True, "mark": "<image>",
        "stands_for": "<image><image>",
        "first": {"prefix_input_ids": [[1, 4, 4]], "prefix_attention_mask": [[1, 1, 1]]},
    }  # fmt: skip
    settings = {"placeholder_token_ids": {"image_token_id": 4}, "prompts": form}
    files = {
        **PROCESSOR.files,
        "tokenizer.json": words.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    firsts = [TensorSpec(name, "int64", ("contexts", 3)) for name in form["first"]]
    own = session("pixel_values")
    stages = dict(own.stages)
    stages["context"] = StageSpec((SPECS["pixel_values"], *firsts), stages["context"].outputs)
    engines = {name: StubStage([], [], lambda feeds: []) for name in stages}
    asks = Session(
        "stub", stages, {n: Dim(n) for n in ("contexts", "height", "width")}, engines,
        decode=Decode("input_ids", 8),
    )  # fmt: skip
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    found = asked(asks, Processor(Path("here"), files), text="what is this", image=image)
    whole = words("<image><image> what is this ?")["input_ids"]
    assert found.inputs["prefix_input_ids"].tolist() == [whole[:3]]
    assert found.inputs["prefix_attention_mask"].tolist() == [[1, 1, 1]]
    assert found.inputs["pixel_values"].shape == (1, 3, 8, 6)
    assert (found.prompt, found.said) == (whole[3:], [])
    for given, why in (({"image": image}, "Give text="), ({"text": "a"}, "Give image=")):
        with pytest.raises(InputError, match=why):
            asked(asks, Processor(Path("here"), files), **given)
    with pytest.raises(InputError, match="no step stage"):
        asked(session("pixel_values"), Processor(Path("here"), files), text="a", image=image)
    tiled = transformers.GotOcr2ImageProcessorPil(
        size={"height": 8, "width": 6}, crop_to_patches=True, max_patches=2
    )
    plain = json.loads(files["processor_config.json"])
    changed = {**plain, "image_processor": json.loads(tiled.to_json_string())}
    for sizes, why in (
        ([[9, 20]], "got 1 tiles, of 9×9 pixels, expected 3 tiles, as of 20×9 pixels"),
        ([[9, 9], [9, 9]], "places for several images"),
        (None, "doesn't say for which images"),
        ([[9, "b"]], "sizes"),
    ):
        cut = {**files, "processor_config.json": json.dumps(changed).encode()}
        told = {**settings, "prompts": {**form, "sizes": sizes}}
        cut["tokenizer_config.json"] = json.dumps(told).encode()
        with pytest.raises(InputError, match=why):
            asked(asks, Processor(Path("here"), cut), text="a", image=image)
    told["prompts"]["sizes"] = [[30, 30]]
    cut["tokenizer_config.json"] = json.dumps(told).encode()
    again = asked(asks, Processor(Path("here"), cut), text="what is this", image=image)
    assert again.inputs["pixel_values"].shape == (1, 3, 8, 6)
    del settings["prompts"]
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    with pytest.raises(InputError, match="places for an image or a sound"):
        asked(asks, Processor(Path("here"), files), text="a", image=image)
    files["tokenizer_config.json"] = json.dumps({"prompts": {**form, "first": 3}}).encode()
    with pytest.raises(BundleError, match="first"):
        asked(asks, Processor(Path("here"), files), text="a", image=image)
