"""Settings of generation on the command line."""

from __future__ import annotations

import pytest

from crossfuse.commands.generation_options import named_settings
from crossfuse.errors import InputError


def test_values_are_json_or_texts() -> None:
    given = ["top_k=3", "early_stopping=never", "a=[1, 2]", "b=true", "c=x=y", "d="]
    expected = {"top_k": 3, "early_stopping": "never", "a": [1, 2], "b": True, "c": "x=y", "d": ""}
    assert named_settings(given) == expected


@pytest.mark.parametrize("text", ["top_k", "=3", ""])
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        named_settings([text])
