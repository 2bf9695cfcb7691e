"""A mask that the library's eager path leaves out is read as the module reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from crossfuse.export.sources.huggingface.skipped_masks import SkippedMasks

PADDED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()


def traced(**given: Any) -> Tensor:
    """The library's mask as it makes it while tracing: never left out."""
    given |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    made = sdpa_mask(**given)
    assert isinstance(made, Tensor)
    return made


@pytest.mark.parametrize("padding", [PADDED, torch.ones(2, 4).bool()])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask_is_causal", [False, True])
def test_as_the_library_s_attention_reads_it(
    padding: Tensor, causal: bool, mask_is_causal: bool
) -> None:
    given: dict[str, Any] = {
        "batch_size": 2, "q_length": 4, "kv_length": 4, "attention_mask": padding,
        "allow_is_causal_skip": mask_is_causal, "allow_is_bidirectional_skip": not mask_is_causal,
    }  # fmt: skip
    given["mask_function"] = (
        causal_mask_function if mask_is_causal else lambda b, h, q, k: (q >= 0) & (k >= 0)
    )
    masks = SkippedMasks(traced)
    made = masks.as_eager(masks.make(**given), causal)
    eager = sdpa_mask(**given)
    triangle = torch.ones(4, 4).tril().bool()
    expected = eager if eager is not None else triangle if causal else torch.ones(4, 4).bool()
    assert made is not None
    assert torch.equal(made.expand(2, 1, 4, 4), expected.expand(2, 1, 4, 4))


def test_masks_of_others_stay() -> None:
    masks = SkippedMasks(traced)
    mask = torch.ones(1, 1, 2, 2).bool()
    assert masks.as_eager(mask, causal=True) is mask
    assert masks.as_eager(None, causal=False) is None


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_aimv2_s_text_tower(padded: bool) -> None:
    """Its eager attention is causal in a padded batch alone."""
    from crossfuse.export.sources.huggingface.attention_interface import operator_as_interface

    config = transformers.Aimv2TextConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=17, eos_token_id=29,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Aimv2TextModel(config).eval()
    inputs = {"input_ids": torch.randint(28, (2, 5)), "attention_mask": torch.ones(2, 5).long()}
    if padded:
        inputs["attention_mask"][1, 3:] = 0
    with torch.no_grad():
        expected = model(**inputs)[0]
        with operator_as_interface(model):
            made = model(**inputs)[0]
    kept = inputs["attention_mask"].bool()
    assert torch.allclose(made[kept], expected[kept], atol=1e-5)
