"""A folder of diffusers as a source: what is exported, and that it fuses."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import crossfuse
from context_products import context_products
from crossfuse import InputError
from crossfuse.export.sources.diffusers.spec import diffusers_spec
from diffusers_models import pixart, unet, vae


@pytest.mark.slow
def test_a_folder_exports_fused(tmp_path: Path) -> None:
    pixart().save_pretrained(tmp_path / "pixart")
    bundle = crossfuse.export(f"diffusers:{tmp_path / 'pixart'}", tmp_path / "b", quick=True)
    assert bundle.ledger.counts("ort-cpu") == {"self": 1, "cross": 1}
    assert bundle.manifest.source["kind"] == "diffusers"
    files = bundle.manifest.targets["ort-cpu"].stages
    graphs = {stage: ir.load(bundle.path / file) for stage, file in files.items()}
    frontier = {tensor.name for tensor in bundle.manifest.stages["context"].outputs}
    # The caption's two layers, K and V.
    given = {"encoder_hidden_states", "encoder_attention_mask"}
    assert context_products(graphs["context"], given) == 4
    assert context_products(graphs["query"], frontier) == 0


def test_inputs_of_ones_own() -> None:
    inputs = {
        "hidden_states": torch.randn(1, 4, 6, 6),
        "encoder_hidden_states": torch.randn(1, 3, 12),
        "timestep": torch.tensor(3.0),
    }
    spec = diffusers_spec(pixart(), inputs=inputs, context=("encoder_hidden_states",))
    assert (spec.name, spec.context) == ("PixArtTransformer2DModel", ("encoder_hidden_states",))
    assert spec.inputs["timestep"].ndim == 0
    assert not spec.dims


@pytest.mark.slow
def test_autoencoders_need_a_half(tmp_path: Path) -> None:
    vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=r"expected encoder or decoder.*diffusers:FOLDER/encoder"):
        diffusers_spec(str(tmp_path / "vae"))
    assert list(diffusers_spec(str(tmp_path / "vae/decoder")).inputs) == ["latents"]
    assert list(diffusers_spec(vae(), half="encoder").inputs) == ["sample"]
    with pytest.raises(InputError, match="no autoencoder"):
        diffusers_spec(unet(), half="decoder")


@pytest.mark.slow
def test_one_timestep_for_all_samples(tmp_path: Path) -> None:
    """A time step without an axis is taken, too."""
    inputs = {
        "sample": torch.randn(2, 4, 9, 6),
        "timestep": torch.tensor(37.0),
        "encoder_hidden_states": torch.randn(2, 3, 32),
    }
    dynamic = {
        "sample": {0: "batch", 2: "height:4", 3: "width:4"},
        "encoder_hidden_states": {0: "batch", 1: "text"},
    }
    spec = diffusers_spec(
        unet(), inputs=inputs, dynamic=dynamic, context=("encoder_hidden_states",)
    )
    bundle = crossfuse.export(spec, tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {"self": 4, "cross": 4}
