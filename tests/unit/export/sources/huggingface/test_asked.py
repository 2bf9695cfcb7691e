"""A model asked with what its processor makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.asked import RefusedError, ask
from crossfuse.export.sources.huggingface.input_rules import plan_inputs
from crossfuse.export.sources.huggingface.load import load_model
from crossfuse.export.sources.huggingface.processor import (
    NoProcessorError,
    as_processor,
    load_processor,
)
from crossfuse.export.sources.huggingface.sample_inputs import Given
from processor_checkpoints import save_checkpoint, tokenizer

BERT = transformers.BertConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=17
)


def test_the_chat_template_puts_an_image_where_it_belongs(tmp_path: Path) -> None:
    folder = save_checkpoint("llava", tmp_path)
    model = load_model(str(folder)).module
    asked = ask(model, load_processor(folder), Given(["What is red?"]))
    made = asked.made()
    assert (asked.recipe.prompt, len(asked.rows)) == ("chat", 2)
    assert (made["input_ids"] == model.config.image_token_id).sum(-1).tolist() == [4, 4]
    # The user's words are in the first row, as the tokenizer has them.
    red = load_processor(folder).words.convert_tokens_to_ids("red")
    assert (made["input_ids"] == red).any(-1).tolist() == [True, False]


def test_a_decoder_is_added_from_the_configuration(tmp_path: Path) -> None:
    folder = save_checkpoint("whisper", tmp_path)
    model = load_model(str(folder)).module
    asked = ask(model, load_processor(folder), Given(), plan_inputs(model))
    assert asked.added == ("decoder_input_ids",)
    inputs = asked.completed(asked.made(), {"batch": 2}, torch.Generator().manual_seed(0))
    assert list(inputs) == ["input_features", "decoder_input_ids"]


def test_what_nobody_has_a_use_for() -> None:
    words, model = as_processor(tokenizer()), transformers.BertModel(BERT)
    with pytest.raises(InputError, match="audio= can't be used") as error:
        ask(model, words, Given(audio=[np.zeros(9)]))
    assert "its processor doesn't read that" in str(error.value)
    images = as_processor(transformers.CLIPImageProcessor())
    with pytest.raises(NoProcessorError, match="reads nothing"):
        ask(model, images, Given())


def test_the_models_own_words_where_it_refuses() -> None:
    small = transformers.BertModel(
        transformers.BertConfig(**BERT.to_dict() | {"max_position_embeddings": 4})
    )
    with pytest.raises(RefusedError, match="Error"):
        ask(small, as_processor(tokenizer()), Given())
