"""Attention within windows and blocks, against the library's own, in float64."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers.models.big_bird import modeling_big_bird
from transformers.models.bigbird_pegasus import modeling_bigbird_pegasus
from transformers.models.led import modeling_led
from transformers.models.longformer import modeling_longformer
from transformers.models.longt5 import modeling_longt5
from transformers.models.pegasus_x import modeling_pegasus_x

from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.sources.huggingface.patches import our_patches
from crossfuse.export.sources.huggingface.windowed import (
    blocked_attention,
    global_blocks,
    unpadded,
    windowed_attention,
)


@pytest.mark.parametrize("kind", ["longformer", "led"])
@pytest.mark.parametrize("length", [4, 12])
def test_windows_and_global_tokens(kind: str, length: int) -> None:
    torch.manual_seed(0)
    attention: nn.Module
    if kind == "longformer":
        config = transformers.LongformerConfig(
            hidden_size=16, num_attention_heads=2, attention_window=[4], num_hidden_layers=1
        )
        attention = modeling_longformer.LongformerSelfAttention(config, 0)
    else:
        led = transformers.LEDConfig(d_model=16, encoder_attention_heads=2, attention_window=[4])
        attention = modeling_led.LEDEncoderSelfAttention(led, 0)
    attention = attention.double().eval()
    x = torch.randn(2, length, 16).double()
    mask = torch.zeros(2, length).double()
    mask[0, 0] = mask[0, 2] = mask[1, 1] = 1e4
    mask[1, length - 2 :] = -1e4
    given = (mask, mask < 0, mask > 0, True)
    with torch.no_grad():
        expected = attention(x, *given)[0]
        made = windowed_attention(attention, x, *given)[0]
    # Their softmax is in float32.
    assert torch.allclose(made, expected, atol=1e-6)
    assert (made[1, length - 2 :] == 0).all()


def test_windows_that_need_no_padding() -> None:
    ids, mask = torch.ones(1, 3).long(), torch.ones(1, 3)
    made = unpadded(None, pad_token_id=1, input_ids=ids, attention_mask=mask, inputs_embeds=None)
    assert made[0] == 0
    assert made[1] is ids
    assert made[2] is mask
    assert made[3] is None


def test_blocks_and_global_tokens() -> None:
    torch.manual_seed(0)
    attention = modeling_pegasus_x.PegasusXGlobalLocalAttention(8, 2, block_size=3).double()
    shared = [torch.randn(2, 2, 4, 4).double() for _ in range(2)]
    tokens = [torch.randn(2, 2, 9, 4).double() for _ in range(3)]
    mask = torch.zeros(2, 9).double()
    mask[1, 4:] = torch.finfo(torch.float64).min
    sizes = modeling_pegasus_x.DimensionInfo(
        batch_size=2, seq_len=9, block_size=3, num_heads=2, hidden_dim=8, dim_per_head=4,
        num_blocks=3, global_len=4, padded_seq_len=9,
    )  # fmt: skip
    given = (*shared, *tokens, mask, sizes)
    expected, _ = attention.compute_local_attention_representations(*given)
    made, probabilities = blocked_attention(attention, *given)
    assert probabilities is None
    assert torch.allclose(made, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["BigBird", "BigBirdPegasus"])
@pytest.mark.parametrize(
    ("length", "copies"), [(14, 1), (21, 1), (22, 1), (33, 3), (40, 3), (47, 1)]
)
def test_blocks_of_texts_of_any_length(kind: str, length: int, copies: int) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "block_size": 3, "num_random_blocks": copies}
    model: nn.Module
    if kind == "BigBird":
        config = transformers.BigBirdConfig(
            hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16,
            sep_token_id=None, **sizes,
        )  # fmt: skip
        model = modeling_big_bird.BigBirdModel(config)
    else:
        other = transformers.BigBirdPegasusConfig(
            d_model=16, encoder_attention_heads=2, encoder_layers=2, encoder_ffn_dim=16, **sizes
        )
        model = modeling_bigbird_pegasus.BigBirdPegasusEncoder(other)
    model = model.double().eval()
    mask = torch.ones(2, length).long()
    mask[1, length - 4 :] = 0
    given = {"input_ids": torch.randint(0, 50, (2, length)), "attention_mask": mask}
    told: list[nn.Module] = []
    with torch.no_grad(), kept_state(model):
        with our_patches(note=told.append):
            made = model(**given).last_hidden_state
        assert model.attention_type == "block_sparse"
        expected = model(**given).last_hidden_state
        whole = model.attention_type == "original_full"
    assert whole == (length <= 3 * (5 + 2 * copies))
    assert len(told) == 2
    assert torch.allclose(made, expected, atol=1e-9)


@pytest.mark.parametrize("length", [1, 3, 4, 15, 16])
@pytest.mark.parametrize("size", [4, 3])
def test_numbers_of_blocks(length: int, size: int) -> None:
    torch.manual_seed(0)
    mask = (torch.rand(5, length) > 0.3).long()
    mask[0], mask[1], mask[2, length // 2 :] = 1, 0, 0
    expected = modeling_longt5._make_global_fixed_block_ids(mask, size)
    for made, wanted in zip(global_blocks(mask, size), expected, strict=True):
        assert torch.equal(made, wanted)
        assert made.dtype == wanted.dtype
