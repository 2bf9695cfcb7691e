"""Weights that a checkpoint lacks are named, before they pass for trained ones."""

from __future__ import annotations

import pytest

from crossfuse.core.checkpoint_weights import require_weights, weights_about, weights_words
from crossfuse.errors import Door, InputError


def test_what_is_missing_is_named() -> None:
    missing = [f"head.{i}" for i in range(7)]
    with pytest.raises(InputError) as error:
        require_weights(
            "folder", "the checkpoint is another model's", missing,
            {"embed": ((3, 4), (5, 4))}, ["old.head"], allow_missing=False,
        )  # fmt: skip
    text = error.value.paragraph(Door.COMMAND_LINE)
    assert "7 missing (head.0, head.1, head.2, head.3, head.4, … and 2 more)" in text
    assert "1 in another shape (embed [3, 4] for [5, 4])" in text
    assert "1 that the model doesn't know (old.head)" in text
    assert "--allow-missing" in text
    assert "allow_missing=True" in str(error.value)


def test_what_passes() -> None:
    require_weights("folder", "what", [], {}, ["left"], allow_missing=False)
    require_weights("folder", "what", ["a"], {"b": ((1,), (2,))}, [], allow_missing=True)


def test_what_the_manifest_says() -> None:
    about = weights_about(["b", "a"], [])
    assert about == {"missing_weights": ["a", "b"]}
    assert weights_words(about) == ["2 weights are random, as the checkpoint lacks them: a, b"]
    assert weights_about([], []) == {}
    both = weights_words(weights_about(["a"], ["c"]))
    assert both[1] == "1 tensors of the checkpoint are not used: c"
    assert weights_words({"missing_weights": "text", "left_over_weights": 3}) == []
