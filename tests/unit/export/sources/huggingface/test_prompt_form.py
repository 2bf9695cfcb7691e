"""The form of prompts, found by watching a processor."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossfuse.core.processor_files import PLACES, PROMPTS, TOKENIZER_SETTINGS
from crossfuse.export.sources.huggingface.asked import Asked
from crossfuse.export.sources.huggingface.processor import as_processor
from crossfuse.export.sources.huggingface.processor_inputs import Recipe
from crossfuse.export.sources.huggingface.prompt_form import with_prompt_form
from crossfuse.export.sources.huggingface.sample_inputs import Row, made_row
from processor_checkpoints import CHECKPOINTS

FILES = {TOKENIZER_SETTINGS: "{}"}


class Reads(torch.nn.Module):
    def forward(self, input_ids: Any, pixel_values: Any, attention_mask: Any = None) -> None:
        pass


def asked_of(name: str, prompt: str) -> Asked:
    _, processor = CHECKPOINTS[name]()
    row = replace(made_row(("images", "text"), None), text="what is this ?")
    recipe = Recipe(("images", "text"), prompt)
    return Asked(Reads(), as_processor(processor), (row,), recipe)


def form_of(asked: Asked, count: int) -> dict[str, Any]:
    ids = asked.made([asked.rows[0]])["input_ids"]
    first = ids[:, :count]
    inputs = {"prefix_input_ids": first, "prefix_attention_mask": torch.ones_like(first)}
    spec: Any = SimpleNamespace(inputs=inputs)
    found: dict[str, Any] = json.loads(with_prompt_form(FILES, asked, spec)[TOKENIZER_SETTINGS])
    return found


def test_a_chat_with_an_image() -> None:
    asked = asked_of("llava", "chat")
    form = form_of(asked, 7)[PROMPTS]
    assert form["before"].endswith("<image>" * 4)
    assert form["before"].startswith("USER: ")
    assert form["after"].endswith("ASSISTANT:")
    assert form["special"] is True
    assert (form["mark"], form["stands_for"]) == ("<image>", "<image>" * 4)
    ids = asked.made([Row("a red cat", asked.rows[0].images)])["input_ids"][0].tolist()
    words = asked.processor.words
    assert words(form["before"] + "a red cat" + form["after"])["input_ids"] == ids
    assert form["first"]["prefix_input_ids"] == [ids[:7]]
    assert form["first"]["prefix_attention_mask"] == [[1] * 7]
    assert form["sizes"] == [[128, 192]]
    assert words.__class__.__call__.__qualname__.startswith("PreTrained"), "it is watched no longer"


@pytest.mark.parametrize("axes", [(20, 30, 3), (3, 20, 30)])
def test_the_size_of_an_image_in_an_array(axes: tuple[int, ...]) -> None:
    asked = asked_of("llava", "chat")
    row = replace(asked.rows[0], images=(np.zeros(axes, np.uint8),))
    assert form_of(replace(asked, rows=(row,)), 7)[PROMPTS]["sizes"] == [[20, 30]]


def test_a_processor_that_begins_with_the_image() -> None:
    form = form_of(asked_of("paligemma", "plain"), 5)[PROMPTS]
    assert form["before"] == "<image>" * 4 + "<s>"
    assert form["after"] == "\n"


def test_texts_in_whose_place_others_are_written() -> None:
    asked = asked_of("florence2", "plain")
    spec: Any = SimpleNamespace(inputs={}, context=("input_ids",))
    assert with_prompt_form(FILES, asked, spec) == FILES, "it says of no places"
    files = {TOKENIZER_SETTINGS: json.dumps({PLACES: {"image_token_id": 4}})}
    form = json.loads(with_prompt_form(files, asked, spec)[TOKENIZER_SETTINGS])[PROMPTS]
    theirs = asked.processor.call
    assert form["first"] == {}
    assert form["before"] == "<image>" * 5 + "<s>"
    expected = {task: [text] for task, text in theirs.task_prompts_without_inputs.items()}
    expected |= {
        task: text.split("{input}") for task, text in theirs.task_prompts_with_input.items()
    }
    assert form["tasks"] == expected
    assert form_of(asked_of("llava", "chat"), 7)[PROMPTS]["tasks"] == {}


@pytest.mark.parametrize("change", ["no processor", "other first tokens", "features"])
def test_what_can_not_be_told_is_left_out(change: str) -> None:
    asked = asked_of("llava", "chat")
    if change == "no processor":
        assert with_prompt_form(FILES, None, SimpleNamespace(inputs={})) == FILES  # type: ignore[arg-type]
        return
    first = torch.zeros(1, 7, dtype=torch.int64)
    if change == "features":
        first = asked.made([asked.rows[0]])["input_ids"][:, :7]
    inputs = {"prefix_input_ids": first, "prefix_bias": torch.zeros(1, 7)}
    spec: Any = SimpleNamespace(inputs=inputs)
    assert with_prompt_form(FILES, asked, spec) == FILES
