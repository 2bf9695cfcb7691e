"""What a text names: a model's folder, a pipeline's denoiser or component, half of an
autoencoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossfuse import InputError
from crossfuse.export.sources.diffusers.locate import Located, locate

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipe"
    for name in ("scheduler", "text_encoder", "unet", "vae"):
        (folder / name).mkdir(parents=True)
    for name in ("text_encoder", "unet", "vae"):
        (folder / name / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def test_models_and_components(pipeline: Path) -> None:
    assert locate(str(pipeline)) == Located(pipeline / "unet")
    assert locate(f"{pipeline}/unet") == Located(pipeline / "unet")
    assert locate(f"{pipeline}/vae") == Located(pipeline / "vae")
    assert locate(f"{pipeline}/vae/decoder") == Located(pipeline / "vae", "decoder")
    assert locate(f"{pipeline}/vae/encoder/") == Located(pipeline / "vae", "encoder")


def test_a_component_of_that_name_is_no_half(pipeline: Path) -> None:
    (pipeline / "decoder").mkdir()
    (pipeline / "decoder" / "config.json").write_text("{}")
    assert locate(f"{pipeline}/decoder") == Located(pipeline / "decoder")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text_encoder", "model of transformers: got CLIPTextModel"),
        ("scheduler", "no model of diffusers"),
        ("transformer", "no such component: got transformer, expected scheduler, text_encoder"),
        ("decoder", "a pipeline has no halves"),
        ("../nowhere", "no such folder"),
        ("vae/encoder/decoder", "no such folder"),
    ],
)
def test_what_is_none(pipeline: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        locate(f"{pipeline}/{name}")
    said = str(error.value)
    assert all(part in said for part in message.split(": ", 1)), said


def test_a_pipeline_without_a_denoiser(pipeline: Path) -> None:
    index = {name: made_by for name, made_by in INDEX.items() if name != "unet"}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="no denoiser"):
        locate(str(pipeline))


def test_a_component_leads_nowhere_else(pipeline: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (pipeline / "unet").rename(elsewhere)
    (pipeline / "unet").symlink_to(elsewhere)
    with pytest.raises(InputError, match="leads out of"):
        locate(str(pipeline))
