"""CLIP, ViLT and Q-Former equal ``transformers`` with the same weights, loaded from a checkpoint as
users have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    CLIPConfig,
    CLIPModel,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltModel,
)

from crossfuse.errors import InputError
from crossfuse.models.checkpoints import checkpoint_spec, load_module
from crossfuse.models.registry import ZOO, zoo_spec
from crossfuse.models.sampling import padding

TOLERANCE = dict(atol=1e-5, rtol=0)


def perturbed(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights everywhere, norms and biases too: a parameter at its default value could hide
    a wrong mapping."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def saved(module: torch.nn.Module, folder: Path) -> str:
    module.save_pretrained(folder)
    return str(folder)


def clip_model(eos: int, activation: str = "quick_gelu", tiny: bool = True) -> CLIPModel:
    if not tiny:
        return perturbed(CLIPModel(CLIPConfig()))
    common = dict(
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, hidden_act=activation
    )
    text = dict(
        hidden_size=32, vocab_size=99, max_position_embeddings=16, eos_token_id=eos, **common
    )
    vision = dict(hidden_size=40, image_size=32, patch_size=8, **common)
    return perturbed(
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    )


@pytest.mark.parametrize(
    ("eos", "activation", "tiny"),
    [
        (98, "quick_gelu", True),
        (2, "quick_gelu", True),
        (98, "gelu", True),
        pytest.param(49407, "quick_gelu", False, marks=pytest.mark.slow),
    ],
)
def test_clip(tmp_path: Path, eos: int, activation: str, tiny: bool) -> None:
    theirs = clip_model(eos, activation, tiny)
    ours = load_module("clip", saved(theirs, tmp_path)).module
    vocabulary, side = (99, 32) if tiny else (49408, 224)
    generator = torch.Generator().manual_seed(1)
    mask = padding(generator, 3, 11)
    ids = torch.randint(3, vocabulary - 1, (3, 11), generator=generator)
    ids = ids.scatter(1, mask.sum(1, keepdim=True) - 1, vocabulary - 1) * mask
    pixels = torch.randn(2, 3, side, side, generator=generator)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        got = ours(ids, mask, pixels)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        torch.testing.assert_close(got[name], expected[name], **TOLERANCE)


def vilt_config(tiny: bool) -> ViltConfig:
    if not tiny:
        return ViltConfig()
    return ViltConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=99,
        max_position_embeddings=16,
        image_size=64,
        patch_size=16,
    )


@pytest.mark.parametrize("tiny", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_vilt(tmp_path: Path, tiny: bool) -> None:
    """With texts and images padded: transformers shuffles the patches, so real ones are matched by
    their states."""
    theirs = perturbed(ViltModel(vilt_config(tiny)))
    loaded = load_module("vilt", saved(theirs, tmp_path))
    ours, config = loaded.module, loaded.config
    side, step, grid = config.image_size, config.patch_size, config.image_size // config.patch_size
    generator = torch.Generator().manual_seed(1)
    mask = padding(generator, 3, 9)
    ids = torch.randint(1, config.vocabulary, (3, 9), generator=generator)
    extents = [(grid, grid), (grid - 1, grid), (2, grid - 2)]
    pixel_mask = torch.zeros(3, side, side, dtype=torch.long)
    for i, (rows, columns) in enumerate(extents):
        pixel_mask[i, : rows * step, : columns * step] = 1
    pixels = torch.randn(3, 3, side, side, generator=generator) * pixel_mask[:, None]
    with torch.no_grad():
        expected = theirs(
            input_ids=ids, attention_mask=mask, pixel_values=pixels, pixel_mask=pixel_mask
        )
        got = ours(ids, mask, pixels, pixel_mask)
    torch.testing.assert_close(got["pooler_output"], expected.pooler_output, **TOLERANCE)
    for i, (rows, columns) in enumerate(extents):
        real = pixel_mask[i, ::step, ::step].flatten().bool()
        length = int(mask[i].sum())
        states = got["last_hidden_state"][i]
        torch.testing.assert_close(
            states[:length], expected.last_hidden_state[i, :length], **TOLERANCE
        )
        torch.testing.assert_close(states[9], expected.last_hidden_state[i, 9], **TOLERANCE)
        patches = expected.last_hidden_state[i, 10 : 10 + rows * columns]
        apart = (states[10:][real][:, None] - patches[None]).abs().amax(-1)
        assert torch.equal(apart.argmin(0).sort().values, torch.arange(rows * columns))
        assert apart.amin(0).max() < 1e-5


def test_vilt_with_a_head_loads(tmp_path: Path) -> None:
    theirs = perturbed(ViltForQuestionAnswering(vilt_config(True)))
    ours = load_module("vilt", saved(theirs, tmp_path)).module
    torch.testing.assert_close(
        ours.modalities.weight, theirs.vilt.embeddings.token_type_embeddings.weight
    )


def blip2(text: bool, tiny: bool) -> Blip2ForImageTextRetrieval:
    if not tiny:
        config = Blip2QFormerConfig(use_qformer_text_input=True, vocab_size=30523)
        vision = dict(num_hidden_layers=1, intermediate_size=64)
        return perturbed(
            Blip2ForImageTextRetrieval(
                Blip2Config(vision_config=vision, qformer_config=config.to_dict())
            )
        )
    config = Blip2QFormerConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        encoder_hidden_size=24,
        vocab_size=99,
        max_position_embeddings=16,
        use_qformer_text_input=text,
    )
    vision = dict(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
    )
    blip = Blip2Config(
        vision_config=vision,
        qformer_config=config.to_dict(),
        num_query_tokens=5,
        image_text_hidden_size=8,
    )
    return perturbed(Blip2ForImageTextRetrieval(blip))


@pytest.mark.parametrize("tiny", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_qformer_with_text(tmp_path: Path, tiny: bool) -> None:
    theirs = blip2(True, tiny)
    loaded = load_module("qformer", saved(theirs, tmp_path))
    ours, config = loaded.module, loaded.config
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 11, config.image_width, generator=generator)
    image_mask, mask = padding(generator, 3, 11), padding(generator, 3, 7)
    ids = torch.randint(1, config.vocabulary, (3, 7), generator=generator)
    with torch.no_grad():
        queries = theirs.query_tokens.expand(3, -1, -1)
        expected = theirs.qformer(
            query_embeds=theirs.embeddings(input_ids=ids, query_embeds=queries),
            query_length=config.queries,
            attention_mask=torch.cat([torch.ones(3, config.queries, dtype=torch.long), mask], 1),
            encoder_hidden_states=image,
            # transformers builds its own mask for all tokens, though only the queries look at the
            # image; 4-D is taken as it is.
            encoder_attention_mask=image_mask.bool()[:, None, None, :],
        ).last_hidden_state
        got = ours(image, image_mask, ids, mask)
    states = torch.cat([got["query_states"], got["text_states"]], 1)
    torch.testing.assert_close(states, expected, **TOLERANCE)


def test_qformer_for_images_alone(tmp_path: Path) -> None:
    theirs = blip2(True, True)
    ours = load_module("qformer", saved(theirs, tmp_path)).module
    image = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.qformer(
            query_embeds=theirs.query_tokens.expand(2, -1, -1), encoder_hidden_states=image
        )
        got = ours(image, torch.ones(2, 11))
    torch.testing.assert_close(got["query_states"], expected.last_hidden_state, **TOLERANCE)


def test_checkpoint_becomes_a_spec(tmp_path: Path) -> None:
    spec = checkpoint_spec("clip", saved(clip_model(98), tmp_path))
    assert spec.inputs["pixel_values"].shape == (2, 3, 32, 32)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    saved(clip_model(98), folder)
    with pytest.raises(InputError, match="doesn't fit 'vilt'"):
        load_module("vilt", str(folder))
    with pytest.raises(InputError, match="loads no checkpoints"):
        load_module("dalle", str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="pickles are never loaded"):
        load_module("clip", str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_module("clip", str(folder))


@pytest.mark.parametrize("name", list(ZOO))
def test_specs_are_seeded(name: str) -> None:
    first, second, other = (
        zoo_spec(name, "tiny"),
        zoo_spec(name, "tiny"),
        zoo_spec(name, "tiny", seed=1),
    )
    weights = [dict(s.module.named_parameters()) for s in (first, second, other)]
    assert all(torch.equal(a, weights[1][k]) for k, a in weights[0].items())
    assert any(not torch.equal(a, weights[2][k]) for k, a in weights[0].items())
    sizes = first.example_sizes
    assert all(
        torch.equal(a, second.sample(sizes, 3)[k]) for k, a in first.sample(sizes, 3).items()
    )
