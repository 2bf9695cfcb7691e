"""Tiny models of any type, and the rows of the table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from coverage.case_lists import LISTS, all_cases, cases_of
from coverage.cases import Case
from coverage.rows import (
    ROOT,
    Limits,
    RowFile,
    collected,
    eager_row,
    reason_of,
    row_of,
    senses_of,
)
from coverage.shrink import LARGEST, CannotShrinkError, model_class, tiny_config, tiny_model
from coverage.table import document
from crossfuse import ModelSpec
from crossfuse.errors import FusionError, InputError, ParityError


def test_parts_are_made_small_and_fit_each_other() -> None:
    config = tiny_config(CONFIG_MAPPING["llava"], image=48)
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, vision.num_hidden_layers) == (2, 2)
    assert (text.hidden_size, vision.hidden_size, vision.image_size) == (64, 64, 48)
    assert config.image_token_id < text.vocab_size <= 160
    swin = tiny_config(CONFIG_MAPPING["swin"])
    assert (list(swin.depths), swin.embed_dim, list(swin.num_heads)) == ([1] * 4, 16, [2] * 4)
    vision = tiny_config(CONFIG_MAPPING["lfm3_vl"]).vision_config
    assert sorted(vision.layer_types) == ["conv", "full_attention"]
    given = tiny_config(CONFIG_MAPPING["bert"], hidden_size=24)
    assert given.hidden_size == 24


def test_the_seed_decides_and_no_parameter_is_plain() -> None:
    transformers.logging.set_verbosity_error()
    first, again = tiny_model("bert"), tiny_model("bert")
    assert not first.training
    for (name, left), right in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
        assert len(left.unique()) > 1, name
    assert sum(p.numel() for p in first.parameters()) < LARGEST


def test_what_can_t_be_made_tiny_says_why() -> None:
    with pytest.raises(CannotShrinkError, match="no class of its own"):
        tiny_model("llava_next_vision") if "llava_next_vision" in CONFIG_MAPPING else model_class(
            type("Config", (), {"model_type": "nobody's"})
        )


def test_a_class_without_a_forward_is_none() -> None:
    with pytest.raises(
        CannotShrinkError, match="Qwen2_5OmniForConditionalGeneration has no forward"
    ):
        model_class(type("Config", (), {"model_type": "qwen2_5_omni"}))


def test_lists_name_each_case_once() -> None:
    assert "coverage.cases" in LISTS
    assert len(all_cases()) == sum(len(cases_of(module)) for module in LISTS)


@pytest.mark.parametrize(
    ("inputs", "senses"),
    [
        (["input_ids", "pixel_values"], ["text", "image"]),
        (["decoder_input_ids", "input_features"], ["text", "sound"]),
        (["input_ids", "attention_mask", "bbox"], ["text", "page"]),
        (["pixel_values"], ["image"]),
    ],
)
def test_senses_are_told_by_names(inputs: list[str], senses: list[str]) -> None:
    assert senses_of(inputs) == senses


def test_whatever_fails_is_the_row_s_reason() -> None:
    assert reason_of(OSError(f"at {ROOT}/src/a.py")) == "OSError: at src/a.py"

    def fails() -> Any:
        raise ValueError("two\nlines")

    row = row_of(Case("mine", fails, "what", None, None), lambda spec: spec)
    assert (row["failed"], row["stage"]) == ("ValueError: two lines", "model")

    def too_large() -> Any:
        raise CannotShrinkError("no class")

    row = row_of(Case("mine", too_large, "what", None, None), lambda spec: spec)
    assert (row["failed"], row["stage"]) == ("no class", "tiny")


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (FusionError("1 of 2"), "fusion"),
        (ParityError("logits"), "parity"),
        (InputError("torch.export can't trace the model: why"), "trace"),
        (InputError("the model itself refuses the inputs that were planned: why"), "inputs"),
        (ValueError("why"), "export"),
    ],
)
def test_an_error_tells_where_a_model_fails(error: Exception, stage: str) -> None:
    def fails(spec: ModelSpec) -> Any:
        raise error

    made = ModelSpec(torch.nn.Identity(), {"input": torch.ones(1)})
    row = row_of(Case("mine", lambda: made, "what", None, None), fails)
    assert row["stage"] == stage


def row_for_tests(name: str) -> dict[str, Any]:
    if name == "slow":
        while True:
            pass
    if name == "dies":
        os.write(2, b"out of memory\n")
        os._exit(3)
    print("noise")
    row = {"name": name, "what": "w", "why": "", "counts": {"self": 2}, "captured": ["sdpa"]}
    row |= {"fused": {"ort-cpu": 2}, "error": 1e-6, "tolerance": 1e-5, "senses": ["a", "b"]}
    return row | {"quick": True}


def test_rows_are_kept_and_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"name": "old", "stamp": "other"}) + '\n{"name": "cut')
    kept = RowFile(path, "now")
    assert not kept.rows
    path.write_text("")
    rows = collected(["good", "dies", "slow"], kept, row_for_tests, jobs=2, limits=Limits(1))
    assert [row.get("failed") for row in rows] == [
        None,
        "its process ended with 3: out of memory",
        "not done within 1 s of CPU time",
    ]
    kept.keep({"name": "runs", "stage": "eager"})
    assert collected(["runs"], kept, eager_row, jobs=1, limits=Limits(1), enough=bool)
    again = RowFile(path, "now")
    assert collected(["dies", "good"], again, pytest.fail, jobs=1, limits=Limits(1)) == [
        rows[1],
        rows[0],
    ]
    runs = {"name": "runs", "what": "", "stage": "eager"}
    rows[0]["earlier"] = True
    none = {"name": "type:none", "failed": "no class", "stage": "tiny"}
    plain = rows[0] | {"name": "plain", "counts": {}, "fused": {"ort-cpu": 0}}
    text = document([("Mine", [*rows, none, plain, runs], ["later"])])
    assert "2 rows were made by an earlier version of the code." in text
    assert "1 more run in eager on planned inputs and were **not exported**: runs." in text
    assert "5 were tried: 4 can be made, and 4 of them run in eager. 1 of these attend to" in text
    assert "are not counted. **1 of 3** (33.3 %)" in text
    assert "pass parity, 1 of them multimodal" in text
    assert "1: the export is refused or fails." in text
    assert "quick exports for ort-cpu: compared at the examples and at one made point" in text
    assert "Multimodal ones that pass: good." in text
    assert "| slow | not done within the time or memory of a row | not done within 1 s" in text
    assert "| none | no tiny model of it could be made | no class |" in text
    assert "1 more were **not run** and say nothing: later." in text
