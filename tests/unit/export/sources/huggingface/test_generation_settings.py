"""Settings of generation that a model of ``transformers`` brings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import transformers as hf
from torch import nn

from coverage.cases import SEQ2SEQ, TEXT
from crossfuse.export.sources.huggingface.generation_settings import generation_settings


def test_what_differs_from_the_librarys_own_is_kept() -> None:
    model = hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ | {"decoder_layers": 1}))
    config = model.generation_config
    config.num_beams, config.no_repeat_ngram_size = 4, 3
    config.lang_to_id = {"<|en|>": 5}
    found = generation_settings(model)
    assert (found["num_beams"], found["no_repeat_ngram_size"]) == (4, 3)
    assert (found["eos_token_id"], found["decoder_start_token_id"]) == (2, 2)
    assert found["lang_to_id"] == {"<|en|>": 5}, "what a task needs travels, too"
    assert "transformers_version" not in found
    assert not any(name.startswith("_") or value is None for name, value in found.items())
    assert json.loads(json.dumps(found)) == found


def test_captions_begin_and_end_as_the_texts_configuration_says() -> None:
    text = {"bos_token_id": 7, "sep_token_id": 8, "pad_token_id": 0}
    config = hf.BlipConfig(text_config=TEXT | text)
    model = nn.Linear(1, 1)
    model.config, model.generation_config = config, hf.GenerationConfig()  # type: ignore[assignment]
    found = generation_settings(model)
    assert {name: found[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 7,
        "eos_token_id": 8,
        "pad_token_id": 0,
    }


def test_other_models_have_none() -> None:
    assert generation_settings(nn.Linear(1, 1)) == {}
    model = nn.Linear(1, 1)
    kept = SimpleNamespace(to_diff_dict=lambda: {"a": object(), "b": float("nan"), "c": [1]})
    model.config, model.generation_config = SimpleNamespace(), kept  # type: ignore[assignment]
    assert generation_settings(model) == {"c": [1]}


def test_what_the_file_says_beyond_the_librarys_settings(tmp_path: Path) -> None:
    model = hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ | {"decoder_layers": 1}))
    said = {
        "lang_to_id": {"<|en|>": 4}, "num_beams": 7, "return_timestamps": True, "max_length": None,
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    found = generation_settings(model, tmp_path)
    assert found["lang_to_id"] == {"<|en|>": 4}
    assert "num_beams" not in found, "of its own settings the library's reading counts"
    assert "max_length" not in found
    assert found["return_timestamps"] is True
    assert "lang_to_id" not in generation_settings(model)
