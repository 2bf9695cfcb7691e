"""Which rule plans a model's inputs, and what is context."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.image_rules import IMAGE_RULES
from crossfuse.export.sources.huggingface.input_fillers import normal
from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.input_rules import (
    RULES,
    plan_inputs,
    register_input_rule,
)
from crossfuse.export.sources.huggingface.sequence_rules import SEQUENCE_RULES

TEXT = {"vocab_size": 20, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def _own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RULES, "_registered", {})


def model(signature: Callable[..., None], model_type: str = "nobody's", **config: Any) -> Any:
    made = nn.Module()
    made.forward = signature  # type: ignore[assignment]
    made.config = SimpleNamespace(model_type=model_type, **config)
    return made


def text(input_ids: Any, attention_mask: Any) -> None: ...
def image_and_text(pixel_values: Any, input_ids: Any) -> None: ...
def sequences(input_ids: Any, attention_mask: Any, decoder_input_ids: Any = None) -> None: ...
def tables(rows: Any) -> None: ...


def test_names_of_rules_are_the_library_s_model_types() -> None:
    assert set(RULES) == {*IMAGE_RULES, *SEQUENCE_RULES}
    assert not IMAGE_RULES.keys() & SEQUENCE_RULES.keys()
    unknown = {name for name in RULES if name not in CONFIG_MAPPING_NAMES}
    # Parts of models, whose configurations the library maps to no class.
    assert unknown <= {"blip_2_qformer", "instructblip_qformer", "mllama_text_model", "xclip"} | {
        "musicgen_decoder"
    }


def test_without_a_rule_the_names_speak() -> None:
    plan = plan_inputs(model(text, **TEXT))
    assert plan.shapes == {
        "input_ids": ("batch", "text"),
        "attention_mask": ("batch", "text"),
    }
    assert (plan.context, plan.decode, plan.dims["text"].max) == ((), None, 16)
    plan = plan_inputs(model(image_and_text, **TEXT, image_size=8, num_channels=1))
    assert plan.shapes["pixel_values"] == ("batch", 1, 8, 8)
    assert plan.context == ("pixel_values",)


def test_an_encoder_is_the_context_of_its_decoder() -> None:
    part = SimpleNamespace(model_type="part", **TEXT)
    plan = plan_inputs(
        model(sequences, **TEXT, is_encoder_decoder=True, get_text_config=lambda decoder: part)
    )
    assert list(plan.shapes) == ["input_ids", "attention_mask", "decoder_input_ids"]
    assert plan.context == ("input_ids", "attention_mask")
    assert plan.decode == "decoder_input_ids"
    # A model that is no encoder and decoder has an argument of that name for other uses.
    plan = plan_inputs(model(sequences, **TEXT, is_encoder_decoder=False))
    assert ("decoder_input_ids" in plan.shapes, plan.decode) == (False, None)


def test_what_names_do_not_tell_is_refused() -> None:
    with pytest.raises(InputError, match=r"can't be told.*got rows.*register_input_rule"):
        plan_inputs(model(tables))


def test_a_registered_rule_plans_for_its_type_alone() -> None:
    def rows(plan: InputPlan, made: nn.Module, takes: set[str]) -> None:
        assert takes == {"rows"}
        plan.add("rows", ("batch", made.config.width), normal)  # type: ignore[union-attr]
        plan.context = ("rows",)

    for _ in range(2):
        register_input_rule("tables", rows)
    plan = plan_inputs(model(tables, "tables", width=5))
    assert (plan.shapes, plan.context) == ({"rows": ("batch", 5)}, ("rows",))
    with pytest.raises(InputError, match="can't be told"):
        plan_inputs(model(tables, "others", width=5))
    with pytest.raises(InputError, match="another input rule of this name is registered"):
        register_input_rule("tables", lambda plan, made, takes: None)
    with pytest.raises(InputError, match="input rule of this name is built in: got 'clip'"):
        register_input_rule("clip", rows)
    with pytest.raises(InputError, match="what is offered is no input rule"):
        register_input_rule("more", "text")  # type: ignore[arg-type]


def test_a_rule_that_plans_nothing_leaves_it_to_the_names() -> None:
    register_input_rule("shy", lambda plan, made, takes: None)
    assert "input_ids" in plan_inputs(model(text, "shy", **TEXT)).shapes


def test_a_rule_that_fails_is_named() -> None:
    def wrong(plan: InputPlan, made: Any, takes: set[str]) -> None:
        plan.add("x", made.config.nothing, normal)

    register_input_rule("wrong", wrong)
    with pytest.raises(InputError, match="rule for model type 'wrong' raised AttributeError"):
        plan_inputs(model(text, "wrong", **TEXT))


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 37,
}


@pytest.mark.parametrize(
    ("make", "context"),
    [
        (
            lambda: transformers.TrOCRForCausalLM(
                transformers.TrOCRConfig(
                    vocab_size=30, d_model=32, decoder_layers=1, decoder_attention_heads=2,
                    decoder_ffn_dim=37, max_position_embeddings=20, is_decoder=True,
                    add_cross_attention=True,
                )
            ),
            ("encoder_hidden_states", "encoder_attention_mask"),
        ),
        (
            lambda: transformers.ViltModel(
                transformers.ViltConfig(
                    **SMALL, vocab_size=30, image_size=16, patch_size=8, max_position_embeddings=12
                )
            ),
            ("pixel_values", "pixel_mask"),
        ),
        (
            lambda: transformers.WhisperForConditionalGeneration(
                transformers.WhisperConfig(
                    vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1,
                    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=17,
                    decoder_ffn_dim=17, num_mel_bins=8, max_source_positions=10,
                    max_target_positions=12, pad_token_id=1, bos_token_id=2, eos_token_id=3,
                    decoder_start_token_id=2, suppress_tokens=None, begin_suppress_tokens=None,
                )
            ),
            ("input_features",),
        ),
    ],
    ids=["trocr", "vilt", "whisper"],
)  # fmt: skip
def test_models_take_what_is_planned_at_other_sizes_too(
    make: Callable[[], nn.Module], context: tuple[str, ...]
) -> None:
    made = make().eval()
    plan = plan_inputs(made)
    assert plan.context == context
    sizes = {
        name: min(size + 1, plan.dims[name].max or size + 1) for name, size in plan.example.items()
    }
    for at in (plan.example, sizes):
        inputs = plan.sample(at, torch.Generator().manual_seed(0))
        with torch.no_grad():
            first = made(**inputs)[0]
        assert first.shape[0] == at["batch"]
        assert torch.isfinite(first).all()
