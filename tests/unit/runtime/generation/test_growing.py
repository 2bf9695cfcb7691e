"""Tokens of sequences beside each other, each by its own settings: as the loop chooses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import CrossfuseError, InputError, runtime
from crossfuse.runtime.generation.growing import Choices, Growing, choose, growing
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.ticket import Ticket
from unit.runtime.toy_decoder import IMAGES, VOCABULARY, logits_of, toy_session

SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 6, "eos_token_id": 0},
    {"max_new_tokens": 6, "eos_token_id": 0},
    {"max_new_tokens": 4, "repetition_penalty": 3.0, "suppress_tokens": [2]},
    {"max_length": 9, "do_sample": True, "seed": 4, "temperature": 1.5, "eos_token_id": [1, 2]},
    {"max_length": 9, "do_sample": True, "seed": 5, "temperature": 1.5, "eos_token_id": [1, 2]},
    {"max_new_tokens": 8, "no_repeat_ngram_size": 2, "stop_sequences": [[3, 4], [5]]},
]
PROMPTS = [[1], [3, 4, 5], [2, 2], [1, 6], [5], [4, 4, 4]]


def begun(settings: dict[str, Any], prompt: Any, hook: Any = None) -> Growing:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    choices = Choices.of(GenerationSettings.of(settings, {}), hook)
    return growing(session, context, prompt, Ticket(), choices, asked=True)


def fails(one: Growing, error: CrossfuseError) -> None:
    raise error


def scores_of(ones: list[Growing]) -> np.ndarray:
    return np.stack([logits_of(one.tokens, IMAGES[0]) for one in ones]).astype(np.float32)


def test_each_goes_by_its_own_settings() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    ones = [begun(*pair) for pair in zip(SETTINGS, PROMPTS, strict=True)]
    assert ones[0].choices.kind == ones[1].choices.kind
    assert ones[3].choices.kind == ones[4].choices.kind, "their seeds differ alone"
    while left := [one for one in ones if not one.complete]:
        choose(left, scores_of(left), fails)
    for one, settings, prompt in zip(ones, SETTINGS, PROMPTS, strict=True):
        alone = runtime.generate(session, context, [prompt], **settings)
        whole = one.whole()
        np.testing.assert_array_equal(whole.sequences, alone.sequences)
        np.testing.assert_allclose(whole.log_probs, alone.log_probs, rtol=1e-5)
        np.testing.assert_allclose(whole.scores, alone.scores, rtol=1e-5)
        assert whole.ended.tolist() == alone.ended.tolist()
        tokens = [token.token for token in one.ticket.take()]
        assert tokens == alone.new_tokens[0].tolist()


def test_what_goes_wrong_with_one_touches_no_other() -> None:
    def raises(rows: Any, scores: Any) -> Any:
        raise KeyError("mine")

    none = begun({"max_new_tokens": 3, "suppress_tokens": list(range(VOCABULARY))}, [1])
    hooked = begun({"max_new_tokens": 3}, [1], raises)
    good = begun({"max_new_tokens": 3}, [1])
    told: dict[int, str] = {}
    ones = [none, hooked, good]
    choose(ones, scores_of(ones), lambda one, error: told.update({id(one): str(error)}))
    assert set(told) == {id(none), id(hooked)}
    assert "no token may come next" in told[id(none)]
    assert "the logits hook raised" in told[id(hooked)]
    assert good.last == int(logits_of([1], IMAGES[0]).argmax())


@pytest.mark.parametrize(
    ("settings", "prompt", "error"),
    [
        ({"num_beams": 2}, [1], "greedily or by samples.*num_beams=2"),
        ({"do_sample": True, "num_return_sequences": 2}, [1], "num_return_sequences=2"),
        ({}, [[1], [2]], "one sequence over one context.*2 prompts"),
        ({}, [], "a prompt is empty"),
        ({"max_new_tokens": 99}, [1], "holds fewer tokens"),
        ({}, None, "there is no prompt"),
    ],
)
def test_what_is_not_one_sequence_is_refused(settings: Any, prompt: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        begun(settings, prompt)


def test_several_contexts_are_not_one() -> None:
    session = toy_session()
    choices = Choices.of(GenerationSettings(), None)
    with pytest.raises(InputError, match="2 contexts"):
        growing(session, session.encode(image=IMAGES), [1], Ticket(), choices, asked=False)


def test_tokens_in_front_of_the_prompt_count() -> None:
    first = np.array([[3, 4], [5, 6]])
    session = toy_session(first=2)
    settings = {"max_new_tokens": 6, "repetition_penalty": 3.0}
    expected = runtime.generate(
        session, session.encode(image=IMAGES, prefix_ids=first), [[1], [2, 1]], **settings
    )
    with runtime.GenerationEngine(session, slots=2, queue=2) as engine:
        tickets = [
            engine.submit(
                session.encode(image=IMAGES[[n]], prefix_ids=first[[n]]), prompt, **settings
            )
            for n, prompt in enumerate(([1], [2, 1]))
        ]
        for ticket, tokens in zip(tickets, expected.new_tokens, strict=True):
            assert ticket.result().new_tokens[0].tolist() == tokens.tolist()
