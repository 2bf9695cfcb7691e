"""Patches compute what the originals compute, and are gone afterwards."""

from __future__ import annotations

import torch
import transformers
from transformers.models.dbrx import modeling_dbrx
from transformers.models.moonshine import modeling_moonshine
from transformers.models.vilt import modeling_vilt

from crossfuse.export.sources.huggingface.patches import our_patches

LENGTHS = "_get_feat_extract_output_lengths"


def test_lengths_behind_moonshine_s_convolutions() -> None:
    original = getattr(modeling_moonshine.MoonshinePreTrainedModel, LENGTHS)
    sizes = range(1000, 9000)
    with our_patches():
        patched = getattr(modeling_moonshine.MoonshinePreTrainedModel, LENGTHS)
        assert patched is not original
        assert [patched(None, n) for n in sizes] == [int(original(None, n)) for n in sizes]
    assert getattr(modeling_moonshine.MoonshinePreTrainedModel, LENGTHS) is original


def test_vilt_s_image_tokens_are_the_same_set() -> None:
    """The original draws its patches in random order: attention doesn't see it, so the sets of
    tokens are compared, those that the mask hides left out."""
    config = transformers.ViltConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=17,
        image_size=32, patch_size=8, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    embeddings = modeling_vilt.ViltEmbeddings(config).eval()
    torch.nn.init.normal_(embeddings.position_embeddings)
    pixels = torch.randn(2, 3, 32, 32)
    seen = torch.ones(2, 32, 32, dtype=torch.long)
    seen[1, 24:, :] = 0
    seen[1, :, 16:] = 0
    original = modeling_vilt.ViltEmbeddings.visual_embed
    with torch.no_grad():
        expected, expected_mask, _ = original(embeddings, pixels, seen, 200)
        with our_patches():
            made, made_mask, _ = embeddings.visual_embed(pixels, seen, 200)
    assert modeling_vilt.ViltEmbeddings.visual_embed is original
    for row in range(2):
        one, other = expected[row][expected_mask[row] > 0], made[row][made_mask[row] > 0]
        assert len(one) == len(other) == (17, 7)[row]
        distances = torch.cdist(one.double(), other.double())
        assert distances.min(1).values.max() < 1e-4
        assert len(distances.argmin(1).unique()) == len(one)


def test_dbrx_s_experts() -> None:
    config = transformers.models.dbrx.configuration_dbrx.DbrxFFNConfig(
        ffn_hidden_size=5, moe_num_experts=4, moe_top_k=2, hidden_size=6
    )
    torch.manual_seed(0)
    experts = modeling_dbrx.DbrxExperts(config).double().eval()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    states, chosen = torch.randn(2, 3, 6).double(), torch.randint(4, (6, 2))
    chosen[:, 1] = (chosen[:, 0] + 1) % 4
    weights = torch.rand(6, 2).double()
    with torch.no_grad():
        expected = experts(states, chosen, weights)
        with our_patches():
            made = experts(states, chosen, weights)
    assert torch.allclose(made, expected, atol=1e-12)
