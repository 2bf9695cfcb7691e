"""Parameters of strangers: known names, numbers in range, lists that a server can bear."""

from __future__ import annotations

from typing import Any

import pytest

from crossfuse import InputError
from crossfuse.serve.generation_parameters import checked_parameters


def test_settings_are_taken_and_the_protocols_own_left_out() -> None:
    given = {"max_new_tokens": 4, "eos_token_id": [1, 2], "context_id": "cat", "seed": 3}
    assert checked_parameters(given, {"num_beams": 1}) == {
        "max_new_tokens": 4,
        "eos_token_id": [1, 2],
        "seed": 3,
    }
    assert checked_parameters({"binary_data_output": True}, {}) == {}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"temprature": 1}, "no such setting.*temperature"),
        ({"notify": 1}, "no such setting"),
        ({"logits_hook": "x"}, "no such setting"),
        ({"session": 1}, "no such setting"),
        ({"max_new_tokens": 10**400}, "out of range"),
        ({"seed": -(10**30)}, "out of range"),
        ({"eos_token_id": [[1], 10**60]}, "out of range"),
        ({"max_new_tokens": "many"}, "a setting of generation is wrong"),
        ({"max_new_tokens": None, "temperature": {}}, "a setting of generation is wrong"),
        ({"stop_sequences": [[1, 2], "x"]}, "a setting of generation is wrong"),
        ({"bad_words_ids": [[n] for n in range(2000)]}, "2000 numbers, expected at most 1024"),
        ({"stop_sequences": [[[1]]]}, "a setting of generation is wrong"),
        ({"guidance_scale": 3}, "not supported here"),
    ],
)
def test_what_is_none_is_refused(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        checked_parameters(given, {})
