"""Rules of models that hear, or read states of others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.sequence_rules import SEQUENCE_RULES


def plan_of(model_type: str, config: Any, *takes: str) -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    SEQUENCE_RULES[model_type](plan, SimpleNamespace(config=config), set(takes))  # type: ignore[arg-type]
    return plan


def test_sound_is_long_enough_for_the_convolutions() -> None:
    """The shortest that is planned leaves frames behind them."""
    config = transformers.MoonshineConfig(
        vocab_size=30, hidden_size=16, intermediate_size=17, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
    )  # fmt: skip
    plan = plan_of("moonshine", config, "input_values", "decoder_input_ids")
    assert plan.context == ("input_values",)
    model = transformers.MoonshineForConditionalGeneration(config).eval()
    sizes = {**plan.example, "samples": plan.dims["samples"].min}
    with torch.no_grad():
        logits = model(**plan.sample(sizes, torch.Generator().manual_seed(0))).logits
    assert logits.shape == (2, 7, 30)


@pytest.mark.parametrize(
    ("takes", "context"),
    [
        (("input_values", "attention_mask"), ("input_values",)),
        (("input_ids",), ("input_ids", "attention_mask")),
    ],
)
def test_speech_is_heard_or_spoken(takes: tuple[str, ...], context: tuple[str, ...]) -> None:
    config = SimpleNamespace(
        model_type="speecht5", vocab_size=30, conv_stride=(5, 2), max_text_positions=20,
        num_mel_bins=8, speaker_embedding_dim=0,
    )  # fmt: skip
    plan = plan_of("speecht5", config, *takes, "decoder_input_values")
    assert plan.context == context
    assert ("samples" in plan.dims) == ("input_values" in takes)
    assert plan.shapes["decoder_input_values"] == ("batch", "decoder_frames", 8)
    assert "speaker_embeddings" not in plan.shapes
    config.speaker_embedding_dim = 6
    plan = plan_of("speecht5", config, *takes, "decoder_input_values")
    assert plan.shapes["speaker_embeddings"] == ("batch", 6)


def test_a_spectrum_is_twice_as_long_as_its_positions() -> None:
    config = SimpleNamespace(
        model_type="whisper", vocab_size=30, num_mel_bins=8, max_source_positions=10,
        max_target_positions=12,
    )  # fmt: skip
    plan = plan_of("whisper", config, "input_features", "decoder_input_ids")
    assert plan.shapes["input_features"] == ("batch", 8, 20)
    assert plan.dims["decoder_text"].max == 12
    assert "decoder_input_ids" not in plan_of("whisper", config, "input_features").shapes


def test_decoders_look_at_states_of_the_encoder_s_width() -> None:
    config = SimpleNamespace(
        model_type="trocr", vocab_size=30, cross_attention_hidden_size=None, hidden_size=16
    )
    assert plan_of("trocr", config).shapes["encoder_hidden_states"][-1] == 16
    config.cross_attention_hidden_size = 24
    plan = plan_of("trocr", config)
    assert plan.shapes["encoder_hidden_states"][-1] == 24
    assert plan.context == ("encoder_hidden_states", "encoder_attention_mask")


def test_every_codebook_has_its_row() -> None:
    config = SimpleNamespace(
        model_type="musicgen_decoder", vocab_size=5, num_codebooks=4, hidden_size=16
    )
    plan = plan_of("musicgen_decoder", config)
    made = plan.sample({**plan.example, "text": 50}, torch.Generator())
    assert made["input_ids"].shape == (2, 4, 50)
    assert set(made["input_ids"].flatten().tolist()) == set(range(5))
