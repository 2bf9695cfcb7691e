"""Other results than ``forward`` gives, from the same computation."""

from __future__ import annotations

import copy

import torch
import transformers
from torch import nn

from coverage.shrink import tiny_config
from crossfuse.export.sources.huggingface.adapters import adapt

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 17,
}


def test_other_classes_stay_as_they_are() -> None:
    linear = nn.Linear(3, 3)
    assert adapt(linear) is linear
    assert "forward" not in vars(linear)


def test_a_q_former_s_queries_are_never_padded() -> None:
    config = transformers.InstructBlipQFormerConfig(
        **SIZES, vocab_size=30, max_position_embeddings=12, encoder_hidden_size=8
    )
    torch.manual_seed(0)
    model = transformers.InstructBlipQFormerModel(config).eval()
    kept = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {
        "input_ids": torch.randint(30, (2, 5)),
        "query_embeds": torch.randn(2, 4, 16),
        "encoder_hidden_states": torch.randn(2, 7, 8),
        "encoder_attention_mask": torch.ones(2, 7, dtype=torch.long),
    }
    whole = torch.cat([torch.ones(2, 4, dtype=torch.long), kept], dim=1)
    with torch.no_grad():
        original = model(**inputs, attention_mask=whole)[0]
        adapted = adapt(model)(**inputs, attention_mask=kept)[0]
    assert torch.equal(original, adapted)


def test_blip_answers_with_the_logits_that_its_loss_is_made_of() -> None:
    config = transformers.BlipConfig(
        text_config={**SIZES, "vocab_size": 30, "max_position_embeddings": 12, "bos_token_id": 1,
                     "sep_token_id": 2, "pad_token_id": 0, "encoder_hidden_size": 16},
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BlipForQuestionAnswering(config).eval()
    seen: list[torch.Tensor] = []
    model.text_decoder.cls.register_forward_hook(lambda _m, _i, output: seen.append(output))
    inputs = {
        "input_ids": torch.randint(3, 30, (2, 5)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "pixel_values": torch.randn(2, 3, 16, 16),
        "decoder_input_ids": torch.randint(3, 30, (2, 4)),
    }
    with torch.no_grad():
        model(**inputs, labels=inputs["decoder_input_ids"])
        (expected,) = seen
        logits = adapt(model)(**inputs)["logits"]
    assert torch.allclose(logits, expected, atol=1e-6)


def test_prophetnet_in_float64() -> None:
    """Its masks overflow where they are whole numbers."""
    config = transformers.ProphetNetConfig(
        vocab_size=30, hidden_size=16, encoder_ffn_dim=17, decoder_ffn_dim=17, num_encoder_layers=1,
        num_decoder_layers=1, num_encoder_attention_heads=2, num_decoder_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ProphetNetModel(config).eval()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.randint(1, 30, (2, 4))
    with torch.no_grad():
        expected = model(ids, mask, ids[:, :3])[0]
        made = adapt(model).double()(ids, mask, ids[:, :3])[0]
    assert torch.allclose(made.float(), expected, atol=1e-4)


def test_classes_and_tasks_are_made_anew() -> None:
    config = tiny_config(transformers.OmDetTurboConfig)
    torch.manual_seed(0)
    original = transformers.OmDetTurboForObjectDetection(config).eval()
    adapted = adapt(copy.deepcopy(original))
    ids, seen = torch.randint(4, 90, (3, 5)), torch.tensor([[1] * 5, [1] * 4 + [0], [1] * 5])
    with torch.no_grad():
        classes = original.get_cached_class_embeddings(ids, seen)
        tasks, masks = original.get_cached_task_embeddings(ids, seen)
        again, anew = original.get_cached_class_embeddings(ids, seen), ids.flip(0)
        assert torch.equal(adapted.get_cached_class_embeddings(ids, seen), again)
        torch.testing.assert_close(again, classes)
        found = adapted.get_cached_task_embeddings(ids, seen)
        assert not torch.equal(adapted.get_cached_class_embeddings(anew, seen), again)
    torch.testing.assert_close(found[0], tasks)
    assert torch.equal(found[1], masks)
