"""Checkpoints with a processor, exported with no other option and with samples of the user's."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import crossfuse
from crossfuse.cli import app
from crossfuse.export.sources.huggingface.planned import PROCESSOR
from processor_checkpoints import CHECKPOINTS, save_checkpoint

SEEN_WITH_TEXT = (
    "clip", "florence2", "grounding_dino", "idefics3", "llava", "paligemma", "qwen2_vl", "vilt",
)  # fmt: skip
MATCHING = "lightglue"
HEARD = ("wav2vec2_seq2seq", "whisper")
MOVING = "videomae"


def photo(folder: Path, seed: int = 0) -> Path:
    path = folder / f"photo{seed}.jpg"
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((240, 160)).save(path)
    return path


def sound(folder: Path) -> Path:
    path = folder / "sound.wav"
    times = np.arange(12000) / 8000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((9000 * np.sin(2 * np.pi * 300 * times)).astype(np.int16).tobytes())
    return path


def video(folder: Path) -> Path:
    path = folder / "frames"
    path.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 24, 32, 3)).astype(np.uint8)
    for index, frame in enumerate(pixels):
        Image.fromarray(frame).save(path / f"{index:02}.png")
    return path


def test_a_checkpoint_says_where_its_inputs_come_from(tmp_path: Path) -> None:
    folder = save_checkpoint("bert", tmp_path / "bert")
    bundle = crossfuse.export(f"hf:{folder}", tmp_path / "bundle", text="the red cat", quick=True)
    assert bundle.manifest.source["inputs_from"] == PROCESSOR
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "bundle")])
    assert f"Inputs from: {PROCESSOR}" in shown.output
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "bundle"), "--json"])
    assert json.loads(told.output)["source"]["inputs_from"] == PROCESSOR
    assert bundle.ledger.counts("ort-cpu") == {"self": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHECKPOINTS))
def test_no_other_option(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    bundle = crossfuse.export(f"hf:{folder}", tmp_path / "bundle")
    assert bundle.manifest.source["inputs_from"] == PROCESSOR
    assert bundle.manifest.targets["ort-cpu"].parity["passed"]
    assert not bundle.ledger.unfused(["ort-cpu"])


def test_a_matcher_gets_pairs_of_images(tmp_path: Path) -> None:
    folder = save_checkpoint(MATCHING, tmp_path)
    spec = crossfuse.huggingface_spec(str(folder))
    assert tuple(spec.inputs["pixel_values"].shape) == (2, 2, 3, 32, 48)
    first, second = spec.inputs["pixel_values"][0]
    assert not np.allclose(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEEN_WITH_TEXT, *HEARD, MOVING, MATCHING])
def test_samples_of_the_users(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    if name in HEARD:
        samples = ["--audio", str(sound(tmp_path))]
    elif name == MATCHING:
        samples = ["--image", str(photo(tmp_path)), "--image", str(photo(tmp_path, seed=1))]
    elif name == MOVING:
        samples = ["--video", str(video(tmp_path))]
    else:
        samples = ["--image", str(photo(tmp_path)), "--text", "what is in the picture"]
    command = ["export", f"hf:{folder}", "-o", str(tmp_path / "bundle"), *samples]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
