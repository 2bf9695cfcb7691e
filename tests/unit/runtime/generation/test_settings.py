"""Settings of generation, from a caller and from a bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.generation.settings import CHANGES_NOTHING, GenerationSettings


def test_a_callers_settings_go_before_the_bundles() -> None:
    bundle = {
        "num_beams": 4,
        "eos_token_id": 2,
        "max_length": 448,
        "begin_suppress_tokens": [220, 50256],
        "lang_to_id": {"<|en|>": 5},
        "pad_token_id": 1,
        "decoder_start_token_id": None,
        "suppress_tokens": [-1],
    }
    found = GenerationSettings.of({"num_beams": 2, "pad_token_id": None}, bundle)
    assert (found.num_beams, found.eos_token_id, found.max_length) == (2, (2,), 448)
    assert found.begin_suppress_tokens == (220, 50256)
    assert (found.pad_token_id, found.decoder_start_token_id) == (None, None)
    assert found.suppress_tokens == ()
    longer = GenerationSettings.of({"max_new_tokens": 3}, bundle)
    assert (longer.max_new_tokens, longer.max_length) == (3, None)
    listed = GenerationSettings.of(
        {"eos_token_id": np.array([2, 5]), "stop_sequences": [[3], 4]}, {}
    )
    assert (listed.eos_token_id, listed.stop_sequences) == ((2, 5), ((3,), (4,)))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"num_beam": 2}, "no such setting.*Did you mean 'num_beams'"),
        ({"num_beams": 0}, "wrong.*num_beams"),
        ({"num_beams": True}, "wrong.*num_beams"),
        ({"temperature": 0.0}, "wrong.*temperature"),
        ({"temperature": float("nan")}, "wrong.*temperature"),
        ({"top_p": 1.5}, "wrong.*top_p"),
        ({"top_k": -1}, "wrong.*top_k"),
        ({"early_stopping": "sometimes"}, "wrong.*early_stopping"),
        ({"eos_token_id": ["a"]}, "wrong.*eos_token_id"),
        ({"bad_words_ids": [[]]}, "wrong.*bad_words_ids"),
        ({"bad_words_ids": 3}, "wrong.*bad_words_ids"),
        ({"do_sample": 1}, "wrong.*do_sample"),
        ({"max_new_tokens": 0}, "wrong.*max_new_tokens"),
        ({"num_return_sequences": 2}, "greedy"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more results than beams"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        GenerationSettings.of(given, {})


@pytest.mark.parametrize("name", CHANGES_NOTHING)
def test_what_would_change_the_tokens_and_is_not_known_is_refused(name: str) -> None:
    for neutral in CHANGES_NOTHING[name]:
        GenerationSettings.of({}, {name: neutral})
    with pytest.raises(InputError, match=f"not supported.*{name}"):
        GenerationSettings.of({}, {name: 3})
    GenerationSettings.of({name: CHANGES_NOTHING[name][-1]}, {name: 3})


def test_values_change_one_by_one() -> None:
    assert GenerationSettings(num_beams=2).changed(length_penalty=0.5).length_penalty == 0.5
