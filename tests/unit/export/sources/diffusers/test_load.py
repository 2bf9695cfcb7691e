"""Which class a folder becomes, from safetensors alone, and that its weights are whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crossfuse import InputError
from crossfuse.export.sources.diffusers.load import load_model, weight_names
from diffusers_models import pixart

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixart")
    pixart().half().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def reconfigured(folder: Path, **entries: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def test_the_class_that_the_configuration_names_in_float32(saved: Path) -> None:
    found = load_model(saved)
    assert type(found.module).__name__ == "PixArtTransformer2DModel"
    assert (found.missing, found.left_over, found.module.training) == ((), (), False)
    weights = load_file(saved / WEIGHTS)
    for name, parameter in found.module.named_parameters():
        assert (parameter.dtype, parameter.requires_grad) == (torch.float32, False)
        assert torch.equal(parameter, weights[name].float())


def test_parts_and_variants(copy: Path, tmp_path: Path) -> None:
    whole = load_model(copy).module.state_dict()
    weights = load_file(copy / WEIGHTS)
    names = sorted(weights)
    (copy / WEIGHTS).unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, copy / file, {"format": "pt"})
    places = {name: file for file, own in parts.items() for name in own}
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    sharded = load_model(copy).module.state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in whole.items())

    half = tmp_path / "half"
    pixart().half().save_pretrained(half, variant="fp16")
    assert weight_names(half)[1] == "fp16"
    other = load_model(half).module.state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in whole.items())


def test_pickles_and_what_leads_elsewhere(copy: Path, tmp_path: Path) -> None:
    weights = (copy / WEIGHTS).rename(tmp_path / "outside.safetensors")
    (copy / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(InputError, match="pickles are never loaded"):
        load_model(copy)
    (copy / WEIGHTS).symlink_to(weights)
    with pytest.raises(InputError, match="leads out of its folder"):
        load_model(copy)
    (copy / WEIGHTS).unlink()
    for name in ("../outside.safetensors", "x.bin"):
        (copy / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match="names a file that can't be loaded"):
            load_model(copy)


@pytest.mark.parametrize(
    "name", ["NoSuchModel", "DDIMScheduler", "ModelMixin.forward", "", 3, None]
)
def test_only_models_are_made(copy: Path, name: Any) -> None:
    with pytest.raises(InputError, match="has no such model"):
        load_model(reconfigured(copy, _class_name=name))


def test_quantized_weights(copy: Path) -> None:
    quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(InputError, match="quantized"):
        load_model(reconfigured(copy, quantization_config=quantized))


def test_missing_weights_are_named_or_the_same_each_time(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    lost, other = "proj_out.weight", "proj_out.bias"
    weights.pop(lost)
    weights[other] = torch.zeros(3)
    save_file(weights | {"strange": torch.zeros(1)}, copy / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError) as error:
        load_model(copy)
    assert all(text in str(error.value) for text in (lost, "proj_out.bias [3] for [32]", "strange"))
    made = [load_model(copy, allow_missing=True) for _ in range(2)]
    assert (made[0].missing, made[0].left_over) == ((other, lost), ("strange",))
    first, second = (m.module.get_parameter(lost) for m in made)
    assert torch.equal(first, second)
    assert first.abs().sum() > 0
