"""Prompts with places for an image: written around a text, and cut behind the first tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from crossfuse import InputError
from crossfuse.core.tensors import TensorSpec
from crossfuse.runtime.processing.prompt_form import PromptForm
from crossfuse.runtime.processing.words import Words
from processor_checkpoints import tokenizer

PLACE = 4
FORM = PromptForm(
    before="a photo <image><image> ",
    after=" it",
    special=False,
    first={"prefix_ids": ((5, 6, 4, 4),), "prefix_places": ((0, 1, 2, 2), (0, 1, 2, 3))},
    mark="<image>",
    stands_for="<image><image>",
)
SPECS = {
    "prefix_ids": TensorSpec("prefix_ids", "int64", ("contexts", 4)),
    "prefix_places": TensorSpec("prefix_places", "int64", (2, "contexts", 4)),
    "pixels": TensorSpec("pixels", "float32", ("contexts", 3)),
}


def words() -> Words:
    made = tokenizer("<image>")
    return Words(made.backend_tokenizer.to_str().encode(), {}, "here")


def test_a_text_is_put_into_the_form() -> None:
    known, theirs = words(), tokenizer("<image>")
    expected = theirs("a photo <image><image> the cat it", add_special_tokens=False)["input_ids"]
    ids = FORM.ids(known, "the cat")
    assert ids == expected
    made, rest = FORM.parts(ids, {PLACE}, SPECS, "ids")
    assert {name: array.shape for name, array in made.items()} == {
        "prefix_ids": (1, 4), "prefix_places": (2, 1, 4)
    }  # fmt: skip
    assert [*made["prefix_ids"][0].tolist(), *rest] == expected
    assert made["prefix_places"][1, 0].tolist() == [0, 1, 2, 3]
    assert len(rest) == 3


def test_a_whole_prompt_with_a_mark() -> None:
    ids = FORM.ids(words(), "the cat <image> is")
    theirs = tokenizer("<image>")
    whole = theirs("the cat <image><image> is", add_special_tokens=False)["input_ids"]
    assert ids == whole
    made, rest = FORM.parts(ids, {PLACE}, SPECS, "ids")
    assert made["prefix_ids"][0].tolist() == whole[:4]  # other words, the places where they were
    assert rest == whole[4:]


def test_tasks_are_written_as_other_texts() -> None:
    form = replace(
        FORM, before="", after="", tasks={"<od>": ("the cat",), "<at>": ("what ", " is")}
    )
    for text, written in (
        ("<od>", "the cat"), ("<at> a red cat", "what a red cat is"), ("in <at>", "what in is"),
        ("two", "two"),
    ):  # fmt: skip
        assert form.ids(words(), text) == words().encode(written, special=False)
    with pytest.raises(InputError, match="without more words"):
        form.ids(words(), "<od> a cat")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two marks": (lambda: FORM.ids(words(), "<image> <image>"), "several images"),
    "too early": (lambda: FORM.parts([5, 4, 4, 6, 7], {PLACE}, SPECS, "ids"), "places elsewhere"),
    "too late": (lambda: FORM.parts([5, 6, 7, 4, 4, 8], {PLACE}, SPECS, "ids"), "places elsewhere"),
    "too short": (lambda: FORM.parts([5, 6], {PLACE}, SPECS, "ids"), "places elsewhere"),
    "one more": (lambda: FORM.parts([5, 6, 4, 4, 7, 4], {PLACE}, SPECS, "ids"), "token 2 to 5"),
    "no text": (lambda: FORM.parts([5, 6, 4, 4], {PLACE}, SPECS, "ids"), "no tokens follow"),
    "other inputs": (
        lambda: FORM.parts([5, 6, 4, 4, 7], {PLACE}, {**SPECS, "prefix_x": SPECS["pixels"]}, "ids"),
        "doesn't say how its prompts begin",
    ),
    "other ids": (lambda: FORM.parts([5], {PLACE}, SPECS, "words"), "doesn't say how its prompts"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_prompts_are_refused(name: str) -> None:
    call, why = REFUSED[name]
    with pytest.raises(InputError, match=why):
        call()
