"""What a call of `generate` begins with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.generation.prepared import Run, longest_of, prompts_of, scoring_output
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.token_rows import TokenRows
from unit.runtime.toy_decoder import IMAGES, LENGTH, logits_of, toy_session


def test_a_prompt_may_be_the_bundles_start_token() -> None:
    context = toy_session().encode(image=IMAGES)
    for settings, start in (
        (GenerationSettings(decoder_start_token_id=3, bos_token_id=1), 3),
        (GenerationSettings(bos_token_id=1), 1),
        (GenerationSettings(decoder_start_token_id=0, bos_token_id=1), 0),
    ):
        rows = prompts_of(context, settings, None, None, None)
        assert rows.ids.tolist() == [[start], [start]]
    with pytest.raises(InputError, match="no prompt"):
        prompts_of(context, GenerationSettings(), None, None, None)
    behind = toy_session(first=1).encode(image=IMAGES, prefix_ids=np.array([[1], [2]]))
    with pytest.raises(InputError, match="no prompt behind the first tokens"):
        prompts_of(behind, GenerationSettings(bos_token_id=1), None, None, None)
    with pytest.raises(InputError, match=r"a prompt is empty.*prompt\[1\]"):
        prompts_of(context, GenerationSettings(), [[1], []], None, None)


@pytest.mark.parametrize(
    ("settings", "asked", "longest"),
    [
        ({"max_new_tokens": 4}, True, [5, 7]),
        ({"max_length": 9}, True, [9, 9]),
        ({"max_new_tokens": 4, "max_length": 9}, True, [5, 7]),
        ({}, False, [LENGTH, LENGTH]),
        ({"max_length": 448}, False, [LENGTH, LENGTH]),
        ({"max_length": LENGTH + 1}, True, [LENGTH + 1, LENGTH + 1]),
    ],
)
def test_how_long_sequences_become(
    settings: dict[str, Any], asked: bool, longest: list[int]
) -> None:
    rows = TokenRows.of([[1], [1, 2, 3]])
    found = longest_of(toy_session(), GenerationSettings(**settings), rows, asked=asked)
    assert found.tolist() == longest


def test_what_does_not_fit_is_refused() -> None:
    rows = TokenRows.of([[1], [1, 2, 3]])
    session = toy_session()
    with pytest.raises(InputError, match="holds fewer tokens.*at most 17"):
        longest_of(session, GenerationSettings(max_new_tokens=LENGTH), rows, asked=True)
    with pytest.raises(InputError, match=r"leaves no room.*prompt\[1\].*3 tokens"):
        longest_of(session, GenerationSettings(max_length=3), rows, asked=True)


def test_the_output_that_scores_tokens() -> None:
    assert scoring_output(toy_session(), None) == "logits"
    assert scoring_output(toy_session(outputs="words"), None) == "words"
    with pytest.raises(InputError, match="which output scores"):
        scoring_output(toy_session(), "other")


def test_prompts_are_computed_once_for_all_their_beams() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES)
    rows = TokenRows.of([[1, 2], [3]])
    longest = np.array([9, 8])
    settings = GenerationSettings(num_beams=3)
    run = Run.begin(session, context, settings, rows, longest)
    assert run.state.batch == 6
    assert run.longest.tolist() == [9] * 3 + [8] * 3
    scores = run.scores()
    for row, (ids, image) in enumerate([([1, 2], 0)] * 3 + [([3], 1)] * 3):
        np.testing.assert_allclose(scores[row], logits_of(ids, IMAGES[image]), rtol=1e-6)
    assert run.draws is None
    assert Run(GenerationSettings(pad_token_id=5), run.state, longest, longest).pad == 5
    assert Run(GenerationSettings(eos_token_id=(4,)), run.state, longest, longest).pad == 4
