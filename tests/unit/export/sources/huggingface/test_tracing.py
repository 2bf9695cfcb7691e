"""The context of a trace leaves the libraries as they were."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm_ocr.configuration_glm_ocr import GlmOcrVisionConfig
from transformers.models.glm_ocr.modeling_glm_ocr import GlmOcrVisionModel

from crossfuse.export.sources.huggingface.tracing import tracing

CONFIG = transformers.BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=17
)


def test_what_is_patched_is_given_back() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(CONFIG).eval()
    inputs = {"input_ids": torch.randint(30, (2, 5))}
    attention, interface = F.scaled_dot_product_attention, ALL_ATTENTION_FUNCTIONS["sdpa"]
    with torch.no_grad():
        expected = model(**inputs)[0]
    with tracing(model, inputs) as about:
        # Ours goes further than the library's patch of it.
        assert F.scaled_dot_product_attention is attention
        with torch.no_grad():
            made = model(**inputs)[0]
        assert about.interfaced == {"encoder.layer.0.attention.self"}
        assert not about.defer_guards
    assert torch.allclose(made, expected, atol=1e-5)
    assert F.scaled_dot_product_attention is attention
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is interface


def test_sizes_that_a_tracer_can_not_prove() -> None:
    config = transformers.MoonshineConfig(
        vocab_size=30, hidden_size=16, intermediate_size=17, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
    )  # fmt: skip
    model = transformers.MoonshineForConditionalGeneration(config).eval()
    inputs = {"input_values": torch.randn(1, 4000), "decoder_input_ids": torch.ones(1, 2).long()}
    with tracing(model, inputs) as about:
        assert about.defer_guards


def test_experts_are_grouped_whatever_way_the_model_runs_them() -> None:
    config = transformers.MixtralConfig(
        vocab_size=30, hidden_size=16, intermediate_size=17, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralModel(config).eval()
    model.set_experts_implementation("eager")
    inputs = {"input_ids": torch.randint(30, (2, 5))}
    with torch.no_grad():
        expected = model(**inputs)[0]
        with tracing(model, inputs):
            assert model.config._experts_implementation == "grouped_mm"
            made = model(**inputs)[0]
    assert model.config._experts_implementation == "eager"
    assert torch.allclose(made, expected, atol=1e-5)


def test_modules_that_compute_their_attentions_as_one() -> None:
    config = transformers.BigBirdConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=17, block_size=2, num_random_blocks=1, sep_token_id=None,
    )  # fmt: skip
    model = transformers.BigBirdModel(config).eval()
    inputs = {"input_ids": torch.randint(30, (2, 17))}
    with tracing(model, inputs) as about, torch.no_grad():
        assert not about.joined
        model(**inputs)
        assert about.joined == {"encoder.layer.0.attention"}


def test_norms_of_packed_heads_are_kept() -> None:
    config = GlmOcrVisionConfig(
        depth=1, hidden_size=32, num_heads=2, intermediate_size=17, out_hidden_size=16, patch_size=4
    )
    torch.manual_seed(0)
    model = GlmOcrVisionModel(config).eval()
    with torch.no_grad():
        model.blocks[0].attn.q_norm.weight.uniform_(1, 3)
        inputs = {"hidden_states": torch.randn(24, 96), "grid_thw": torch.tensor([[1, 4, 6]])}
        expected = model(**inputs)[0]
        with tracing(model, inputs):
            made = model(**inputs)[0]
    torch.testing.assert_close(made, expected)
