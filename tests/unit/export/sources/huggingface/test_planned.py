"""Where inputs come from: the processor, the configuration, or the user's examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.planned import (
    CONFIGURATION,
    PROCESSOR,
    planned,
    planned_by_examples,
)
from crossfuse.export.sources.huggingface.processor import NoProcessorError, as_processor
from crossfuse.export.sources.huggingface.sample_inputs import Given
from crossfuse.export.sources.huggingface.spec import checkpoint_spec
from crossfuse.spec.input_origin import FROM, YOURS
from processor_checkpoints import save_checkpoint, tokenizer

NONE = NoProcessorError("the checkpoint's folder holds no processor", absent=True)


def bert(**other: Any) -> transformers.PreTrainedModel:
    settings = {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 17, "max_position_embeddings": 24,
    }  # fmt: skip
    return transformers.BertModel(transformers.BertConfig(**settings | other)).eval()


def test_the_processor_goes_first_and_the_configuration_stands_in() -> None:
    by_words = planned(bert(), as_processor(tokenizer()), Given())
    assert (by_words.source, by_words.context) == (PROCESSOR, ())
    assert planned(bert(), NONE, Given()).source == CONFIGURATION
    # Sentences of ten words are too long for this one.
    short = planned(bert(max_position_embeddings=8), as_processor(tokenizer()), Given())
    assert short.source.startswith(f"{CONFIGURATION} (the model refuses what its processor makes:")


def test_samples_of_the_users_are_used_or_refused() -> None:
    words = as_processor(tokenizer())
    found = planned(bert(), words, Given(["a cat", "red"]))
    assert found.inputs["attention_mask"].sum(-1).tolist() == [4, 3]
    with pytest.raises(InputError, match="holds no processor"):
        planned(bert(), NONE, Given(["a cat"]))
    with pytest.raises(InputError, match="the model refuses what its processor makes"):
        planned(bert(max_position_embeddings=8), words, Given(["a cat " * 9]))


def test_examples_are_the_inputs_where_they_do_not_fit(tmp_path: Path) -> None:
    folder = str(save_checkpoint("bert", tmp_path))
    ids = torch.arange(3, 9).reshape(2, 3)
    fitting = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    assert checkpoint_spec(folder, examples=[{**fitting}]).about[FROM] == PROCESSOR
    spec = checkpoint_spec(folder, examples=[{"input_ids": ids}, {"input_ids": ids[:1]}])
    assert spec.about[FROM] == YOURS
    assert torch.equal(spec.inputs["input_ids"], ids)
    assert spec.axes == {"input_ids": {0: "batch"}}


def test_an_example_that_the_model_refuses() -> None:
    with pytest.raises(InputError, match=r"fails on the example: .*input_ids"):
        planned_by_examples(bert(), [{"attention_mask": torch.ones(1, 3)}])
