"""The operator behind the library's attention, against the library's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crossfuse.export.sources.huggingface.attention_interface import operator_as_interface


def llama(**changes: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=33, use_cache=False, **changes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("padded", [False, True])
def test_computes_what_the_library_s_attention_computes(padded: bool) -> None:
    model = llama()
    inputs = {"input_ids": torch.randint(30, (2, 6))}
    if padded:
        inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with torch.no_grad():
        expected = model(**inputs).logits
        with operator_as_interface(model) as called:
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not original
            made = model(**inputs).logits
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is original
    assert called == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    kept = inputs.get("attention_mask", torch.ones(2, 6)).bool()
    assert torch.allclose(made[kept], expected[kept], atol=1e-5)


def test_other_models_attention_is_left_alone() -> None:
    model, other = llama(), llama()
    ids = torch.randint(30, (1, 4))
    with torch.no_grad():
        expected = other(input_ids=ids).logits
        with operator_as_interface(model) as called:
            assert torch.equal(other(input_ids=ids).logits, expected)
    assert called == set()


def test_the_library_has_its_own_back_after_an_error() -> None:
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(ZeroDivisionError), operator_as_interface(llama()):
        raise ZeroDivisionError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is original


def test_a_bias_of_positions_joins_the_scores() -> None:
    """T5 adds one; PyTorch's own attention takes it in the mask's place."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=17, num_layers=1, num_heads=2, use_cache=False,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.randint(1, 30, (2, 5))
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids).logits
        with operator_as_interface(model):
            made = model(input_ids=ids, decoder_input_ids=ids).logits
    assert torch.allclose(made, expected, atol=1e-5)
