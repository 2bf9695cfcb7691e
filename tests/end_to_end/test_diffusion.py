"""A pipeline of diffusers: its components export, and without PyTorch make its own image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers

import crossfuse
from context_products import context_products
from crossfuse import runtime
from crossfuse.bundle.store import Bundle
from diffusers_models import random_model, unet, vae

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "diffusion.py"
STEPS, GUIDANCE = 4, 7.5
LATENTS = (20, 12)
"""Height and width: not the configuration's, nor the example's."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> diffusers.StableDiffusionPipeline:
    torch.manual_seed(0)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=99,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=98,
        )
    ).eval()
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=None,
        unet=unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def folder(
    pipeline: diffusers.StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    where = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def bundles(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    out = tmp_path_factory.mktemp("bundles")
    sources = {
        "text": f"hf:{folder}/text_encoder",
        "unet": f"diffusers:{folder}",
        "decoder": f"diffusers:{folder}/vae/decoder",
        "encoder": f"diffusers:{folder}/vae/encoder",
    }
    return {name: crossfuse.export(source, out / name) for name, source in sources.items()}


def test_every_attention_fuses(bundles: dict[str, Bundle]) -> None:
    counts = {name: bundle.ledger.counts("ort-cpu") for name, bundle in bundles.items()}
    assert counts == {
        "text": {"self": 2},
        "unet": {"self": 4, "cross": 4},
        "decoder": {"self": 1},
        "encoder": {"self": 1},
    }


def test_keys_and_values_of_the_text_are_computed_once(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["unet"]
    assert bundle.manifest.context == ("encoder_hidden_states",)
    files = bundle.manifest.targets["ort-cpu"].stages
    graphs = {stage: ir.load(bundle.path / file) for stage, file in files.items()}
    frontier = {tensor.name for tensor in bundle.manifest.stages["context"].outputs}
    # K and V of four cross-attentions, and nothing but these.
    assert context_products(graphs["context"], {"encoder_hidden_states"}) == 8
    assert context_products(graphs["query"], frontier) == 0
    sites = [row.site for row in bundle.ledger if row.kind == "cross"]
    assert frontier == {f"context:{site}.{part}" for site in sites for part in ("key", "value")}


def test_the_image_is_the_pipelines_own(
    pipeline: diffusers.StableDiffusionPipeline,
    folder: Path,
    bundles: dict[str, Bundle],
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 98, (2, 9), generator=generator)
    noise = torch.randn(1, 4, *LATENTS, generator=generator)
    with torch.no_grad():
        led, free = pipeline.text_encoder(ids).last_hidden_state.split(1)
        expected = pipeline(
            prompt_embeds=led,
            negative_prompt_embeds=free,
            latents=noise,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=2 * LATENTS[0],
            width=2 * LATENTS[1],
            output_type="np",
        ).images
    given = {"ids": ids[:1].numpy(), "negative": ids[1:].numpy(), "noise": noise.numpy()}
    np.savez(tmp_path / "given.npz", **given)
    paths = [bundles[name].path for name in ("text", "unet", "decoder")]
    scheduler = folder / "scheduler" / "scheduler_config.json"
    image = tmp_path / "image.npy"
    command = [sys.executable, EXAMPLE, *paths, scheduler, tmp_path / "given.npz", image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "without PyTorch" in done.stdout
    got = np.load(image)
    assert got.shape == expected.shape == (1, 40, 24, 3)
    assert float(expected.std()) > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_other_sizes_than_the_examples(
    pipeline: diffusers.StableDiffusionPipeline, bundles: dict[str, Bundle]
) -> None:
    """Normalisation over groups, and upsampling to sizes that are no multiples."""
    generator = torch.Generator().manual_seed(2)
    with runtime.load(bundles["unet"].path) as session:
        for batch, height, width, text in ((1, 4, 4, 1), (3, 16, 31, 12), (2, 33, 8, 5)):
            given = {
                "sample": torch.randn(batch, 4, height, width, generator=generator),
                "timestep": torch.rand(batch, generator=generator) * 999,
                "encoder_hidden_states": torch.randn(batch, text, 32, generator=generator),
            }
            with torch.no_grad():
                expected = pipeline.unet(**given).sample.numpy()
            got = session.run({name: tensor.numpy() for name, tensor in given.items()})
            np.testing.assert_allclose(got["sample_out"], expected, atol=2e-5)
    with runtime.load(bundles["decoder"].path) as session, torch.no_grad():
        latents = torch.randn(1, 4, 19, 8, generator=generator)
        expected = pipeline.vae.decode(latents).sample.numpy()
        got = session.run(latents=latents.numpy())["sample"]
        np.testing.assert_allclose(got, expected, atol=2e-5)
    with runtime.load(bundles["encoder"].path) as session, torch.no_grad():
        images = torch.randn(1, 3, 38, 17, generator=generator)
        found = pipeline.vae.encode(images).latent_dist
        got = session.run(sample=images.numpy())
        np.testing.assert_allclose(got["mean"], found.mean.numpy(), atol=2e-5)


def controlled(**options: Any) -> Any:
    return random_model(
        diffusers.ControlNetModel,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=16,
        conditioning_embedding_out_channels=(8, 16),
        **options,
    )


def test_a_controlnet_at_other_sizes(tmp_path: Path) -> None:
    """The image that controls is twice as large as what is denoised, at every size, and its
    embedding is the context's."""
    model = controlled()
    model.save_pretrained(tmp_path / "control")
    bundle = crossfuse.export(f"diffusers:{tmp_path / 'control'}", tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {"self": 2, "cross": 2}
    generator = torch.Generator().manual_seed(3)
    given = {
        "sample": torch.randn(1, 4, 13, 10, generator=generator),
        "timestep": torch.tensor([77.0]),
        "encoder_hidden_states": torch.randn(1, 6, 32, generator=generator),
        "controlnet_cond": torch.randn(1, 3, 26, 20, generator=generator),
    }
    with torch.no_grad():
        expected = model(**given)
    arrays = {name: tensor.numpy() for name, tensor in given.items()}
    with runtime.load(bundle.path) as session:
        got = session.run(arrays)
        np.testing.assert_allclose(
            got["mid_block_res_sample"], expected.mid_block_res_sample.numpy(), atol=2e-5
        )
        arrays["controlnet_cond"] = arrays["controlnet_cond"][:, :, :24]
        with pytest.raises(crossfuse.InputError, match="disagree about dimension 'height'"):
            session.run(arrays)
